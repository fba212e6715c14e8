"""One captions file of any known format → the captions of each image.

Whatever a table is written as (CSV, JSON lines, Karpathy's JSON, parquet, …), `tables` makes rows
of named values of it first; which names hold images, captions and splits is decided here, once.
Which file of a folder is read, and where its pictures are, is `corpus`'s to find.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import UserError
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

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {  # what data sets call the splits
    **{"train": "train", "training": "train", "restval": "train"},
    **{"val": "val", "dev": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
SUFFIXES = {
    *(".csv", ".tsv", ".tab", ".txt", ".token", ".json", ".jsonl", ".ndjson", ".parquet"),
}

WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # of a name: trainImages is train and Images

# Columns and keys, in lower case with _ between words; the first that is there counts.
IMAGE_KEYS = (
    *("filename", "file_name", "image", "image_name", "image_file", "image_filename", "img"),
    *("img_name", "img_file", "image_path", "img_path", "filepath", "file_path", "path", "file"),
    *("picture", "photo", "image_url", "img_url", "url", "image_id", "img_id", "id"),
)
CAPTION_STEMS = (
    *("caption", "sentence", "raw", "text", "comment", "description", "prompt", "title"),
    *("alt_text", "alt"),
)
SPLIT_KEYS = ("split", "partition", "subset", "set", "fold")
_CAPTION_KEY = re.compile(
    rf"(?:ima?ge?_)?(?P<stem>{'|'.join(CAPTION_STEMS)})(?:s|_text)?(?:_?\d+)?"
    r"(?:_(?!id)(?P<language>[a-z]{2}))?"
)
_LANGUAGE_KEY = re.compile(r"[a-z]{2,3}(_[a-z]{2,8})?")


@dataclass
class Captions:
    """The content of a captions file.

    Attributes:
        path: the file.
        language: of the captions that are taken where a file holds several.
        of_image: image name → its captions, both in the file's order.
        split_of: image name → its split, where the file has a field for it.
        counts: what was passed over or mended, in words → how often.
        notes: what else its reader should know.
        is_predicted: a model wrote them.
    """

    path: Path
    language: str = "en"
    of_image: dict[str, list[str]] = field(default_factory=dict)
    split_of: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    is_predicted: bool = False

    def add(self, image: str, caption: str) -> None:
        """Append a caption with its white space normalised; an empty one is only counted."""
        if "&" in caption:
            caption = html.unescape(re.sub(r"&(#?\w{2,8}) ;", r"&\1;", caption))
        if not caption.isascii():
            caption = _encodable(caption)
        caption = " ".join(caption.split())
        if not image:
            self.counts["row(s) without an image"] += 1
        elif not caption:
            self.counts["row(s) without a caption"] += 1
        else:
            self.of_image.setdefault(image, []).append(caption)

    def add_split(self, image: str, name: str) -> None:
        """Note an image's split, if that is what the name stands for.

        Raises:
            UserError: another row has put it into another split.
        """
        split = SPLIT_NAMES.get(name.strip().lower())
        if split and self.split_of.setdefault(image, split) != split:
            raise UserError(
                f"{self.path} puts {image} into two splits, {self.split_of[image]} and {split}: "
                "leave it in one."
            )


def split_of_name(name: str) -> str | None:
    """The split that a file or folder's name speaks of: ``captions_train2017``, ``devImages``."""
    splits = {SPLIT_NAMES.get(word.lower()) for word in WORDS.findall(name)} - {None}
    return splits.pop() if len(splits) == 1 else None


