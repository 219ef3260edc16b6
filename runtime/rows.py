"""Rows of text and ids out of .txt, .tsv, .csv, .jsonl and .parquet files, gzip of each too.

What cannot be used is a ``BadRow`` with its place and its reason, never skipped in silence. Knows
no encoder.
"""

import csv
import gzip
import io
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import msgspec

from .errors import InputError, missing_extra
from .urls import is_url, open_url

STDIN = "-"
DEFAULT_TEXT = "text"
LARGEST_FIELD = 1 << 24
"""Characters of a CSV's field: more is a quote that was never closed."""
PARQUET_ROWS = 8192
"""Rows of a Parquet file that are in memory together."""


class Columns(NamedTuple):
    """Which columns hold text and id: a name, or a number from 1 in a file without header line.

    ``text``: None takes "text". ``id``: None has no ids. Lines of .txt have no columns.
    """

    text: str | None = None
    id: str | None = None

    @property
    def wanted(self) -> list[str]:
        """The text column and, if there is one, the id column."""
        return [self.text or DEFAULT_TEXT, *([] if self.id is None else [self.id])]


class Row(NamedTuple):
    """One text; ``number`` counts lines (of Parquet: rows) of its file from 1."""

    number: int
    id: str | None
    text: str


class BadRow(NamedTuple):
    """A row that holds no text that can be encoded, and why."""

    number: int
    reason: str


Rows = Iterator[Row | BadRow]


def read_rows(name: str, columns: Columns, kind: str | None = None) -> Rows:
    """Yield every row of a file, in order; ``name`` "-" is standard input.

    ``kind``: a suffix such as ".tsv" to read the file by; None takes its own. Raises ``InputError``
    for a file that is missing, damaged, of an unknown kind or without a column that is asked for.
    """
    suffixes = Path(name).suffixes
    packed = suffixes[-1:] in ([".gz"], [".GZ"])
    own = [suffix.lower() for suffix in (suffixes[:-1] if packed else suffixes)]
    # Standard input, a pipe and a file without suffix are lines.
    kind = kind or (own[-1] if own and name != STDIN else ".txt")
    if kind not in KINDS:
        raise InputError(
            f"'{name}' is of no kind that can be read: {', '.join(KINDS)}, or gzip of one (.gz). "
            "Say which with --input-format."
        )
    try:
        with _opened(name, packed=packed) as file:
            yield from KINDS[kind](file, name, columns)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"'{name}' is a damaged or truncated gzip file: {error}.") from None
    except OSError as error:
        raise InputError(f"'{name}' cannot be read: {error.strerror or error}.") from None


def _opened(name: str, *, packed: bool) -> AbstractContextManager[BinaryIO]:
    if name == STDIN:
        if sys.stdin is None:
            raise InputError("standard input is closed.")
        return nullcontext(sys.stdin.buffer)
    opener: Any = gzip.open if packed else open
    if is_url(name):
        return _unpacked(open_url(name)) if packed else open_url(name)
    file: AbstractContextManager[BinaryIO] = opener(name, "rb")
    return file


@contextmanager
def _unpacked(source: BinaryIO) -> Iterator[BinaryIO]:
    with source, gzip.open(source) as file:
        yield cast("BinaryIO", file)


def _lines(file: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """Yield line numbers and lines without their ends; None for what is not UTF-8."""
    for number, line in enumerate(file, 1):
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            yield number, None
        else:
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _text_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    if columns.text is not None or columns.id is not None:
        raise InputError(
            f"'{name}' is read by lines and has no columns; leave out --text-column "
            "and --id-column, or say --input-format."
        )
    for number, line in _lines(file):
        yield BadRow(number, NOT_UTF8) if line is None else Row(number, None, line)


def _tsv_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    lines = ((n, None if line is None else line.split("\t")) for n, line in _lines(file))
    yield from _delimited(lines, name, columns)


def _csv_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    # What is no UTF-8 becomes lone surrogates, so that it spoils its own row only.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))
    records = _csv_records(csv.reader(text, strict=True), name)
    try:
        yield from _delimited(records, name, columns)
    finally:
        text.detach()


def _csv_records(reader: Any, name: str) -> Iterator[tuple[int, list[str] | str]]:  # noqa: ANN401
    """Yield where each record begins, and its fields or what is wrong with it.

    Raises ``InputError`` for a quote that is never closed: it would take all rows behind it along.
    """
    while True:
        start = reader.line_num + 1
        try:
            yield start, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error) or "field limit" in str(error):
                raise InputError(
                    f"row {start} of '{name}' opens a quote that is not closed within "
                    f"{LARGEST_FIELD:,} characters or before the end of the file."
                ) from None
            yield start, f"it is no CSV: {error}"


