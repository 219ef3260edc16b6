"""A folder of Parquet shards with the manifest that says whose vectors they are.

Every file appears whole or not at all. While a job is under way the manifest is called ``PARTIAL``;
its last act is to give it its name. Knows no corpus and no encoder.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from .corpus import InputFile
from .errors import InputError, missing_extra
from .manifest import sha256_of
from .vectors import Vectors

MANIFEST = "_manifest.json"
PARTIAL = "_manifest.json.partial"
SCHEMA_VERSION = 1

Dtype = Literal["float32", "float16"]


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that decides what is in a folder of vectors."""

    bundle: str
    bundle_sha256: str
    """Of the bundle's manifest, which holds the hash of every file."""
    bundle_path: str
    """Where it lay, for those who search the folder on the same machine."""
    precision: str
    backend: str
    device: str
    dimension: int
    similarity: str
    dtype: Dtype
    normalize: bool
    prompt_name: str | None
    truncate: bool | Literal["error"]
    max_length: int
    batch_tokens: int
    """What is executed together decides the last digits of a vector."""
    shard_rows: int
    text_column: str | None
    id_column: str | None
    input_format: str | None
    inputs: tuple[InputFile, ...]


class Shard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of vectors. ``input_rows`` = ``rows`` + ``bad_rows``."""

    file: str
    rows: int
    bad_rows: int
    truncated_texts: int
    sha256: str
    size_bytes: int
    input_sha256: str
    """Of the ids and texts it was made from."""

    @property
    def number(self) -> int:
        """Which one it is, from 0."""
        return int(self.file.removeprefix("part-").removesuffix(".parquet"))

    @property
    def input_rows(self) -> int:
        """Rows of the input that this shard stands for."""
        return self.rows + self.bad_rows


class ShardManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of ``_manifest.json``. No time and no host: equal jobs give equal files."""

    schema_version: int
    job: Job
    rows: int
    bad_rows: int
    truncated_texts: int
    shards: tuple[Shard, ...]


def manifest_of(job: Job, shards: Sequence[Shard]) -> ShardManifest:
    """Return the manifest of a job and its shards, with the sums over them."""
    return ShardManifest(
        schema_version=SCHEMA_VERSION,
        job=job,
        rows=sum(shard.rows for shard in shards),
        bad_rows=sum(shard.bad_rows for shard in shards),
        truncated_texts=sum(shard.truncated_texts for shard in shards),
        shards=tuple(shards),
    )


def load_shard_manifest(path: Path) -> ShardManifest:
    """Read a manifest, finished or partial; raises ``InputError`` if it is none."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=ShardManifest)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"'{path}' is not the manifest of a folder that corom embed made, or a newer corom's: "
            f"{error}."
        ) from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise InputError(f"'{path}' has schema {manifest.schema_version}, not {SCHEMA_VERSION}.")
    return manifest


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
        encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        with self._replacing(PARTIAL) as path:
            path.write_bytes(encoded + b"\n")

    def finish(self) -> None:
        """Give the manifest its name: from now on the folder is complete."""
        (self.path / PARTIAL).replace(self.path / MANIFEST)
        _sync(self.path)

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
        with self._replacing(name) as path:
            # Vectors neither compress nor repeat; statistics of single values mean nothing.
            parquet.write_table(
                table, path, compression="none", use_dictionary=False, write_statistics=["id"]
            )
        return self.path / name

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """Yield a path to write to, which gets its name when it is whole and on the disk."""
        partial = self.path / f".{name}.tmp"
        try:
            yield partial
            _sync(partial)
            partial.replace(self.path / name)
            _sync(self.path)
        finally:
            partial.unlink(missing_ok=True)


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


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
