"""Splits for images that the captions files put into none: lists, folders, or a hash of names."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cli import UserError
from columns import (
    IMAGE_KEYS,
    Captions,
    caption_keys,
    find_split_key,
    image_keys,
    split_named,
    split_of_folders,
    split_of_name,
)
from pairing import Finder
from tables import IMAGE_SUFFIX, parse_json, read_delimited, read_text, text_lines

log = logging.getLogger(__name__)

# Flickr30k's published split (Karpathy's), used wherever these names occur.
PUBLISHED_SPLIT = Path(__file__).parent / "flickr30k_images"

LIST_SUFFIXES = (".txt", ".csv", ".lst", ".list")  # of files that list a split's images


def find_splits(
    path_of: Mapping[str, str],
    missing: Sequence[str],
    files: Sequence[Path],
    copy_of: Mapping[str, str],
) -> tuple[dict[str, str], str]:
    """Map images to splits, by the first source that says anything about them.

    Args:
        path_of: image name → the path of its picture below the data's folder.
        missing: images without a picture, which lists may name too.
        files: where lists may be.
        copy_of: image name → the first image with the same picture, which a hash keeps together.

    Returns:
        Image name → split, for those that are in one, and the source, for messages.

    Raises:
        UserError: an image is in the lists of two splits.
    """
    names = list(path_of)
    split_of, source = _by_lists([*names, *missing], files)
    if not split_of:
        split_of, source = _by_folders(path_of), "the pictures' folders"
    if not split_of:
        split_of, source = _published(names), "Flickr30k's published lists"
    if not split_of:
        split_of = {name: _by_hash(copy_of.get(name, name)) for name in names}
        source = "a hash of each name, 90/5/5"
        firsts = {copy_of.get(name, name) for name in names}
        if "val" not in split_of.values() and len(firsts) > 1:  # of few images
            nearest = min(firsts, key=lambda name: abs(_share(name) - 0.925))
            split_of |= {name: "val" for name in names if copy_of.get(name, name) == nearest}
    return split_of, source


def with_train(split_of: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    """The splits; where nothing is for training, all that is in no split is."""
    if "train" in split_of.values():
        return split_of
    return dict.fromkeys(names, "train") | split_of


def _by_lists(names: list[str], files: Sequence[Path]) -> tuple[dict[str, str], str]:
    """By text files whose name speaks of a split and whose lines are names of images.

    Raises:
        UserError: an image is in the lists of two splits.
    """
    finder = Finder(names)
    split_of: dict[str, str] = {}
    folders: list[Path] = []
    for path, split, entries in _lists(files):
        fitting = {entry: _found(finder, entry) for entry in entries}
        images = [found[0] for found in fitting.values() if len(found) == 1]
        strangers = [entry for entry, found in fitting.items() if len(found) != 1]
        first = re.split(r"[\s,;|]", entries[0])[0]  # perhaps with a label after it
        is_meant = images or IMAGE_SUFFIX.search(first) or "split" in path.name
        if strangers and is_meant:
            log.warning(
                f"warning: {len(strangers):,} of the {len(entries):,} names in {path} fit no "
                f"image, as {strangers[0]}; images are called as {names[0]}."
            )
        for name in images:
            if split_of.setdefault(name, split) != split:
                raise UserError(
                    f"{name} is in the list of {split_of[name]} images and, by {path}, in that of "
                    f"{split}: leave it in one."
                )
        folders += [path.parent] if images else []
    return (with_train(split_of, names), f"the lists in {folders[0]}") if folders else ({}, "")


def _found(finder: Finder, entry: str) -> list[str]:
    """The images that a line of a list means, which may have numbers for labels after the name."""
    images, _ = finder.find(entry)
    if not images and (labelled := re.fullmatch(r"(\S.*?)([\s,;|]+-?\d[\d.]*)+", entry)):
        images, _ = finder.find(labelled[1])
    return images


def _lists(files: Sequence[Path]) -> Iterator[tuple[Path, str, list[str]]]:
    """The lists of a split's images: the file, the split, and the names.

    They stand in lines, in a table's column, with their split in another, or in JSON.
    """
    for path in files:
        split, suffix = split_of_name(path.stem), path.suffix.lower()
        has_all = "split" in path.stem.lower()
        if not (split or has_all) or suffix not in {*LIST_SUFFIXES, ".json"}:
            continue
        if suffix == ".json" and not has_all:
            continue
        try:
            text, _ = read_text(path)
        except UserError as error:
            log.warning(f"warning: {error} Its name is that of a list of images: not read.")
            continue
        if suffix == ".json":
            content, _ = parse_json(text)
            lists = content if isinstance(content, dict) else {}
        else:
            lists = _columns(path, text, split)
        for key, values in lists.items():
            split = split_named(str(key))
            if split and isinstance(values, list) and all(isinstance(v, str) for v in values):
                if values:
                    yield path, split, values
            elif split or suffix != ".json":
                log.warning(
                    f"warning: {path} has no names of images in a form known here: not read. Give "
                    "a name a line, or a table with the columns image and split."
                )


def _columns(path: Path, text: str, split: str | None) -> dict[str, list[str] | None]:
    """The images of each split in a text: its lines, or those of a table without captions."""
    try:
        rows = read_delimited(path, text, lambda names: next(iter(image_keys(names)), None))
    except UserError:
        lines = dict.fromkeys(line.strip().strip('"') for line in text.split("\n"))
        entries = [line for line in lines if line and line.lower() not in IMAGE_KEYS]
        if split:
            return {split: entries}
        return {"": None} if path.suffix.lower() == ".csv" else {}
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    image = image_keys(names)[-1]
    key = find_split_key(rows, names, {image})
    if not key and (of_caption := caption_keys(names, Captions(path))):
        texts = [str(row.values.get(key) or "") for key in of_caption for row in rows]
        if not all(re.fullmatch(r"[\d.-]*", text) for text in texts):  # no mere labels
            return {}
    if not key and not split:
        return {"": None}
    lists: dict[str, list[str]] = {}
    for row in rows:
        of = split_named(str(row.values.get(key) or "")) if key else split
        if of and (name := str(row.values.get(image) or "").strip()):
            lists.setdefault(of, []).append(name)
    return {**lists}


def _by_folders(path_of: Mapping[str, str]) -> dict[str, str]:
    """By folders called train, val and test, if all pictures are in such a one."""
    folders = {name: split_of_folders(path) for name, path in path_of.items()}
    split_of = {name: split for name, split in folders.items() if split}
    return split_of if len(split_of) == len(path_of) and len({*split_of.values()}) > 1 else {}


def _published(names: Sequence[str]) -> dict[str, str]:
    """By Flickr30k's lists of validation and test images, where these names occur."""
    split_of = {
        name: split
        for split in ("val", "test")
        for name in text_lines(PUBLISHED_SPLIT / f"split_{split}.txt")
    }
    there = {name: split_of[name] for name in names if name in split_of}
    return with_train(there, names) if there else {}


def _by_hash(name: str) -> str:
    """Split 90/5/5 by the name alone, so that an image's split stays when others are added."""
    share = _share(name)
    return "train" if share < 0.90 else "val" if share < 0.95 else "test"


def _share(name: str) -> float:
    """A number from 0 to 1, as if at random."""
    content = name.encode("utf-8", "surrogateescape")  # names of files may be no UTF-8
    return int(hashlib.sha256(content).hexdigest()[:8], 16) / 16**8
