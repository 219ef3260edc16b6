"""Vectors to .npy, .jsonl or .parquet, row by row, published whole by one rename or not at all."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import numpy as np

from .errors import InputError, missing_extra
from .vectors import Vectors
from .whole_file import whole_file

SUFFIXES = (".npy", ".jsonl", ".parquet")


class Writer(Protocol):
    """Takes rows until it is closed; ``rows`` counts them."""

    rows: int

    def write(self, texts: list[str], vectors: Vectors, ids: Sequence[str] | None = None) -> None:
        """Append the vectors (N, H) of N texts, and their ids if the file has them."""
        ...

    def close(self) -> None:
        """Write what is still owed to the file."""
        ...


class JsonLinesWriter:
    """One object a line: ``{"id": …, "text": …, "embedding": […]}``, the id where there is one."""

    def __init__(self, file: IO[bytes], dimension: int) -> None:  # noqa: ARG002
        self._file = file
        self.rows = 0

    def write(self, texts: list[str], vectors: Vectors, ids: Sequence[str] | None = None) -> None:
        """Append the vectors (N, H) of N texts, and their ids."""
        rows = zip(texts, vectors.tolist(), strict=True)
        records: list[dict[str, Any]] = [
            {"text": text, "embedding": vector} for text, vector in rows
        ]
        if ids is not None:
            records = [{"id": key} | record for key, record in zip(ids, records, strict=True)]
        self._file.write(msgspec.json.Encoder().encode_lines(records))
        self.rows += len(texts)

    def close(self) -> None:
        """Flush."""
        self._file.flush()


class NpyWriter:
    """A float32 array (N, H); N is written into the header when it is known."""

    def __init__(self, file: IO[bytes], dimension: int) -> None:
        self._file = file
        self._dimension = dimension
        self.rows = 0
        self._write_header()

    def write(self, texts: list[str], vectors: Vectors, ids: Sequence[str] | None = None) -> None:  # noqa: ARG002
        """Append the vectors (N, H); texts and ids are not kept."""
        self._file.write(np.ascontiguousarray(vectors, "<f4").data)
        self.rows += len(vectors)

    def close(self) -> None:
        """Write the final number of rows into the header."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis can grow without the header growing.
        shape = (self.rows, self._dimension)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class ParquetWriter:
    """Columns ``text`` (string) and ``embedding`` (fixed-size list of float32).

    For ids there is the folder of shards.
    """

    def __init__(self, file: IO[bytes], dimension: int) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise missing_extra("pyarrow", "parquet", "Writing .parquet") from None
        self._arrow: Any = pyarrow
        self._schema = pyarrow.schema(
            {"text": pyarrow.string(), "embedding": pyarrow.list_(pyarrow.float32(), dimension)}
        )
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._dimension = dimension
        self.rows = 0

    def write(self, texts: list[str], vectors: Vectors, ids: Sequence[str] | None = None) -> None:  # noqa: ARG002
        """Append the vectors (N, H) of N texts as one row group; ids are not kept."""
        values = self._arrow.array(vectors.reshape(-1))
        embedding = self._arrow.FixedSizeListArray.from_arrays(values, self._dimension)
        columns = [self._arrow.array(texts, self._arrow.string()), embedding]
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
        self.rows += len(texts)

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()

    def abandon(self) -> None:
        """Make pyarrow forget the footer that it would otherwise still write, and complain."""
        self._writer.is_open = False


WRITERS: dict[str, type[NpyWriter | JsonLinesWriter | ParquetWriter]] = {
    ".npy": NpyWriter,
    ".jsonl": JsonLinesWriter,
    ".parquet": ParquetWriter,
}


@contextmanager
def open_writer(output: Path | None, dimension: int) -> Iterator[Writer]:
    """Yield a writer for a file of one of ``SUFFIXES``, or JSON lines on stdout for None.

    The file appears under its name when all rows are written; on an error nothing is left behind.
    """
    if output is None:
        if sys.stdout is None:
            raise InputError("standard output is closed: give a file to write, -o FILE.")
        writer = JsonLinesWriter(sys.stdout.buffer, dimension)
        yield writer
        writer.close()
        return
    if output.is_symlink():  # what it leads to is replaced, not the link
        output = output.resolve()
    if output.suffix not in WRITERS:
        raise InputError(f"output '{output}' must end in one of: {', '.join(SUFFIXES)}.")
    if output.is_dir():
        raise InputError(
            f"'{output}' is a folder, and its name is one of a file. Give the name of a file, or a "
            "folder without such an ending."
        )
    if not output.parent.is_dir():
        raise InputError(f"there is no folder '{output.parent}' to write '{output.name}' into.")
    with whole_file(output) as file:
        file_writer: Writer = WRITERS[output.suffix](file, dimension)
        try:
            yield file_writer
            file_writer.close()
        except BaseException:
            if isinstance(file_writer, ParquetWriter):
                file_writer.abandon()
            raise
