"""Which picture an image's name means, and which pictures are copies of each other.

Captions files come from other machines: letter case, suffix, folders and encoding of a name may
differ from the file's. A picture is found if and only if exactly one fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from cli import UserError
from columns import split_of_folders, split_of_name
from files import below, is_file
from pictures import PICTURE_SUFFIXES

log = logging.getLogger(__name__)

# Folders whose name says nothing about which pictures are in them.
GENERIC_FOLDERS = {
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpg", "jpeg"),
    *("jpegs", "png", "data", "dataset", "files"),
}
Parts = tuple[str, ...]  # of a path
_PICTURES = tuple(PICTURE_SUFFIXES)
_URL = re.compile(r"\w{2,}:/")
_ABSOLUTE = re.compile(r"/|\w:[\\/]")


class Finder:
    """Finds paths by names that were written elsewhere."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Index the paths, with ``/`` between their parts."""
        self._exact: set[str] = set()
        self._called: dict[str, list[str]] = defaultdict(list)
        self._stems: dict[str, list[str]] = {}
        for path in paths:
            self._exact.add(path)
            self._called[_loose(path.rsplit("/", 1)[-1])].append(path)

    def find(
        self, name: str, may_be: Callable[[str], bool] = lambda _: True
    ) -> tuple[list[str], bool]:
        """Of the paths that may be meant those that a name fits best, and whether to the letter.

        To the letter it is a path or the end of one. Else letter case, Unicode form,
        percent-encoding, the kind of slash, ``.jpeg`` for ``.jpg`` and a missing suffix do not
        count, of a URL only the last part does, and folders that are not in both must not
        contradict each other.
        """
        plain = posixpath.normpath(name)
        if plain in self._exact and may_be(plain):
            return [plain], True
        called = list(filter(may_be, self._called.get(_loose(plain.rsplit("/", 1)[-1]), [])))
        to_the_letter = [path for path in called if path.endswith(f"/{plain}")]
        if to_the_letter:
            return to_the_letter, True
        *folders, last = _parts(name)
        called = list(filter(may_be, self._called.get(last, [])))
        if not called and PurePosixPath(last).suffix not in PICTURE_SUFFIXES:
            called = list(filter(may_be, self._by_stem().get(last, [])))
        loose = [(path, _parts(path)[:-1]) for path in called]
        whole = [path for path, of in loose if of[len(of) - len(folders) :] == tuple(folders)]
        return whole or [path for path, of in loose if _agree(of, tuple(folders))], False

    def _by_stem(self) -> dict[str, list[str]]:
        if not self._stems:
            for called, paths in self._called.items():
                path = PurePosixPath(called)
                if path.suffix in PICTURE_SUFFIXES:
                    self._stems.setdefault(path.stem, []).extend(paths)
        return self._stems


def _loose(part: str) -> str:
    """A part of a path without what differs between machines."""
    part = unicodedata.normalize("NFC", part).casefold().strip()
    return re.sub(r"\.(jpeg|jpe|jpg_large)$", ".jpg", part)


def _parts(name: str) -> Parts:
    """The loose parts of a name; of a URL the last alone."""
    if _URL.match(name):
        name = re.split("[?#]", name)[0].rsplit("/", 1)[-1]
    name = posixpath.normpath(name.replace("\\", "/"))
    return tuple(_loose(unquote(part)) for part in name.split("/") if part) or ("",)


def _agree(one: Parts, other: Parts) -> bool:
    """Whether two paths of folders may be the same: one ends with the other, but for generic ones.

    ``cats`` and ``dogs`` contradict each other; ``photos`` and ``data/cats/images`` do not.
    """
    one, other = _telling(one), _telling(other)
    shorter = min(len(one), len(other))
    return one[len(one) - shorter :] == other[len(other) - shorter :]


def _telling(folders: Parts) -> Parts:
    return tuple(part for part in folders if part not in GENERIC_FOLDERS)


