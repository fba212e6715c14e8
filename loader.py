"""Captions files, splits, the vocabulary, pictures, and batches of them.

Everything between the user's folder and the model's input. No models, no devices, no command
line; words are counted in training captions only.
"""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import logging
import os
import random
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")  # ids 0, 1, 2, 3
PAD, START, END, UNK = range(4)

PICTURE_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".jfif", ".tga"),
}
CAPTIONS_SUFFIXES = {".csv", ".txt", ".token", ".json", ".jsonl"}
# Where several files of a folder hold captions, the first of these is taken.
WELL_KNOWN = (
    *("results.csv", "results_20130124.token", "Flickr8k.token.txt", "captions.txt"),
    *("captions.csv", "metadata.jsonl", "metadata.csv"),
)
SPLIT_LISTS = {  # names of lists of images, one name a line
    "train": ("split_train.txt", "Flickr_8k.trainImages.txt"),
    "val": ("split_val.txt", "Flickr_8k.devImages.txt"),
    "test": ("split_test.txt", "Flickr_8k.testImages.txt"),
}
# Flickr30k's published split (Karpathy's), used wherever these names occur.
PUBLISHED_SPLIT = Path(__file__).parent / "flickr30k_images"


class DataError(Exception):
    """Something in the user's files is not as it must be; the message says what to do."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file that appears whole or not at all: write to the path given, it is renamed at the end.

    The folder is made if there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("r+b") as file:  # Windows flushes only what may be written to
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# --------------------------------------------------------------------------- captions files


@dataclass
class Captions:
    """What a captions file holds.

    Attributes:
        path: the file.
        of_image: image name → its captions, both in the file's order.
        split_of: image name → its split, where the file itself says so.
        n_repaired: rows that were malformed and could be mended.
        n_skipped: rows with no caption in them.
    """

    path: Path
    of_image: dict[str, list[str]] = field(default_factory=dict)
    split_of: dict[str, str] = field(default_factory=dict)
    n_repaired: int = 0
    n_skipped: int = 0

    def add(self, image: str, caption: str) -> None:
        """Append one caption, its white space tidied; an empty one is only counted."""
        caption = " ".join(caption.split())
        if caption:
            self.of_image.setdefault(image, []).append(caption)
        else:
            self.n_skipped += 1


def read_captions(path: Path) -> Captions:
    """Read a captions file of any known format, recognised by its content.

    Raises:
        DataError: the file cannot be read or is of no known format.
    """
    reader = _reader_of(path)
    if reader is None:
        raise DataError(
            f"{path} is in no format known here: expected Flickr30k's results.csv, a .token file, "
            "`image,caption` CSV, Karpathy's or COCO's JSON, or metadata.jsonl. See the README."
        )
    captions = Captions(path)
    try:
        reader(path, captions)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise DataError(f"{path} is damaged ({reason}): fetch or write it again.") from error
    if not captions.of_image:
        raise DataError(f"{path} holds no captions: a row needs an image and its text.")
    return captions


def find_captions(folder: Path) -> Path:
    """The captions file of a folder, searched in it and one level below.

    Raises:
        DataError: there is no folder, no captions file, or no way to choose between several.
    """
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}: it should hold results.csv and the photos. Flickr30k comes from "
            "https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset (see the README). "
            "Name another folder with --data, or try --demo, which needs no data."
        )
    files = [path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern))]
    lists = {name for names in SPLIT_LISTS.values() for name in names}
    files = [
        path
        for path in files
        if path.suffix.lower() in CAPTIONS_SUFFIXES and path.name not in lists and path.is_file()
    ]
    for name in WELL_KNOWN:
        for path in files:
            if path.name == name and _reader_of(path):
                return path
    found: dict[Path, Callable[[Path, Captions], None]] = {}
    broken: list[DataError] = []
    for path in files:
        try:
            reader = _reader_of(path)
        except DataError as error:  # perhaps no captions at all
            broken.append(error)
            continue
        if reader:
            found[path] = reader
    are_cocos = all(
        path.name.startswith("captions_") and reader is _read_coco for path, reader in found.items()
    )
    if len(found) == 1 or (found and are_cocos):
        for error in broken:
            log.warning(f"warning: {error}")
        return next(iter(found))
    if broken and not found:
        raise broken[0]
    if found:
        names = ", ".join(str(path.relative_to(folder)) for path in list(found)[:5])
        raise DataError(
            f"several captions files in {folder}: {names}. Choose one with --captions NAME."
        )
    unknown = ""
    if files:
        unknown = (
            f"{files[0].name} is there, but in none of the formats (CSV needs a header such as "
            "image,caption). "
        )
    raise DataError(
        f"no captions file in {folder}. {unknown}Expected: results.csv (Flickr30k), captions.txt, "
        "Karpathy's JSON or another format of the README. Put it there, name another folder with "
        "--data, or try --demo, which needs no data."
    )


def _reader_of(path: Path) -> Callable[[Path, Captions], None] | None:
    """The function that reads this file, told by how the file begins."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(10_000).rstrip("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
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
    """Flickr30k's results.csv: ``name.jpg| 0| A dog .``.

    The published file has one row without its second bar (2199200615.jpg); any row that lacks
    it is read as if it were there.
    """
    for line in _lines(path):
        row = _PIPES.fullmatch(line)
        if row is None:
            captions.n_skipped += "comment" not in line  # the header is no loss
            continue
        captions.n_repaired += not row["bar"]
        captions.add(row["image"], row["caption"])


