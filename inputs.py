"""The pictures that a command line names: files, and folders of them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cli import UserError
from files import files_below
from pictures import PICTURE_SUFFIXES, one_line

UNREAD_SUFFIXES = {  # of pictures that cannot be read here
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".eps", ".ai", ".psd", ".xcf", ".raw"),
    *(".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"),
}
# How pictures begin, whatever they are called. Not TIFF: cameras' raw files begin like it.
SIGNATURES = re.compile(
    rb"(?s)\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF....WEBP|....ftypavi|\0{3}\x0cjP  "
)
log = logging.getLogger(__name__)


def find_pictures(given: Iterable[Path]) -> list[Path]:
    """The pictures given, and those in the folders given, however deep, in order of their names."""
    paths, unread = list[Path](), list[Path]()
    for path in given:
        if not path.is_dir():
            paths.append(path)  # whether it is there and a picture shows when it is read
            continue
        files = {file: _is_picture(file) for file in sorted(files_below(path))}
        unread += [f for f in files if not files[f] and f.suffix.lower() in UNREAD_SUFFIXES]
        if not any(files.values()):
            hint = _passed_over(unread) if unread else "give another --image"
            raise UserError(f"no pictures in {one_line(str(path))} or the folders below: {hint}.")
        paths += [file for file, is_picture in files.items() if is_picture]
    if unread:
        log.warning(_passed_over(unread))
    return paths


def _is_picture(path: Path) -> bool:
    """Whether a file has a picture's suffix, or another and a picture's first bytes."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    with suppress(OSError), path.open("rb") as file:
        return SIGNATURES.match(file.read(16)) is not None
    return False


def _passed_over(unread: list[Path]) -> str:
    counts = Counter(sorted(path.suffix.lower() for path in unread)).most_common()
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in counts)
    hint = " (HEIC needs conversion to JPEG)" if ".heic" in kinds or ".heif" in kinds else ""
    return f"{len(unread):,} file{'s' if len(unread) > 1 else ''} passed over: {kinds}{hint}"
