"""A run of millions of pictures in parts, so that several processes and machines share it.

    torchrun --nproc-per-node 2 predict.py shards/*.tar --output out/
    python predict.py --merge out/ --output captions.jsonl

The pictures are cut into parts, a tar archive or some thousand others each. Process r of n captions
every nth part, beginning with part r, into a file of its own, which is whole once it has its name.
Nothing else is shared: processes need no connection, and may be stopped and started in any number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
from cli import UserError, flag
from inputs import ARCHIVES, Archive, Pictures
from outputs import Rows, captions_file, check_record, read_record, recorded
from pictures import Source, one_line

log = logging.getLogger(__name__)

# Pictures of a part, unless an archive is one: whole batches of any usual size. The first parts are
# small, so that processes share small folders too; more of them would be too many files.
FEW, N_SMALL, BLOCK = 1_280, 16, 12_800
MERGE_FLAGS = {"merge", "output", "csv_separator", "overwrite", "quiet", "debug"}


def require_folder(output: Path | None) -> None:
    """Refuse anything but a folder as the output of several processes: all would write it."""
    if distributed.place()[1] > 1 and (not output or output.suffix):
        raise UserError("several processes share a folder: give --output captions/, no file.")


@dataclass(frozen=True)
class Part:
    """Pictures that one process captions into one file.

    Attributes:
        number: from 0.
        path: the file.
        sources: the pictures.
        before: a hash of the names of all parts before this, which tells whether two processes,
            or two runs, were given the same pictures.
        after: the same with this part's.
        is_last: whether no part follows.
    """

    number: int
    path: Path
    sources: Iterable[Source]
    before: str
    after: str
    is_last: bool

    @property
    def identity(self) -> dict[str, Any]:
        """What a file of this part is recorded with before it is written."""
        return {"part": self.number, "before": self.before, "after": self.after}


def parts(pictures: Pictures, folder: Path) -> Iterator[Part]:
    """All parts, in order; their pictures are not read yet."""
    blocks = _blocks(pictures)
    following = next(blocks, None)
    listing, number = hashlib.sha256(), 0
    paths: set[Path] = set()
    while following is not None:
        block, following = following, next(blocks, None)
        before = listing.hexdigest()[:16]
        if isinstance(block, Archive):
            path, sources = folder / f"{block.stem}.jsonl", block.pictures()
            names = [str(block.path)]
        else:
            path, sources = folder / f"part-{number:05d}.jsonl", iter(block)
            names = [str(source.path) for source in block]
        if path in paths:
            raise UserError(
                f"two archives would share {path}: caption them in two runs, into two folders."
            )
        paths.add(path)
        for name in names:
            listing.update(os.fsencode(name) + b"\0")
        after = listing.hexdigest()[:16]
        yield Part(number, path, sources, before, after, is_last=following is None)
        number += 1


def _blocks(pictures: Pictures) -> Iterator[Archive | list[Source]]:
    block: list[Source] = []
    n_blocks = 0
    for found in pictures.with_archives():
        if isinstance(found, Archive):
            if block:  # parts keep the order of the pictures
                yield block
            block = []
            yield found
            continue
        block.append(found)
        if len(block) == (BLOCK if n_blocks >= N_SMALL else FEW):
            yield block
            block, n_blocks = [], n_blocks + 1
    if block:
        yield block


def of_this_process(pictures: Pictures, folder: Path, made: Mapping[str, Any]) -> Iterator[Part]:
    """The parts that this process has to caption, those left out that are done already.

    One of which pictures could not be described is not: these are tried again.

    Args:
        pictures: the same for all processes.
        folder: of the parts; it may hold some.
        made: what captions depend on, as ``outputs.captions_file`` takes it.

    Raises:
        UserError: the folder holds captions that were made in another way, or of other pictures.
    """
    rank, n_processes = distributed.place()
    for path in recorded(folder):
        if "part" in read_record(path):  # another file of captions may lie there, or a merged one
            check_record(path, made)
    n_whole = n_parts = 0
    for part in parts(pictures, folder):
        n_parts += 1
        if part.number % n_processes != rank:
            continue
        if part.path.exists():
            check_record(part.path, {**made, **part.identity})
            if not read_record(part.path).get("n_failed"):
                n_whole += 1
                continue
        yield part
    if n_whole:
        log.info(f"resumed     {folder}, of which {n_whole:,} of {n_parts:,} parts were whole")
    if rank == 0 and n_parts < n_processes:
        log.info(f"parts       {n_parts}: of {n_processes} processes the others had nothing to do")


# ---------------------------------------------------------------------------------- merge


def merge(folder: Path, output: Path, separator: str, given: frozenset[str]) -> int:
    """Join the parts in a folder into one file, in the order of the pictures.

    Args:
        folder: of the parts.
        output: the file, as ``outputs.captions_file`` takes it.
        separator: of CSV.
        given: names of the flags that were given; with ``overwrite`` the file is replaced.

    Returns:
        How many pictures could not be described.

    Raises:
        UserError: a part is missing, not whole, of other pictures than the others, or was changed;
            or one of the flags given is not for this.
    """
    if others := sorted(given - MERGE_FLAGS):
        raise UserError(
            f"--merge joins captions that are there as they are: leave {flag(others[0])} out."
        )
    records = _records(folder)
    if output.suffix == ".html" and any(_is_of_archive(path) for path, _ in records):
        raise UserError("a page of archives' pictures is not made by --merge: give .csv or .jsonl.")
    made, overwrite = {"merged": str(folder)}, "overwrite" in given
    with captions_file(
        output, made, separator=separator, resume=False, overwrite=overwrite
    ) as joined:
        for path, record in records:
            n_before = joined.n_pictures
            for rows in _pictures_in(path):
                joined.write_rows(Source(Path(rows[0]["image"])), rows)
            if joined.n_pictures - n_before != record["n_pictures"]:
                raise UserError(f"{path} was changed since it was written: caption it again.")
    log.info(f"parts       {len(records):,}, all there and in order")
    if n_failed := sum(record["n_failed"] for _, record in records):
        log.warning(f"{n_failed:,} pictures could not be described: predict.py said why")
    return n_failed


def _records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The parts in order, each with what is recorded of it; all are there, and fit together."""
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    for path in recorded(folder):
        facts = read_record(path)
        if path.suffix == ".jsonl" and "part" in facts:
            found[facts["part"]] = (path, facts)
    if not found:
        raise UserError(f"no parts in {one_line(str(folder))}: name what --output named.")
    after = hashlib.sha256().hexdigest()[:16]
    for number in range(max(found) + 1):
        path, facts = found.get(number, (folder, {}))
        if not path.is_file():
            raise UserError(
                f"part {number} of {folder} is missing or not whole: run predict.py again, with "
                "the same pictures and the same --output."
            )
        if facts["before"] != after:
            raise UserError(f"{path} is not of the same pictures as the part before: see to it.")
        after = facts["after"]
    if not found[max(found)][1]["is_last"]:
        raise UserError(f"the last parts of {folder} are missing: run predict.py again.")
    return [found[number] for number in sorted(found)]


def _is_of_archive(path: Path) -> bool:
    """Whether a part's pictures are members of one, so that a page finds no pictures to show."""
    rows = next(_pictures_in(path), [])
    return any(
        folder.name.lower().endswith(ARCHIVES) and not folder.is_dir()
        for row in rows
        for folder in Path(row["image"]).parents
    )


def _pictures_in(path: Path) -> Iterator[Rows]:
    """The captions of each picture of a part."""
    rows: Rows = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["rank"] == 1 and rows:
                yield rows
                rows = []
            rows.append(row)
    if rows:
        yield rows
