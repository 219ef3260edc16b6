"""A folder of Parquet shards with the manifest that says whose vectors they are.

Every file appears whole or not at all. While a job is under way the manifest is called ``PARTIAL``;
its last act is to give it its name. Knows no corpus and no encoder.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np

from .errors import InputError, missing_extra
from .manifest import sha256_of
from .shard_manifest import (
    MANIFEST,
    PARTIAL,
    Job,
    Shard,
    ShardManifest,
    encoded,
    load_shard_manifest,
)
from .vectors import Vectors
from .whole_file import sync_folder, whole_file


class ShardFolder:
    """A folder that a job writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if find_spec("pyarrow") is None:
            raise missing_extra("pyarrow", "parquet", "A folder of vectors")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it for this process; raises ``InputError`` if another has it."""
        handle = self._lock()
        try:
            yield
        finally:
            # While the lock is held: an empty folder may be another job's that has just begun.
            if not any(self.path.iterdir()):  # nothing came of it
                self.path.rmdir()
            os.close(handle)

    def _lock(self) -> int:
        """Return a handle that holds the lock; closing it, or dying, gives it back.

        A lock on the folder itself leaves no file behind.
        """
        import fcntl  # only where folders are written: Windows has none

        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A job that ended in between may have removed the folder that was opened.
                if self.path.exists() and os.fstat(handle).st_ino == self.path.stat().st_ino:
                    return handle
            except BlockingIOError:
                os.close(handle)
                raise InputError(f"another process writes to '{self.path}' now.") from None
            os.close(handle)

    def job(self) -> Job | None:
        """Return the job that the folder was begun by, if there is one; needs no lock."""
        for name in (MANIFEST, PARTIAL):
            if (self.path / name).exists():
                return load_shard_manifest(self.path / name).job
        return None

    def found(self) -> tuple[ShardManifest | None, bool]:
        """Return what an earlier run left, and whether it had finished.

        Raises ``InputError`` for a folder that holds something else.
        """
        for name in (MANIFEST, PARTIAL):
            if (self.path / name).exists():
                return load_shard_manifest(self.path / name), name == MANIFEST
        other = sorted(path.name for path in self.path.iterdir() if not _TEMPORARY.match(path.name))
        if other:
            raise InputError(
                f"'{self.path}' holds files that are not of corom embed ({', '.join(other[:3])}). "
                "Give a folder that is empty or does not exist."
            )
        return None, False

    def intact(self, shard: Shard) -> bool:
        """Return whether a shard's file is as it was written."""
        path = self.path / shard.file
        try:
            return path.stat().st_size == shard.size_bytes and sha256_of(path) == shard.sha256
        except OSError:
            return False

    def save(self, manifest: ShardManifest) -> None:
        """Note what is done so far."""
        with self._new(PARTIAL) as file:
            file.write(encoded(manifest))

    def finish(self) -> None:
        """Give the manifest its name: from now on the folder is complete."""
        (self.path / PARTIAL).replace(self.path / MANIFEST)
        sync_folder(self.path)

    def forget(self) -> None:
        """Remove the manifest of a job that wrote nothing."""
        (self.path / PARTIAL).unlink(missing_ok=True)

    def clear(self, shards: Sequence[Shard]) -> None:
        """Remove what an interrupted run left unfinished beside these shards."""
        kept = {shard.file for shard in shards}
        for path in self.path.iterdir():
            if _TEMPORARY.match(path.name) or (_SHARD.match(path.name) and path.name not in kept):
                path.unlink()

    def write(self, number: int, keys: Sequence[str | int], vectors: Vectors, job: Job) -> Path:
        """Write a shard of ids and vectors (N, H); return its path."""
        import pyarrow as arrow
        from pyarrow import parquet

        values = arrow.array(np.ascontiguousarray(vectors, job.dtype).reshape(-1))
        ids = arrow.array(keys, arrow.int64() if job.id_column is None else arrow.string())
        embedding = arrow.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        table = arrow.table({"id": ids, "embedding": embedding})
        name = shard_name(number)
        with self._new(name) as file:
            # Vectors neither compress nor repeat; statistics of single values mean nothing.
            parquet.write_table(
                table, file, compression="none", use_dictionary=False, write_statistics=["id"]
            )
        return self.path / name

    def _new(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Return a file to write; the folder's lock keeps others from its temporary name."""
        return whole_file(self.path / name, partial=self.path / f".{name}.tmp", sync=True)


_SHARD = re.compile(r"part-\d{5,}\.parquet$")
_TEMPORARY = re.compile(rf"\.(part-\d{{5,}}\.parquet|{re.escape(PARTIAL)})\.tmp$")


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"part-{number:05d}.parquet"


def texts_sha256(keys: Sequence[str | int], texts: Sequence[str]) -> str:
    """Return a hash of ids and texts in which no two lists fall together."""
    digest = hashlib.sha256()
    for key, text in zip(keys, texts, strict=True):
        for part in (str(key).encode(), text.encode()):
            digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()
