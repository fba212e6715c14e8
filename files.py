"""Files that appear whole or not at all, folders held by one run, and what is in a folder."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cli import UserError

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy, FileLock

log = logging.getLogger(__name__)

THUMBNAILS = ("@eadir", "__macosx")  # folders of a NAS and of a Mac's zips, as good as hidden
LONG = 200  # bytes of a name, of the 255 that most drives allow
PART = re.compile(r"\..+\.(\d+)\.part")  # a hidden name, with the process that writes it


@contextmanager
def whole_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """A file that appears whole or not at all: write to the path given, it is renamed at the end.

    The folder is made if there is none. ``flush`` waits for the disk, which takes milliseconds: a
    power cut cannot leave an empty file then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name  # which may be as long as names can be: with what is added it would be longer
    if len(os.fsencode(name)) > LONG:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    part = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        yield part
        if flush:
            with part.open("r+b") as file:  # Windows flushes only what may be written to
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class WatchedFile:
    """A file to write to, for a library that hides what the disk says."""

    def __init__(self, file: BinaryIO) -> None:
        """Write to this file; the first error in that becomes ``error``."""
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """As the file's."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """As the file's."""
        try:
            self.file.flush()
        except OSError as error:
            self.error = self.error or error
            raise


def lock(path: Path) -> AcquireReturnProxy[FileLock]:
    """Hold a lock file, at once or not at all.

    Raises:
        OSError: another process holds it (``filelock.Timeout``), or no lock can be made here.
    """
    from filelock import FileLock

    try:
        return FileLock(path).acquire(blocking=False)
    except NotImplementedError as error:  # what filelock raises on drives that know no locks
        raise OSError(errno.ENOTSUP, str(error)) from error


def hold(folder: Path) -> AcquireReturnProxy[FileLock]:
    """Keep a folder of checkpoints to this run: two at once would ruin them for each other.

    What runs left there that were killed while they wrote is removed.

    Returns:
        A context manager, at whose end the folder is free again.

    Raises:
        UserError: another run holds it.
    """
    from filelock import Timeout

    try:
        held = lock(folder / "running.lock")
    except Timeout:
        raise UserError(
            f"another run writes to {folder}: wait for it, or name another folder with "
            "--checkpoints."
        ) from None
    remove_parts(folder)
    return held


def remove_parts(folder: Path) -> None:
    """Remove half-written files of processes that are no more; nobody else may write there now."""
    for path in folder.glob(".*.part"):
        found = PART.fullmatch(path.name)
        if found and not _is_running(int(found[1])):
            with suppress(OSError):  # Windows keeps what is open
                path.unlink()


def _is_running(process_id: int) -> bool:
    """Whether there is another process of this number.

    This process writes nothing yet: its own number is that of an earlier one, as in containers.
    """
    if os.name == "nt" or process_id == os.getpid():  # on Windows the question would end it
        return False
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def is_file(path: Path) -> bool:
    """Whether there is such a regular file; a name that no file could have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def below(path: Path, folder: Path) -> str:
    """The path from a folder to a file that was found in it, with ``/``."""
    return os.fspath(path).removeprefix(f"{folder}{os.sep}").replace(os.sep, "/")


def files_below(folder: Path) -> list[Path]:
    """All regular files of a folder and those below, the shallowest first, in order of names.

    Hidden folders and files are passed over, and so is a folder that was met before: a symbolic
    link may lead back to it. Links to folders are followed last, so that a folder counts as itself.
    """
    found: list[Path] = []
    visited: set[tuple[int, int]] = set()
    level = [folder] if _is_new(folder, visited) else []
    links: list[os.DirEntry[str]] = []
    while level:
        entries = [entry for parent in level for entry in _entries(parent)]
        level = []
        for entry in entries:
            with suppress(OSError):  # a link to itself
                if entry.is_file():
                    found.append(Path(entry.path))
                elif entry.is_dir() and entry.is_symlink():
                    links.append(entry)
                elif entry.is_dir() and _is_new(entry, visited):
                    level.append(Path(entry.path))
        while links and not level:
            entry = links.pop(0)
            level = [Path(entry.path)] if _is_new(entry, visited) else []
    return found


def walk(folder: Path) -> Iterator[str]:
    """The files of `files_below`, in order of their names at every level, as they are found.

    Each folder is read when its turn comes: the first path does not wait for the last.
    """
    visited: set[tuple[int, int]] = set()
    left = [_entries(folder)] if _is_new(folder, visited) else []
    while left:
        entry = next(left[-1], None)
        if entry is None:
            left.pop()
            continue
        with suppress(OSError):  # a link to itself
            if entry.is_file():
                yield entry.path
            elif entry.is_dir() and _is_new(entry, visited):
                left.append(_entries(entry))


def _entries(folder: os.DirEntry[str] | Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, in order of names, but for hidden things."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        log.warning(f"warning: {os.fspath(folder)} cannot be read: {error.strerror or error}.")
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.name.lower() not in THUMBNAILS:
            yield entry


def _is_new(folder: os.DirEntry[str] | Path, visited: set[tuple[int, int]]) -> bool:
    """Whether a folder has not been visited; now it has."""
    stat = os.stat(folder)  # noqa: PTH116 - of a DirEntry, on Windows, it has no inode otherwise
    key = (stat.st_dev, stat.st_ino)
    is_new = key not in visited
    visited.add(key)
    return is_new
