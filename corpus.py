"""The data set on disk: captions files and pictures of a folder, paired and split.

What was found, chosen, mended and passed over is told before anything is learned from it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import cli
import metrics
from captions import read_captions
from cli import UserError, option
from columns import SPLITS, UNSPACED, Captions, split_of_folders, split_of_name
from files import below, files_below
from pairing import Pictures, copies
from pictures import PICTURE_SUFFIXES
from sources import choose_captions
from splits import find_splits, with_train

log = logging.getLogger(__name__)


@dataclass
class Example:
    """An image of the corpus: its name in the captions file, its picture file, its captions."""

    name: str
    path: Path
    captions: list[str]


@dataclass
class Corpus:
    """A data set on disk.

    Attributes:
        path: the captions file, or the folder that holds several.
        splits: "train", "val" and "test" → examples, in the captions file's order.
        split_source: where the splits come from, for messages.
        has_split_field: they come from a field of the captions file.
        missing: names of images with captions whose picture file does not exist.
        is_predicted: the captions are a model's.
        counts: what was passed over or mended, in words → how often.
        notes: what else its reader should know.
    """

    path: Path
    splits: dict[str, list[Example]] = field(default_factory=lambda: {s: [] for s in SPLITS})
    split_source: str = ""
    has_split_field: bool = False
    missing: list[str] = field(default_factory=list)
    is_predicted: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def photo_ids(self, split: str) -> list[int]:
        """Each photo's name and size as 64 bits: the same in another folder."""
        files = [example.path for example in self.splits[split]]
        names = [f"{path.name}|{path.stat().st_size if path.exists() else 0}" for path in files]
        digests = [hashlib.sha256(os.fsencode(name)).digest() for name in names]
        return [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]

    @property
    def examples(self) -> list[Example]:
        """Those of all splits."""
        return [example for split in SPLITS for example in self.splits[split]]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, splits and captions: equal for the same data in another folder."""
        rows = [[split, e.name, *e.captions] for split in SPLITS for e in self.splits[split]]
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What a person should check before training, as plain data."""
        texts = [text for example in self.examples for text in example.captions]
        each = [len(example.captions) for example in self.examples]
        n_words = [count_words(text) for text in texts]
        return {
            "captions file": str(self.path),
            "images": len(self.examples),
            "captions": len(texts),
            "captions an image": _spread(each),
            "words a caption": _spread(n_words),
            "splits": {split: len(self.splits[split]) for split in SPLITS},
            "split by": self.split_source,
            "missing": len(self.missing),
            "a missing image": self.missing[0] if self.missing else None,
            "counts": dict(+self.counts),
            "notes": self.notes,
        }

    def describe(self) -> str:
        """Describe in a few lines what was found and how it is split."""
        found = self.summary()
        least, mean, most = found["captions an image"].values()
        each = f"{mean:g} each" if least == most else f"{least} to {most} each"
        least, mean, most = found["words a caption"].values()
        lines = [
            f"captions    {self.path}: {found['captions']:,} captions of {found['images']:,} "
            f"images, {each}, of {mean:g} words ({least} to {most})"
        ]
        sizes = ", ".join(f"{n:,} {split}" for split, n in found["splits"].items())
        lines.append(f"images      {sizes} (split by {self.split_source})")
        if self.missing:
            named = f"as {self.missing[0]}, left out"
            lines.append(f"            {len(self.missing):,} images missing, {named}")
        lines += [f"            {n:,} {what}" for what, n in (+self.counts).items()]
        lines += [f"            {note}" for note in self.notes]
        return "\n".join(lines)

    def require_for_training(self, *, few: int, max_words: int) -> None:
        """Check the data, and warn of ``few`` validation images, long captions, a model's captions.

        Raises:
            UserError: one of them is empty; the message says how to fill it.
        """
        for split in ("train", "val"):
            if not self.splits[split]:
                raise UserError(
                    f"the {split} split of {self.path} is empty (split by {self.split_source}): "
                    "training needs images to learn from and to validate on. "
                    f"{self._how_to_name(split)}"
                )
        n_val = len(self.splits["val"])
        if n_val < few:
            log.warning(
                f"warning: only {n_val} images to validate on: scores mean little below {few}. "
                f"{self._how_to_name('val')}"
            )
        texts = [text for example in self.examples for text in example.captions]
        n_long = sum(count_words(text) > max_words for text in texts)
        if n_long > 0.05 * len(texts):
            log.warning(
                f"warning: {100 * n_long / len(texts):.0f} % of the captions are longer than "
                f"--max-words {max_words}, where the model's end: give a larger one."
            )
        if self.is_predicted:
            log.warning(f"warning: a model wrote the captions of {self.path}, not people.")

    def _how_to_name(self, split: str) -> str:
        """Say how a user gets more images into a split."""
        if self.has_split_field:
            return f"Give more of them the split {split} in {self.path}."
        folder = self.path if self.path.is_dir() else self.path.parent
        return f"Name more in {folder / f'split_{split}.txt'}, one a line."


