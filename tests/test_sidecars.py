import errno
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sidecars
from cli import UserError
from pictures import Source
from sidecars import Sidecars

RDF, DC = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}", "{http://purl.org/dc/elements/1.1/}"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def picture(folder, name="photo.jpg"):
    return Source(folder / name, Path(name))


def member(archive, key):
    return Source(archive / key, Path(archive.stem, key), b"pixels")


def written(folder, kind, before, captions, **how):
    """The bytes of photo.jpg's sidecar when captions have been written to what was there before."""
    store, source = Sidecars(kind, **how), picture(folder)
    path = store.path(source)
    path.unlink(missing_ok=True)
    if before is not None:
        path.write_bytes(before)
    store.write(source, captions)
    assert list(folder.iterdir()) == [path]
    return path.read_bytes()


# ---------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("kind", "name", "beside"),
    [
        ("txt", "photo.jpg", "photo.txt"),
        (".txt", "photo.jpg", "photo.txt"),
        ("caption", "my.photo.JPEG", "my.photo.caption"),
        ("txt", "photo", "photo.txt"),
        ("xmp", "photo.jpg", "photo.jpg.xmp"),
        (".xmp", "photo", "photo.xmp"),
    ],
)
def test_a_sidecar_is_named_as_its_readers_expect(tmp_path, kind, name, beside):
    assert Sidecars(kind).path(picture(tmp_path, name)) == tmp_path / beside
    elsewhere = Sidecars(kind, folder=Path("out"))
    source = Source(tmp_path / "in" / name, Path("in", name))
    assert elsewhere.path(source) == Path("out/in", beside)


@pytest.mark.parametrize("kind", ["", ".", "a/b", "..", "*", ".tar.gz"])
def test_what_is_no_suffix_is_refused(kind):
    with pytest.raises(UserError, match=r"--sidecar must be a suffix such as txt or xmp, got '"):
        Sidecars(kind)


@pytest.mark.parametrize("kind", ["jpg", ".PNG"])
def test_a_suffix_of_pictures_is_refused(kind):
    """`--sidecar png --existing overwrite` would have replaced a.png when a.jpg was described."""
    with pytest.raises(UserError, match=f"--sidecar {kind} would replace pictures"):
        Sidecars(kind)


@pytest.mark.parametrize("kind", ["json", ".CSV"])
def test_what_tools_keep_beside_pictures_is_refused(kind):
    with pytest.raises(UserError, match=r"no .* by itself"):
        Sidecars(kind)


def test_members_of_archives_need_a_folder(tmp_path):
    source = member(tmp_path / "shard.tar", "000.17")
    for use in (Sidecars("txt").path, lambda source: Sidecars("xmp").check([source])):
        with pytest.raises(UserError, match=r"shard.tar.000.17 is in an archive.*--sidecar-folder"):
            use(source)
    store = Sidecars("txt", folder=tmp_path / "out")
    assert store.path(source) == tmp_path / "out/shard/000.17.txt"
    store.write(source, ["A dog"])
    assert (tmp_path / "out/shard/000.17.txt").read_text() == "A dog\n"


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil"])
def test_no_member_leads_out_of_the_folder(tmp_path, name):
    path = Sidecars("txt", folder=tmp_path).path(member(Path("shard.tar"), name))
    assert path.is_relative_to(tmp_path)
    assert ".." not in path.parts


# ---------------------------------------------------------------------------------- check


def test_two_pictures_with_one_text_are_refused(tmp_path):
    both = [picture(tmp_path, "a.jpg"), picture(tmp_path, "b.jpg"), picture(tmp_path, "a.png")]
    message = r"a\.jpg and \S+a\.png would share \S+a\.txt: rename one, or give --sidecar xmp"
    with pytest.raises(UserError, match=message):
        Sidecars("txt").check(both)
    Sidecars("xmp").check(both)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["txt", "xmp"])
def test_two_pictures_of_one_name_are_refused_in_one_folder(tmp_path, kind):
    both = [Source(tmp_path / folder / "a.jpg", Path("a.jpg")) for folder in ("x", "y")]
    Sidecars(kind).check(both)
    with pytest.raises(UserError, match=r"x.a\.jpg and .*y.a\.jpg would share .*two runs, with a"):
        Sidecars(kind, folder=tmp_path / "out").check(both)