def split_of_folders(path: str) -> str | None:
    """The split that the folders of a path speak of, the last first."""
    folders = path.split("/")[-2::-1]
    return next((split for folder in folders if (split := split_of_name(folder))), None)


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
            _add_rows(read_parquet(path), captions)
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
    if all(re.fullmatch(r"[\d.,+-]+", text) for text in texts):
        raise UserError(f"{path} has numbers for captions, as {texts[0]}: give their text.")
    return captions


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON may hold and no file can."""
    return text.encode("utf-8", "replace").decode()


def _read_text(text: str, captions: Captions) -> None:
    """Choose the reader by the first line."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise UnknownFormat(f"{captions.path} is empty: no captions can be read from it.")
    if lines[0].lstrip()[0] in "{[":
        _read_json(text, captions)
    elif re.match(r"[^\t|]{1,400}#\d+[\t ]", lines[0]):
        _read_token(lines, captions)
    elif re.match(r"[^|]{1,400}\|\s{0,9}(\d+\s{0,9}\||comment_number)", lines[0]):
        _read_pipes(lines, captions)
    else:
        rows = read_delimited(captions.path, text, lambda names: _image_column(names, captions))
        _refuse_cut_captions(rows, captions)
        _add_rows(rows, captions)


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
        name_of[id_] = _image_name(Row(row.where, values), _image_keys(values), captions)
    for row in _objects(content["annotations"], "annotations"):
        name = name_of.get(str(row.values.get("image_id")))
        if name is None:
            captions.counts["annotation(s) of an image that is not listed"] += 1
            continue
        for text in _texts(row.values.get("caption"), "caption", row, captions):
            captions.add(name, text)


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
        _add_rows([json_line(path, number, line) for number, line in lines], captions)
        return
    raise UserError(f"{path} is no valid JSON: {error}. Fetch or write it again.")


def _read_layout(content: Any, captions: Captions) -> None:
    """Read COCO's layout, a list of objects (also below a key), or names of images with texts."""
    if isinstance(content, list):
        _add_rows(_objects(content, ""), captions)
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
    for key, row in first_of.items():
        if _image_column(plain_names(row), captions):
            _add_rows(_objects(content[key], key), captions)
            return
    if _image_column(plain_names(content), captions):  # JSON lines, of which there is one
        _add_rows([Row("line 1", content)], captions)
    elif content and all(map(_is_image_with_texts, *zip(*content.items(), strict=True))):
        rows = [Row(f"key {key!r}", {"image": key, "caption": v}) for key, v in content.items()]
        _add_rows(rows, captions)
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
    return [
        Row(f"{key}[{number}]" if key else f"item {number + 1}", item)
        for number, item in enumerate(items)
        if isinstance(item, dict)
    ]


# ------------------------------------------------------------------------- rows of any table


def _add_rows(rows: list[Row], captions: Captions) -> None:
    """Find the columns of images, captions and splits, and add the rows.

    Raises:
        UnknownFormat: there are no such columns.
        UserError: a value is not what its column should hold.
    """
    if not rows:  # nothing but a header
        return
    rows = [Row(row.where, plain_keys(row.values)) for row in rows]
    names = list(dict.fromkeys(key for row in rows for key in row.values))
    image_keys, caption_keys = _image_keys(names), _caption_keys(names, captions)
    if not image_keys or not caption_keys:
        what = "an image" if caption_keys else "a caption" if image_keys else "image and caption"
        raise UnknownFormat(
            f"{captions.path} has no column or key for {what}: there are {listed(names)}. Call "
            "them image and caption, or as docs/data.md has it."
        )
    left_out = [n for n in names if _CAPTION_KEY.fullmatch(n) and n not in caption_keys]
    if left_out:
        captions.notes.append(
            f"captions are {listed(caption_keys)}, while {listed(left_out)} is left out"
        )
    captions.is_predicted = _is_predicted(rows, set(names))
    split_key = _split_key(rows, names, {*image_keys, *caption_keys})
    for row in rows:
        image = _image_name(row, image_keys, captions)
        texts = [
            text for key in caption_keys for text in _texts(row.values.get(key), key, row, captions)
        ]
        # One of several columns may be empty.
        for text in [text for text in texts if text.strip()] or texts[:1]:
            captions.add(image, text)
        if split_key and image in captions.of_image:
            captions.add_split(image, str(row.values.get(split_key) or ""))


def _is_predicted(rows: list[Row], names: set[str]) -> bool:
    """Whether a model wrote the captions: predict.py's columns, or coco-caption's results."""
    if {"rank", "log_prob"} <= names:
        return True
    is_results = {"image_id", "caption"} <= names <= {"id", "image_id", "caption"}
    return is_results and all(isinstance(row.values.get("image_id"), int) for row in rows)


