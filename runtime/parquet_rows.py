"""Rows of .parquet, which is read from its end: what cannot seek goes to a temporary file first."""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import IO, Any, BinaryIO

from .errors import InputError, missing_extra
from .row import Columns, Rows, column_twice, no_column, row_of

PARQUET_ROWS = 8192
"""Rows of a Parquet file that are in memory together."""


def parquet_rows(file: BinaryIO, name: str, columns: Columns) -> Rows:
    """Yield the rows of a Parquet file, some thousands in memory at a time."""
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
                    raise column_twice(name, column)
                if column not in table.schema_arrow.names:
                    raise no_column(name, column, table.schema_arrow.names)
            numbers = count(1)
            for batch in table.iter_batches(PARQUET_ROWS, columns=columns.wanted):
                values = [_values(batch.column(column), arrow) for column in columns.wanted]
                for row in zip(*values, strict=True):
                    yield row_of(next(numbers), *row)
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
