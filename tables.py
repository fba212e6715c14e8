"""Text files, whatever their encoding, and the rows of the tables in them: CSV and its kin, JSON.

What the columns mean is `columns`'s to say. A row that cannot be trusted is refused, by its line.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cli import UserError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
CSV_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}  # as flags name them
IMAGE_SUFFIX = re.compile(r"\.[A-Za-z]\w{1,4}$")


class UnknownFormat(UserError):
    """A file that was not meant to be read here, as far as one can see."""


@dataclass(frozen=True)
class Row:
    """A row of a table: where it stands, for messages, and its values by column or key."""

    where: str
    values: dict[str, Any]


def plain_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The values by keys in lower case with _ between words: ``"File Name"`` → ``file_name``."""
    return dict(zip(_plain_names(tuple(values)), values.values(), strict=True))


def plain_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names in lower case with _ between words; caption, caption → caption, caption_2.

    Without accents: Légende is legende.
    """
    return _plain_names(tuple(names))


@lru_cache  # the rows of a table have the same names
def _plain_names(names: tuple[str, ...]) -> tuple[str, ...]:
    plain = [_plain_name(str(name)) for name in names]
    taken, following = set(plain), dict[str, Iterator[int]]()
    seen: set[str] = set()
    for index, name in enumerate(plain):
        if name in seen:
            numbers = following.setdefault(name, itertools.count(2))
            plain[index] = next(n for n in (f"{name}_{i}" for i in numbers) if n not in taken)
        seen.add(name)
    return tuple(plain)


def _plain_name(name: str) -> str:
    name = unicodedata.normalize("NFKD", name.strip().lower())
    name = "".join(char for char in name if not unicodedata.combining(char))
    return re.sub(r"\W+", "_", name).strip("_")


def listed(values: Iterable[Any]) -> str:
    """The first values, for a message."""
    texts = [value if isinstance(value, str) else repr(value) for value in values]
    shown = [text if len(text) <= 60 else f"{text[:57]}..." for text in texts]
    more = f" and {len(shown) - 8:,} more" if len(shown) > 8 else ""
    return ", ".join(shown[:8]) + more if shown else "nothing"


# ------------------------------------------------------------------------------------ text


def read_text(path: Path) -> tuple[str, str]:
    r"""The text of a file, with ``\n`` at the ends of its lines, and what there is to say about it.

    Raises:
        UnknownFormat: it is no text.
        UserError: it cannot be read, or is text in no encoding known here.
    """
    if not path.is_file():  # a pipe would wait for ever
        raise UserError(f"{path} is no file that can be read.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    text, note = _decoded(content, path)
    return text.replace("\r\n", "\n").replace("\r", "\n"), note


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, without blank ones."""
    return [line for line in read_text(path)[0].split("\n") if line.strip()]


def _decoded(content: bytes, path: Path) -> tuple[str, str]:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace"), ""
    if b"\0" in content[:1000]:
        for order, zeros in (("utf-16-le", content[1:200:2]), ("utf-16-be", content[:200:2])):
            if zeros.count(0) > 0.8 * len(zeros):
                return content.decode(order, "replace"), ""
        raise UnknownFormat(f"{path} is no text: no captions can be read from it.")
    try:
        return content.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    loose = content.decode("utf-8", "replace")
    n_good = sum(char > "\x7f" and char != "\ufffd" for char in loose)
    if n_good < loose.count("\ufffd"):  # else it is UTF-8, and damaged in places
        try:
            return content.decode("cp1252"), f"{path.name} is no UTF-8: read as Windows-1252"
        except UnicodeDecodeError:
            pass
    raise UserError(f"{path} is not UTF-8 text in line {line}, nor Windows-1252: save it as UTF-8.")


# ------------------------------------------------------------------------------------ JSON


def parse_json(text: str) -> tuple[Any, str]:
    """The value of a JSON text, and the reason if it has none.

    Of a key that stands there several times with different values it is the list of these.
    """
    try:
        value = json.loads(
            text,
            parse_constant=lambda _: None,  # NaN: what pandas lacks
            object_pairs_hook=_collected,
        )
        return value, ""
    except RecursionError:
        return None, "it is nested too deep"
    except ValueError as error:
        return None, str(error)


def _collected(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        of_key: dict[str, list[Any]] = {}
        for key, value in pairs:
            of_key.setdefault(key, []).append([value] if isinstance(value, str) else value)
        for key, several in of_key.items():
            if any(value != several[0] for value in several):
                values[key] = several
    return values


def json_line(path: Path, number: int, line: str) -> Row:
    """The object in a line of a file of JSON lines.

    Raises:
        UserError: it holds none.
    """
    values, error = parse_json(line)
    if error or not isinstance(values, dict):
        reason = re.sub(r": line 1 (column \d+) .*", r" in \1", error) or "it is no object"
        raise UserError(f"{path}, line {number} is no valid JSON: {reason}. Mend or delete it.")
    return Row(f"line {number}", values)


def read_parquet(path: Path) -> list[Row]:
    """The rows of a parquet file.

    Raises:
        UserError: it cannot be read, or pyarrow is not installed.
    """
    try:
        import pandas as pd

        table = pd.read_parquet(path)
    except ImportError as error:
        raise UserError(f"{path} needs `pip install pyarrow`, or captions as CSV.") from error
    except Exception as error:  # pyarrow's own, of many kinds
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} cannot be read as parquet: {reason}") from error
    return [
        Row(f"row {number}", {str(key): _without_numpy(value) for key, value in row.items()})
        for number, row in enumerate(table.to_dict("records"), start=1)
    ]