def _refuse_cut_captions(rows: list[Row], captions: Captions) -> None:
    """Refuse a table in which a separator seems to have cut a caption in two.

    Programs write no blank after a separator: where a row has one in the column after the
    captions, and the value is none of the column's others, the caption went on.
    """
    names = list(rows[0].values) if rows else []
    keys = _caption_keys(names, captions)
    following = names[names.index(keys[-1]) + 1 :][:1] if keys else []
    for key in following:
        values = [str(row.values.get(key, "")) for row in rows]
        for row, value in zip(rows, values, strict=True):
            rest = value.strip()
            if value[:1] == " " and rest.lower() not in {"", *SPLIT_NAMES} and rest not in values:
                raise UserError(
                    f"{captions.path}, {row.where}: a separator seems to cut the caption before "
                    f"{rest!r}, which is read as {key}. Put captions that hold one in quotes."
                )


def _image_column(names: Iterable[str], captions: Captions) -> str | None:
    """The column of images, if there is one of captions as well."""
    keys = _image_keys(names)
    return keys[-1] if keys and _caption_keys(names, captions) else None


def _image_keys(names: Iterable[str]) -> list[str]:
    """The key of the image's name; in Karpathy's COCO, of its folder and of its name."""
    there = set(names)
    if {"filepath", "filename"} <= there:
        return ["filepath", "filename"]
    return [key for key in IMAGE_KEYS if key in there][:1]


def _caption_keys(names: Iterable[str], captions: Captions) -> list[str]:
    """The keys of captions: all of the first stem that is there, in the language asked for.

    Raises:
        UserError: there are several, all in other languages.
    """
    found = [(name, match) for name in names if (match := _CAPTION_KEY.fullmatch(name))]
    if not found:
        return []
    stem = min((match["stem"] for _, match in found), key=CAPTION_STEMS.index)
    language_of = {name: match["language"] for name, match in found if match["stem"] == stem}
    if len(language_of) == 1:
        return list(language_of)
    keys = [name for name, code in language_of.items() if code in (None, captions.language)]
    if not keys:
        raise UserError(
            f"{captions.path} has {listed(language_of)} and no captions in {captions.language}: "
            "name one of these languages with --language."
        )
    return keys


def _split_key(rows: list[Row], names: list[str], others: set[str]) -> str | None:
    """The key of splits: one of a known name, or one that holds nothing but names of splits."""
    for key in [*(key for key in SPLIT_KEYS if key in names), *names]:
        if key in others:
            continue
        values = {str(row.values.get(key) or "").strip().lower() for row in rows} - {""}
        known = values & SPLIT_NAMES.keys()
        if known and (known == values or key in SPLIT_KEYS[:3]):
            return key
    return None


def _image_name(row: Row, keys: Sequence[str], captions: Captions) -> str:
    """The image's name in a row; an id is text as well."""
    parts = []
    for key in keys:
        value = row.values.get(key)
        if isinstance(value, dict):  # Hugging Face's: bytes and path
            value = value.get("path")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str | None):
            raise UserError(
                f"{captions.path}, {row.where}: {key} is {listed([value])}, not an image's name."
            )
        parts.append(_encodable(value or "").strip())
    folder, name = ("", "", *parts)[-2:]
    return f"{folder}/{name}" if folder and name and not folder.endswith(name) else name or folder


def _texts(value: Any, key: str, row: Row, captions: Captions) -> list[str]:
    """The captions that a value holds: a text, texts by language, objects, or a list of these.

    Raises:
        UserError: it holds something else.
    """
    if value is None or value == []:
        return [""]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if len(value) > 1 and all(isinstance(v, str) and len(v.split()) == 1 for v in value):
            return [" ".join(value)]  # the words of one caption
        return [text for item in value for text in _texts(item, key, row, captions)]
    if isinstance(value, dict):
        inner = plain_keys(value)
        keys = _caption_keys(inner, captions) or [k for k in inner if k == "tokens"]
        if keys:
            return [text for k in keys for text in _texts(inner[k], f"{key}.{k}", row, captions)]
        if inner and all(map(_LANGUAGE_KEY.fullmatch, inner)):
            return _in_language(inner, key, row, captions)
    raise UserError(
        f"{captions.path}, {row.where}: {key} is {listed([value])}, not a caption: a text or a "
        "list of texts is expected."
    )


def _in_language(texts: dict[str, Any], key: str, row: Row, captions: Captions) -> list[str]:
    """The captions in the language asked for; ``en_us`` is ``en`` too."""
    for code, value in texts.items():
        if code.split("_")[0] == captions.language:
            return _texts(value, f"{key}.{code}", row, captions)
    codes = f"{listed(texts)}, not in {captions.language} (see --language)"
    captions.counts[f"text(s) in {codes}"] += 1
    return []