def test_a_picture_given_twice_is_no_clash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    names = ("a.jpg", "./a.jpg", "x/../a.jpg", tmp_path / "a.jpg")
    same = [Source(Path(name), Path("a.jpg")) for name in names]
    Sidecars("txt").check(same)
    Sidecars("txt", folder=Path("out")).check(same)
    with pytest.raises(UserError, match=r"x/\.\./a\.png would share"):
        Sidecars("txt").check([*same, Source(Path("x/../a.png"), Path("a.png"))])


def test_no_sidecar_replaces_a_picture_that_is_given(tmp_path):
    message = r"scan\.txt is a picture, and would be the sidecar of \S+scan\.txt: give another"
    with pytest.raises(UserError, match=message):
        Sidecars("txt").check([picture(tmp_path, "scan.txt")])
    with pytest.raises(UserError, match=r"would share \S+a\.tif2: rename one"):
        Sidecars("tif2").check([picture(tmp_path, name) for name in ("a.jpg", "a.tif2")])


def test_what_is_no_picture_needs_no_sidecar(tmp_path):
    missing = Source(tmp_path / "gone.tar", content=UserError("gone.tar: no such file."))
    for folder in (None, tmp_path / "out"):
        store = Sidecars("txt", folder=folder)
        store.check([missing, missing])
        assert not store.is_kept(missing)
        assert list(store.left([missing])) == [missing]


def test_each_folder_is_tried_once_and_before_anything_is_written(tmp_path, monkeypatch):
    tried = []

    def access(path, mode):
        tried.append(path)
        assert mode == os.W_OK | os.X_OK
        return path != tmp_path / "locked"

    monkeypatch.setattr(sidecars.os, "access", access)
    names = [f"{folder}/{n}.jpg" for n in range(3) for folder in ("free", "locked", "no folder")]
    for folder in ("free", "locked"):
        (tmp_path / folder).mkdir()
    given = [picture(tmp_path, name) for name in names]
    message = r"captions cannot be written to \S+locked: give --sidecar-folder"
    with pytest.raises(UserError, match=message):
        Sidecars("txt").check(given)
    assert tried == [tmp_path / "free", tmp_path / "locked"]
    Sidecars("txt", folder=tmp_path / "free/new/newer").check(given)
    message = r"captions cannot be written to \S+locked: give another --sidecar-folder"
    with pytest.raises(UserError, match=message):
        Sidecars("txt", folder=tmp_path / "locked/new").check(given)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"cannot be written to \S+out: give another --sidecar-fol"):
        Sidecars("txt", folder=tmp_path / "out").check([picture(tmp_path)])


# ---------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("existing", "before", "after"),
    [
        ("keep", None, "A\nB\n"),
        ("keep", "\ufeff \r\n", "A\nB\n"),
        ("keep", "old", "old"),
        ("overwrite", "old\r\n", "A\r\nB\r\n"),
        ("append", None, "A\nB\n"),
        ("append", "\ufeff \n", "A\nB\n"),
        ("append", "old\n", "old\nA\nB\n"),
        ("append", "old", "old\nA\nB\n"),
        ("append", "old\r\n", "old\r\nA\r\nB\r\n"),
        ("append", "A\nB\nold\n", "A\nB\nold\nA\nB\n"),
        ("append", "old\r\nA\r\nB", "old\r\nA\r\nB"),
        ("append", "old A\nB\n", "old A\nB\nA\nB\n"),
        ("prepend", "old", "A\nB\nold"),
        ("prepend", "\ufeffold\r\n", "\ufeffA\r\nB\r\nold\r\n"),
        ("prepend", "\ufeffA\r\nB", "\ufeffA\r\nB"),
        ("prepend", "A\nBold\n", "A\nB\nA\nBold\n"),
    ],
)
def test_a_text_is_kept_replaced_or_added_to(tmp_path, existing, before, after):
    before = None if before is None else before.encode()
    once = written(tmp_path, "txt", before, ["A", "B"], existing=existing)
    assert once.decode() == after
    assert written(tmp_path, "txt", once, ["A", "B"], existing=existing) == once