def _without_numpy(value: Any) -> Any:
    """Lists as lists and numbers as Python's; what is missing as None."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if value != value else value


# --------------------------------------------------------------------------- CSV and its kin


def read_delimited(
    path: Path, text: str, image_column: Callable[[Sequence[str]], str | None]
) -> list[Row]:
    """The rows of a table with separators, whose header tells which one.

    A table without a header is read if it has two columns, the first with names of images.

    Args:
        path: the file, for messages.
        text: its content.
        image_column: names the column of images, if the plain names of columns are those of a
            table of captions.

    Raises:
        UnknownFormat: no separator gives columns of such a table.
        UserError: quotes or separators are not as they should be; the message names the line.
    """
    separators, first_line = list(SEPARATORS), 1
    if stated := re.match(r'\s*"?sep=(.)"?[ \t]*\n', text):
        separators, first_line, text = [stated[1]], 2, text[stated.end() :]
    before = len(text) - len(text.lstrip("\n"))
    first_line, text = first_line + before, text[before:]
    header = text.split("\n", 1)[0]
    for separator in separators:
        columns = plain_names(_fields(header, separator))
        image = image_column(columns)
        if image:
            table = _Delimited(
                path, separator, columns, columns.index(image), f"{separator} " in header
            )
            return table.rows(text, first_line)[1:]
    separator = _separator_without_header(path, text)
    return _Delimited(path, separator, ["image", "caption"], 0, False).rows(text, first_line)


def _fields(line: str, separator: str) -> list[str]:
    """The fields of a line that holds a whole row."""
    csv.field_size_limit(2**31 - 1)
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [""])


def _separator_without_header(path: Path, text: str) -> str:
    lines = [line for line in text.split("\n", 50)[:50] if line.strip()] or [""]
    for separator in SEPARATORS:
        rows = [_fields(line, separator) for line in lines]
        if all(len(row) == 2 and IMAGE_SUFFIX.search(row[0].strip()) for row in rows):
            return separator
    separator = max(SEPARATORS, key=lines[0].count)
    raise UnknownFormat(
        f"{path} is in no format known here. Its first line, read with {SEPARATORS[separator]} "
        f"between columns, has {listed(_fields(lines[0], separator))}: expected is a header with "
        "columns for the image and its caption, as image,caption (or see docs/data.md)."
    )


@dataclass(frozen=True)
class _Delimited:
    """How a table is written."""

    path: Path
    separator: str
    columns: Sequence[str]
    image: int  # which of the columns
    has_blanks: bool  # after the separators

    def rows(self, text: str, first_line: int) -> list[Row]:
        """All rows, the header too."""
        lines = text.split("\n")
        body = [line.rstrip() for line in lines[1:50] if line.strip()]
        is_single = bool(body) and all(line[0] + line[-1] == "''" for line in body)
        try:
            return self._quoted(text, first_line, "'" if is_single else '"')
        except UserError:
            n_separators = {line.count(self.separator) for line in lines if line.strip()}
            # Quotes may be mere characters where no caption holds a separator.
            if self.separator not in "\t|" or n_separators != {len(self.columns) - 1}:
                raise
            numbered = enumerate(lines, start=first_line)
            return [self._row(n, line.split(self.separator)) for n, line in numbered if line]

    def _row(self, line: int, fields: list[str]) -> Row:
        return Row(f"line {line}", dict(zip(self.columns, fields, strict=False)))

    def _quoted(self, text: str, first_line: int, quote: str) -> list[Row]:
        reader = csv.reader(
            io.StringIO(text),
            delimiter=self.separator,
            quotechar=quote,
            skipinitialspace=self.has_blanks,
            strict=True,
        )
        rows: list[Row] = []
        line = first_line
        try:
            for fields in reader:
                if len(fields) > len(self.columns):
                    counts = f"it has {len(fields)} fields, the header {len(self.columns)}"
                    raise csv.Error(counts)
                if self._swallows_rows(fields):
                    raise csv.Error("a quote opens there that swallows the rows after it")
                if fields:
                    rows.append(self._row(line, fields))
                line = first_line + reader.line_num
        except csv.Error as error:
            reason = str(error)
            if "unexpected end" in reason or "expected after" in reason:
                reason = "a quote opens there that does not close where the field ends"
            raise UserError(
                f"{self.path}, line {line}: {reason}. Put captions that hold "
                f"{SEPARATORS.get(self.separator, 'separators')} or quotes in quotes, and double "
                "the quotes in them."
            ) from error
        return rows

    def _swallows_rows(self, fields: list[str]) -> bool:
        """Whether a field that runs over several lines holds what looks like rows."""
        inner = [line for text in fields if "\n" in text for line in text.split("\n")[1:]]
        if not inner:
            return False
        own = fields[self.image] if len(fields) > self.image else ""
        has_suffix = bool(IMAGE_SUFFIX.search(own.strip()))
        for line in inner:
            parts = [part.strip("\"' ") for part in line.split(self.separator)]
            image = parts[self.image] if len(parts) >= len(self.columns) else ""
            if IMAGE_SUFFIX.search(image) if has_suffix else image and " " not in image:
                return True
        return False


# --------------------------------------------------------------------------- written tables


def csv_head(columns: Sequence[str], separator: str) -> str:
    """The first line of CSV, with a mark that spreadsheets need to take it for UTF-8."""
    mark = "\ufeff" if separator == "semicolon" else ""
    return mark + csv_line(columns, separator)


def csv_line(values: Sequence[object], separator: str) -> str:
    """A line of CSV, separated by one of ``CSV_SEPARATORS``.

    With semicolons as spreadsheets want it that write numbers with a decimal comma.
    """
    if separator == "semicolon":
        values = [str(v).replace(".", ",") if isinstance(v, float) else v for v in values]
    text = io.StringIO()
    csv.writer(text, delimiter=CSV_SEPARATORS[separator]).writerow(values)
    return text.getvalue()