def _read_token(path: Path, captions: Captions) -> None:
    """Flickr8k's and Flickr30k's original: ``name.jpg#0<TAB>A dog .``."""
    for line in _lines(path):
        key, _, caption = line.partition("\t")
        captions.add(key.rsplit("#", 1)[0], caption)


OTHER_NAMES = {
    **{"training": "train", "restval": "train"},
    **{"dev": "val", "valid": "val", "validation": "val", "testing": "test"},
}
IMAGE_COLUMNS = ("image", "file_name", "filename", "image_name")
CAPTION_COLUMNS = ("caption", "text", "comment")


def _read_csv(path: Path, captions: Captions) -> None:
    """``image,caption`` with a header; captions that hold commas are quoted."""
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
        raise DataError(
            f"{path} is no well-formed CSV: {reason}. Put captions that hold commas in quotes."
        ) from error
    table.columns = [column.strip().lower() for column in table.columns]
    images = table[_column(table.columns, IMAGE_COLUMNS)].str.strip()
    texts = table[_column(table.columns, CAPTION_COLUMNS)]
    for image, caption in zip(images, texts, strict=True):
        captions.add(image, caption if isinstance(caption, str) else "")
    for image, split in zip(images, table.get("split", []), strict=False):
        _add_split(captions, image, split)


def _read_jsonl(path: Path, captions: Captions) -> None:
    """Hugging Face's imagefolder: ``{"file_name": …, "text": …}``, text also a list."""
    for line in _lines(path):
        row = json.loads(line)
        text = next((row[column] for column in CAPTION_COLUMNS if column in row), "")
        for caption in [text] if isinstance(text, str) else text:
            captions.add(row["file_name"], caption)
        _add_split(captions, row["file_name"], row.get("split"))


def _json_reader(path: Path) -> Callable[[Path, Captions], None] | None:
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
        raise DataError(f"{path} is no valid JSON: {error}. Fetch or write it again.") from error
    return content if isinstance(content, dict) else {}


def _read_karpathy(path: Path, captions: Captions) -> None:
    """``images[].filename``, ``.split`` and ``.sentences[].raw``; COCO's have a ``filepath``."""
    for image in _json(path)["images"]:
        name = f"{image['filepath']}/{image['filename']}" if "filepath" in image else None
        name = name or image["filename"]
        for sentence in image["sentences"]:
            captions.add(name, sentence.get("raw") or " ".join(sentence["tokens"]))
        _add_split(captions, name, image.get("split"))


def _read_coco(path: Path, captions: Captions) -> None:
    """COCO's ``images[]`` and ``annotations[]``.

    Files beside it whose names also begin with ``captions_`` are read with it, and then their
    names tell the split.
    """
    paths = sorted(path.parent.glob("captions_*.json")) if path.name[:9] == "captions_" else [path]
    for part in paths:
        content = _json(part)
        name_of = {image["id"]: image["file_name"] for image in content["images"]}
        split = next((split for split in SPLITS if split in part.name), None)
        for annotation in content["annotations"]:
            captions.add(name_of[annotation["image_id"]], annotation["caption"])
            if len(paths) > 1:
                _add_split(captions, name_of[annotation["image_id"]], split)