def test_bytes_that_are_no_utf8_stay(tmp_path):
    for existing in ("append", "prepend"):
        after = written(tmp_path, "txt", b"caf\xe9\n", ["chat \U0001f408"], existing=existing)
        lines = [b"caf\xe9\n", "chat \U0001f408\n".encode()]
        assert after == b"".join(lines if existing == "append" else lines[::-1])


def test_nothing_is_put_into_a_text_in_utf16(tmp_path):
    before = "old\n".encode("utf-16")
    with pytest.raises(
        UserError, match=r"photo\.txt is UTF-16 or binary, not UTF-8: left as it is"
    ):
        written(tmp_path, "txt", before, ["A"], existing="append")
    assert (tmp_path / "photo.txt").read_bytes() == before
    assert written(tmp_path, "txt", before, ["A"]) == before


def test_prefix_and_suffix_go_around_each_caption_which_stays_one_line(tmp_path):
    captions = ["a dog\nruns\r\n", "two\u2028dogs"]
    after = written(tmp_path, "txt", None, captions, prefix="style, ", suffix=" !")
    assert after.decode() == "style, a dog runs  !\nstyle, two dogs !\n"


def test_what_was_done_is_counted(tmp_path):
    store = Sidecars("txt", existing="append")
    for caption in ("A", "A", "B"):
        store.write(picture(tmp_path), [caption])
    assert (store.n_written, store.n_kept) == (2, 1)
    store = Sidecars("txt")
    store.write(picture(tmp_path), ["C"])
    store.write(picture(tmp_path, "new.jpg"), ["C"])
    assert (store.n_written, store.n_kept) == (1, 1)
    assert (tmp_path / "photo.txt").read_text() == "A\nB\n"


def test_pictures_with_captions_to_keep_are_not_described_again(tmp_path):
    given = [picture(tmp_path, f"{n}.jpg") for n in range(4)]
    broken = tmp_path / "2.jpg.xmp"
    broken.write_text("<x")
    Sidecars("xmp").write(given[0], ["A"])
    (tmp_path / "1.jpg.xmp").write_text(" ")
    store = Sidecars("xmp")
    left = list(store.left(given))
    assert [source.path for source in left] == [source.path for source in given[1:]]
    assert store.n_kept == 1
    assert "2.jpg.xmp is not XML" in str(left[1].content)
    assert not Sidecars("xmp", existing="append").is_kept(given[0])


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "photo.txt").mkdir()
    with pytest.raises(UserError, match=r"photo\.txt cannot be read or written: Is a directory"):
        Sidecars("txt", existing="overwrite").write(picture(tmp_path), ["A"])
    assert [path.name for path in tmp_path.iterdir()] == ["photo.txt"]


def test_a_full_disk_ends_the_run_and_concerns_no_picture(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sidecars, "whole_file", full)
    with pytest.raises(OSError, match="No space"):
        Sidecars("txt").write(picture(tmp_path), ["A"])


def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path):
    """The link was replaced by a plain file, and what it led to left as it was."""
    (tmp_path / "kept").mkdir()
    target, link = tmp_path / "kept/photo.txt", tmp_path / "photo.txt"
    link.symlink_to(target)
    for existing, after in (("keep", "A\n"), ("append", "A\nB\n")):
        Sidecars("txt", existing=existing).write(picture(tmp_path), [after[-2:-1]])
        assert link.is_symlink()
        assert target.read_text() == after


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    """While it was written the file had a longer name, which no drive takes: the run ended."""
    name = f"{'x' * 240}.jpg"
    Sidecars("xmp").write(picture(tmp_path, name), ["A"])
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.xmp"]
    with pytest.raises(UserError, match=r"too long"):
        Sidecars("caption").write(picture(tmp_path, f"{'x' * 250}.jpg"), ["A"])


def test_who_may_read_a_file_stays(tmp_path):
    path = tmp_path / "photo.txt"
    path.write_text("private")
    path.chmod(0o600)
    Sidecars("txt", existing="append").write(picture(tmp_path), ["A"])
    assert path.read_text() == "private\nA\n"
    assert path.stat().st_mode & 0o777 in (0o600, 0o666)  # Windows knows no others


# ------------------------------------------------------------------------------------ XMP

DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal='2021:07:03 10:11:12.000'
   darktable:xmp_version="5"
   darktable:note="a &gt; b, dc:description=&quot;no&quot; /&gt;">
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="rawprepare"
      darktable:params="gz02eJxjYGBgkGEAghNODGiAEV0AJ2iwhwAAHQ8GBQ=="/>
    </rdf:Seq>
   </darktable:history>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>darktable|format|cr2</rdf:li>
     <rdf:li>château</rdf:li>
    </rdf:Bag>
   </dc:subject>%s
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
LIGHTROOM = """\ufeff<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/'>
<r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns:rdf='urn:something else'>
<!-- edited by hand: </r:RDF> & <dc:description> -->
 <r:Description r:about='uuid:&apos;1&apos;' xmlns:xmp='http://ns.adobe.com/xap/1.0/'>
  <xmp:Rating>3</xmp:Rating><?keep this?>
 </r:Description>
 <r:Description r:about='uuid:&apos;1&apos;' xmlns:d='http://purl.org/dc/elements/1.1/'>
  <d:title><r:Alt><r:li xml:lang='x-default'>Title</r:li></r:Alt></d:title>%s
  <d:rights r:parseType='Resource'><d:description>not of the picture</d:description></d:rights>
 </r:Description>
</r:RDF>
</x:xmpmeta>
<?xpacket end='w'?>""".replace("\n", "\r\n") + " " * 2000  # fmt: skip
EMPTY_RDF = "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#' />"
ALT = "\n<{0}:description><{1}:Alt>%s</{1}:Alt></{0}:description>"
FRENCH = "<{1}:li xml:lang='fr-FR'>Un chien</{1}:li>"
OLD = "<{1}:li xml:lang='x-default'>%s</{1}:li>"
WITHOUT = [DARKTABLE % "", LIGHTROOM % "", EMPTY_RDF]
FILES = {"dc": DARKTABLE, "d": LIGHTROOM}
PREFIXES = {"dc": "rdf", "d": "r"}


@pytest.fixture(params=FILES)
def file_with(request):
    """`file_with(xml)`: an XMP with this in its rdf:Description, {0} being dc and {1} rdf."""
    dc = request.param
    return lambda xml: (FILES[dc] % xml.format(dc, PREFIXES[dc])).encode()


def descriptions(data):
    """Language → text."""
    found = [
        element
        for node in ET.fromstring(data).iter(f"{RDF}Description")
        for element in node.findall(f"{DC}description")
    ]
    assert len(found) < 2
    items = found[0].findall(f"{RDF}Alt/{RDF}li") if found else []
    assert len({item.get(LANGUAGE) for item in items}) == len(items)
    return {item.get(LANGUAGE): item.text or "" for item in items}


def without_description(data):
    """All that an XMP says, as lines, but for its description and the space between elements."""
    root = ET.fromstring(data)
    for parent in list(root.iter()):
        for child in parent.findall(f"{DC}description"):
            if parent.tag == f"{RDF}Description":
                parent.remove(child)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{RDF}Description" and not len(child) and len(child.attrib) == 1:
                parent.remove(child)
    for element in root.iter():
        element.text, element.tail = ((t or "").strip() for t in (element.text, element.tail))
    return ET.canonicalize(ET.tostring(root), rewrite_prefixes=True)


def inserted(before, after):
    """The one piece of bytes that was put in; fails if anything else was changed."""
    n = len(after) - len(before)
    start = next((i for i, byte in enumerate(before) if byte != after[i]), len(before))
    assert after[:start] + after[start + n :] == before
    return after[start : start + n]


def test_a_new_xmp_is_a_packet(tmp_path):
    after = written(tmp_path, "xmp", None, ["A dog", "A cat"], prefix="<", suffix=">")
    assert descriptions(after) == {"x-default": "<A dog>"}
    head, tail = after.splitlines()[0], after.splitlines()[-1]
    assert head == '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode()
    assert tail == b'<?xpacket end="w"?>'


