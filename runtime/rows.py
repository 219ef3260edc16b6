"""Rows of text and ids out of .txt, .tsv, .csv, .jsonl and .parquet files, gzip of each too.

What cannot be used is a ``BadRow`` with its place and its reason, never skipped in silence. Knows
no encoder.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from .delimited_rows import csv_rows, tsv_rows, utf8_lines
from .errors import InputError
from .parquet_rows import parquet_rows
from .row import NOT_UTF8, BadRow, Columns, Row, Rows, no_column, row_of
from .urls import errors_of, is_url, open_url

STDIN = "-"


def read_rows(
    name: str, columns: Columns, kind: str | None = None, path: str | None = None
) -> Rows:
    """Yield every row of a file, in order; ``name`` "-" is standard input.

    ``kind``: a suffix such as ".tsv" to read the file by; None takes its own. ``path``: where the
    file lies; None: where its name says. Raises ``InputError`` for a file that is missing, damaged,
    of an unknown kind or without a column that is asked for.
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
    where = path or name
    # Drivers of URLs have errors of their own, in the middle of a file too.
    with errors_of(where) if is_url(where) else nullcontext():
        try:
            with open_bytes(where, packed=packed) as file:
                yield from KINDS[kind](file, name, columns)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"'{name}' is a damaged or truncated gzip file: {error}.") from None
        except OSError as error:
            raise InputError(f"'{name}' cannot be read: {error.strerror or error}.") from None


def open_bytes(name: str, *, packed: bool = False) -> AbstractContextManager[BinaryIO]:
    """Open a file, a URL or standard input, which is not closed; ``packed``: it is gzip."""
    if name == STDIN:
        if sys.stdin is None:
            raise InputError("standard input is closed.")
        return nullcontext(sys.stdin.buffer)
    file: BinaryIO = open_url(name) if is_url(name) else open(name, "rb")  # noqa: PTH123, SIM115
    return _unpacked(file) if packed else file


@contextmanager
def _unpacked(source: BinaryIO) -> Iterator[BinaryIO]:
    with source:
        packed = io.BufferedReader(cast("Any", source))
        if not packed.peek(1):  # for the library that is a file of no rows
            raise EOFError("it has no bytes")
        with gzip.open(packed) as file:
            yield cast("BinaryIO", file)


def _text_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    if columns.text is not None or columns.id is not None:
        raise InputError(
            f"'{name}' is read by lines and has no columns; leave out --text-column "
            "and --id-column, or say --input-format."
        )
    for number, line in utf8_lines(file):
        yield BadRow(number, NOT_UTF8) if line is None else Row(number, None, line)


def _json_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    first = True
    for number, line in utf8_lines(file):
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
            raise no_column(name, absent[0], list(record))
        first = False
        if absent:
            yield BadRow(number, f"it has no '{absent[0]}'")
        else:
            yield row_of(number, *(record[column] for column in columns.wanted))


KINDS: dict[str, Callable[[BinaryIO, str, Columns], Rows]] = {
    ".txt": _text_rows,
    ".tsv": tsv_rows,
    ".csv": csv_rows,
    ".jsonl": _json_rows,
    ".parquet": parquet_rows,
}