def _add_split(captions: Captions, image: str, split: str | None) -> None:
    split = str(split or "").strip().lower()
    split = OTHER_NAMES.get(split, split)
    if split in SPLITS:
        captions.split_of[image] = split


def _column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    return next((column for column in columns if column in names), None)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file that are not empty."""
    return (line for line in _text(path).split("\n") if line.strip())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error


# ---------------------------------------------------------------------- images and splits


@dataclass(frozen=True)
class Example:
    """One image of the data set: its name in the captions file, its picture, its captions."""

    name: str
    path: Path
    captions: list[str]


@dataclass(frozen=True)
class Corpus:
    """A data set as it lies on disk.

    Attributes:
        captions: the captions file.
        splits: "train", "val" and "test" → examples, in the captions file's order.
        n_missing: images with captions that are not there.
        split_source: where the splits come from, for people.
    """

    captions: Captions
    splits: dict[str, list[Example]]
    n_missing: int
    split_source: str

    @cached_property
    def fingerprint(self) -> str:
        """What tells its images and their splits from others, wherever they lie."""
        names = [f"{split} {e.name}" for split, of in self.splits.items() for e in of]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def describe(self) -> str:
        """Two readable lines: what was found and how it is split."""
        n_captions = sum(map(len, self.captions.of_image.values()))
        n_images = len(self.captions.of_image)
        notes = [f"{n_captions:,} captions of {n_images:,} images"]
        if self.captions.n_repaired:
            notes.append(f"{self.captions.n_repaired} malformed row(s) repaired")
        if self.captions.n_skipped:
            notes.append(f"{self.captions.n_skipped} row(s) without a caption skipped")
        if self.n_missing:
            notes.append(f"{self.n_missing:,} images missing, left out")
        sizes = ", ".join(f"{len(self.splits[split]):,} {split}" for split in SPLITS)
        n_unused = n_images - self.n_missing - sum(map(len, self.splits.values()))
        if n_unused:
            sizes += f", {n_unused:,} in no split, left out"
        return (
            f"captions    {self.captions.path}: {', '.join(notes)}\n"
            f"images      {sizes} (split by {self.split_source})"
        )


def load_corpus(folder: Path, captions_name: str = "") -> Corpus:
    """Find and read a data set: captions, pictures, splits.

    Args:
        folder: where to look, or a captions file.
        captions_name: a captions file in the folder, where it holds several.

    Raises:
        DataError: no folder, no captions, two captions files, or not one of the images present.
    """
    if captions_name and folder.is_file():
        raise DataError(f"--data names a captions file, {folder}: leave --captions out.")
    chosen = captions_name and folder.is_dir()
    path = folder / captions_name if chosen else find_captions(folder)
    if not path.is_file():
        raise DataError(f"no captions file {path}: check --captions and --data.")
    captions = read_captions(path)
    folder = folder if folder.is_dir() else folder.parent
    paths = _find_pictures(folder, captions)
    if not paths:
        example = next(iter(captions.of_image))
        raise DataError(
            f"none of the {len(captions.of_image):,} images of {path} is there: looked for "
            f"{example} and the others in {folder} and the folders below. Put the photos there, "
            "or name another folder with --data."
        )
    split_of, source = _split(list(captions.of_image), captions, folder)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for name, split in split_of.items():
        if name in paths:
            splits[split].append(Example(name, paths[name], captions.of_image[name]))
    n_images = len(captions.of_image)
    if len(paths) < 0.9 * n_images:
        log.warning(
            f"warning: {n_images - len(paths):,} of the {n_images:,} images of {path} are not "
            f"there: the others are used. Is {folder} complete?"
        )
    return Corpus(captions, splits, n_images - len(paths), source)


def _find_pictures(folder: Path, captions: Captions) -> dict[str, Path]:
    """Image name → path, for the images that are there.

    A name is a path below the captions file or the folder, or the end of one, the shallowest
    first: Kaggle's zip of Flickr30k holds each picture twice. Its last part alone is enough where
    no other image ends in the same.
    """
    below: dict[str, list[Path]] = {}
    seen: set[Path] = set()  # folders: a link may lead back to one above it
    level = [folder]
    while level:  # level by level: the shallowest first
        entries = [e for place in level for e in sorted(os.scandir(place), key=lambda e: e.name)]
        level = []
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_dir():
                below.setdefault(entry.name, []).append(path)
            elif path.resolve() not in seen:
                seen.add(path.resolve())
                level.append(path)
    last_part = {name: name.rsplit("/", 1)[-1] for name in captions.of_image}
    n_called = Counter(last_part.values())
    found = {}
    for name, bare in last_part.items():
        places = (captions.path.parent, folder) if "/" in name else ()
        there = below.get(bare, [])
        candidates = itertools.chain(
            (place / name for place in places if (place / name).is_file()),
            (path for path in there if f"/{path.as_posix()}".endswith(f"/{name}")),
            there if n_called[bare] == 1 else (),
        )
        path = next(candidates, None)
        if path:
            found[name] = path
    return found


def _split(names: list[str], captions: Captions, folder: Path) -> tuple[dict[str, str], str]:
    """Image name → split, and where that comes from; names that no list names are left out."""
    if captions.split_of:
        return captions.split_of, f"{captions.path.name} itself"
    sources = {place: f"the lists in {place}" for place in (captions.path.parent, folder)}
    for place, source in (*sources.items(), (PUBLISHED_SPLIT, "Flickr30k's published lists")):
        split_of = _split_by_lists(names, place)
        if split_of:
            return split_of, source
    return {name: _split_by_hash(name) for name in names}, "a hash of each name, 90/5/5"


def _split_by_lists(names: list[str], place: Path) -> dict[str, str]:
    """Splits by lists of names; without a list for training it is what no other list names."""
    listed: dict[str, str] = {}
    has_train = False
    for split, files in SPLIT_LISTS.items():
        for path in (place / file for file in files):
            if path.is_file():
                has_train |= split == "train"
                listed |= {line.strip(): split for line in _lines(path)}
    split_of = {name: listed[name] for name in names if name in listed}
    if listed and not split_of and place.resolve() != PUBLISHED_SPLIT.resolve():
        log.warning(
            f"warning: the lists in {place} name none of the images, as {names[0]}: they are not "
            "used."
        )
    if split_of and not has_train:
        split_of |= {name: "train" for name in names if name not in listed}
    return {name: split_of[name] for name in names if name in split_of}


def _split_by_hash(name: str) -> str:
    """90/5/5 by the name alone, so that an image's split stays when others are added."""
    share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
    return "train" if share < 0.90 else "val" if share < 0.95 else "test"