def count_words(text: str) -> int:
    """Words about; of what is written without blanks between words, the letters."""
    return sum(map(str.isalnum, text)) if UNSPACED.search(text) else len(text.split())


def _spread(values: Sequence[int]) -> dict[str, float]:
    mean = round(sum(values) / max(1, len(values)), 1)
    return {"least": min(values, default=0), "mean": mean, "most": max(values, default=0)}


def load_corpus(folder: Path, captions_name: str = "", *, language: str = "en") -> Corpus:
    """Find and read a data set: captions, pictures, splits.

    Args:
        folder: the folder to search, or a captions file.
        captions_name: the captions file in the folder, needed where there are several.
        language: which captions to take where the file has them in several.

    Raises:
        UserError: no folder, no captions, two captions files, none of the images exists, or what
            was found contradicts itself.
    """
    if captions_name and folder.is_file():
        raise UserError(f"--data names a captions file, {folder}: leave --captions out.")
    named = folder / captions_name if captions_name else folder if folder.is_file() else None
    folder = folder.parent if folder.is_file() else folder
    if not folder.is_dir():
        source = (
            "results.csv and the photos. Flickr30k comes from "
            "https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset (see the README)"
            if folder.name == "flickr30k_images"
            else "a captions file and the photos (see docs/data.md)"
        )
        raise UserError(
            f"no folder {folder}: it should hold {source}. Name another folder with --data, or try "
            "--demo, which needs no data."
        )
    log.info(f"reading     {folder}")  # on a slow disk it takes minutes to list the pictures
    files = files_below(folder)
    pictures = Pictures(folder, files)
    notes: list[str] = []
    if named is None:
        sources = choose_captions(folder, files, pictures, language, notes)
    elif named.is_file():
        sources = [read_captions(named, language)]
    else:
        raise UserError(f"no captions file {named}: check --captions and --data.")
    corpus = Corpus(
        sources[0].path if len(sources) == 1 else folder,
        is_predicted=any(source.is_predicted for source in sources),
        notes=notes,
    )
    images = _pair(corpus, sources, pictures)
    _look_at_texts(corpus, images)
    n_pictures = sum(path.suffix.lower() in PICTURE_SUFFIXES for path in files)
    corpus.counts["picture(s) without a caption"] += max(0, n_pictures - len(images))
    copy_of = {path: group[0] for group in copies(i.path for i in images) for path in group[1:]}
    _split(corpus, images, folder, files, copy_of)
    _part_copies(corpus, copy_of)
    return corpus


# ------------------------------------------------------------------------ images and splits


@dataclass
class _Image(Example):
    """An image before the splits are made."""

    split: str | None
    source: Path


