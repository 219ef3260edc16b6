"""A corpus to a folder of vectors: the same folder whether or not the job was ever interrupted.

Shard k holds the vectors of the k-th so many rows. A run that finds shards of an earlier one checks
that they were made by the same job from the same rows, and goes on behind them.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from .corpus import Corpus, Passage, printable
from .embedder import Advance, Described, Embedded, Embedder, Say
from .errors import InputError
from .job_differences import another_job, differences_of
from .job_source import JobSource, input_changed
from .manifest import load_manifest, manifest_sha256
from .portions import Portion
from .shard_manifest import Job, Shard, ShardManifest, manifest_of
from .shards import ShardFolder
from .urls import is_url
from .whole_file import is_device, whole_file

SHARD_ROWS = 16_384


def job_of(described: Described, bundle: Path, corpus: Corpus, **chosen: object) -> Job:
    """Return what decides the content of the folder; ``chosen``: the fields that a user chooses."""
    manifest = load_manifest(bundle)
    found = {
        "bundle": manifest.name,
        "bundle_sha256": manifest_sha256(bundle),
        "bundle_path": str(bundle.resolve()),
        "similarity": manifest.similarity,
        "text_column": corpus.columns.text,
        "id_column": corpus.columns.id,
        "input_format": corpus.kind,
        "inputs": corpus.files(),
    }
    return msgspec.convert(found | described._asdict() | chosen, Job)


def embed_corpus(
    embedder: Embedder,
    corpus: Corpus,
    folder: ShardFolder,
    job: Job,
    *,
    bad_rows: Path | None = None,
    say: Say = lambda _line: None,
    advance: Advance = lambda _rows: None,
) -> ShardManifest:
    """Write the vectors of every row that can be used, and return the finished manifest.

    ``bad_rows``: where rows that cannot be used go, one JSON object a line; None stops at the
    first. ``say`` is told what an earlier run left, ``advance`` how many more rows are done.

    Raises ``InputError`` for a row that cannot be used, and for a folder that another job wrote to,
    that another process writes to now, or whose shards were made from other rows.
    """
    with folder.locked():
        done, complete = _resumed(folder, job, say)
        known_input = all(file.sha256 is not None for file in job.inputs)
        left_out = sum(shard.bad_rows for shard in done.values())
        if complete and known_input and not (left_out and bad_rows is not None):
            return _manifest(job, done)
        shards: dict[int, Shard] = {}
        with _begun(folder, job, done):
            with _bad_rows_file(bad_rows, folder) as note:
                source = JobSource(
                    corpus, job.shard_rows, frozenset(done), complete, bad_rows=bad_rows is not None
                )
                shard_of = partial(_shard_of, folder, job, done, note)
                # Mapped too: a shard's vectors are gone while the next ones are computed.
                for shard in map(shard_of, embedder.embed(source, advance)):
                    shards[shard.number] = shard
                    if shard.number not in done:
                        folder.save(_manifest(job, done | shards))
                manifest = _manifest(job, shards)
                if len(shards) < len(done | shards):
                    rows = manifest.rows + manifest.bad_rows
                    raise input_changed(f"it had more than {rows:,} rows")
                if known_input and corpus.files() != job.inputs:
                    raise input_changed("a file was altered while its rows were embedded")
            if not manifest.rows:
                folder.clear([])
                folder.forget()
                what = "can be used" if manifest.bad_rows else "is there"
                raise InputError(f"not one row {what} in: {', '.join(corpus.names)}.")
        if not complete:
            folder.save(manifest)
            folder.finish()
    return manifest


def _resumed(folder: ShardFolder, job: Job, say: Say) -> tuple[dict[int, Shard], bool]:
    """Return the shards that an earlier run of this job finished, and whether it finished all."""
    found, finished = folder.found()
    if found is None:
        folder.clear([])
        return {}, False
    if differences := differences_of(found.job, job):
        raise another_job(folder.name, differences)
    done: dict[int, Shard] = {}
    for shard in found.shards:
        if folder.intact(shard):
            done[shard.number] = shard
        else:
            say(f"{shard.file} is not as it was written; it is made again.")
    complete = finished and len(done) == len(found.shards)
    folder.clear(list(done.values()))
    if complete:
        folder.forget()  # where the last act is a copy, a kill may leave what was copied
    rows = sum(shard.rows for shard in done.values())
    say(f"{'Complete' if complete else 'Going on'}: {rows:,} vectors are there already.")
    return done, complete


@contextmanager
def _begun(folder: ShardFolder, job: Job, done: dict[int, Shard]) -> Iterator[None]:
    """Mark the folder as this job's; take that back if nothing was written."""
    fresh = not done
    if fresh:
        folder.save(_manifest(job, {}))
    try:
        yield
    except BaseException:
        # A shard that was being sent when this was interrupted may yet arrive.
        if fresh and not folder.touched:
            folder.forget()
        raise


def _manifest(job: Job, shards: dict[int, Shard]) -> ShardManifest:
    return manifest_of(job, [shards[number] for number in sorted(shards)])


def _shard_of(
    folder: ShardFolder,
    job: Job,
    done: dict[int, Shard],
    note: Callable[[Passage], None],
    embedded: Embedded,
) -> Shard:
    """Return the entry of a portion's shard, which is written if it was not there."""
    portion = embedded.portion
    for passage in portion.bad:
        note(passage)
    if embedded.vectors is None:
        return _same(done[portion.number], portion)
    written = folder.write(portion.number, portion.keys, embedded.vectors, job)
    return Shard(
        **written._asdict(),
        rows=len(portion.keys),
        bad_rows=len(portion.bad),
        truncated_texts=embedded.truncated_texts,
        input_sha256=portion.sha256,
    )


def _same(shard: Shard, portion: Portion) -> Shard:
    """Return the shard if these are the rows it was made from."""
    if shard.input_rows != portion.rows or shard.input_sha256 != portion.sha256:
        raise input_changed(f"{shard.file} was made from other rows than those up to {portion.end}")
    return shard


@contextmanager
def _bad_rows_file(path: Path | None, folder: ShardFolder) -> Iterator[Callable[[Passage], None]]:
    """Yield what notes a row that cannot be used; the file appears when the block ends well."""
    if path is None:
        yield lambda _passage: None
        return
    if not is_device(path):
        path = path.resolve()  # what a link leads to is written, not the link
    # One name for each folder, which is locked: going on takes what a killed run left.
    place = folder.name if is_url(folder.name) else os.path.realpath(folder.name)
    own = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    partial = path.with_name(f".{path.name}.{own}.tmp")
    with whole_file(path, partial=partial, sync=True) as file:
        yield lambda passage: _note(file, passage)


def _note(file: IO[bytes], passage: Passage) -> None:
    record = {
        "file": printable(passage.place.file),
        "row": passage.place.number,
        "reason": passage.reason,
    }
    file.write(msgspec.json.encode(record) + b"\n")
