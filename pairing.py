"""Which picture an image's name means, and which pictures are copies of each other.

Captions files come from other machines: letter case, suffix, folders and encoding of a name may
differ from the file's. A picture is found if and only if exactly one fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from cli import UserError
from columns import split_of_folders
from files import below, is_file
from pictures import PICTURE_SUFFIXES

# Folders whose name says nothing about which pictures are in them.
GENERIC_FOLDERS = {
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpg", "jpeg"),
    *("jpegs", "png", "data", "dataset", "files"),
}
Parts = tuple[str, ...]  # of a path
_URL = re.compile(r"\w{2,}:/")


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

    def find(self, name: str) -> tuple[list[str], bool]:
        """The paths that a name fits best, and whether it fits them to the letter.

        To the letter it is a path or the end of one. Else letter case, Unicode form,
        percent-encoding, the kind of slash, ``.jpeg`` for ``.jpg`` and a missing suffix do not
        count, of a URL only the last part does, and folders that are not in both must not
        contradict each other.
        """
        plain = posixpath.normpath(name)
        if plain in self._exact:
            return [plain], True
        called = self._called.get(_loose(plain.rsplit("/", 1)[-1]), [])
        to_the_letter = [path for path in called if path.endswith(f"/{plain}")]
        if to_the_letter:
            return to_the_letter, True
        *folders, last = _parts(name)
        called = self._called.get(last, [])
        if not called and PurePosixPath(last).suffix not in PICTURE_SUFFIXES:
            called = self._by_stem().get(last, [])
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

    def find(
        self, names: Iterable[str], base: Path, split: str | None
    ) -> tuple[dict[str, Path], dict[str, Path]]:
        """Map names to pictures, for those that are there.

        Args:
            names: what a captions file calls them.
            base: the captions file's folder.
            split: that the file is about, if it says so: of pictures with the same name those in
                a folder of this split are meant.

        Returns:
            All that were found, and of these the ones that fit a picture, but not to the letter.

        Raises:
            UserError: several different pictures fit a name equally well.
        """
        names = list(names)
        their_folder = _common_folder(names)
        place = os.path.relpath(base, self.folder).replace(os.sep, "/")
        found: dict[str, Path] = {}
        loose: dict[str, Path] = {}
        claims: dict[Path, set[str]] = defaultdict(set)  # folders of the names that fit loosely
        for name in names:
            if path := self._at(name, base, place):
                found[name] = path
                continue
            is_foreign = bool(their_folder) and name.startswith(their_folder)
            paths, to_the_letter = self._finder.find(name.removeprefix(their_folder))
            if not paths or _leaves(name):
                continue
            path = self._of[self._choose(name, paths, place, split)]
            if to_the_letter and not is_foreign:
                found[name] = path
            else:
                loose[name] = path
                is_url = _URL.match(name)
                claims[path].add(name.rpartition("/")[0] if is_url else "/".join(_parts(name)[:-1]))
        # A picture that names in two folders lay claim to is neither's for sure.
        agreed = {name: path for name, path in loose.items() if len(claims[path]) == 1}
        return found | agreed, agreed

    def nearest(self, name: str) -> str | None:
        """The picture whose path is most like a name, for a message; None if there are none."""
        paths = [p for p in self._of if PurePosixPath(p).suffix.lower() in PICTURE_SUFFIXES][:1000]
        return max(paths, key=lambda path: _likeness(path, name), default=None)

    def _at(self, name: str, base: Path, place: str) -> Path | None:
        """The file whose path the name is, unless that leaves the folders of data and captions."""
        if name.startswith("/"):
            return self._of.get(os.path.relpath(name, self.folder))
        near = self._of.get(posixpath.normpath(f"{place}/{name}"))
        if near is None and place.startswith(".."):  # the captions lie elsewhere
            beside = base / name
            near = beside if is_file(beside) and not _leaves(name) else None
        return near or self._of.get(posixpath.normpath(name))

    def _choose(self, name: str, paths: list[str], place: str, split: str | None) -> str:
        """Of several pictures that fit a name the one that is meant."""
        near = [path for path in paths if path.startswith(f"{place}/")]
        of_split = [path for path in paths if split and split_of_folders(path) == split]
        paths = near or of_split or paths
        depth = min(path.count("/") for path in paths)
        paths = [path for path in paths if path.count("/") == depth]
        if len(paths) > 1 and not _are_copies([self._of[path] for path in paths]):
            raise UserError(
                f"{name} may be {paths[0]} or {paths[1]} in {self.folder}, and these are "
                f"different: write the folder into the name, as {paths[0]}, or name a folder "
                "with one of them by --data."
            )
        return paths[0]


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower(), autojunk=False).ratio()


def _leaves(name: str) -> bool:
    return posixpath.normpath(name.replace("\\", "/")).startswith("..")


def _common_folder(names: Sequence[str]) -> str:
    """The folder that all absolute names lie in: another machine's, which says nothing here."""
    absolute = [name for name in names if re.match(r"/|\w:[\\/]", name)]
    if not absolute:
        return ""
    shared = str(min(absolute))
    while not max(absolute).startswith(shared):  # what first and last share, all share
        shared = shared[:-1]
    return re.sub(r"[^/\\]*$", "", shared)


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
