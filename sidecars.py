"""Captions in files beside the pictures: texts as trainers read them, XMP as photo managers do.

What such a file holds already is never lost unless asked for: of an XMP no byte changes but those
of its description's text, so bytes are put into it, and it is not written anew from a parsed tree.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import xmp
from cli import UserError
from files import whole_file
from pictures import PICTURE_SUFFIXES, Source, one_line
from xmp import Refusal, is_there, refuse_utf16

BOM = b"\xef\xbb\xbf"
EXISTING = ("keep", "overwrite", "append", "prepend")  # what becomes of a caption that is there


class Sidecars:
    """The files for captions, one a picture, and what becomes of captions that are there.

    Attributes:
        n_written: files written.
        n_kept: files left as they were, since they held a caption to keep, or already these.
    """

    def __init__(
        self,
        kind: str,
        *,
        existing: str = "keep",
        prefix: str = "",
        suffix: str = "",
        folder: Path | None = None,
    ) -> None:
        """Look at no file yet.

        Args:
            kind: the suffix of texts, such as ``txt``, or ``xmp``.
            existing: one of ``EXISTING``; done twice, the last two are as if done once.
            prefix: put before each caption.
            suffix: put after each caption.
            folder: where the files go, in folders as the pictures are; None: beside these.

        Raises:
            UserError: ``kind`` is no suffix, or that of pictures.
        """
        assert existing in EXISTING
        if not re.fullmatch(r"\.?[A-Za-z0-9]+", kind):
            raise UserError(f"--sidecar must be a suffix such as txt or xmp, got {kind!r}.")
        self._kind = f".{kind.removeprefix('.')}"
        if self._kind.lower() in PICTURE_SUFFIXES:
            raise UserError(f"--sidecar {kind} would replace pictures: give txt, caption or xmp.")
        if self._kind.lower() in (".json", ".jsonl", ".csv", ".html"):  # which tools put there
            raise UserError(f"a caption is no {kind} by itself: give --sidecar txt, or --output.")
        self._is_xmp = self._kind.lower() == ".xmp"
        self._existing, self._prefix, self._suffix = existing, prefix, suffix
        self._folder = folder
        self.n_written = self.n_kept = 0

    def path(self, source: Source) -> Path:
        """The file for a picture's captions: photo.txt, but photo.jpg.xmp.

        Raises:
            UserError: the picture is in an archive, and there is no folder for such files.
        """
        picture, is_member = source.path, source.content is not None
        if self._folder is not None:
            outside = ("..", source.place.anchor)  # members of archives may be called so
            picture = self._folder.joinpath(*(p for p in source.place.parts if p not in outside))
        elif is_member:
            raise UserError(
                f"{one_line(str(picture))} is in an archive, where no captions can be put beside "
                "it: give --sidecar-folder."
            )
        if self._is_xmp or is_member:  # a member's name is its key, and has no suffix
            return picture.with_name(picture.name + self._kind)
        return picture.with_suffix(self._kind)

    def check(self, sources: Iterable[Source]) -> None:
        """Make sure that each picture can have a file of its own; write nothing.

        Raises:
            UserError: two pictures would share one, or it would replace a picture, or cannot be
                written where it should.
        """
        real = cache(os.path.realpath)  # of folders, which are few

        def located(path: Path) -> str:
            return f"{real(str(path.parent))}{os.sep}{path.name}"

        called: dict[str, Path] = {}  # pictures → their names as given
        described: dict[str, str] = {}  # sidecars → their pictures
        folders: set[Path] = set()
        for source in sources:
            if isinstance(source.content, UserError):  # no picture
                continue
            sidecar, picture = self.path(source), located(source.path)
            called[picture] = source.path
            folders.add(sidecar.parent)
            other = described.setdefault(located(sidecar), picture)
            if other != picture:
                raise self._shared(sidecar, called[other], source.path)
        for place in described.keys() & called.keys():
            raise UserError(
                f"{one_line(str(called[place]))} is a picture, and would be the sidecar of "
                f"{one_line(str(called[described[place]]))}: give another --sidecar."
            )
        for folder in sorted(folders):
            self._require_writable(folder)

    def _shared(self, sidecar: Path, *pictures: Path) -> UserError:
        remedy = "give --sidecar xmp, which has a file for each"
        if self._is_xmp or pictures[0].name == pictures[1].name:
            remedy = "describe them in two runs, with a --sidecar-folder each"
        names = (one_line(str(path)) for path in (*pictures, sidecar))
        return UserError("{} and {} would share {}: rename one, or {}.".format(*names, remedy))

    def _require_writable(self, folder: Path) -> None:
        if self._folder is not None:
            folder = next(path for path in (folder, *folder.parents) if path.exists())
        elif not folder.exists():  # nor does the picture, which is told when it is read
            return
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            name, other = one_line(str(folder)), "another " if self._folder else ""
            raise UserError(f"captions cannot be written to {name}: give {other}--sidecar-folder.")

    def is_kept(self, source: Source) -> bool:
        """Whether there is a caption already that is to be kept.

        Raises:
            UserError: as ``write``.
        """
        if self._existing != "keep" or isinstance(source.content, UserError):  # no picture
            return False
        path = self.path(source)
        with _reported(path):
            old = _read(path)
        return self._merged(path, old, ["?"]) == old

    def left(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The pictures without a caption that is to be kept; the others count in ``n_kept``."""
        for source in sources:
            try:
                is_kept = self.is_kept(source)
            except UserError as error:  # not worth a caption that cannot be written
                yield source._replace(content=error)
                continue
            self.n_kept += is_kept
            if not is_kept:
                yield source

    def write(self, source: Source, captions: Sequence[str]) -> None:
        """Write a picture's captions, or the best one into an XMP; a file appears whole.

        Args:
            source: the picture.
            captions: at least one, best first.

        Raises:
            UserError: it cannot be written, or captions cannot be put into a file that is there,
                which is left as it is.
            OSError: the disk is full.
        """
        path = self.path(source)
        with _reported(path):
            old = _read(path)
        new = self._merged(path, old, [f"{self._prefix}{c}{self._suffix}" for c in captions])
        if new == old:
            self.n_kept += 1
            return
        # Waiting for the disk thousands of times would take minutes, and a run can be repeated.
        real = Path(os.path.realpath(path))  # what a link leads to, and not the link, is written
        with _reported(path), whole_file(real, flush=False) as part:
            part.write_bytes(new)
            with suppress(OSError):  # there is no old one, or the drive knows no permissions
                shutil.copymode(path, part)
        self.n_written += 1

    def _merged(self, path: Path, old: bytes, captions: Sequence[str]) -> bytes:
        """What the file is to hold instead of the old content."""
        try:
            if self._is_xmp:
                return xmp.merged(old, captions[0], self._existing)
            return _merged_text(old, captions, self._existing)
        except Refusal as refusal:
            raise UserError(
                f"{one_line(str(path))} {refusal}: left as it is. Remove it, or give another "
                "--sidecar or --sidecar-folder."
            ) from refusal


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """What the system says of a sidecar concerns one picture, but for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{one_line(str(path))} cannot be read or written: {error.strerror or error}. Give "
            "another --sidecar or --sidecar-folder."
        ) from error


def _read(path: Path) -> bytes:
    """A file's content; nothing if there is none but space, or no file."""
    with suppress(FileNotFoundError):
        content = path.read_bytes()
        return content if content.removeprefix(BOM).strip() else b""
    return b""


def _merged_text(old: bytes, captions: Sequence[str], existing: str) -> bytes:
    """A text with the captions, one a line; what else is in it stays, byte for byte."""
    end = "\r\n" if b"\r\n" in old else "\n"
    lines = [" ".join(caption.splitlines()) for caption in captions]
    new = "".join(line + end for line in lines).encode("utf-8", "surrogateescape")
    if existing == "overwrite" or not old:
        return new
    if existing == "keep":
        return old
    refuse_utf16(old)
    mark = BOM if old.startswith(BOM) else b""
    text = old.removeprefix(mark).decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    if is_there("\n".join(lines), text.removesuffix("\n"), existing):
        return old
    if existing == "prepend":
        return mark + new + old.removeprefix(mark)
    return old + (b"" if old.endswith(b"\n") else end.encode()) + new
