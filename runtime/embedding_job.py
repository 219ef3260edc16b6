"""A corpus to a folder of vectors: the same folder whether or not the job was ever interrupted.

Shard k holds the vectors of the k-th so many rows. A run that finds shards of an earlier one checks
that they were made by the same job from the same rows, and goes on behind them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from .corpus import Corpus, Passage
from .encoder import Encoder
from .errors import InputError
from .manifest import MANIFEST_NAME, sha256_of
from .options import EncodeOptions
from .shards import Job, Shard, ShardFolder, ShardManifest, manifest_of, texts_sha256
from .whole_file import whole_file

SHARD_ROWS = 16_384
SHARD_CHARACTERS = 32_000_000
"""A shard ends here too, so that its texts and vectors fit into memory however long they are."""

Say = Callable[[str], None]
Advance = Callable[[int], None]


def job_of(encoder: Encoder, bundle: Path, corpus: Corpus, **chosen: object) -> Job:
    """Return what decides the content of the folder; ``chosen``: the fields that a user chooses."""
    described = {
        "bundle": encoder.manifest.name,
        "bundle_sha256": sha256_of(bundle / MANIFEST_NAME),
        "bundle_path": str(bundle.resolve()),
        "precision": encoder.precision,
        "backend": encoder.backend_name,
        "device": encoder.device,
        "similarity": encoder.manifest.similarity,
        "max_length": encoder.max_length,
        "text_column": corpus.columns.text,
        "id_column": corpus.columns.id,
        "input_format": corpus.kind,
        "inputs": corpus.files(),
    }
    return msgspec.convert(described | chosen, Job)


def embed_corpus(
    encoder: Encoder,
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
        if complete:
            return manifest_of(job, done)
        shards: list[Shard] = []
        with _bad_rows_file(bad_rows) as note:
            for number, passages in enumerate(_portions(corpus.passages(), job.shard_rows)):
                good = [passage for passage in passages if passage.text is not None]
                for passage in passages:
                    if passage.text is None:
                        note(passage)
                if number < len(done):
                    shards.append(_same(done[number], passages, good))
                    advance(len(passages))
                else:
                    shards.append(_embedded(encoder, folder, job, number, passages, good, advance))
                    folder.save(manifest_of(job, shards))
            if not shards:
                raise InputError(f"there is not one row in: {', '.join(corpus.names)}.")
            if len(shards) < len(done):
                raise _changed(f"it had more than {sum(s.input_rows for s in shards):,} rows")
        manifest = manifest_of(job, shards)
        folder.save(manifest)
        folder.finish()
    return manifest


def refuse_bad_rows(first: Passage, count: int = 0, rows: int = 0) -> InputError:
    """Return the error for rows that cannot be used, when nobody said what to do with them.

    ``count`` of ``rows``: 0 where the rest was not read.
    """
    of = f" {count:,} of {rows:,} rows cannot be used." if rows else ""
    return InputError(
        f"{first.place}: {first.reason}.{of} Mend the input, or pass --bad-rows FILE to write such "
        "rows there and go on without them."
    )


def _resumed(folder: ShardFolder, job: Job, say: Say) -> tuple[list[Shard], bool]:
    """Return the shards that an earlier run of this job finished, and whether it finished all."""
    found, finished = folder.found()
    if found is None:
        folder.clear([])
        return [], False
    if differences := _differences(found.job, job):
        raise InputError(
            f"'{folder.path}' was made by another job: {'; '.join(differences)}. Vectors of two "
            "jobs do not mix: give another folder, or remove this one."
        )
    done: list[Shard] = []
    for shard in found.shards:
        if not folder.intact(shard):
            say(f"{shard.file} is not as it was written; it is made again.")
            break
        done.append(shard)
    complete = finished and len(done) == len(found.shards)
    folder.clear(done)
    rows = sum(shard.rows for shard in done)
    say(f"{'Complete' if complete else 'Going on'}: {rows:,} vectors are there already.")
    return done, complete


def _differences(found: Job, asked: Job) -> list[str]:
    """Return what differs between two jobs; input files and the bundle may have moved."""

    def contents(job: Job) -> list[tuple[str | None, int | None]]:
        return [(file.sha256, file.size_bytes) for file in job.inputs]

    names = [name for name in Job.__struct_fields__ if name not in {"inputs", "bundle_path"}]
    pairs = ((name, getattr(found, name), getattr(asked, name)) for name in names)
    lines = [f"{name}: found {old}, asked for {new}" for name, old, new in pairs if old != new]
    return lines + (["the input has changed"] if contents(found) != contents(asked) else [])


def _portions(passages: Iterable[Passage], rows: int) -> Iterator[list[Passage]]:
    """Yield the rows of each shard."""
    portion: list[Passage] = []
    characters = 0
    for passage in passages:
        portion.append(passage)
        characters += len(passage.text or "")
        if len(portion) == rows or characters >= SHARD_CHARACTERS:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


def _same(shard: Shard, passages: list[Passage], good: list[Passage]) -> Shard:
    """Return the shard if these are the rows it was made from."""
    if shard.input_rows != len(passages) or shard.input_sha256 != _sha256(good):
        raise _changed(
            f"{shard.file} was made from other rows than those up to {passages[-1].place}"
        )
    return shard


def _changed(why: str) -> InputError:
    return InputError(
        f"the input has changed since this folder was begun: {why}. Give another folder."
    )


def _sha256(good: list[Passage]) -> str:
    return texts_sha256([p.key for p in good], [p.text or "" for p in good])


def _embedded(
    encoder: Encoder,
    folder: ShardFolder,
    job: Job,
    number: int,
    passages: list[Passage],
    good: list[Passage],
    advance: Advance,
) -> Shard:
    """Write one shard and return its entry."""
    options: EncodeOptions = {
        "normalize_embeddings": job.normalize,
        "prompt_name": job.prompt_name,
        "truncate": job.truncate,
        "truncate_dim": job.dimension,
    }
    cut = encoder.truncated_texts
    try:
        vectors = encoder.encode(_told([p.text or "" for p in good], advance), **options)
    except InputError as error:
        raise InputError(f"{error} (Text 0 is {good[0].place}.)") from None
    advance(len(passages) - len(good))
    path = folder.write(number, [p.key for p in good], vectors, job)
    return Shard(
        file=path.name,
        rows=len(good),
        bad_rows=len(passages) - len(good),
        truncated_texts=encoder.truncated_texts - cut,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        input_sha256=_sha256(good),
    )


def _told(texts: list[str], advance: Advance) -> Iterator[str]:
    """Yield the texts, and tell of them as they are taken."""
    for start in range(0, len(texts), 256):
        part = texts[start : start + 256]
        yield from part
        advance(len(part))


@contextmanager
def _bad_rows_file(path: Path | None) -> Iterator[Callable[[Passage], None]]:
    """Yield what notes a row that cannot be used; the file appears when the block ends well."""

    def refuse(passage: Passage) -> None:
        raise refuse_bad_rows(passage)

    if path is None:
        yield refuse
        return
    with whole_file(path) as file:
        yield lambda passage: _note(file, passage)


def _note(file: IO[bytes], passage: Passage) -> None:
    record = {"file": passage.place.file, "row": passage.place.number, "reason": passage.reason}
    file.write(msgspec.json.encode(record) + b"\n")
