"""Search in a folder of vectors: every passage is compared with every query, so the best are found.

Knows vectors and ids; texts and their encoder are the caller's.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BundleError, InputError, missing_extra
from .shard_manifest import MANIFEST, Job, decoded
from .stores import open_store
from .vectors import Vectors, are_finite, normalize

QUERY_BLOCK, PASSAGE_BLOCK = 256, 8192
"""Scores that are in memory together: 8 MB."""


class Hit(NamedTuple):
    """A passage that was found."""

    id: str | int
    score: float


class VectorIndex:
    """The vectors of a folder that `corom embed` made, in memory.

    ``vectors`` is (N, H) float32, of length 1 where the similarity is cosine; ``ids`` has N ids.
    ``job`` says how they were made. Raises ``InputError`` for a folder that is none or is not
    finished, ``BundleError`` for one that was altered.
    """

    def __init__(self, folder: str | Path) -> None:
        store = open_store(folder)
        name = store.name
        content = store.read(MANIFEST)
        if content is None:
            raise InputError(
                f"'{name}' has no {MANIFEST}: it is not a folder of vectors, or its job was not "
                "finished. Make it, or go on with it, with: corom embed BUNDLE -i INPUT -o FOLDER"
            )
        manifest = decoded(content, f"{name}/{MANIFEST}")
        self.job: Job = manifest.job
        rows = sum(shard.rows for shard in manifest.shards)
        if rows != manifest.rows:
            raise BundleError(f"'{name}/{MANIFEST}' says {manifest.rows} rows, its shards {rows}.")
        self.vectors: Vectors = np.empty((manifest.rows, self.job.dimension), np.float32)
        self.ids: list[str | int] = []
        for shard in manifest.shards:
            file, content = f"{name}/{shard.file}", store.read(shard.file)
            if content is None or hashlib.sha256(content).hexdigest() != shard.sha256:
                raise BundleError(
                    f"'{file}' is missing or was altered. Remove it, then run its corom embed "
                    "again."
                )
            ids, vectors = _read(content, self.job.dimension)
            if len(ids) != shard.rows:
                raise BundleError(f"'{file}' has {len(ids)} rows, its manifest says {shard.rows}.")
            self.vectors[len(self.ids) : len(self.ids) + len(ids)] = vectors
            self.ids += ids
        if self.job.similarity == "cosine":
            self.vectors = normalize(self.vectors)

    def prepared(self, queries: Vectors) -> Vectors:
        """Return queries (Q, H) as they are compared; one (H,) becomes one row."""
        rows = np.atleast_2d(np.asarray(queries, np.float32))
        if rows.ndim != 2 or rows.shape[1] != self.job.dimension:
            raise InputError(
                f"the queries have the shape {rows.shape}; expected (Q, {self.job.dimension})."
            )
        if not are_finite(rows):
            row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise InputError(f"query {row} holds NaN or infinity, which is near to nothing.")
        return normalize(rows) if self.job.similarity == "cosine" else rows


def search(
    index: VectorIndex | str | Path, queries: Vectors, k: int = 10, *, method: str = "exact"
) -> list[list[Hit]]:
    """Return the k best passages for each query vector (Q, H), best first.

    Scores are inner products or cosines, as the bundle's manifest says; equal ones come in the
    order of the corpus. ``method``: "exact" by NumPy; "faiss" by faiss's flat index, exact too; or
    faiss's name of an approximate one, such as "faiss:HNSW32", built anew by each call.
    """
    if k < 1:
        raise InputError(f"k is {k}; it must be at least 1.")
    index = index if isinstance(index, VectorIndex) else VectorIndex(index)
    rows = index.prepared(queries)
    if method == "exact":
        scores, places = top_k(rows, index.vectors, k)
    else:
        scores, places = _by_faiss(rows, index.vectors, k, method)
    return [
        [
            Hit(index.ids[place], float(score))
            for score, place in zip(*row, strict=True)
            if place >= 0
        ]
        for row in zip(scores, places, strict=True)
    ]


def top_k(queries: Vectors, passages: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Return scores and places (Q, min(k, N)) of the passages (N, H) with the largest products."""
    k = min(k, len(passages))
    scores = np.empty((len(queries), k), np.float32)
    places = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries) if k else 0, QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        scores[block], places[block] = _best(queries[block], passages, k)
    return scores, places


def _best(queries: Vectors, passages: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Return the k best of each query, best first; k is at most the number of passages."""
    first = max(k, min(len(passages), PASSAGE_BLOCK))
    new = queries @ passages[:first].T
    worst = np.partition(new, first - k, axis=1)[:, first - k, None]
    rows, places = _where(new >= worst)  # with all that are as good as the worst that is kept
    scores, kept = _first_k(rows, new[rows, places], places, k)
    for start in range(first, len(passages), PASSAGE_BLOCK):
        new = queries @ passages[start : start + PASSAGE_BLOCK].T
        # Few beat the worst that is kept, and comparing is much faster than partitioning.
        rows, places = _where(new > scores[:, -1:])
        scores, kept = _first_k(
            np.concatenate([np.repeat(np.arange(len(queries)), k), rows]),
            np.concatenate([scores.reshape(-1), new[rows, places]]),
            np.concatenate([kept.reshape(-1), places + start]),
            k,
        )
    return scores, kept


def _where(chosen: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return rows and columns of what is true, as np.nonzero does, whose way over 2-D is slow."""
    rows, places = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
    return rows, places


def _first_k(
    rows: npt.NDArray[np.intp], scores: Vectors, places: npt.NDArray[np.int64], k: int
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Return the k best of each row (Q, k), of equal ones the first; a row has at least k."""
    order = np.lexsort((places, -scores, rows))
    starts = np.searchsorted(rows[order], np.arange(rows.max() + 1))
    best = order[starts[:, None] + np.arange(k)]
    return scores[best], places[best]


def _by_faiss(
    queries: Vectors, passages: Vectors, k: int, method: str
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    name, _, factory = method.partition(":")
    if name != "faiss":
        raise InputError(f"there is no method '{method}'. Methods: exact, faiss, faiss:FACTORY.")
    try:
        import faiss
    except ImportError:
        raise missing_extra("faiss-cpu", "faiss", "This method") from None
    try:
        made: Any = faiss.index_factory(
            passages.shape[1], factory or "Flat", faiss.METRIC_INNER_PRODUCT
        )
        if not made.is_trained:
            made.train(passages)
        made.add(passages)
    except RuntimeError as error:
        raise InputError(f"faiss cannot make an index '{factory}': {error}.") from None
    scores, places = made.search(queries, min(k, len(passages)))
    return scores, places


def _read(content: bytes, dimension: int) -> tuple[Sequence[str | int], Vectors]:
    """Return the ids and vectors of a shard."""
    try:
        from pyarrow import BufferReader, parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet", "Reading vectors") from None
    # Read by this thread alone: read_table leaves a thread that holds ``content`` a moment longer,
    # and a process that ends in that moment is aborted (apache/arrow issue 34314).
    table = parquet.ParquetFile(BufferReader(content)).read(use_threads=False)
    column = table["embedding"].combine_chunks()
    flat = column.values.to_numpy(zero_copy_only=False)
    return table["id"].to_pylist(), flat.reshape(len(column), dimension)
