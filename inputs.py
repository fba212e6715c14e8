"""The pictures that a command line names: files, folders, lists of them, archives."""

from __future__ import annotations

import io
import os
import re
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cli import UserError
from files import walk
from pictures import HEIC_SUFFIXES, PICTURE_SUFFIXES, Source, one_line

UNREAD_SUFFIXES = {  # of what people take for pictures, and is passed over in a folder
    *HEIC_SUFFIXES,
    *(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".3gp"),
    *(".jxl", ".svg", ".svgz", ".eps", ".ai", ".psd", ".xcf", ".raw", ".tar"),
    *(".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"),
}
# How pictures begin, whatever they are called. Not TIFF: cameras' raw files begin like it.
SIGNATURES = re.compile(
    rb"(?s)\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF....WEBP|....ftypavi|\0{3}\x0cjP  "
)
ARCHIVES = (".tar", ".tar.gz", ".tgz")
LINK = "link"  # of an archive, in the place of a suffix
STDIN = "-"
COUNTING = 0.3  # seconds, in which some 100,000 files are found


class Pictures:
    """The pictures given, found as they are asked for, in an order that stays the same.

    Each of the names given is a picture, a folder of pictures, however deep, or a tar archive;
    ``@list.txt`` is a file of such names, one a line, and ``-`` stands for such a list on standard
    input. Names given twice are found twice. Only what makes all of the names useless is an error
    here: whether a picture is there and can be read shows when it is read.

    Attributes:
        passed_over: how many pictures in folders and archives cannot be read here, by suffix.
    """

    def __init__(self, names: Sequence[str], *, null: bool = False) -> None:
        r"""Look at the names, not yet at files.

        Args:
            names: as described.
            null: names in lists end with ``\0`` instead of a line's end, as after `find -print0`.

        Raises:
            UserError: a name is a web address, or a list cannot be read.
        """
        self.names, self._end = names, b"\0" if null else b"\n"
        self.passed_over: Counter[str] = Counter()
        self._kept: bytes | None = None  # standard input
        for name in names:
            _refuse_address(name)
            if _is_list(name) and not Path(name[1:]).is_file():
                raise UserError(f"{name[1:]}, a list of pictures, is not there: give another.")

    @property
    def single(self) -> Path | None:
        """The picture, if a single one is given and not what may hold several."""
        name = self.names[0]
        is_plain = name != STDIN and not _is_list(name) and not name.lower().endswith(ARCHIVES)
        is_one = len(self.names) == 1 and is_plain and not Path(name).is_dir()
        return Path(name) if is_one else None

    def __iter__(self) -> Iterator[Source]:
        for found in self.with_archives():
            yield from found.pictures() if isinstance(found, Archive) else [found]

    def look(self) -> Iterator[Source]:
        """The pictures without the content of archives; standard input is kept for another time."""
        if STDIN in self.names and self._kept is None:
            self._kept = sys.stdin.buffer.read()
        for found in self.with_archives():
            yield from found.pictures(with_content=False) if isinstance(found, Archive) else [found]

    def with_archives(self) -> Iterator[Source | Archive]:
        """The pictures, those of an archive as one."""
        self.passed_over.clear()
        for name in self.names:
            if name == STDIN:
                file = sys.stdin.buffer if self._kept is None else io.BytesIO(self._kept)
                yield from self._listed(file, "standard input")
            elif _is_list(name):
                with Path(name[1:]).open("rb") as file:
                    yield from self._listed(file, name[1:])
            else:
                yield from self._named(name)

    def counted(self) -> tuple[Iterable[Source], int | None]:
        """The pictures, and how many there are, if that can be told without waiting."""
        found, ahead = iter(self), list[Source]()
        if STDIN in self.names:  # which may have nothing to say for long
            return found, None
        until = time.perf_counter() + COUNTING
        for source in found:
            ahead.append(source)
            if source.content is not None or time.perf_counter() > until:  # memory is not for tar
                return chain(ahead, found), None
        return ahead, len(ahead)

    @property
    def needs_heic(self) -> bool:
        """Whether photos were passed over that could be read with one more package."""
        return bool(HEIC_SUFFIXES & set(self.passed_over))

    def note(self) -> str:
        """What to say of pictures that were passed over; nothing if none were."""
        return _about(self.passed_over) if self.passed_over else ""

    def _listed(self, file: BinaryIO, called: str) -> Iterator[Source | Archive]:
        """The pictures that a list names."""
        names = 0
        for raw in _split(file, self._end):
            name = os.fsdecode(raw if self._end == b"\0" else _bare(raw))
            if name:
                names += 1
                try:
                    _refuse_address(name)
                except UserError as error:
                    yield Source(Path(name), content=error)
                    continue
                yield from self._named(name)
        if not names:
            yield Source(Path(called), content=UserError(f"{called} names no pictures."))

    def _named(self, name: str) -> Iterator[Source | Archive]:
        path = Path(name)
        if path.is_dir():
            yield from self._below(path)
        elif name.lower().endswith(ARCHIVES):
            yield Archive(path, self.passed_over)
        else:
            yield Source(path, place=_place(path))

    def _below(self, folder: Path) -> Iterator[Source]:
        """The pictures of a folder and those below."""
        n_found, passed_over = 0, Counter[str]()
        start = len(os.path.join(folder, ""))  # noqa: PTH118 - Path would drop the separator
        for name in walk(folder):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - ten times as fast
            if suffix in PICTURE_SUFFIXES or _begins_as_picture(name):
                n_found += 1
                yield Source(Path(name), place=Path(name[start:]))
            elif suffix in UNREAD_SUFFIXES:
                passed_over[suffix] += 1
        if n_found:
            self.passed_over += passed_over
        else:
            hint = _about(passed_over) if passed_over else "give another --image"
            called = one_line(str(folder))
            reason = UserError(f"no pictures in {called} or the folders below: {hint}.")
            yield Source(folder, content=reason)