def _pair(corpus: Corpus, sources: Sequence[Captions], pictures: Pictures) -> list[_Image]:
    """The images whose pictures are there; the same picture under two names is one image.

    Raises:
        UserError: there are none, or one is in two splits.
    """
    of_path: dict[Path, _Image] = {}
    mended: dict[str, Path] = {}
    bases = {s.path: s.path if s.path.is_dir() else s.path.parent for s in sources}
    for source in sources:
        hint = _split_of_file(source.path, pictures.folder) if len(sources) > 1 else None
        found, loose = pictures.find(source.of_image, bases[source.path], hint, [*bases.values()])
        mended |= loose
        for name, texts in source.of_image.items():
            path = found.get(name)
            if path is None:
                corpus.missing.append(name)
                continue
            split = source.split_of.get(name, hint)
            if len(sources) > 1:  # two files may call different pictures the same
                name = below(path, pictures.folder)
            image = of_path.get(path)
            if image is None:
                of_path[path] = _Image(name, path, list(texts), split, source.path)
                continue
            _add_captions(corpus, image, texts, source.path)
            if split and image.split and split != image.split:
                raise UserError(
                    f"{path} is in two splits, {image.split} by {image.source} and {split} by "
                    f"{source.path}: leave it in one."
                )
            image.split = image.split or split
        for warning in source.warnings:
            log.warning(f"warning: {warning}")
        corpus.counts.update(source.counts)
        corpus.notes += [note for note in source.notes if note not in corpus.notes]
    n_images = len(of_path) + len(corpus.missing)
    if not of_path:
        near = pictures.nearest(corpus.missing[0])
        there = f", where pictures are called as {near}" if near else ""
        raise UserError(
            f"none of the {n_images:,} images of {corpus.path} is there: looked for "
            f"{corpus.missing[0]} and the others in {pictures.folder} and the folders "
            f"below{there}. Put the photos there, or name another folder with --data."
        )
    if len(of_path) < 0.9 * n_images:
        log.warning(
            f"warning: {len(corpus.missing):,} of the {n_images:,} images of {corpus.path} are "
            f"not there, as {corpus.missing[0]}: the others are used. Is {pictures.folder} "
            "complete?"
        )
    if mended:
        name, path = next(iter(mended.items()))
        corpus.notes.append(
            f"{len(mended):,} image(s) found though named otherwise, as {path.name} for {name}"
        )
    return list(of_path.values())


def _look_at_texts(corpus: Corpus, images: Sequence[_Image]) -> None:
    """Note what a person should look at: one caption for very many images, broken letters."""
    texts = Counter(text for image in images for text in image.captions)
    text, n = texts.most_common(1)[0]
    if n >= 10 and n > 0.1 * texts.total():
        corpus.notes.append(f"{n:,} captions are the same: {text!r}")
    broken = [text for text in texts if re.search("[\u00c2\u00c3][\u0080-\u00bf]", text)]
    if broken:
        corpus.notes.append(f"{len(broken):,} captions seem wrongly decoded, as {broken[0]!r}")


def _add_captions(corpus: Corpus, image: _Image, texts: list[str], source: Path) -> None:
    """Add captions to an image that is there by another name or from another file."""
    if source == image.source:
        corpus.counts["image(s) under a second name, taken as one"] += 1
        image.captions += texts
        return
    new = [text for text in texts if text not in image.captions]
    corpus.counts["caption(s) in a second file, taken once"] += len(texts) - len(new)
    image.captions += new


def _split_of_file(path: Path, folder: Path) -> str | None:
    """The split that a captions file is about: by its name, or by the folder it is in."""
    return split_of_name(path.stem) or split_of_folders(below(path, folder))


def _split(
    corpus: Corpus,
    images: list[_Image],
    folder: Path,
    files: Sequence[Path],
    copy_of: Mapping[Path, Path],
) -> None:
    """Put the images into splits."""
    names = {image.path: image.name for image in images}
    split_of = {image.name: image.split for image in images if image.split}
    if split_of:
        split_of = with_train(split_of, names.values())
        _compare_with_folders(corpus, images, folder)
        is_one = corpus.path.is_file()
        corpus.has_split_field = is_one
        corpus.split_source = f"{corpus.path.name} itself" if is_one else "the captions files"
    else:
        lists = [path for path in files if path != corpus.path]
        path_of = {name: below(path, folder) for path, name in names.items()}
        twins = {names[path]: names[first] for path, first in copy_of.items()}
        split_of, corpus.split_source = find_splits(path_of, corpus.missing, lists, twins)
    for image in images:
        if image.name in split_of:
            example = Example(image.name, image.path, image.captions)
            corpus.splits[split_of[image.name]].append(example)
    corpus.counts["image(s) in no split, left out"] += len(images) - len(corpus.examples)


