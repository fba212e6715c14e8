"""Captions files of every known format: found in a folder, recognised by content, read."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {  # what data sets call the splits
    **{"train": "train", "training": "train", "restval": "train"},
    **{"val": "val", "dev": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
SPLIT_LISTS = {  # files that list the images of a split, one name a line
    "train": ("split_train.txt", "Flickr_8k.trainImages.txt"),
    "val": ("split_val.txt", "Flickr_8k.devImages.txt"),
    "test": ("split_test.txt", "Flickr_8k.testImages.txt"),
}
CAPTIONS_SUFFIXES = {".csv", ".txt", ".token", ".json", ".jsonl"}
# Where several files of a folder hold captions, the first of these is taken.
WELL_KNOWN = (
    *("results.csv", "results_20130124.token", "Flickr8k.token.txt", "captions.txt"),
    *("captions.csv", "metadata.jsonl", "metadata.csv"),
)
IMAGE_COLUMNS = ("image", "file_name", "filename", "image_name")
CAPTION_COLUMNS = ("caption", "text", "comment")


@dataclass
class Captions:
    """The content of a captions file.

    Attributes:
        path: the file.
        of_image: image name → its captions, both in the file's order.
        split_of: image name → its split, where the file has a field for it.
        n_repaired: malformed rows that could be repaired.
        n_skipped: rows without a caption.
    """

    path: Path
    of_image: dict[str, list[str]] = field(default_factory=dict)
    split_of: dict[str, str] = field(default_factory=dict)
    n_repaired: int = 0
    n_skipped: int = 0

    def add(self, image: str, caption: str) -> None:
        """Append a caption with its white space normalised; an empty one is only counted."""
        caption = " ".join(caption.split())
        if caption:
            self.of_image.setdefault(image, []).append(caption)
        else:
            self.n_skipped += 1

    def add_split(self, image: str, name: Any) -> None:
        """Note an image's split, if that is what the name stands for."""
        split = SPLIT_NAMES.get(str(name or "").strip().lower())
        if split:
            self.split_of[image] = split


Reader = Callable[[Path, Captions], None]  # adds what is in the file to the captions


def read_captions(path: Path) -> Captions:
    """Read a captions file of any known format.

    Raises:
        UserError: the file cannot be read or is of no known format.
    """
    reader = _reader_of(path)
    if reader is None:
        raise UserError(
            f"{path} is in no format known here: expected Flickr30k's results.csv, a .token file, "
            "`image,caption` CSV, Karpathy's or COCO's JSON, or metadata.jsonl. See the README."
        )
    captions = Captions(path)
    try:
        reader(path, captions)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise UserError(f"{path} is damaged ({reason}): fetch or write it again.") from error
    if not captions.of_image:
        raise UserError(f"{path} holds no captions: a row needs an image and its text.")
    return captions


def find_captions(folder: Path) -> Path:
    """Find the captions file of a folder, in the folder itself or one level below.

    Raises:
        UserError: there is no folder, no captions file, or no way to choose between several.
    """
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}: it should hold results.csv and the photos. Flickr30k comes from "
            "https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset (see the README). "
            "Name another folder with --data, or try --demo, which needs no data."
        )
    lists = {name for names in SPLIT_LISTS.values() for name in names}
    files = [
        path
        for pattern in ("*", "*/*")
        for path in sorted(folder.glob(pattern))
        if path.suffix.lower() in CAPTIONS_SUFFIXES and path.name not in lists and path.is_file()
    ]
    for name in WELL_KNOWN:
        for path in files:
            if path.name == name and _reader_of(path):
                return path
    found: dict[Path, Reader] = {}
    broken: list[UserError] = []
    for path in files:
        try:
            reader = _reader_of(path)
        except UserError as error:  # perhaps not meant as captions
            broken.append(error)
            continue
        if reader:
            found[path] = reader
    are_cocos = all(
        path.name.startswith("captions_") and reader is _read_coco for path, reader in found.items()
    )
    if len(found) == 1 or (found and are_cocos):
        for reason in broken:
            log.warning(f"warning: {reason}")
        return next(iter(found))
    if found:
        names = ", ".join(str(path.relative_to(folder)) for path in list(found)[:5])
        raise UserError(
            f"several captions files in {folder}: {names}. Choose one with --captions NAME."
        )
    if broken:
        raise broken[0]
    unknown = ""
    if files:
        unknown = (
            f"{files[0].name} is there, but in none of the formats (CSV needs a header such as "
            "image,caption). "
        )
    raise UserError(
        f"no captions file in {folder}. {unknown}Expected: results.csv (Flickr30k), captions.txt, "
        "Karpathy's JSON or another format of the README. Put it there, name another folder with "
        "--data, or try --demo, which needs no data."
    )


