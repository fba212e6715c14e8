"""Captions files of every known format: one file read, its images and their captions.

Which file of a folder is read is `sources`'s to find, where its pictures are, `pairing`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cli import UserError
from columns import (
    SPLIT_NAMES,
    Captions,
    add_rows,
    caption_keys,
    image_column,
    image_keys,
    image_name,
    refuse_cut_captions,
    rows_in_language,
    splits_in,
    texts_of,
)
from tables import (
    IMAGE_SUFFIX,
    Row,
    UnknownFormat,
    json_line,
    listed,
    parse_json,
    plain_keys,
    plain_names,
    read_delimited,
    read_parquet,
    read_text,
)

SUFFIXES = {
    *(".csv", ".tsv", ".tab", ".txt", ".token", ".json", ".jsonl", ".ndjson", ".parquet"),
}


def read_captions(path: Path, language: str = "en") -> Captions:
    """Read a captions file of any known format.

    Args:
        path: the file.
        language: which captions to take where the file has them in several.

    Raises:
        UnknownFormat: it was not meant as captions, as far as one can see.
        UserError: it cannot be read, or is damaged.
    """
    captions = Captions(path, language.split("_")[0])
    try:
        if path.suffix.lower() == ".parquet":
            add_rows(read_parquet(path), captions)
        else:
            text, note = read_text(path)
            captions.notes += [note] if note else []
            _read_text(text, captions)
    except RecursionError:
        raise UserError(f"{path} is nested too deep: no captions can be read from it.") from None
    if not captions.of_image:
        reasons = ", ".join(f"{n:,} {what}" for what, n in captions.counts.items())
        raise UserError(
            f"{path} holds no captions: a row needs an image and its text"
            f"{f' (it has {reasons})' if reasons else ''}."
        )
    texts = [text for texts in captions.of_image.values() for text in texts]
    if all(map(is_number, texts)):
        raise UserError(f"{path} has numbers for captions, as {texts[0]}: give their text.")
    return captions


def read_sidecar(path: Path, image: str, captions: Captions) -> None:
    """Add the captions that lie beside a picture: a text, one a line, or a JSON object."""
    text, _ = read_text(path)
    if path.suffix.lower() == ".json":
        content, _ = parse_json(text)
        values = plain_keys(content) if isinstance(content, dict) else {}
        row = Row(f"beside {image}", values)
        texts = [
            t for k in caption_keys(values, captions) for t in texts_of(values[k], k, row, captions)
        ]
    else:
        texts = [line for line in text.split("\n") if line.strip()]
    if texts and all(map(is_number, texts)):  # boxes, as YOLO has them
        captions.counts["text(s) of numbers beside a picture"] += 1
        return
    for caption in texts:
        captions.add(image, caption)
    if image in captions.of_image:  # img2dataset writes each caption twice, as text and as JSON
        captions.of_image[image] = list(dict.fromkeys(captions.of_image[image]))


def is_number(text: str) -> bool:
    """Whether a text is a number or several."""
    return re.fullmatch(r"[\d.,+eE\s-]+", text) is not None


def _read_text(text: str, captions: Captions) -> None:
    """Choose the reader by the first line."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise UnknownFormat(f"{captions.path} is empty: no captions can be read from it.")
    if lines[0].lstrip()[0] in "{[":
        _read_json(text, captions)
    elif re.match(r"[^\t|]{1,400}?(#\d+\t|\.\w{2,5}#\d+ )", lines[0]):
        _read_token(lines, captions)
    elif re.match(r"[^|]{1,400}\|\s{0,9}(\d+\s{0,9}\||comment_number[^|]*\|[^|]*$)", lines[0]):
        _read_pipes(lines, captions)
    else:
        rows = read_delimited(captions.path, text, lambda names: image_column(names, captions))
        refuse_cut_captions(rows, captions)
        add_rows(rows, captions)


# ------------------------------------------------------------------------- formats of their own


def _read_token(lines: Iterable[str], captions: Captions) -> None:
    """Read the original of Flickr8k and Flickr30k: ``name.jpg#0<TAB>A dog .``."""
    for line in lines:
        key, tab, caption = line.partition("\t")
        if not tab:  # it may have become a blank
            end = re.search(r"#\d+ ", line)
            key, caption = (line[: end.end()], line[end.end() :]) if end else ("", "")
        name, number, _ = key.rpartition("#")
        if number:
            captions.add(name.strip(), caption)
        else:
            captions.counts["malformed row(s)"] += 1