@pytest.mark.parametrize("before", WITHOUT)
@pytest.mark.parametrize("existing", sidecars.EXISTING)
def test_a_description_is_added_and_nothing_else_changes(tmp_path, before, existing):
    before = before.encode()
    after = written(tmp_path, "xmp", before, ["Un château"], existing=existing)
    assert descriptions(after) == {"x-default": "Un château"}
    assert without_description(after) == without_description(before)
    if before.decode() != EMPTY_RDF:
        new = inserted(before, after)
        assert (b"\n" in new.replace(b"\r\n", b"")) == (b"\r\n" not in before)
    again = written(tmp_path, "xmp", after, ["Un château"], existing=existing)
    assert again == after


def test_all_descriptions_of_a_file_are_about_the_same(tmp_path):
    """XMP has it so: readers drop what is about something else."""
    after = written(tmp_path, "xmp", (LIGHTROOM % "").encode(), ["A"])
    nodes = ET.fromstring(after).findall(f"{RDF}RDF/{RDF}Description")
    assert [node.get(f"{RDF}about") for node in nodes] == ["uuid:'1'"] * 3


@pytest.mark.parametrize(
    ("existing", "text"),
    [
        ("keep", "A &amp; B"),
        ("overwrite", "&lt;C&gt;"),
        ("append", "A &amp; B&#xA;&lt;C&gt;"),
        ("prepend", "&lt;C&gt;&#xA;A &amp; B"),
    ],
)
def test_a_description_is_kept_replaced_or_added_to(tmp_path, file_with, existing, text):
    xml = ALT % (FRENCH + OLD)
    before = file_with(xml % "A &amp; B")
    assert Sidecars("xmp").path(picture(tmp_path)).name == "photo.jpg.xmp"
    after = written(tmp_path, "xmp", before, ["<C>"], existing=existing)
    assert after == file_with(xml % text)
    assert written(tmp_path, "xmp", after, ["<C>"], existing=existing) == after
    assert descriptions(after)["fr-FR"] == "Un chien"
    assert without_description(after) == without_description(before)


def test_old_text_stays_as_it_was_written_when_another_is_added(tmp_path, file_with):
    old = "<![CDATA[a < b]]>&#x41;<!-- why -->\n &gt; "
    for existing in ("append", "prepend"):
        before = file_with(ALT % OLD % old)
        after = written(tmp_path, "xmp", before, ["C"], existing=existing)
        assert inserted(before, after) in (b"&#xA;C", b"C&#xA;")
        assert descriptions(after)["x-default"].split("\n").index("C") == 2 * (existing == "append")


@pytest.mark.parametrize(
    "xml",
    [
        ALT % "<{1}:li xml:lang='x-default'/>",
        ALT % "<{1}:li xml:lang='x-default' />",
        ALT % "<{1}:li xml:lang='X-Default'></{1}:li>",
        ALT % "<{1}:li> \n</{1}:li>",
        ALT % "",
        ALT % FRENCH,
        ALT % f"\n     {FRENCH}\n    ",
        "<{0}:description><{1}:Alt/></{0}:description>",
    ],
)
def test_a_description_without_text_in_the_default_language_gets_one(tmp_path, file_with, xml):
    before = file_with(xml)
    after = written(tmp_path, "xmp", before, ["A dog"], existing="append")
    languages = descriptions(after)
    assert next(iter(languages.values())) == "A dog"
    assert languages.get("fr-FR", "Un chien") == "Un chien"
    assert len(languages) == 1 + ("fr-FR" in xml)
    assert without_description(after) == without_description(before)
    assert written(tmp_path, "xmp", after, ["A dog"], existing="append") == after
    is_kept = "fr-FR" in xml
    kept = written(tmp_path, "xmp", before, ["A dog"], existing="keep")
    assert kept == (before if is_kept else after)


def test_a_new_language_is_indented_as_the_others(tmp_path, file_with):
    before = file_with(ALT % f"\n   {FRENCH}\n  ")
    new = inserted(before, written(tmp_path, "xmp", before, ["A"], existing="append"))
    assert new.count(b"\n   ") == 1


def test_of_two_texts_in_the_default_language_the_first_is_changed(tmp_path, file_with):
    xml = ALT % (OLD + "<{1}:li>B</{1}:li>")
    after = written(tmp_path, "xmp", file_with(xml % "A"), ["C"], existing="overwrite")
    assert after == file_with(xml % "C")


