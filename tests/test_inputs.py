import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

import inputs
from cli import UserError
from inputs import Pictures

JPEG = b"\xff\xd8\xff\xe0 as a JPEG begins"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files a.jpg, b/c.png, b/d.jpg, e.jpg in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b/c.png", "b/d.jpg", "e.jpg"):
        write(tmp_path / name)
    return tmp_path


def write(path, content=JPEG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(found):
    return [source.path.as_posix() for source in found]


def errors(found):
    return [str(source.content) for source in found if isinstance(source.content, UserError)]


def feed(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def make_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_folder_in_the_order_of_names_at_every_level(folder):
    found = list(Pictures(["."]))
    assert names(found) == ["a.jpg", "b/c.png", "b/d.jpg", "e.jpg"]
    found = list(Pictures([str(folder / "b"), "a.jpg"]))
    assert names(found) == [
        (folder / "b/c.png").as_posix(),
        (folder / "b/d.jpg").as_posix(),
        "a.jpg",
    ]
    assert [source.place.as_posix() for source in found] == ["c.png", "d.jpg", "a.jpg"]


def test_folders_are_read_when_their_turn_comes(folder):
    """Listing ten million files took minutes and gigabytes before the first caption."""
    found = iter(Pictures(["."]))
    assert next(found).path == Path("a.jpg")
    write(folder / "b/added.jpg")
    assert names(found) == ["b/added.jpg", "b/c.png", "b/d.jpg", "e.jpg"]


@pytest.mark.usefixtures("folder")
def test_a_few_are_counted_and_many_are_not_waited_for(monkeypatch):
    found, total = Pictures(["."]).counted()
    assert total == len(list(found)) == 4
    monkeypatch.setattr(inputs, "COUNTING", 0)
    found, total = Pictures(["."]).counted()
    assert total is None
    assert len(list(found)) == 4


@pytest.mark.parametrize(
    ("content", "null"),
    [
        (b"a.jpg\nb\n\n", False),
        (b"a.jpg\r\nb\r\n", False),
        (b"a.jpg\nb", False),
        (b"a.jpg\0b\0", True),
        ("\ufeffa.jpg\nb\n".encode(), False),
        ("a.jpg\r\nb\r\n".encode("utf-16"), False),
    ],
    ids=["blank line", "windows", "no end", "null", "mark", "powershell"],
)
def test_lists_name_pictures_and_folders(folder, monkeypatch, content, null):
    (folder / "list.txt").write_bytes(content)
    assert names(Pictures(["@list.txt"], null=null)) == ["a.jpg", "b/c.png", "b/d.jpg"]
    feed(monkeypatch, content)
    assert names(Pictures(["-"], null=null)) == ["a.jpg", "b/c.png", "b/d.jpg"]


def test_names_with_line_ends_and_odd_bytes_come_through_null(folder, monkeypatch):
    odd = os.fsdecode(b"two\nlines \xe9.jpg")
    write(folder / odd)
    feed(monkeypatch, os.fsencode(odd) + b"\0")
    assert [source.path for source in Pictures(["-"], null=True)] == [Path(odd)]


@pytest.mark.usefixtures("folder")
def test_standard_input_can_be_looked_at_first(monkeypatch):
    feed(monkeypatch, b"a.jpg\nb\n")
    pictures = Pictures(["-"])
    assert names(pictures.look()) == names(pictures) == ["a.jpg", "b/c.png", "b/d.jpg"]


def test_empty_lists_are_errors(folder, monkeypatch):
    feed(monkeypatch, b"\n")
    assert errors(Pictures(["-"])) == ["standard input names no pictures."]
    (folder / "list.txt").write_bytes(b"")
    assert errors(Pictures(["@list.txt"])) == ["list.txt names no pictures."]
    with pytest.raises(UserError, match=r"missing.txt, a list of pictures, is not there"):
        Pictures(["@missing.txt"])


def test_a_picture_may_be_called_as_a_list_is(folder):
    write(folder / "@me.jpg")
    assert names(Pictures(["@me.jpg"])) == ["@me.jpg"]


def test_addresses_are_refused_as_what_they_are(folder):
    """`https://host/a.jpg` became `https:/host/a.jpg: no such file`."""
    with pytest.raises(UserError, match=r"https://host/a.jpg is an address"):
        Pictures(["a.jpg", "https://host/a.jpg"])
    (folder / "list.txt").write_text("HTTP://host/a.jpg\na.jpg\n")
    found = list(Pictures(["@list.txt"]))
    assert errors(found) == ["HTTP://host/a.jpg is an address, and only files are read: "
                             "download it first."]  # fmt: skip
    assert len(found) == 2


def test_what_is_passed_over_is_counted(folder, monkeypatch):
    monkeypatch.setattr(inputs, "PICTURE_SUFFIXES", inputs.PICTURE_SUFFIXES - inputs.HEIC_SUFFIXES)
    for name in ("1.HEIC", "2.heic", "3.svg", "4.CR2", "shard.tar", "notes.txt"):
        write(folder / "b" / name, b"no picture")
    pictures = Pictures(["."])
    assert pictures.note() == ""
    assert len(list(pictures)) == 4
    assert pictures.note() == (
        "5 files passed over: 2 .heic, 1 .cr2, 1 .svg, 1 .tar (HEIC needs: pip install "
        "pillow-heif; give archives by their names)"
    )


def test_a_folder_without_pictures_is_an_error_of_its_own(folder):
    (folder / "empty").mkdir()
    write(folder / "tars/00000.tar", b"")
    found = list(Pictures(["empty", "tars", "a.jpg"]))
    assert errors(found) == [
        "no pictures in empty or the folders below: give another --image.",
        "no pictures in tars or the folders below: 1 file passed over: 1 .tar (give archives by "
        "their names).",
    ]
    assert found[-1].path == Path("a.jpg")


def test_links_that_lead_back_are_not_followed_for_ever(folder):
    (folder / "b/round").symlink_to(folder, target_is_directory=True)
    assert names(Pictures(["."])) == ["a.jpg", "b/c.png", "b/d.jpg", "e.jpg"]


# ------------------------------------------------------------------------------- archives


def test_a_shard_of_img2dataset(folder):
    members = {
        "000000001.jpg": b"one", "000000001.json": b"{}", "000000001.txt": b"a dog",
        "000000002.jpg": b"two", "._000000002.jpg": b"of a Mac",
    }  # fmt: skip
    make_tar(folder / "00000.tar", members)
    found = list(Pictures(["00000.tar"]))
    assert names(found) == ["00000.tar/000000001", "00000.tar/000000002"]
    assert [source.content for source in found] == [b"one", b"two"]
    assert [source.place.as_posix() for source in found] == ["00000/000000001", "00000/000000002"]


def test_pictures_of_one_key_are_told_apart(folder):
    members = {"in/a.left.jpg": b"l", "in/a.right.png": b"r", "in/b.jpg": b"b"}
    make_tar(folder / "x.tar", members)
    assert names(Pictures(["x.tar"])) == ["x.tar/in/a", "x.tar/in/a.right.png", "x.tar/in/b"]


def test_pictures_of_one_key_need_not_be_neighbours(folder):
    """Two screenshots of one hour were both called `at 10`, and one got no caption."""
    shots = ["shot at 10.15.jpg", "shot at 11.02.jpg", "shot at 10.59.jpg"]
    make_tar(folder / "s.tar", dict.fromkeys(shots, JPEG))
    expected = ["s.tar/shot at 10", "s.tar/shot at 11", "s.tar/shot at 10.59.jpg"]
    assert names(Pictures(["s.tar"])) == names(Pictures(["s.tar"]).look()) == expected
    make_tar(folder / "x.tar", dict.fromkeys(["a.jpg", "b.jpg", "a.png"], JPEG))
    assert names(Pictures(["x.tar"])) == ["x.tar/a", "x.tar/b", "x.tar/a.png"]


def test_hard_links_of_an_archive_are_pictures(folder):
    """GNU tar stores one of two names of a file so: that picture was left out without a word."""
    (folder / "b/again.jpg").hardlink_to(folder / "b/d.jpg")
    (folder / "b/soft.jpg").symlink_to("d.jpg")
    for name in ("1.heic2", "2.svg"):
        write(folder / "b" / name, b"no picture")
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name in ("c.png", "d.jpg", "again.jpg", "soft.jpg", "1.heic2", "2.svg"):
            archive.add(folder / "b" / name, arcname=name)
    pictures = Pictures(["x.tar"])
    found = list(pictures)
    assert names(found) == ["x.tar/c", "x.tar/d", "x.tar/again"]
    assert [source.content for source in found] == [JPEG] * 3
    assert pictures.note() == (
        "2 files passed over: 1 .svg, 1 link (tar --dereference stores what links lead to)"
    )


def test_a_shard_of_nothing_but_links_says_so(folder):
    """It was told apart in no way from one of texts."""
    (folder / "soft.jpg").symlink_to("a.jpg")
    with tarfile.open(folder / "x.tar", "w") as archive:
        archive.add(folder / "soft.jpg", arcname="soft.jpg")
    expected = "no pictures in x.tar: 1 file passed over: 1 link (tar --dereference stores what"
    assert errors(Pictures(["x.tar"]))[0].startswith(expected)


@pytest.mark.parametrize(("n_bytes", "n_whole"), [(100, 0), (512 + 2, 0), (1024, 1), (1538, 1)])
def test_what_is_whole_in_a_truncated_shard_is_found(folder, n_bytes, n_whole):
    """A shard cut between two members was as good as whole to tarfile."""
    shard = make_tar(folder / "x.tar", {"a.jpg": b"one", "b.jpg": b"two", "c.jpg": b"three"})
    shard.write_bytes(shard.read_bytes()[:n_bytes])
    found = list(Pictures(["x.tar"]))
    assert [source.content for source in found[:-1]] == [b"one"] * n_whole
    assert len(errors(found)) == 1
    assert "x.tar is no tar archive, or cut off or damaged" in errors(found)[0]


def test_shards_that_hold_nothing_are_errors(folder):
    make_tar(folder / "texts.tar", {"a.txt": b"a dog"})
    write(folder / "empty.tar", b"")
    found = list(Pictures(["texts.tar", "empty.tar", "missing.tar"]))
    assert len(errors(found)) == len(found) == 3
    assert "no pictures in texts.tar" in errors(found)[0]
    assert "missing.tar: no such file" in errors(found)[2]