def _about(passed_over: Counter[str]) -> str:
    """``3 files passed over: 2 .heic, 1 .svg``, with what would help."""
    counts = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    hints = {
        "HEIC needs: pip install pillow-heif": HEIC_SUFFIXES,
        "give archives by their names": {".tar"},
        "tar --dereference stores what links lead to": {LINK},
    }
    needed = [hint for hint, suffixes in hints.items() if suffixes & set(passed_over)]
    hint = f" ({'; '.join(needed)})" if needed else ""
    n, kinds = passed_over.total(), ", ".join(f"{n:,} {suffix}" for suffix, n in counts)
    return f"{n:,} file{'s' if n > 1 else ''} passed over: {kinds}{hint}"


def _refuse_address(name: str) -> None:
    if re.match(r"(https?|ftp|s3|gs|file)://", name, re.IGNORECASE):
        raise UserError(
            f"{one_line(name)} is an address, and only files are read: download it first."
        )


def refuse_as_models(paths: Iterable[Path]) -> None:
    """Raise a ``UserError`` if pictures were named as models, by standing after that flag."""
    for path in paths:
        found = ""
        if path.suffix.lower() in PICTURE_SUFFIXES:
            found = f"{path} is no checkpoint but a picture"
        elif path.is_dir() and not any(path.glob("*.pt")):
            found = f"no checkpoint {path}, but a folder"
        if found:
            raise UserError(
                f"{found}: --checkpoint takes all names up to the next flag. Give pictures before "
                "it, or by --image."
            )


def _is_list(name: str) -> bool:
    """Whether it is ``@list.txt``; a picture may be called so, too."""
    return name.startswith("@") and not Path(name).exists()


def _place(path: Path) -> Path:
    """Where it goes below another folder: as given, if that is below the current folder."""
    is_below = not path.is_absolute() and ".." not in path.parts
    return path if is_below else Path(path.name)


