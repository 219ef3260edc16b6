"""A folder of Parquet shards with the manifest that says whose vectors they are.

Every file appears whole or not at all. While a job is under way the manifest is called ``PARTIAL``;
its last act is to give it its name. Knows no corpus and no encoder.
"""

import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .errors import InputError, missing_extra
from .job_differences import differences_of
from .shard_manifest import MANIFEST, PARTIAL, Job, Shard, ShardManifest, decoded, encoded
from .store import Written
from .stores import open_store
from .vectors import Vectors


class ShardFolder:
    """A folder, or what a URL names, that a job writes to."""

    def __init__(self, place: Path | str) -> None:
        self._store = open_store(place)
        self.name = self._store.name
        self.touched = False
        """Whether a shard may be there: writing one was begun."""
        if find_spec("pyarrow") is None:
            raise missing_extra("pyarrow", "parquet", "A folder of vectors")

    def locked(self) -> AbstractContextManager[None]:
        """Make the folder and hold it for this process; raises ``InputError`` if another has it."""
        return self._store.held()

    def job(self) -> Job | None:
        """Return the job that the folder was begun by, if there is one; needs no lock."""
        manifest, _finished = self._manifest()
        return None if manifest is None else manifest.job

    def found(self) -> tuple[ShardManifest | None, bool]:
        """Return what an earlier run left, and whether it had finished.

        Raises ``InputError`` for a folder that holds something else.
        """
        manifest, finished = self._manifest()
        if manifest is None:
            other = [name for name in self._store.names() if not _TEMPORARY.match(name)]
            if other:
                raise InputError(
                    f"'{self.name}' holds files that are not of corom embed "
                    f"({', '.join(other[:3])}). Give a folder that is empty or does not exist."
                )
        return manifest, finished

    def _manifest(self) -> tuple[ShardManifest | None, bool]:
        for name in (MANIFEST, PARTIAL):
            if (content := self._store.read(name)) is not None:
                return decoded(content, f"{self.name}/{name}"), name == MANIFEST
        return None, False

    def intact(self, shard: Shard) -> bool:
        """Return whether a shard's file is as it was written."""
        return self._store.holds(shard.file, shard.size_bytes, shard.sha256)

    def save(self, manifest: ShardManifest) -> None:
        """Note what is done so far; raises ``InputError`` if another job has begun here since.

        Behind a URL no lock keeps another machine's away.
        """
        found, _finished = self._manifest()
        if found is not None and differences_of(found.job, manifest.job):
            raise InputError(f"another job writes to '{self.name}' now. Give another folder.")
        self._store.put(PARTIAL, encoded(manifest))

    def finish(self) -> None:
        """Give the manifest its name: from now on the folder is complete."""
        self._store.rename(PARTIAL, MANIFEST)

    def forget(self) -> None:
        """Remove the manifest of a job under way: it wrote nothing, or was finished."""
        self._store.remove(PARTIAL)

    def clear(self, shards: Sequence[Shard]) -> None:
        """Remove what an interrupted run left unfinished beside these shards."""
        kept = {shard.file for shard in shards}
        for name in self._store.names():
            if _TEMPORARY.match(name) or (_SHARD.match(name) and name not in kept):
                self._store.remove(name)

    def write(self, number: int, keys: Sequence[str | int], vectors: Vectors, job: Job) -> Written:
        """Write a shard of ids and vectors (N, H)."""
        import pyarrow as arrow
        from pyarrow import parquet

        values = arrow.array(np.ascontiguousarray(vectors, job.dtype).reshape(-1))
        ids = arrow.array(keys, arrow.int64() if job.id_column is None else arrow.string())
        embedding = arrow.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        table = arrow.table({"id": ids, "embedding": embedding})
        self.touched = True
        return self._store.write(
            shard_name(number),
            # Vectors neither compress nor repeat; statistics of single values mean nothing.
            lambda file: parquet.write_table(
                table, file, compression="none", use_dictionary=False, write_statistics=["id"]
            ),
        )


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
