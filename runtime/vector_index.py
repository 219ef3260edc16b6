"""Search in a folder of vectors: every passage is compared with every query, so the best are found.

Knows vectors and ids; texts and their encoder are the caller's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BundleError, InputError, missing_extra
from .manifest import sha256_of
from .shards import MANIFEST, Job, load_shard_manifest
from .vectors import Vectors, normalize

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
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise InputError(
                f"'{folder}' has no {MANIFEST}: it is not a folder of vectors, or its job was not "
                "finished. Make it, or go on with it, with: corom embed BUNDLE -i INPUT -o FOLDER"
            )
        manifest = load_shard_manifest(folder / MANIFEST)
        self.job: Job = manifest.job
        self.vectors: Vectors = np.empty((manifest.rows, self.job.dimension), np.float32)
        self.ids: list[str | int] = []
        for shard in manifest.shards:
            path = folder / shard.file
            if not path.is_file() or sha256_of(path) != shard.sha256:
                raise BundleError(f"'{path}' is missing or was altered. Run its corom embed again.")
            ids, vectors = _read(path)
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
    scores = queries @ passages[:first].T
    places = np.argpartition(scores, first - k, axis=1)[:, first - k :]
    scores, places = _sorted(np.take_along_axis(scores, places, 1), places)
    for start in range(first, len(passages), PASSAGE_BLOCK):
        new = queries @ passages[start : start + PASSAGE_BLOCK].T
        # Few beat the worst that is kept, and comparing is much faster than partitioning.
        rows, columns = np.nonzero(new > scores[:, -1:])
        scores, places = _merged(scores, places, rows, new[rows, columns], columns + start)
    return scores, places


def _sorted(
    scores: Vectors, places: npt.NDArray[np.int64]
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    order = np.lexsort((places, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)


def _merged(
    scores: Vectors,
    places: npt.NDArray[np.int64],
    rows: npt.NDArray[np.intp],
    new_scores: Vectors,
    new_places: npt.NDArray[np.int64],
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Return the best k of (Q, k) sorted ones and of new ones, which name their row."""
    count, k = scores.shape
    all_rows = np.concatenate([np.repeat(np.arange(count), k), rows])
    all_scores = np.concatenate([scores.reshape(-1), new_scores])
    all_places = np.concatenate([places.reshape(-1), new_places])
    order = np.lexsort((all_places, -all_scores, all_rows))
    starts = np.searchsorted(all_rows[order], np.arange(count))
    kept = order[starts[:, None] + np.arange(k)]
    return all_scores[kept], all_places[kept]


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


def _read(path: Path) -> tuple[Sequence[str | int], Vectors]:
    """Return the ids and vectors of a shard."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet", "Reading vectors") from None
    table = parquet.read_table(path)
    column = table["embedding"].combine_chunks()
    flat = column.values.to_numpy(zero_copy_only=False)
    return table["id"].to_pylist(), flat.reshape(len(column), -1)
