"""Captions of images, and which columns of a table hold them.

Whatever a table is written as, `tables` makes rows of named values of it; here is decided, once,
which names hold images, captions and splits, and what their values say.
"""

from __future__ import annotations

import ast
import html
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cli import UserError
from tables import Row, UnknownFormat, listed, parse_json, plain_keys

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {  # what data sets call the splits
    **{"train": "train", "training": "train", "restval": "train"},
    **{"val": "val", "dev": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}

WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # of a name: trainImages is train and Images

# Columns and keys, in lower case with _ between words; the first that is there counts.
IMAGE_KEYS = (
    *("filename", "file_name", "image", "image_name", "image_file", "image_filename", "img"),
    *("img_name", "img_file", "image_path", "img_path", "filepath", "file_path", "path", "file"),
    *("picture", "photo", "foto", "bild", "imagen", "fichier", "datei", "archivo"),
    *("image_url", "img_url", "url", "image_id", "img_id", "id"),
)
CAPTION_STEMS = (
    *("caption", "sentence", "raw", "text", "comment", "description", "prompt", "title"),
    *("alt_text", "alt", "legende", "texte", "beschreibung", "bildunterschrift", "descripcion"),
    *("leyenda", "texto"),
)
LANGUAGE_KEYS = ("language", "lang", "locale")
LANGUAGE_NAMES = {
    **{"english": "en", "french": "fr", "german": "de", "spanish": "es", "italian": "it"},
    **{"portuguese": "pt", "dutch": "nl", "russian": "ru", "polish": "pl", "czech": "cs"},
    **{"chinese": "zh", "japanese": "ja", "korean": "ko", "thai": "th", "vietnamese": "vi"},
    **{"arabic": "ar", "hindi": "hi", "turkish": "tr", "français": "fr", "deutsch": "de"},
    **{"español": "es", "italiano": "it", "português": "pt", "anglais": "en", "englisch": "en"},
}
_CELL_ERROR = re.compile(r"#((REF|VALUE|NAME|NUM|NULL|DIV/0|SPILL|CALC)[!?]|N/A)")
UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")  # Thai, Japanese, Chinese
# What a program wrote into a cell: a list of texts, a list of objects, an object.
_WRITTEN = re.compile(r"""\s*(\[\s*(['"{\]]|(None|nan|null)\b)|\{\s*['"])""")
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
        warnings: what it should be asked about: what may have been meant otherwise.
        is_predicted: a model wrote them.
    """

    path: Path
    language: str = "en"
    of_image: dict[str, list[str]] = field(default_factory=dict)
    split_of: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    is_predicted: bool = False

    def add(self, image: str, caption: str) -> None:
        """Append a caption, its white space normalised; an empty one or a ``#REF!`` is counted."""
        if "&" in caption:
            caption = html.unescape(re.sub(r"&(#?\w{2,8}) ;", r"&\1;", caption))
        if not caption.isascii():
            caption = _encodable(caption)
        caption = " ".join(caption.split())
        if not image:
            self.counts["row(s) without an image"] += 1
        elif not _is_text(caption):
            self.counts["row(s) without a caption"] += 1
        else:
            self.of_image.setdefault(image, []).append(caption)

    def add_split(self, image: str, name: str) -> None:
        """Note an image's split, if that is what the name stands for.

        Raises:
            UserError: another row has put it into another split.
        """
        split = split_named(name)
        if split and self.split_of.setdefault(image, split) != split:
            raise UserError(
                f"{self.path} puts {image} into two splits, {self.split_of[image]} and {split}: "
                "leave it in one."
            )


@lru_cache  # folders have thousands of pictures
def split_of_name(name: str) -> str | None:
    """The split that a file or folder's name speaks of: ``captions_train2017``, ``devImages``."""
    splits = {SPLIT_NAMES.get(word.lower()) for word in WORDS.findall(name)} - {None}
    return splits.pop() if len(splits) == 1 else None


def split_named(value: str) -> str | None:
    """The split that a value in a field for it stands for: ``val``, ``training set``."""
    return SPLIT_NAMES.get(value.strip().lower()) or split_of_name(value)


def split_of_folders(path: str) -> str | None:
    """The split that the folders of a path speak of, the last first."""
    folders = path.split("/")[-2::-1]
    return next((split for folder in folders if (split := split_of_name(folder))), None)


def _is_text(caption: str) -> bool:
    """Whether it has a letter or digit, and is no error of a spreadsheet."""
    if caption[:1].isalnum():
        return True
    return any(map(str.isalnum, caption)) and not _CELL_ERROR.fullmatch(caption)


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON may hold and no file can."""
    return text.encode("utf-8", "replace").decode()


# ------------------------------------------------------------------------- rows of any table


def add_rows(rows: list[Row], captions: Captions) -> None:
    """Find the columns of images, captions and splits, and add the rows.

    Raises:
        UnknownFormat: there are no such columns.
        UserError: a value is not what its column should hold.
    """
    if not rows:  # nothing but a header
        return
    rows = [Row(row.where, plain_keys(row.values)) for row in rows]
    names = list(dict.fromkeys(key for row in rows for key in row.values))
    of_image, of_caption = image_keys(names), caption_keys(names, captions)
    if not of_image or not of_caption:
        what = "an image" if of_caption else "a caption" if of_image else "image and caption"
        raise UnknownFormat(
            f"{captions.path} has no column or key for {what}: there are {listed(names)}. Call "
            "them image and caption, or as docs/data.md has it."
        )
    left_out = [n for n in names if _CAPTION_KEY.fullmatch(n) and n not in of_caption]
    if left_out:
        captions.notes.append(
            f"captions are {listed(of_caption)}, while {listed(left_out)} is left out"
        )
    captions.is_predicted = _is_predicted(rows, set(names))
    rows = rows_in_language(rows, names, captions)
    split_key = find_split_key(rows, names, {*of_image, *of_caption})
    read = {*of_image, *of_caption, *left_out, *LANGUAGE_KEYS, split_key}
    if unknown := _unknown_splits(rows, split_key):
        captions.warnings.append(
            f"{captions.path} has {listed(unknown)} for a split, which is none known here: write "
            "train, val or test."
        )
    if unread := [name for name in names if name not in read and name]:
        captions.notes.append(f"columns that are not read: {listed(unread)}")
    for row in rows:
        image = image_name(row, of_image, captions)
        texts = [
            text for key in of_caption for text in texts_of(row.values.get(key), key, row, captions)
        ]
        # One of several columns may be empty.
        for text in [text for text in texts if text.strip()] or texts[:1]:
            captions.add(image, text)
        if image in captions.of_image:
            said = row.values.get(split_key) if split_key else None
            inner = (row.values.get(key) for key in of_caption)
            for split in [said] if said else itertools.chain(*map(splits_in, inner)):
                captions.add_split(image, str(split))


def _language_code(name: Any) -> str:
    """``en`` for ``English``, ``en_us`` for ``en-US``, as a column or key has it."""
    name = str(name or "").strip().lower().replace("-", "_")
    return LANGUAGE_NAMES.get(name, name)


def rows_in_language(rows: list[Row], names: list[str], captions: Captions) -> list[Row]:
    """The rows in the language asked for, where a column says that there are several."""
    key = next((key for key in LANGUAGE_KEYS if key in names), None)
    codes = [_language_code(row.values.get(key)) for row in rows] if key else []
    there = {*codes} - {""}
    if len(there) < 2:
        return rows
    if not all(map(_LANGUAGE_KEY.fullmatch, there)):
        captions.warnings.append(
            f"{captions.path} has {listed(sorted(there))} for languages: all are taken. Write "
            f"codes as {captions.language} to take one."
        )
        return rows
    kept = [
        row
        for row, code in zip(rows, codes, strict=True)
        if code.split("_")[0] in ("", captions.language)
    ]
    captions.counts[f"row(s) in other languages than {captions.language}"] = len(rows) - len(kept)
    return kept


def _is_predicted(rows: list[Row], names: set[str]) -> bool:
    """Whether a model wrote the captions: its log_prob is there, or they are COCO's results."""
    if "log_prob" in names:  # of predict.py, and of a report of evaluate.py
        return True
    is_results = {"image_id", "caption"} <= names <= {"id", "image_id", "caption"}
    return is_results and all(isinstance(row.values.get("image_id"), int) for row in rows)


def refuse_cut_captions(rows: list[Row], captions: Captions) -> None:
    """Refuse a table in which a separator seems to have cut a caption in two.

    Programs write no blank after a separator: where a row has one in the column after the
    captions, and the value is none of the column's others, the caption went on. So it did in a
    second column of captions, unless all of its values begin so.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    keys = caption_keys(names, captions)
    following = names[names.index(keys[-1]) + 1 :][:1] if keys else []
    for key in [*keys[1:], *following]:
        values = [str(row.values.get(key, "")) for row in rows]
        if key in keys and all(value[:1] in ("", " ") for value in values):
            continue
        for row, value in zip(rows, values, strict=True):
            rest = value.strip()
            if value[:1] == " " and rest.lower() not in {"", *SPLIT_NAMES} and rest not in values:
                raise UserError(
                    f"{captions.path}, {row.where}: a separator seems to cut the caption before "
                    f"{rest!r}, which is read as {key}. Put captions that hold one in quotes."
                )


def image_column(names: Iterable[str], captions: Captions) -> str | None:
    """The column of images, if there is one of captions as well."""
    keys = image_keys(names)
    return keys[-1] if keys and caption_keys(names, captions) else None


def image_keys(names: Iterable[str]) -> list[str]:
    """The key of the image's name; in Karpathy's COCO, of its folder and of its name."""
    there = set(names)
    if {"filepath", "filename"} <= there:
        return ["filepath", "filename"]
    return [key for key in IMAGE_KEYS if key in there][:1]


def caption_keys(names: Iterable[str], captions: Captions) -> list[str]:
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
    wanted = captions.language if captions.language in language_of.values() else None
    keys = [name for name, code in language_of.items() if code == wanted]
    if not keys:
        raise UserError(
            f"{captions.path} has {listed(language_of)} and no captions in {captions.language}: "
            "name one of these languages with --language."
        )
    return keys


def find_split_key(rows: list[Row], names: list[str], others: set[str]) -> str | None:
    """The key of splits: one of a known name, or one that holds nothing but names of splits.

    ``valid`` alone is no split there: it may be a form's that was filled in.
    """
    for key in [*(key for key in SPLIT_KEYS if key in names), *names]:
        if key in others:
            continue
        values = {str(row.values.get(key) or "").strip().lower() for row in rows} - {""}
        if key in SPLIT_KEYS[:3] and any(map(split_named, values)):
            return key
        if values and values <= SPLIT_NAMES.keys() and (values != {"valid"} or key in SPLIT_KEYS):
            return key
    return None


def _unknown_splits(rows: list[Row], split_key: str | None) -> list[str]:
    """The values of a field of splits that name none."""
    key = split_key or "split"
    values = dict.fromkeys(str(row.values.get(key) or "") for row in rows)
    return [value for value in values if value.strip() and not split_named(value)]


def splits_in(value: Any) -> list[Any]:
    """What objects that hold captions have in a field of splits."""
    values = value if isinstance(value, list) else [value]
    objects = [plain_keys(item) for item in values if isinstance(item, dict)]
    return [item[key] for item in objects for key in SPLIT_KEYS[:3] if item.get(key)]


def image_name(row: Row, keys: Sequence[str], captions: Captions) -> str:
    """The image's name in a row; an id is text as well."""
    parts = []
    for key in keys:
        value = row.values.get(key)
        if isinstance(value, dict):  # Hugging Face's: bytes and path
            if value.get("bytes"):
                raise UserError(
                    f"{captions.path} holds the pictures themselves: save them as files, and name "
                    "these in a captions file."
                )
            value = value.get("path")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str | None):
            raise UserError(
                f"{captions.path}, {row.where}: {key} is {listed([value])}, not an image's name."
            )
        parts.append(_encodable(value or "").strip())
    folder, name = ("", "", *parts)[-2:]
    if not folder or not name or folder.endswith(name):
        return folder or name
    return f"{folder}/{name}"


