"""Files that appear whole or not at all, and folders that one run at a time writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli import UserError

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy, FileLock


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


def hold(folder: Path) -> AcquireReturnProxy[FileLock]:
    """Keep a folder of checkpoints to this run: two at once would ruin them for each other.

    Returns:
        A context manager, at whose end the folder is free again.

    Raises:
        UserError: another run holds it.
    """
    from filelock import FileLock, Timeout

    try:
        return FileLock(folder / "running.lock").acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another run writes to {folder}: wait for it, or name another folder with "
            "--checkpoints."
        ) from None
