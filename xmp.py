"""A caption put into XMP, the metadata of photo managers, as its description.

No byte of a file changes but those of the description's text, so that nothing that another
program wrote is lost: its bytes are spliced, and not written anew from a parsed tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape
from xml.parsers import expat

RDF, DC = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/"
# Names as expat gives them: behind their namespace and a character that XML cannot hold.
ROOT, NODE, ABOUT = f"{RDF}\fRDF", f"{RDF}\fDescription", f"{RDF}\fabout"
ALT, ITEM = f"{RDF}\fAlt", f"{RDF}\fli"
LANGUAGE, DESCRIPTION = "http://www.w3.org/XML/1998/namespace\flang", f"{DC}\fdescription"
NEW_XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{RDF}">
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
# Their prefixes are declared where they are used: the file may use others, or these for others.
NEW_NODE = f"""
  <rdf:Description xmlns:rdf="{RDF}" xmlns:dc="{DC}" rdf:about="%s">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">%s</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>"""
NEW_ITEM = f'<rdf:li xmlns:rdf="{RDF}" xml:lang="x-default">%s</rdf:li>'
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, Char
SPACES = {ord(space): f"&#x{ord(space):X};" for space in "\t\n\r"}  # as parsers do not change them


class Refusal(Exception):
    """Why nothing is put into a file, as the rest of a sentence that begins with its name."""


def merged(old: bytes, caption: str, existing: str) -> bytes:
    """An XMP with the caption as description in the default language; all else stays.

    Raises:
        Refusal: it is no XMP, or has several descriptions, or one that is not simply text.
    """
    caption = NOT_XML.sub("", caption)
    data = old or NEW_XMP.encode()
    rdf = next((e for e in _parse(data) if e.tag == ROOT), None)
    if rdf is None:
        raise Refusal("is XML, but no XMP: it has no rdf:RDF")
    nodes = rdf.below(NODE)
    found = [element for node in nodes for element in node.below(DESCRIPTION)]
    texts = [element.text for element in found]
    texts += [node.attributes[DESCRIPTION] for node in nodes if DESCRIPTION in node.attributes]
    if existing == "keep" and any(text.strip() for text in texts):
        return old
    if not texts:
        about = nodes[0].attributes.get(ABOUT, "") if nodes else ""
        at = rdf.inner + len(data[rdf.inner : rdf.inner_end].rstrip())
        return _filled(data, rdf, _xml(NEW_NODE, about, caption, like=data), at, at)
    if len(texts) > 1 or not found:
        raise Refusal("has several descriptions, or one in a form that is not merged (attribute)")
    element = _place_of_text(found[0])
    start, end = element.inner, element.inner_end
    raw = data[start:end]
    if element.tag == ALT:  # of other languages only; the default comes first
        space = raw[: len(raw) - len(raw.lstrip())]
        new = space + _xml(NEW_ITEM, caption, like=data)
        return _filled(data, element, new, start, start)
    new = _xml("%s", caption, like=data)
    if element.text.strip() and existing != "overwrite":
        if is_there(caption, element.text, existing):
            return old
        new = raw + b"&#xA;" + new if existing == "append" else new + b"&#xA;" + raw
    return _filled(data, element, new, start, end)


def refuse_utf16(content: bytes) -> None:
    """Raise a ``Refusal`` of what bytes of UTF-8 cannot be put into."""
    if b"\0" in content or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refusal("is UTF-16 or binary, not UTF-8")


def is_there(new: str, old: str, existing: str) -> bool:
    """Whether lines were appended or prepended before, as by a run that was killed and resumed."""
    if existing == "append":
        return f"\n{old}".endswith(f"\n{new}")
    return f"{old}\n".startswith(f"{new}\n")


@dataclass
class _Element:
    """An XML element and where it is in the file."""

    tag: str
    attributes: dict[str, str]
    start: int
    inner: int = -1  # where its content starts, and
    inner_end: int = -1
    texts: list[str] = field(default_factory=list)  # in parts, also of elements below
    children: list[_Element] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def language(self) -> str:
        return self.attributes.get(LANGUAGE, "x-default").lower()

    def below(self, tag: str) -> list[_Element]:
        return [child for child in self.children if child.tag == tag]


def _place_of_text(description: _Element) -> _Element:
    """The element that holds a description's text, or the rdf:Alt that should, if none does yet."""
    place = description
    if [child.tag for child in description.children] == [ALT]:
        place = description.children[0]
        items = place.below(ITEM)
        by_language = {item.language: item for item in reversed(items)}
        if len(items) < len(place.children):
            raise Refusal("has a description that is not simply text")
        if "x-default" not in by_language:
            return place
        place = by_language["x-default"]
    if place.children or place.attributes.keys() - {LANGUAGE} or place.language != "x-default":
        raise Refusal("has a description that is not simply text")
    return place


def _xml(template: str, *texts: str, like: bytes) -> bytes:
    """XML with texts where the template has ``%s``, its lines ended like those of a file."""
    xml = (template % tuple(escape(text).translate(SPACES) for text in texts)).encode()
    return xml.replace(b"\n", b"\r\n") if b"\r\n" in like else xml


def _filled(data: bytes, element: _Element, new: bytes, start: int, end: int) -> bytes:
    """The file with other bytes from start to end, which lie in an element's content."""
    if data.endswith(b"/>", 0, element.inner):
        name = data[element.start + 1 : element.inner - 2].split(maxsplit=1)[0]
        new, start = b">" + new + b"</" + name + b">", start - 2
    return data[:start] + new + data[end:]


def _parse(data: bytes) -> list[_Element]:
    """All elements of XML, in order.

    Raises:
        Refusal: not XML in UTF-8, or with a document type, whose entities may stand for anything.
    """
    elements: list[_Element] = []
    opened = [_Element("", {}, 0)]
    refuse_utf16(data)  # expat would read it
    parser = expat.ParserCreate("utf-8", "\f")

    def anything(_: str = "") -> None:
        # Where something follows a start tag, this has ended. What follows an element's empty tag
        # is its end, of which expat says that it is behind the tag.
        if elements and elements[-1].inner < 0:
            elements[-1].inner = parser.CurrentByteIndex

    def start(tag: str, attributes: dict[str, str]) -> None:
        anything()
        elements.append(_Element(tag, attributes, parser.CurrentByteIndex))
        opened[-1].children.append(elements[-1])
        opened.append(elements[-1])

    def end(_: str) -> None:
        anything()
        element = opened.pop()
        element.inner_end = parser.CurrentByteIndex
        opened[-1].texts += element.texts

    def characters(text: str) -> None:
        anything()
        opened[-1].texts.append(text)

    def declaration(_: str, encoding: str | None, __: int) -> None:
        if (encoding or "utf-8").lower() != "utf-8":
            raise Refusal(f"is {encoding}, not UTF-8")

    def document_type(*_: object) -> None:
        raise Refusal("has a document type (DTD)")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.DefaultHandler = characters, anything
    parser.XmlDeclHandler, parser.StartDoctypeDeclHandler = declaration, document_type
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise Refusal(f"is not XML in UTF-8 ({error})") from error
    return elements