def texts_of(value: Any, key: str, row: Row, captions: Captions) -> list[str]:
    """The captions that a value holds: a text, texts by language, objects, or a list of these.

    Raises:
        UserError: it holds something else.
    """
    if value is None or value == []:
        return [""]
    if isinstance(value, str):
        if not _WRITTEN.match(value):
            return [value.strip()]
        return texts_of(_written_value(value.strip(), row, captions), key, row, captions)
    if isinstance(value, list):
        if len(value) > 1 and all(isinstance(v, str) and _is_word(v) for v in value):
            return [" ".join(value)]  # the words of one caption
        return [text for item in value for text in texts_of(item, key, row, captions)]
    if isinstance(value, dict):
        inner = plain_keys(value)
        keys = caption_keys(inner, captions) or [k for k in inner if k == "tokens"]
        said = next((inner[k] for k in LANGUAGE_KEYS if keys and k in inner), None)
        code = _language_code(said)
        if code and _LANGUAGE_KEY.fullmatch(code) and code.split("_")[0] != captions.language:
            return _in_language({code: ""}, key, row, captions)
        if keys:
            return [text for k in keys for text in texts_of(inner[k], f"{key}.{k}", row, captions)]
        if inner and all(map(_LANGUAGE_KEY.fullmatch, inner)):
            return _in_language(inner, key, row, captions)
    raise UserError(
        f"{captions.path}, {row.where}: {key} is {listed([value])}, not a caption: a text or a "
        "list of texts is expected."
    )


def _is_word(text: str) -> bool:
    return len(text.split()) == 1 and not UNSPACED.search(text)


def _written_value(text: str, row: Row, captions: Captions) -> Any:
    """The list or object that was written into a cell, as JSON, Python or numpy write it.

    Raises:
        UserError: it is none, perhaps since its end is cut off.
    """
    value, error = parse_json(text)
    if not error:
        return value
    commas = re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text)  # numpy has none
    for literal in (commas, re.sub(r"\bnan\b", "None", commas)):
        with suppress(ValueError, SyntaxError, MemoryError):
            return ast.literal_eval(literal)
    raise UserError(
        f"{captions.path}, {row.where}: {listed([text])} begins as a list or object and is none "
        "that can be read. Write the captions as plain text, or the whole of it."
    )


def _in_language(texts: dict[str, Any], key: str, row: Row, captions: Captions) -> list[str]:
    """The captions in the language asked for; ``en_us`` is ``en`` too."""
    for code, value in texts.items():
        if code.split("_")[0] == captions.language:
            return texts_of(value, f"{key}.{code}", row, captions)
    codes = f"{listed(texts)}, not in {captions.language} (see --language)"
    captions.counts[f"text(s) in {codes}"] += 1
    return []