@pytest.mark.parametrize("old", ["<{0}:description/>", "<{0}:description>A</{0}:description>"])
def test_a_description_of_plain_text_stays_one(tmp_path, file_with, old):
    after = written(tmp_path, "xmp", file_with(old), ["B"], existing="append")
    both = "A&#xA;B" if "A" in old else "B"
    assert after == file_with(f"<{{0}}:description>{both}</{{0}}:description>")


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (b"A dog", r"not XML in UTF-8 \(syntax error: line 1, column 0\)"),
        (b"<a><b></a>", "not XML in UTF-8 .mismatched tag"),
        ((DARKTABLE % "")[:-20].encode(), "not XML in UTF-8"),
        ((DARKTABLE % "").encode("latin-1"), "not XML in UTF-8"),
        ((DARKTABLE % "").replace("UTF-8", "ISO-8859-1").encode("latin-1"), "is ISO-8859-1, not"),
        (EMPTY_RDF.encode("utf-16"), "UTF-16 or binary, not UTF-8"),
        (EMPTY_RDF.encode("utf-16-le"), "UTF-16 or binary, not UTF-8"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + EMPTY_RDF.encode(), "has a document type"),
        (b"<html/>", "is XML, but no XMP"),
        (
            DARKTABLE % "<dc:description><rdf:Bag><rdf:li>A</rdf:li></rdf:Bag></dc:description>",
            "has a description that is not simply text",
        ),
        (
            DARKTABLE % "<dc:description><rdf:Alt><dc:p>A</dc:p></rdf:Alt></dc:description>",
            "has a description that is not simply text",
        ),
        (
            DARKTABLE % (ALT % "<rdf:li rdf:parseType='Literal'>A</rdf:li>").format("dc", "rdf"),
            "has a description that is not simply text",
        ),
        (
            DARKTABLE % "<dc:description xml:lang='fr'>Un chien</dc:description>",
            "has a description that is not simply text",
        ),
        (
            DARKTABLE % ("<dc:description>A</dc:description>" * 2),
            "has several descriptions, or one in a form",
        ),
        (
            (DARKTABLE % "").replace('rdf:about=""', 'rdf:about="" dc:description="A dog"'),
            "has several descriptions, or one in a form that is not merged",
        ),
    ],
)
def test_a_file_that_cannot_be_merged_into_is_left(tmp_path, before, reason):
    before = before if isinstance(before, bytes) else before.encode()
    message = rf"photo\.jpg\.xmp (is )?{reason}.*: left as it is\. Remove it, or"
    for existing in ("overwrite", "append", "prepend"):
        with pytest.raises(UserError, match=message):
            written(tmp_path, "xmp", before, ["B"], existing=existing)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    if re.search("description", reason):  # there is one, whatever it is like
        assert written(tmp_path, "xmp", before, ["B"]) == before
    else:
        with pytest.raises(UserError, match=message):
            Sidecars("xmp").is_kept(picture(tmp_path))


def xml_text(text):
    """A text without the characters that XML 1.0 does not allow."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


@given(
    captions=st.lists(
        st.text(st.characters() | st.sampled_from("\0\t\r\n <>&'\"]\x85\u2028\ufffe")),
        min_size=3,
        max_size=3,
    ),
    before=st.sampled_from([None, *WITHOUT, LIGHTROOM % (ALT % FRENCH).format("d", "r")]),
)
@settings(deadline=None)
def test_any_caption_is_read_back(tmp_path_factory, captions, before):
    folder = tmp_path_factory.mktemp("any")
    data = None if before is None else before.encode()
    expected = ""
    for caption, existing in zip(captions, ("overwrite", "append", "prepend"), strict=True):
        data = written(folder, "xmp", data, [caption], existing=existing)
        new = xml_text(caption)
        if not expected.strip():
            expected = new
        elif existing == "append" and not f"\n{expected}".endswith(f"\n{new}"):
            expected = f"{expected}\n{new}"
        elif existing == "prepend" and not f"{expected}\n".startswith(f"{new}\n"):
            expected = f"{new}\n{expected}"
        assert descriptions(data)["x-default"] == expected
        assert written(folder, "xmp", data, [caption], existing=existing) == data
