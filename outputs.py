"""Captions out: to the terminal, or to a file that grows picture by picture and can be resumed."""

from __future__ import annotations

import csv
import html
import importlib.util
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import report
from captioner import Caption
from cli import UserError, flag
from files import lock, whole_file
from pictures import Source, one_line
from tables import CSV_SEPARATORS, csv_head, csv_line

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]  # the captions of a picture, best first: a value for each of COLUMNS
COLUMNS = ["image", "rank", "caption", "log_prob", "log_prob_per_word", "familiarity"]
FLAGS = (  # that a file depends on, or the sidecars of its pictures, but for those of the search
    *("n_best", "sentence", "csv_separator"),
    *("sidecar", "existing", "prefix", "suffix", "sidecar_folder"),
)
OTHER = {"model": "another model", "before": "other pictures", "after": "other pictures"}
DIGITS = 4  # of numbers: others depend on the machine


class Output(Protocol):
    """Where captions go.

    Attributes:
        n_done: the pictures that needed no caption any more.
    """

    n_done: int

    def is_done(self, source: Source) -> bool:
        """Whether a picture needs no caption any more; asked of each once, in order."""

    def write(self, source: Source, captions: Sequence[Caption]) -> None:
        """Write the captions of a picture, best first."""


def written_name(path: Path | str) -> str:
    """A picture's path as a file of captions has it: what is no UTF-8 is escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def rows_of(source: Source, captions: Sequence[Caption]) -> Rows:
    """What is written of the captions of a picture."""

    def rounded(number: float | None) -> float | None:
        return None if number is None else round(number, DIGITS)

    return [
        {
            "image": str(source.path),
            "rank": rank,
            "caption": caption.text,
            "log_prob": rounded(caption.log_prob),
            "log_prob_per_word": rounded(caption.log_prob_per_word),
            "familiarity": rounded(caption.familiarity),
        }
        for rank, caption in enumerate(captions, start=1)
    ]


class Nowhere:
    """No place for captions but sidecars."""

    n_done = 0

    def is_done(self, source: Source) -> bool:  # noqa: ARG002
        """As ``Output``."""
        return False

    def write(self, source: Source, captions: Sequence[Caption]) -> None:
        """As ``Output``."""


class Terminal(Nowhere):
    """Captions on stdout, one a line: the best alone, or several with their log-probabilities."""

    def __init__(self, *, one: bool, n_best: int) -> None:
        """Know the columns: no path if there is ``one`` picture."""
        numbers = ["log_prob_per_word", "log_prob"] if n_best > 1 else []
        self.columns = [*([] if one else ["image"]), *numbers, "caption"]

    def write(self, source: Source, captions: Sequence[Caption]) -> None:
        """As ``Output``."""
        for row in rows_of(source, captions):
            row["image"] = one_line(row["image"])
            print("\t".join(str(row[column]) for column in self.columns), flush=True)


# -------------------------------------------------------------------------------- formats


@dataclass(frozen=True)
class Format:
    """How captions are written to a file, and found again in one that was cut off anywhere.

    Attributes:
        head: text at the beginning.
        encode: the text for a picture and its ``rows``.
        records: of a file open after its head, the pictures in it by their ``written_name``, each
            with its rank and where its record ends; up to the first that is not whole.
        foot: text at the end.
    """

    head: str
    encode: Callable[[Source, Rows], str]
    records: Callable[[BinaryIO], Iterator[tuple[str, int, int]]]
    foot: str = ""


def _format(path: Path, separator: str) -> Format:
    if path.suffix == ".csv":
        return _csv_format(separator)
    if path.suffix == ".html":
        return _html_format(path.parent)
    return Format("", _encode_json, _json_records)  # parquet is made of it at the end


def _csv_format(separator: str) -> Format:
    """CSV, as ``tables.csv_line``."""

    def encode(_: Source, rows: Rows) -> str:
        return "".join(csv_line([*row.values()], separator) for row in rows)

    def records(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
        end, is_whole = file.tell(), True

        def lines() -> Iterator[str]:  # a record may take several
            nonlocal end, is_whole
            for raw in file:
                end, is_whole = end + len(raw), raw.endswith(b"\n")
                yield raw.decode("utf-8")

        delimiter = CSV_SEPARATORS[separator]
        for image, rank, *rest in csv.reader(lines(), delimiter=delimiter, strict=True):
            if not is_whole or len(rest) != len(COLUMNS) - 2:
                return
            yield image, int(rank), end

    return Format(csv_head(COLUMNS, separator), encode, records)


def _encode_json(_: Source, rows: Rows) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _json_records(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    end = file.tell()
    for raw in file:
        end += len(raw)
        if not raw.endswith(b"\n"):
            return
        row = json.loads(raw)
        yield written_name(row["image"]), int(row["rank"]), end


def _html_format(folder: Path) -> Format:
    """A page to browse, in a folder; a picture is a line of it."""

    def encode(source: Source, rows: Rows) -> str:
        return report.captions_card(source, rows, folder)

    return Format(report.captions_head(), encode, _html_records, report.foot())


def _html_records(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    end = file.tell()
    for raw in file:
        end += len(raw)
        found = re.match(r'<article data-image="([^"]*)"', raw[:10_000].decode("utf-8", "replace"))
        if not found or not raw.endswith(b"\n"):
            return
        yield html.unescape(found[1]), 1, end


# ------------------------------------------------------------------------------- the file


class CaptionsFile:
    """A file of captions under the name of its part, which gets its own name when it is whole.

    Beside each a hidden file records how its captions were made: what was made otherwise is not
    resumed. Use ``captions_file``.

    Attributes:
        n_done: the pictures that were in it already.
        n_pictures: the pictures that are in it.
        facts: what else is to be recorded when it is whole, plain values by name.
    """

    def __init__(
        self, path: Path, made: Mapping[str, Any], *, separator: str, resume: bool, overwrite: bool
    ) -> None:
        """Begin, or go on with what is there; as ``captions_file``."""
        self.path, self.made, self.may_resume = path, made, resume
        self.part = path.with_name(f"{path.name}.part")
        self.format = _format(path, separator)
        self.facts: dict[str, Any] = {}
        self._done: Counter[str] = Counter()
        self.n_done = self.n_pictures = 0
        there = self.part if self.part.exists() else path
        if resume and there.exists():
            self.file = self._resume(there)
            return
        if there.exists() and not overwrite:
            what = "is of a run that was stopped" if there == self.part else "exists"
            is_ours = record_of(there).exists() and "merged" not in {**made, **read_record(there)}
            go_on = "--resume to go on with it, or " if is_ours else ""
            raise UserError(f"{there} {what}: give {go_on}--overwrite to replace it.")
        self.file = self.part.open("wb")
        _write_record(self.part, made)
        self._write(self.format.head)

    def _resume(self, there: Path) -> BinaryIO:
        """Open the part at the end of what is whole in it."""
        check_record(there, self.made)
        is_finished = there == self.path
        if is_finished and self.path.suffix == ".parquet":
            raise UserError(f"{there} is finished, and parquet cannot grow: give another --output.")
        end, pictures = self._find_records(there)
        if is_finished:  # what was put into it by hand is not to be cut off
            n_pictures, n_bytes = read_record(there).get("n_pictures"), there.stat().st_size
            if (n_pictures, n_bytes) != (len(pictures), end + len(self.format.foot.encode())):
                raise _changed(there)
        log.info(f"resumed     {there}, with {len(pictures):,} pictures")
        if pictures and not is_finished:  # perhaps not all captions of the last
            end = pictures.pop()[1]
        self._done = Counter(image for image, _ in pictures)
        self.n_done = self.n_pictures = len(pictures)
        if is_finished:
            _write_record(self.part, self.made)
            shutil.copyfile(there, self.part)
        file = self.part.open("r+b")
        file.truncate(end)
        file.seek(end)
        if not end:  # killed before the first picture
            file.write(self.format.head.encode("utf-8"))
        return file

    def _find_records(self, there: Path) -> tuple[int, list[tuple[str, int]]]:
        """Where what is whole ends, and the pictures, each with where its captions begin."""
        head, pictures = self.format.head.encode("utf-8"), list[tuple[str, int]]()
        with there.open("rb") as file:
            begin = file.read(len(head))
            if begin != head:
                if head.startswith(begin):
                    return 0, []
                raise _changed(there)
            end = len(head)
            with suppress(ValueError, LookupError, TypeError, csv.Error):  # no whole record
                for image, rank, record_end in self.format.records(file):
                    if rank == 1:
                        pictures.append((image, end))
                    end = record_end
        return end, pictures

    def is_done(self, source: Source) -> bool:
        """As ``Output``; a name that is given twice is done when it is there twice."""
        name = written_name(source.path)
        is_done = self._done[name] > 0
        self._done[name] -= is_done
        return is_done

    def write(self, source: Source, captions: Sequence[Caption]) -> None:
        """As ``Output``."""
        self.write_rows(source, rows_of(source, captions))

    def write_rows(self, source: Source, rows: Rows) -> None:
        """Write the captions of a picture."""
        self._write(self.format.encode(source, rows))
        self.n_pictures += 1

    def _write(self, text: str) -> None:
        self.file.write(text.encode("utf-8", "backslashreplace"))
        self.file.flush()  # into the system's hands, where a kill does not reach

    def finish(self) -> None:
        """Give the whole file its name."""
        self._write(self.format.foot)
        os.fsync(self.file.fileno())
        self.file.close()
        if self.path.suffix == ".parquet":
            _pack_parquet(self.part)
        _write_record(self.path, {**self.made, **self.facts, "n_pictures": self.n_pictures})
        self.part.replace(self.path)
        record_of(self.part).unlink()
        n_new = self.n_pictures - self.n_done
        new = f", {n_new:,} of them new" if self.n_done else ""
        log.info(f"written to {self.path}: {self.n_pictures:,} pictures{new}")

    def stop(self) -> None:
        """Keep what there is, and say how to go on; a file without a picture, or merged, goes."""
        with suppress(OSError):  # a full disk, once more
            self.file.close()
        if self.n_pictures and "merged" not in self.made:
            log.info(
                f"stopped: {self.n_pictures:,} pictures are in {self.part}. Go on with the same "
                f"command{'' if self.may_resume else ' and --resume'}."
            )
            return
        for path in (self.part, record_of(self.part)):
            path.unlink(missing_ok=True)


def record_of(path: Path) -> Path:
    """The hidden file that tells how a file of captions, or its part, was made."""
    return path.with_name(f".{path.name}.run.json")


def _write_record(path: Path, facts: Mapping[str, Any]) -> None:
    with whole_file(record_of(path)) as record:
        record.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """How a file of captions, or its part, was made; nothing if that is missing or damaged."""
    with suppress(OSError, ValueError):
        facts = json.loads(record_of(path).read_text(encoding="utf-8"))
        return facts if isinstance(facts, dict) else {}
    return {}


def recorded(folder: Path) -> list[Path]:
    """The files of captions in a folder, and the parts of such, that have a record."""
    records = sorted(folder.glob(".*.run.json"))
    return [path.with_name(path.name[1:].removesuffix(".run.json")) for path in records]


def check_record(path: Path, made: Mapping[str, Any]) -> None:
    """Raise a ``UserError`` if captions were made in another way, or nobody knows how."""
    before = read_record(path)
    different = [name for name in made if name in before and before[name] != made[name]]
    if different:
        name = different[0]
        old, new = before[name], made[name]
        how = f"with {OTHER.get(name) or f'{flag(name)} {old}, not {new}'}"
        if isinstance(old, str | bool | None) and not (old and new):
            how = f"{'with' if old else 'without'} {flag(name)}"
        raise UserError(f"{path} was written {how}: give the same again, or another --output.")
    if not made.keys() <= before.keys():
        raise UserError(
            f"{path} cannot be resumed: {record_of(path)}, which tells how it was written, is "
            "missing or damaged. Give another --output, or --overwrite to begin anew."
        )


def _changed(path: Path) -> UserError:
    return UserError(f"{path} was changed since it was written: give another --output.")


def _pack_parquet(part: Path) -> None:
    """Make parquet of JSON lines, in place."""
    import pandas as pd

    with part.open(encoding="utf-8") as lines:
        read = map(json.loads, lines)
        rows = ({**row, "image": written_name(row["image"])} for row in read)
        table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    table = table.astype({"familiarity": "float64"})  # also of a model that has none
    with whole_file(part) as packed:
        table.to_parquet(packed, index=False)


@contextmanager
def captions_file(
    path: Path, made: Mapping[str, Any], *, separator: str, resume: bool, overwrite: bool
) -> Iterator[CaptionsFile]:
    """A file to write captions to, which is whole at the end, or keeps what there is.

    Args:
        path: ends in ``.csv``, ``.jsonl``, ``.html`` or ``.parquet``; its folder is made.
        made: what the captions depend on, plain values by name.
        separator: of CSV, one of ``tables.CSV_SEPARATORS``.
        resume: go on with what is there, if something is.
        overwrite: replace it.

    Raises:
        UserError: another run writes to it; there is something, and it is neither to be resumed
            nor replaced; or it cannot be resumed.
    """
    from filelock import Timeout

    if path.suffix == ".parquet" and not importlib.util.find_spec("pyarrow"):
        raise UserError("--output .parquet needs: pip install pyarrow. Or write .csv or .jsonl.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written in this folder: give another --output.")
    lock_file = path.with_name(f".{path.name}.lock")
    try:
        held = lock(lock_file)
    except Timeout:
        raise UserError(f"another run writes to {path}: wait for it, or name another.") from None
    with held:
        try:
            file = CaptionsFile(path, made, separator=separator, resume=resume, overwrite=overwrite)
            try:
                yield file
                file.finish()
            except BaseException:
                file.stop()
                raise
        finally:
            lock_file.unlink(missing_ok=True)