def _bare(line: bytes) -> bytes:
    """A line without blanks around it, nor the quotes that Windows copies paths with."""
    line = line.strip()
    is_quoted = len(line) > 1 and line[:1] == line[-1:] == b'"'
    return line[1:-1] if is_quoted else line


def _split(file: BinaryIO, end: bytes) -> Iterator[bytes]:
    """The parts of a file of names, as they come: lines, or what ends with zero bytes.

    A list that PowerShell wrote is UTF-16, and Notepad's begins with a mark.
    """
    left = file.read(3)
    if left[:2] in (b"\xff\xfe", b"\xfe\xff"):
        yield from (left + file.read()).decode("utf-16").encode("utf-8").split(end)
        return
    left = left.removeprefix(b"\xef\xbb\xbf")
    assert isinstance(file, io.BufferedIOBase)
    while chunk := file.read1(2**16):  # what there is, without waiting for more
        *parts, left = (left + chunk).split(end)
        yield from parts
    yield from left.split(end)


def _begins_as_picture(name: str) -> bool:
    with suppress(OSError), open(name, "rb") as file:  # noqa: PTH123 - as above
        return SIGNATURES.match(file.read(16)) is not None
    return False


# ------------------------------------------------------------------------------- archives


@dataclass(frozen=True)
class Archive:
    """A tar archive, as img2dataset and webdataset make them.

    Attributes:
        path: its file.
        passed_over: where pictures are counted that cannot be read here, by suffix.
    """

    path: Path
    passed_over: Counter[str]

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return re.sub(r"(?i)\.(tar|tar\.gz|tgz)$", "", self.path.name)

    def pictures(self, *, with_content: bool = True) -> Iterator[Source]:
        """Its pictures, in its order.

        They are called by the archive and their key, the member's name up to its first dot; of
        several with one key, wherever they are, all but the first by the whole name. A hard link
        is as good as the file before it that it leads to; symbolic ones are passed over.
        """
        passed_over, files = Counter[str](), dict[str, tarfile.TarInfo]()
        keys: set[str] = set()  # little beside what tarfile keeps of each member
        with _reported(self.path) as errors, tarfile.open(self.path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isfile():
                    files[member.name] = member
                stored = files.get(member.linkname) if member.islnk() else member
                if member.isdir() or name.name.startswith("."):
                    continue
                if (suffix := name.suffix.lower()) not in PICTURE_SUFFIXES:
                    passed_over[suffix] += suffix in UNREAD_SUFFIXES
                    continue
                if stored is None or not stored.isfile():
                    passed_over[LINK] += 1
                    continue
                file = archive.extractfile(stored)
                assert file is not None  # it is a file
                content = file.read() if with_content else b""
                key = str(name.with_name(name.name.split(".")[0]))
                place = Path(name if key in keys else key)
                keys.add(key)
                yield Source(self.path / place, Path(self.stem, place), content)
            _require_end(archive)
            if not keys:
                hint = _about(+passed_over) if +passed_over else "give another --image"
                raise UserError(f"no pictures in {one_line(str(self.path))}: {hint}.")
        if keys:
            self.passed_over.update(+passed_over)
        yield from (Source(self.path, content=error) for error in errors)


@contextmanager
def _reported(path: Path) -> Iterator[list[UserError]]:
    """The list given holds afterwards why an archive could not be read to its end."""
    errors: list[UserError] = []
    name = one_line(str(path))
    try:
        yield errors
    except UserError as error:
        errors.append(error)
    except FileNotFoundError:
        errors.append(UserError(f"{name}: no such file."))
    except (tarfile.TarError, EOFError, ValueError) as error:
        reason = f"{name} is no tar archive, or cut off or damaged ({error})"
        errors.append(UserError(f"{reason}: only what is whole in it is described."))
    except OSError as error:
        errors.append(UserError(f"{name} cannot be read: {error.strerror or error}."))


def _require_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive that was cut off between two members, which tarfile does not notice."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if not archive.fileobj.read(1):
        raise tarfile.ReadError("its end is missing")