def _read_pipes(lines: Iterable[str], captions: Captions) -> None:
    """Read Flickr30k's results.csv: ``name.jpg| 0| A dog .``.

    The published file has one row without its second bar (2199200615.jpg); such rows are repaired.
    """
    for number, line in enumerate(lines):
        image, _, rest = line.partition("|")
        position, bar, caption = rest.partition("|")
        if bar and position.strip().isdigit():
            captions.add(image.strip(), caption)
        elif repaired := re.match(r"\s*\d+\s+(?=\S)", rest):
            captions.counts["malformed row(s) repaired"] += 1
            captions.add(image.strip(), rest[repaired.end() :])
        elif number:  # the header is no loss
            captions.counts["malformed row(s)"] += 1


def _read_coco(content: dict[str, Any], captions: Captions) -> None:
    """Read COCO's ``images[]`` and ``annotations[]``, joined by the image's id."""
    name_of = {}
    for row in _objects(content["images"], "images"):
        values = plain_keys(row.values)
        id_ = str(values.pop("id", None))
        name_of[id_] = image_name(Row(row.where, values), image_keys(values), captions)
        for split in splits_in(values):
            captions.add_split(name_of[id_], str(split))
    rows = _objects(content["annotations"], "annotations")
    for row in rows_in_language(rows, list(rows[0].values), captions):
        name = name_of.get(str(row.values.get("image_id")))
        if name is None:
            captions.counts["annotation(s) of an image that is not listed"] += 1
            continue
        for text in texts_of(row.values.get("caption"), "caption", row, captions):
            captions.add(name, text)
        for split in splits_in(row.values):
            captions.add_split(name, str(split))


# ------------------------------------------------------------------------------------ JSON


def _read_json(text: str, captions: Captions) -> None:
    """Read JSON lines, or one JSON text in any of its layouts."""
    path = captions.path
    content, error = parse_json(text)
    if not error:
        _read_layout(content, captions)
        return
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    is_first, _ = parse_json(lines[0][1])
    n_objects = sum(line.strip()[0] + line.strip()[-1] == "{}" for _, line in lines)
    if len(lines) > 1 and (isinstance(is_first, dict) or n_objects > len(lines) // 2):
        add_rows([json_line(path, number, line) for number, line in lines], captions)
        return
    raise UserError(f"{path} is no valid JSON: {error}. Fetch or write it again.")


def _read_layout(content: Any, captions: Captions) -> None:
    """Read COCO's layout, a list of objects (also below a key), or names of images with texts."""
    if isinstance(content, list):
        add_rows(_objects(content, ""), captions)
        return
    if not isinstance(content, dict):
        raise UnknownFormat(f"{captions.path} holds no captions: it is a JSON value alone.")
    first_of = {
        key: value[0]
        for key, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    if "image_id" in first_of.get("annotations", ()) and "images" in first_of:
        if "caption" not in first_of["annotations"]:  # COCO's zip has other kinds as well
            raise UnknownFormat(f"{captions.path} holds no captions: its annotations have none.")
        _read_coco(content, captions)
        return
    if content and all(map(_is_image_with_texts, *zip(*content.items(), strict=True))):
        rows = [Row(f"key {key!r}", {"image": key, "caption": v}) for key, v in content.items()]
        add_rows(rows, captions)
        return
    keys = [key for key, row in first_of.items() if image_column(plain_names(row), captions)]
    if keys:
        add_rows([row for key in keys for row in _objects(content[key], key)], captions)
        unread = [k for k, v in content.items() if k.lower() in SPLIT_NAMES and v and k not in keys]
        if unread:
            captions.warnings.append(
                f"{captions.path} has {listed(unread)} in another form than {keys[0]}, not read: "
                "give objects with an image and a caption there too."
            )
    elif image_column(plain_names(content), captions):  # JSON lines, of which there is one
        add_rows([Row("line 1", content)], captions)
    else:
        raise UnknownFormat(
            f"{captions.path} holds no captions in a form known here: its keys are "
            f"{listed(content)}. Expected are objects with an image and a caption, as "
            '{"file_name": "a.jpg", "text": "a dog"}, or the JSON of Karpathy or COCO.'
        )


def _is_image_with_texts(key: str, value: Any) -> bool:
    has_texts = isinstance(value, str | list | dict)
    return has_texts and bool(IMAGE_SUFFIX.search(key) or key.isdigit())


def _objects(items: list[Any], key: str) -> list[Row]:
    """The objects in a list; the key that it is below may be the name of their split."""
    split = {"split": key} if key.lower() in SPLIT_NAMES else {}
    return [
        Row(f"{key}[{number}]" if key else f"item {number + 1}", split | item)
        for number, item in enumerate(items)
        if isinstance(item, dict)
    ]
