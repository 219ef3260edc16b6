"""Rows of .tsv and .csv: fields separated by tabs or commas, with a header line or without."""

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from .errors import InputError
from .row import NOT_UTF8, BadRow, Columns, Rows, column_twice, is_unicode, no_column, row_of

LARGEST_FIELD = 1 << 24
"""Characters of a CSV's field: more is a quote that was never closed."""


def utf8_lines(file: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """Yield line numbers and lines without their ends; None for what is not UTF-8."""
    for number, line in enumerate(file, 1):
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            yield number, None
        else:
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def tsv_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    """Yield the rows of lines whose fields are separated by tabs, without quotes."""
    lines = ((n, None if line is None else line.split("\t")) for n, line in utf8_lines(file))
    yield from _delimited(lines, name, columns)


def csv_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    """Yield the rows of a CSV, in which quoted fields may go over several lines."""
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
        if not places and not _is_header(fields, columns):
            reason = fields if isinstance(fields, str) else NOT_UTF8
            raise InputError(f"the header of '{name}' cannot be used: {reason}.")
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
            yield row_of(number, *(fields[place] for place in places))


def _is_header(fields: list[str] | str | None, columns: Columns) -> bool:
    """Say whether these are names of columns; those that nobody asks for may be no UTF-8."""
    if not isinstance(fields, list):
        return False
    return is_unicode("".join(fields)) or set(columns.wanted) <= set(fields)


def _place(header: list[str], column: str, name: str) -> int:
    if header.count(column) > 1:
        raise column_twice(name, column)
    if column in header:
        return header.index(column)
    raise no_column(name, column, header, "Without a header line give numbers: --text-column 2")