def _compare_with_folders(corpus: Corpus, images: Sequence[_Image], folder: Path) -> None:
    """Warn where a picture lies in a folder of another split than its own."""
    others = []
    for image in images:
        path = below(image.path, folder)
        if image.split and split_of_folders(path) not in (None, image.split):
            others.append(f"{path}, said to be {image.split}")
    if others:
        log.warning(
            f"warning: {len(others):,} images of {corpus.path} lie in a folder of another split, "
            f"as {others[0]}: the captions file counts."
        )


def _part_copies(corpus: Corpus, copy_of: dict[Path, Path]) -> None:
    """Leave out of training what is also a validation or test picture, of validation a test one.

    Where that would be half of the images or more, the split is told to be wrong instead.
    """
    held_out: set[Path] = set()
    for split in reversed(SPLITS):
        examples = corpus.splits[split]
        firsts = [copy_of.get(example.path, example.path) for example in examples]
        is_known = [first in held_out for first in firsts]
        held_out.update(firsts)
        known = list(itertools.compress(examples, is_known))
        if len(known) * 2 < len(examples):
            what = f"{split} image(s) left out: copies of images of another split"
            corpus.counts[what] += len(known)
            kept = zip(examples, is_known, strict=True)
            corpus.splits[split] = [example for example, known_too in kept if not known_too]
        elif known:
            log.warning(
                f"warning: {len(known):,} of the {len(examples):,} {split} images of {corpus.path} "
                f"are copies of images of another split, as {known[0].path}: scores will tell what "
                "was learned by heart. Is the split right?"
            )
    corpus.counts["image(s) with the same picture as another"] += len(copy_of)


# ------------------------------------------------------------- looking at a data set: loader.py


@dataclass(frozen=True)
class Settings:
    """Look at a data set before training on it: what is found, and three of its images."""

    EXAMPLES: ClassVar = ("python loader.py my_photos", "python loader.py my_photos --json")

    data: tuple[Path, ...] = option(
        (Path("flickr30k_images"),),
        "folder with captions and photos, or a captions file",
        group="data",
        positional=True,
    )
    captions: str = option("", "captions file in --data, if it holds several")
    language: str = option("en", "of the captions, where a file holds several")
    max_words: int = option(20, "longest caption that the model may write", at_least=1)
    json: bool = option(False, "print the summary as JSON")
    seed: int = option(0, "of the choice of three images", at_least=0)
    quiet: bool = option(False, "no notes, only results and errors", group="run")
    debug: bool = option(False, "show where an error comes from")

    def __post_init__(self) -> None:
        cli.check(self)
        if len(self.data) != 1:
            raise ValueError("one folder, please: data sets are looked at one by one")


def look(settings: Settings) -> None:
    """Print what training on a data set would learn from."""
    corpus = load_corpus(settings.data[0], settings.captions, language=settings.language)
    if settings.json:
        print(json.dumps(corpus.summary(), ensure_ascii=False))
    else:
        print(corpus.describe())
        examples = corpus.examples
        for example in random.Random(settings.seed).sample(examples, k=min(3, len(examples))):
            print(f"\n{example.path}", *(f"  {text}" for text in example.captions), sep="\n")
    corpus.require_for_training(few=metrics.FEW, max_words=settings.max_words)


def main(argv: list[str] | None = None) -> int:
    """Look at the data set that the command line names; the exit status."""
    settings, _ = cli.parse(Settings, argv)
    return cli.run(lambda: look(settings), settings)