def _reader_of(path: Path) -> Reader | None:
    """Choose the reader by the first line, for JSON by the keys; None for an unknown format."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(10_000).rstrip("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    header = first.lower()
    if first.startswith("{"):
        is_one_row = '"file_name"' in first and first.endswith("}") and '"images"' not in first
        return _read_jsonl if is_one_row else _json_reader(path)
    if re.match(r"[^\t|]+#\d+\t", first):
        return _read_token
    if re.match(r"image[^|]*\|.*comment", header) or re.match(r"[^|,]+\.\w+\s*\|\s*\d", header):
        return _read_pipes
    columns = [column.strip(' "') for column in header.split(",")]
    if _column(columns, IMAGE_COLUMNS) and _column(columns, CAPTION_COLUMNS):
        return _read_csv
    return None


_PIPES = re.compile(r"\s*(?P<image>[^|]+?)\s*\|\s*\d+\s*(?P<bar>\|?)\s*(?P<caption>.*)")


def _read_pipes(path: Path, captions: Captions) -> None:
    """Read Flickr30k's results.csv: ``name.jpg| 0| A dog .``.

    The published file has one row without its second bar (2199200615.jpg); such rows are repaired.
    """
    for line in text_lines(path):
        row = _PIPES.fullmatch(line)
        if row is None:
            captions.n_skipped += "comment" not in line  # the header is no loss
            continue
        captions.n_repaired += not row["bar"]
        captions.add(row["image"], row["caption"])


def _read_token(path: Path, captions: Captions) -> None:
    """Read the original of Flickr8k and Flickr30k: ``name.jpg#0<TAB>A dog .``."""
    for line in text_lines(path):
        key, _, caption = line.partition("\t")
        captions.add(key.rsplit("#", 1)[0], caption)


def _read_csv(path: Path, captions: Captions) -> None:
    """Read ``image,caption`` with a header; captions that hold commas are quoted."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            # A first row with too many fields is only a warning to pandas, and cut off.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # keep_default_na: the captions "NA" and "null" are words, not missing values.
            table = pd.read_csv(
                io.StringIO(_text(path)), dtype=str, keep_default_na=False, index_col=False
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ").rstrip(".")
        raise UserError(
            f"{path} is no well-formed CSV: {reason}. Put captions that hold commas in quotes."
        ) from error
    table.columns = [column.strip().lower() for column in table.columns]
    images = table[_column(table.columns, IMAGE_COLUMNS)].str.strip()
    texts = table[_column(table.columns, CAPTION_COLUMNS)]
    for image, caption in zip(images, texts, strict=True):
        captions.add(image, caption if isinstance(caption, str) else "")
    for image, split in zip(images, table.get("split", []), strict=False):
        captions.add_split(image, split)


def _read_jsonl(path: Path, captions: Captions) -> None:
    """Read Hugging Face's imagefolder: ``{"file_name": …, "text": …}``, text also a list."""
    for line in text_lines(path):
        row = json.loads(line)
        text = next((row[column] for column in CAPTION_COLUMNS if column in row), "")
        for caption in [text] if isinstance(text, str) else text:
            captions.add(row["file_name"], caption)
        captions.add_split(row["file_name"], row.get("split"))


def _json_reader(path: Path) -> Reader | None:
    content = _json(path)
    images = content.get("images")
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        return None
    if "sentences" in images[0]:
        return _read_karpathy
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    is_coco = isinstance(first, dict) and "caption" in first  # its zip has other kinds as well
    return _read_coco if is_coco else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON: {error}. Fetch or write it again.") from error
    return content if isinstance(content, dict) else {}


def _read_karpathy(path: Path, captions: Captions) -> None:
    """Read ``images[].filename``, ``.split``, ``.sentences[].raw`` and, for COCO, ``.filepath``."""
    for image in _json(path)["images"]:
        name = f"{image['filepath']}/{image['filename']}" if "filepath" in image else None
        name = name or image["filename"]
        for sentence in image["sentences"]:
            captions.add(name, sentence.get("raw") or " ".join(sentence["tokens"]))
        captions.add_split(name, image.get("split"))


def _read_coco(path: Path, captions: Captions) -> None:
    """Read COCO's ``images[]`` and ``annotations[]``.

    Files beside it whose names also begin with ``captions_`` are read with it; the split is then
    taken from their names.
    """
    paths = sorted(path.parent.glob("captions_*.json")) if path.name[:9] == "captions_" else [path]
    for part in paths:
        content = _json(part)
        name_of = {image["id"]: image["file_name"] for image in content["images"]}
        split = next((split for split in SPLITS if split in part.name), None)
        for annotation in content["annotations"]:
            captions.add(name_of[annotation["image_id"]], annotation["caption"])
            if len(paths) > 1:
                captions.add_split(name_of[annotation["image_id"]], split)


def _column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    return next((column for column in columns if column in names), None)


def text_lines(path: Path) -> Iterator[str]:
    """Iterate over the lines of a text file, without blank ones."""
    return (line for line in _text(path).split("\n") if line.strip())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