# ------------------------------------------------------------------------------ vocabulary


CLITICS = {"'", "'s", "'re", "'m", "'ll", "'d", "'ve", "n't"}  # written without a blank before


UNSPACED = {"zh", "ja", "th"}  # written without blanks between words

# A picture with one of these in its captions is another one in the mirror.
SIDES = {
    "en": "left right",
    "fr": "gauche droite",
    "de": "links rechts linke linken rechte rechten",
    "es": "izquierda derecha",
}
# Articles, prepositions and the like: a sentence that ends on one was cut short.
HANGING = {
    "en": "a an the of in on at with from to for by into onto and or as near beside between over "
    "under through behind against toward towards across along among above below his their its",
    "fr": "le la les l' un une des du de d' à au aux en dans sur sous avec pour par et ou vers "
    "chez entre contre sans son sa ses leur leurs",
    "de": "der die das den dem des ein eine einen einem einer eines in im am auf an mit von vom zu "
    "zum zur bei für und oder über unter neben vor hinter zwischen durch sein seine ihr ihre",
    "es": "el la los las un una unos unas de del en a al con por para y o sobre entre hacia su sus",
}


class Vocabulary:
    """Captions to ids and back.

    Tokens are those of spaCy's tokenizer, lower-cased, without punctuation but for what is needed
    to write the words out again: the hyphen inside a word, a clitic's apostrophe.

    Attributes:
        words: id → word, ``SPECIAL_TOKENS`` first, then the most frequent first.
        counts: id → how often it was met in the captions it was built from.
        language: a code that ``spacy.blank`` knows, or the name of an installed pipeline.
        separator: what stands between words: a blank, nothing in ``UNSPACED`` languages.
    """

    def __init__(
        self, words: Sequence[str], counts: Sequence[int], *, language: str, separator: str = " "
    ) -> None:
        assert tuple(words[:4]) == SPECIAL_TOKENS
        assert len(words) == len(counts)
        self.words = list(words)
        self.counts = list(counts)
        self.language = language
        self.separator = separator
        self.id_of = {word: id_ for id_, word in enumerate(words)}

    @classmethod
    def build(
        cls, captions: Iterable[str], *, freq_threshold: int = 5, language: str = "en"
    ) -> Vocabulary:
        """Count the words of the training captions; those met less often become ``<unk>``.

        Raises:
            DataError: spaCy knows no such language.
        """
        tokenizer = Tokenizer(language)
        count_of = Counter(token for caption in captions for token in tokenizer(caption))
        kept = [word for word, count in count_of.items() if count >= freq_threshold]
        kept.sort(key=lambda word: (-count_of[word], word))
        n_unknown = count_of.total() - sum(count_of[word] for word in kept)
        vocabulary = cls(
            [*SPECIAL_TOKENS, *kept],
            [0, 0, 0, n_unknown, *(count_of[word] for word in kept)],
            language=language,
            separator="" if tokenizer.language in UNSPACED else " ",
        )
        vocabulary.__dict__["tokenizer"] = tokenizer  # its memory of words seen is worth keeping
        return vocabulary

    def extended(self, captions: Iterable[str], *, freq_threshold: int) -> Vocabulary:
        """This vocabulary and, after its words, the new ones of these captions; ids stay."""
        new = Vocabulary.build(captions, freq_threshold=freq_threshold, language=self.language)
        added = [
            (word, count)
            for word, count in zip(new.words, new.counts, strict=True)
            if word not in self.id_of
        ]
        return Vocabulary(
            [*self.words, *(word for word, _ in added)],
            [*self.counts, *(count for _, count in added)],
            language=self.language,
            separator=self.separator,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Made when first needed: who only writes captions never waits for spaCy."""
        return Tokenizer(self.language)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """``"A dog runs ."`` → ids of ``<start> a dog runs <end>``."""
        return [START, *(self.id_of.get(word, UNK) for word in self.tokenizer(caption)), END]

    @property
    def hanging(self) -> tuple[int, ...]:
        """Ids of the words no sentence should end on; none in a language not in ``HANGING``."""
        words = HANGING.get(self.language.split("_")[0], "").split()
        return tuple(self.id_of[word] for word in words if word in self.id_of)

    def text(self, ids: Iterable[int]) -> str:
        """Ids → words as people write them: ``a man 's t - shirt`` becomes "a man's t-shirt"."""
        text, glued = "", True
        for id_ in ids:
            word = self.words[id_]
            if word in SPECIAL_TOKENS:
                continue
            glued = glued or word.startswith("-") or word in CLITICS
            text += word if glued else self.separator + word
            # After a hyphen, and after an elision as in French "l'homme", no blank follows.
            glued = word == "-" or (len(word) > 1 and word.endswith("'"))
        return text


class Tokenizer:
    """spaCy's tokenizer, and a memory of what it said.

    spaCy splits at blanks first and then looks at each piece alone, so a piece met before need
    not be looked at again: three times as fast on captions, and the same tokens.
    """

    def __init__(self, language: str) -> None:
        """Raises: DataError: no such language, or a package it needs is not installed."""
        import spacy

        try:
            is_pipeline = spacy.util.is_package(language)
            pipeline = spacy.load(language) if is_pipeline else spacy.blank(language)
        except (ImportError, OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise DataError(
                f"spaCy has no language {language!r}: give --language a code as en, fr or de, or "
                f"the name of an installed pipeline. ({reason})"
            ) from error
        self.language = pipeline.lang
        self._spacy = pipeline.tokenizer
        self._known: dict[str, list[str]] = {}

    def __call__(self, caption: str) -> list[str]:
        """The words of a caption, in lower case."""
        words: list[str] = []
        for piece in caption.split():
            found = self._known.get(piece)
            if found is None:
                found = self._known[piece] = self._words(piece)
            words += found
        return words

    def _words(self, piece: str) -> list[str]:
        """The words of a piece of text without blanks."""
        tokens = [token.lower_ for token in self._spacy(piece.replace("\u2019", "'"))]
        words: list[str] = []
        for before, token, after in zip(["", *tokens[:-1]], tokens, [*tokens[1:], ""], strict=True):
            if self.language not in UNSPACED and before.isalpha() and token.isalpha():
                words[-1] += token  # "can" "not", "gon" "na": one word to people
            elif any(char.isalnum() for char in token):
                words.append(token)
            elif token == "-" and before[-1:].isalnum() and after[:1].isalnum():
                words.append(token)  # "t-shirt"
            elif token == "'" and before.endswith("s") and tokens[0] != "'":
                words.append(token)  # "the dogs' ball"
        return words


# -------------------------------------------------------------------------------- pictures


def read_image(source: Path | Any, *, size: int | None = None) -> Image.Image:
    """Open a picture as people see it: upright, RGB, over white, its first frame.

    Args:
        source: a path or an open binary file.
        size: the size it will be given later; a large JPEG is then decoded at a smaller scale,
            at least twice that size, which is several times as fast.

    Raises:
        DataError: not a picture, damaged, or too large.
    """
    name = source if isinstance(source, str | Path) else "the picture"
    try:
        with Image.open(source) as image:
            if size is not None:
                image.draft(None, (2 * size, 2 * size))
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise DataError(f"{name}: no such file.") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{name} is not a picture in a format that can be read.") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name} is too large to be read safely (over 179 megapixels).") from None
    except Exception as error:  # decoders meet broken files with errors of almost any kind
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{name} cannot be read: {reason}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits scaled down (Pillow would clip them), transparency over white."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        white = 65535 if image.mode.startswith("I") else 1 if values.max() <= 1 else 255
        return Image.fromarray((values / white * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def read_pictures(paths: Iterable[Path], size: int) -> Iterator[tuple[Path, Tensor | DataError]]:
    """Read and transform many pictures, some ahead of the one asked for, in order.

    Returns:
        For each path the picture as ``transform`` gives it, or the reason why it cannot be read.
    """

    def read(path: Path) -> tuple[Path, Tensor | DataError]:
        try:
            return path, transform(read_image(path, size=size), size)
        except DataError as error:
            return path, error

    n_threads = os.cpu_count() or 1  # Pillow decodes without holding Python's lock
    with ThreadPoolExecutor(n_threads) as pool:
        ahead: deque[Future[tuple[Path, Tensor | DataError]]] = deque()
        try:
            for path in paths:
                ahead.append(pool.submit(read, path))
                if len(ahead) > 32 + n_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def transform(image: Image.Image, size: int) -> Tensor:
    """A picture as the model wants it, in training, evaluation and prediction alike.

    The whole picture is squashed to a square: captions speak of what is at the edges too, which
    a crop would cut off.

    Returns:
        (3, size, size) uint8, RGB. The model itself brings it to the scale of its weights.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if pixels.shape[1:] == (size, size):
        return pixels
    return torch.nn.functional.interpolate(
        pixels.unsqueeze(0), size=(size, size), mode="bilinear", antialias=True
    ).squeeze(0)


# --------------------------------------------------------------------------------- batches


class Flickr30k(Dataset):
    """Images with all their captions as ids; Flickr30k's, or any other corpus's."""

    def __init__(
        self, examples: Sequence[Example], vocabulary: Vocabulary, images: Sequence[Tensor]
    ) -> None:
        """Tokenise the captions.

        Args:
            examples: the images of one split.
            vocabulary: gives the ids.
            images: for each example its (3, S, S) uint8 picture or its (F,) vector.

        Attributes:
            captions: for each example its captions' ids, with ``<start>`` and ``<end>``.
        """
        assert len(examples) == len(images)
        self.examples = examples
        self.vocabulary = vocabulary
        self.images = images
        self.captions = [
            [torch.tensor(vocabulary.encode(caption)) for caption in example.captions]
            for example in examples
        ]

    @cached_property
    def may_mirror(self) -> list[bool]:
        """For each example whether its captions still fit its mirror image."""
        sides = set(SIDES.get(self.vocabulary.language.split("_")[0], "").split())
        words = self.vocabulary.tokenizer
        return [
            bool(sides) and not any(sides & set(words(text)) for text in example.captions)
            for example in self.examples
        ]

    def seen_as(self, images: Sequence[Tensor]) -> Flickr30k:
        """The same captions, with other images or vectors in the same order."""
        assert len(images) == len(self.images)
        other = copy.copy(self)
        other.images = images
        return other

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, list[Tensor]]:
        return self.images[index], self.captions[index]


@dataclass(frozen=True)
class Batch:
    """Images, each once, and their captions.

    Attributes:
        images: (N, 3, S, S) uint8 or (N, F) float32.
        tokens: (B, T) ids, ``<start>`` words ``<end>``, padded with ``<pad>``.
        image_of: (B,) the row of ``images`` each caption belongs to.
        image_at: (N,) where in the dataset the images are.
        n_words: how many words there are to learn, each ``<end>`` one of them.
    """

    images: Tensor
    tokens: Tensor
    image_of: Tensor
    image_at: list[int]
    n_words: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("images", "tokens", "image_of")
        }
        return replace(self, **moved)


Plan = list[list[tuple[int, int]]]  # batches of (image, caption)

POOL = 20  # batches' worth of captions that are sorted by length together


def plan_batches(dataset: Flickr30k, *, batch_size: int, seed: int, whole_images: bool) -> Plan:
    """Which captions meet in which batch of an epoch; ``collate`` makes the batches.

    Args:
        dataset: images and captions.
        batch_size: captions in a batch.
        seed: a number of its own for each epoch; the same seed gives the same plan.
        whole_images: True keeps all captions of an image together, so that an encoder that
            trains looks at it once. Else captions are drawn one by one and met by others of like
            length, so that hardly any time goes into padding.
    """
    rng = random.Random(seed)
    return (_plan_images if whole_images else _plan_captions)(dataset, batch_size, rng)


def collate(dataset: Flickr30k, pairs: Sequence[tuple[int, int]]) -> Batch:
    """Captions, named by image and caption index, as a batch."""
    rows: dict[int, int] = {}
    image_of = [rows.setdefault(image, len(rows)) for image, _ in pairs]
    captions = [dataset.captions[image][caption] for image, caption in pairs]
    return Batch(
        torch.stack([dataset.images[image] for image in rows]),
        pad_sequence(captions, batch_first=True, padding_value=PAD),
        torch.tensor(image_of),
        list(rows),
        sum(len(caption) - 1 for caption in captions),
    )


def augment(images: Tensor, may_mirror: Sequence[bool], *, smallest: float) -> Tensor:
    """Show pictures as they have not been seen before: a part of each, half of them mirrored.

    Args:
        images: (N, 3, S, S) uint8.
        may_mirror: (N,) whether the captions fit the mirror image too.
        smallest: the smallest share of a picture's area that is shown.

    Returns:
        (N, 3, S, S) uint8. Random numbers are torch's.
    """
    from torchvision.transforms import v2

    size = images.shape[-1]
    crop = v2.RandomResizedCrop(size, scale=(smallest, 1.0), ratio=(0.8, 1.25), antialias=True)
    mirror = torch.tensor(may_mirror) & (torch.rand(len(images)) < 0.5)
    return torch.stack(
        [
            crop(image).flip(-1) if is_mirrored else crop(image)
            for image, is_mirrored in zip(images, mirror.tolist(), strict=True)
        ]
    )


def _plan_images(dataset: Flickr30k, batch_size: int, rng: random.Random) -> Plan:
    """Images in random order, each with all its captions, about ``batch_size`` captions a batch."""
    images = list(range(len(dataset)))
    rng.shuffle(images)
    plan: Plan = [[]]
    for image in images:
        pairs = [(image, caption) for caption in range(len(dataset.captions[image]))]
        if plan[-1] and len(plan[-1]) + len(pairs) > batch_size:
            plan.append([])
        plan[-1] += pairs
    return plan


def _plan_captions(dataset: Flickr30k, batch_size: int, rng: random.Random) -> Plan:
    """Captions in random order, sorted by length within pools, the batches shuffled again."""
    pairs = [
        (image, caption)
        for image, captions in enumerate(dataset.captions)
        for caption in range(len(captions))
    ]
    rng.shuffle(pairs)
    plan: Plan = []
    for pool_start in range(0, len(pairs), POOL * batch_size):
        pool = pairs[pool_start : pool_start + POOL * batch_size]
        pool.sort(key=lambda pair: len(dataset.captions[pair[0]][pair[1]]))
        plan += [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
    rng.shuffle(plan)
    return plan
