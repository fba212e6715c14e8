"""The data set on disk: images with their captions, paired with picture files, in splits.

Pictures are found by name here and opened elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from captions import SPLIT_LISTS, SPLITS, Captions, find_captions, read_captions, text_lines
from cli import UserError

log = logging.getLogger(__name__)

# Flickr30k's published split (Karpathy's), used wherever these names occur.
PUBLISHED_SPLIT = Path(__file__).parent / "flickr30k_images"


@dataclass(frozen=True)
class Example:
    """An image of the corpus: its name in the captions file, its picture file, its captions."""

    name: str
    path: Path
    captions: list[str]


@dataclass(frozen=True)
class Corpus:
    """A data set on disk.

    Attributes:
        captions: the captions file.
        splits: "train", "val" and "test" → examples, in the captions file's order.
        n_missing: images with captions whose picture file does not exist.
        split_source: where the splits come from, for messages.
    """

    captions: Captions
    splits: dict[str, list[Example]]
    n_missing: int
    split_source: str

    @cached_property
    def fingerprint(self) -> str:
        """A hash of image names and splits: equal for the same data in another folder."""
        names = [f"{split} {e.name}" for split, of in self.splits.items() for e in of]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def describe(self) -> str:
        """Describe in two lines what was found and how it is split."""
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

    def require_for_training(self, *, few: int) -> None:
        """Check the splits for training and validation, and warn of ``few`` validation images.

        Raises:
            UserError: one of them is empty; the message says how to fill it.
        """
        for split in ("train", "val"):
            if not self.splits[split]:
                raise UserError(
                    f"the {split} split of {self.captions.path} is empty (split by "
                    f"{self.split_source}): training needs images to learn from and to validate "
                    f"on. {self._how_to_name(split)}"
                )
        n_val = len(self.splits["val"])
        if n_val < few:
            log.warning(
                f"warning: only {n_val} images to validate on: scores mean little below {few}. "
                f"{self._how_to_name('val')}"
            )

    def _how_to_name(self, split: str) -> str:
        """Say how a user gets more images into a split."""
        path = self.captions.path
        if self.captions.split_of:
            return f"Give more of them the split {split} in {path}."
        return f"Name more in {path.parent / f'split_{split}.txt'}, one a line."


def load_corpus(folder: Path, captions_name: str = "") -> Corpus:
    """Find and read a data set: captions, pictures, splits.

    Args:
        folder: the folder to search, or a captions file.
        captions_name: the captions file in the folder, needed where there are several.

    Raises:
        UserError: no folder, no captions, two captions files, or none of the images exists.
    """
    if captions_name and folder.is_file():
        raise UserError(f"--data names a captions file, {folder}: leave --captions out.")
    path = folder / captions_name if captions_name and folder.is_dir() else find_captions(folder)
    if not path.is_file():
        raise UserError(f"no captions file {path}: check --captions and --data.")
    captions = read_captions(path)
    folder = folder if folder.is_dir() else folder.parent
    paths = _find_pictures(folder, captions)
    if not paths:
        example = next(iter(captions.of_image))
        raise UserError(
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
    """Map image names to picture files, for the images that exist.

    A name is a path relative to the captions file or the folder, or the end of a path below the
    folder; the shallowest match wins, since Kaggle's zip of Flickr30k holds each picture twice.
    The last part of a name is enough where no other name has the same last part.
    """
    below: dict[str, list[Path]] = {}
    visited: set[Path] = set()  # folders: a symbolic link may lead back to one above it
    level = [folder]
    while level:  # breadth first: the shallowest match comes first
        entries = [e for parent in level for e in sorted(os.scandir(parent), key=lambda e: e.name)]
        level = []
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_dir():
                below.setdefault(entry.name, []).append(path)
            elif path.resolve() not in visited:
                visited.add(path.resolve())
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
        first = next(candidates, None)
        if first:
            found[name] = first
    return found


def _split(names: list[str], captions: Captions, folder: Path) -> tuple[dict[str, str], str]:
    """Map image names to splits, and say by what; names that are in no list are left out."""
    if captions.split_of:
        return captions.split_of, f"{captions.path.name} itself"
    sources = {place: f"the lists in {place}" for place in (captions.path.parent, folder)}
    for place, source in (*sources.items(), (PUBLISHED_SPLIT, "Flickr30k's published lists")):
        split_of = _split_by_lists(names, place)
        if split_of:
            return split_of, source
    return {name: _split_by_hash(name) for name in names}, "a hash of each name, 90/5/5"


def _split_by_lists(names: list[str], place: Path) -> dict[str, str]:
    """Map image names to splits by lists; without a list for training all others are training."""
    listed: dict[str, str] = {}
    has_train = False
    for split, files in SPLIT_LISTS.items():
        for path in (place / file for file in files):
            if path.is_file():
                has_train |= split == "train"
                listed |= {line.strip(): split for line in text_lines(path)}
    if not any(name in listed for name in names):
        if listed and place.resolve() != PUBLISHED_SPLIT.resolve():
            log.warning(
                f"warning: the lists in {place} name none of the images, as {names[0]}: they are "
                "not used."
            )
        return {}
    if not has_train:
        listed = dict.fromkeys(names, "train") | listed
    return {name: listed[name] for name in names if name in listed}


def _split_by_hash(name: str) -> str:
    """Split 90/5/5 by the name alone, so that an image's split stays when others are added."""
    share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
    return "train" if share < 0.90 else "val" if share < 0.95 else "test"