def _delimited(
    records: Iterator[tuple[int, list[str] | str | None]], name: str, columns: Columns
) -> Rows:
    """Yield the rows of records of fields; None is what is not UTF-8, a str what is wrong."""
    numbered = all(column.isdecimal() and int(column) for column in columns.wanted)
    places = [int(column) - 1 for column in columns.wanted] if numbered else []
    width = 0
    for number, fields in records:
        if not isinstance(fields, list):
            yield BadRow(number, NOT_UTF8 if fields is None else fields)
        elif not places:
            places = [_place(fields, column, name) for column in columns.wanted]
            width = len(fields)
        elif max(places) >= len(fields):
            asked = max(places) + 1
            yield BadRow(number, f"it has {len(fields)} fields, column {asked} is asked for")
        elif width and len(fields) != width:
            # A tab or comma within a text, most likely: half a text is no text.
            yield BadRow(number, f"it has {len(fields)} fields, the first row has {width}")
        else:
            width = len(fields)
            yield _row(number, *(fields[place] for place in places))


def _place(header: list[str], column: str, name: str) -> int:
    if header.count(column) > 1:
        raise _twice(name, column)
    if column in header:
        return header.index(column)
    raise _no_column(name, column, header, "Without a header line give numbers: --text-column 2")


def _json_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    first = True
    for number, line in _lines(file):
        if line is None:
            yield BadRow(number, NOT_UTF8)
            continue
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            yield BadRow(number, f"it is no JSON: {error}" if line.strip() else "it is empty")
            continue
        if not isinstance(record, dict):
            yield BadRow(number, f"it is JSON, but {type(record).__name__} and no object")
            continue
        absent = [column for column in columns.wanted if column not in record]
        if absent and first:
            raise _no_column(name, absent[0], list(record))
        first = False
        if absent:
            yield BadRow(number, f"it has no '{absent[0]}'")
        else:
            yield _row(number, *(record[column] for column in columns.wanted))


def _parquet_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet", "Reading .parquet") from None
    with _seekable(file) as source:
        try:
            table = parquet.ParquetFile(source)
            for column in columns.wanted:
                if table.schema_arrow.names.count(column) > 1:
                    raise _twice(name, column)
                if column not in table.schema_arrow.names:
                    raise _no_column(name, column, table.schema_arrow.names)
            numbers = count(1)
            for batch in table.iter_batches(PARQUET_ROWS, columns=columns.wanted):
                values = [_values(batch.column(column), arrow) for column in columns.wanted]
                for row in zip(*values, strict=True):
                    yield _row(next(numbers), *row)
        except arrow.ArrowException as error:
            raise InputError(f"'{name}' is no Parquet file that can be read: {error}.") from None


def _values(column: Any, arrow: Any) -> list[Any]:  # noqa: ANN401
    """Return the values of a column; bytes that are not UTF-8 become lone surrogates."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        found = column.cast(arrow.large_binary()).to_pylist()
        values = [v if v is None else v.decode(errors="surrogateescape") for v in found]
    return values


@contextmanager
def _seekable(file: BinaryIO) -> Iterator[IO[bytes]]:
    """Yield the file itself, or its content in a temporary one: Parquet is read from its end."""
    if isinstance(file, io.BufferedReader) and file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(file, unpacked)
        unpacked.seek(0)
        yield unpacked


def _row(number: int, text: object, *ids: object) -> Row | BadRow:
    """Return the row of a text and, where an id column is asked for, its id."""
    if not isinstance(text, str):
        return BadRow(number, f"its text is {_shown(text)}")
    key: str | None = None
    for value in ids:
        if type(value) is not int and (not isinstance(value, str) or not value):
            return BadRow(number, f"its id is {_shown(value)}")
        key = str(value)
    if not _is_unicode(text + (key or "")):
        return BadRow(number, NOT_UTF8)
    return Row(number, key, text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return "empty" if value == "" else f"{type(value).__name__}, not a string"


def _twice(name: str, column: str) -> InputError:
    return InputError(f"'{name}' has the column '{column}' more than once. Rename all but one.")


def _no_column(name: str, column: str, found: Sequence[str], advice: str = "") -> InputError:
    present = ", ".join(map(str, found)) or "none"
    return InputError(
        f"'{name}' has no column '{column}'; it has: {present[:500]}. "
        f"Name one with --text-column or --id-column. {advice}".rstrip()
    )


NOT_UTF8 = "it is not UTF-8; to convert a file, for example: iconv -f GB18030 -t UTF-8"
KINDS: dict[str, Callable[[BinaryIO, str, Columns], Rows]] = {
    ".txt": _text_rows,
    ".tsv": _tsv_rows,
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
    ".parquet": _parquet_rows,
}