class Pictures:
    """The files of a folder, most of them pictures, found by what captions files call them."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        """Index the files below the folder."""
        self.folder = folder
        self._of = {below(path, folder): path for path in files}
        self._finder = Finder(self._of)
        self._real_of: dict[str, str] = {}  # folders that names speak of
        self._has_compared = False  # a picture with a namesake in deeper folders

    def find(
        self, names: Iterable[str], base: Path, split: str | None, others: Sequence[Path] = ()
    ) -> tuple[dict[str, Path], dict[str, Path]]:
        """Map names to pictures, for those that are there.

        A file's pictures are below its own folder, else in folders of its split, else anywhere:
        where some are, the others are missing rather than a namesake elsewhere.

        Args:
            names: what a captions file calls them.
            base: the captions file's folder.
            split: that the file is about, if it says so.
            others: folders of captions files that belong to it, whose pictures are not its own.

        Returns:
            All that were found, and of these the ones that fit a picture, but not to the letter.

        Raises:
            UserError: several different pictures fit a name equally well.
        """
        names = list(names)
        place = _relative(base, self.folder)
        for may_be in self._where(place, split, [_relative(path, self.folder) for path in others]):
            found, loose = self._find(names, base, place, may_be)
            if found:
                return found, loose
        return {}, {}

    def _where(
        self, place: str, split: str | None, others: Sequence[str]
    ) -> Iterator[Callable[[str, str], bool]]:
        """Whether a name may mean a path: by where a file's pictures are looked for, in order."""

        def is_near(_: str, path: str) -> bool:
            return path.startswith(f"{place}/")

        def is_of_split(name: str, path: str) -> bool:
            there = split_of_folders(path)
            if there is None or there == split:
                return there is not None
            # The name may speak of a split of its own: val2014/a.jpg, COCO_val2014_1.jpg.
            return there == (split_of_folders(name) or split_of_name(name.rpartition("/")[2]))

        if any(is_near("", path) and path.lower().endswith(_PICTURES) for path in self._of):
            if split:
                yield lambda name, path: is_near(name, path) and is_of_split(name, path)
            yield is_near
        foreign = tuple(f"{other}/" for other in others if not f"{place}/".startswith(f"{other}/"))
        foreign = tuple(other for other in foreign if other != "./")
        if split:
            yield lambda name, path: is_of_split(name, path) and not path.startswith(foreign)
        yield lambda _, path: not path.startswith(foreign)

    def _find(
        self, names: list[str], base: Path, place: str, may_be: Callable[[str, str], bool]
    ) -> tuple[dict[str, Path], dict[str, Path]]:
        found: dict[str, Path] = {}
        loose: dict[str, Path] = {}
        for name in names:
            fits = partial(may_be, name)
            if path := self._at(name, base, place, fits):
                found[name] = path
                continue
            is_foreign = _ABSOLUTE.match(name)
            paths, to_the_letter = self._finder.find(self._here(name) if is_foreign else name, fits)
            if not paths or _leaves(name):
                continue
            path = self._of[self._choose(name, paths)]
            if to_the_letter and not is_foreign:
                found[name] = path
            else:
                loose[name] = path
        # A picture that another name fits better, or as well, is not this one's for sure.
        owners: dict[Path, set[str]] = {path: set() for path in loose.values()}
        for name, path in found.items():
            if path in owners:
                owners[path].add(_spelling(name))
        claims: dict[Path, set[str]] = defaultdict(set)
        for name, path in loose.items():
            claims[path].add(_spelling(name))
        agreed = {
            name: path
            for name, path in loose.items()
            if _spelling(name) in owners[path] or (not owners[path] and len(claims[path]) == 1)
        }
        return found | agreed, agreed

    def _here(self, name: str) -> str:
        """An absolute name without the folders of another machine that say nothing here.

        These come before the first that is below this folder too; the last one stays.
        """
        parts = [part for part in re.split(r"[/\\]", re.sub(r"^\w:", "", name)) if part]
        while len(parts) > 2 and (
            _loose(parts[0]) in GENERIC_FOLDERS or _loose(parts[0]) not in self._folders
        ):
            del parts[0]
        return "/".join(parts)

    @cached_property
    def _folders(self) -> set[str]:
        """The names of all folders, as loosely as they are compared."""
        folders = {path.rpartition("/")[0] for path in self._of}
        return {part for folder in folders for part in _parts(folder)}

    def nearest(self, name: str) -> str | None:
        """The picture whose path is most like a name, for a message; None if there are none."""
        paths = [p for p in self._of if PurePosixPath(p).suffix.lower() in PICTURE_SUFFIXES][:1000]
        return max(paths, key=lambda path: _likeness(path, name), default=None)

    def _at(self, name: str, base: Path, place: str, may_be: Callable[[str], bool]) -> Path | None:
        """The file whose path the name is, unless that leaves the folders of data and captions."""
        if name.startswith("/"):
            return self._of.get(os.path.relpath(name, self.folder))
        if place.startswith(".."):  # the captions lie elsewhere
            beside = base / name
            if is_file(beside) and not _leaves(name):
                return beside
        for path in (posixpath.normpath(f"{place}/{name}"), posixpath.normpath(name)):
            path = path if path in self._of else self._linked(path)
            if path in self._of and may_be(path):
                return self._of[path]
        return None

    def _linked(self, path: str) -> str:
        """The path of a file in a folder that is a link to another, as the file is known here."""
        folder, _, last = path.rpartition("/")
        if not folder or "\0" in folder:
            return path
        if folder not in self._real_of:
            self._real_of[folder] = os.path.realpath(self.folder / folder)
        known = self._known_as.get(self._real_of[folder])
        return f"{known}/{last}" if known else path

    @cached_property
    def _known_as(self) -> dict[str, str]:
        """Where folders really are → their paths below this one."""
        folders = {path.rpartition("/")[0] for path in self._of}
        return {os.path.realpath(self.folder / folder): folder for folder in folders if folder}

    def _choose(self, name: str, paths: list[str]) -> str:
        """Of several pictures that fit a name the one that is meant: the shallowest."""
        depth = min(path.count("/") for path in paths)
        first, *others = (path for path in paths if path.count("/") == depth)
        if others and not _are_copies([self._of[path] for path in (first, *others)]):
            raise UserError(
                f"{name} may be {first} or {others[0]} in {self.folder}, and these are "
                f"different: write the folder into the name, as {first}, or name a folder "
                "with one of them by --data."
            )
        place = first.rpartition("/")[0]
        elsewhere = [path for path in paths if place and not path.startswith(f"{place}/")]
        if elsewhere and not self._has_compared:  # one pair tells, and large files take long
            self._has_compared = True
            if not _are_copies([self._of[first], self._of[elsewhere[-1]]]):
                log.warning(
                    f"warning: {name} is taken for {first}, and {elsewhere[-1]} is another "
                    "picture: write the folders into the names if deeper ones are meant."
                )
        return first


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower(), autojunk=False).ratio()


def _leaves(name: str) -> bool:
    return posixpath.normpath(name.replace("\\", "/")).startswith("..")


def _spelling(name: str) -> str:
    """A name without what differs between spellings of one: letter case, slashes, encoding."""
    if _URL.match(name):
        return name
    name = posixpath.normpath(unquote(name.replace("\\", "/")))
    return unicodedata.normalize("NFC", name).casefold()


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of files with the same content; empty files are none.

    Only files of the same size can be, so that few are read.
    """
    groups = _grouped(paths, lambda path: path.stat().st_size)
    groups = [group for group in groups if group[0].stat().st_size]
    for digest in (_digest_of_head, _digest):
        groups = [same for group in groups for same in _grouped(group, digest)]
    return groups


def _grouped(paths: Iterable[Path], key: Callable[[Path], Any]) -> list[list[Path]]:
    """Groups of two or more paths with the same key; what cannot be read is in none."""
    groups: dict[Any, list[Path]] = defaultdict(list)
    for path in paths:
        with contextlib.suppress(OSError):
            groups[key(path)].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _digest_of_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _are_copies(paths: list[Path]) -> bool:
    if not any(path.stat().st_size for path in paths):
        return True
    return [len(group) for group in copies(paths)] == [len(paths)]
