"""Hard negatives: passages that the encoder takes for answers and nobody judged to be one.

The second stage of training a dense retriever. Pure of files: queries, judgements and an index in,
ids out.
"""

import random
from typing import NamedTuple

import numpy as np

from .errors import InputError
from .qrels import Qrels, refuse_unknown
from .vector_index import VectorIndex, top_k
from .vectors import Vectors

COPY = 1e-8
"""Share of a vector's squared length that rounding may take: the same text in another batch."""


class MiningOptions(NamedTuple):
    """Which passages become negatives.

    ``negatives``: how many a query, fewer where there are no more. ``ranks``: first and last rank,
    from 1, among the passages that are not judged relevant. ``margin``: a negative scores at most
    the query's best positive minus this; None asks for none. ``seed``: of the choice within the
    ranks, which does not depend on the other queries.
    """

    negatives: int = 8
    ranks: tuple[int, int] = (1, 100)
    margin: float | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise ``InputError`` for ranks that are none."""
        first, last = self.ranks
        if not 1 <= first <= last:
            raise InputError(
                f"ranks are {first} to {last}; give two numbers from 1, the smaller first."
            )


class Mined(NamedTuple):
    """A query with its passages; negatives with their scores, best first."""

    query: str
    positives: list[str]
    negatives: list[tuple[str, float]]


def mine(
    index: VectorIndex,
    query_ids: list[str],
    queries: Vectors,
    qrels: Qrels,
    options: MiningOptions = MiningOptions(),  # noqa: B008  # immutable
) -> list[Mined]:
    """Return positives and mined negatives of each query that has a relevant passage.

    A passage with the very vector of a positive is a copy of it, and no negative.

    ``queries``: (Q, H), of ``query_ids``. Raises ``InputError`` for judgements of passages or
    queries that are not there.
    """
    options.check()
    first, last = options.ranks
    places = {str(key): place for place, key in enumerate(index.ids)}
    refuse_unknown(qrels, query_ids, "queries", "the queries")
    refuse_unknown((p for ids in qrels.values() for p in ids), places, "passages", "the index")
    rows = [row for row, query in enumerate(query_ids) if qrels.get(query)]
    vectors = index.prepared(queries)[rows] if rows else queries[:0]
    most = max((len(qrels[query_ids[row]]) for row in rows), default=0)
    scores, found = top_k(vectors, index.vectors, last + most)
    mined = []
    for row, vector, own_scores, own_places in zip(rows, vectors, scores, found, strict=True):
        query = query_ids[row]
        positives = qrels[query]
        known = [places[key] for key in positives]
        copies = _copies(index.vectors[own_places], index.vectors[known])
        others = [
            (str(index.ids[place]), float(score))
            for place, score, copy in zip(own_places.tolist(), own_scores, copies, strict=True)
            if place not in known and not copy
        ][first - 1 : last]
        if options.margin is not None:
            ceiling = np.max(index.vectors[known] @ vector) - np.float32(options.margin)
            others = [other for other in others if np.float32(other[1]) <= ceiling]
        mined.append(Mined(query, positives, _chosen(others, query, options)))
    return mined


def _copies(vectors: Vectors, positives: Vectors) -> list[bool]:
    """Say of each vector (N, H) whether it is one of the positives' (P, H), but for rounding."""
    apart = np.square(vectors[:, None] - positives).sum(axis=2)
    copies: list[bool] = (apart <= COPY * np.square(positives).sum(axis=1)).any(axis=1).tolist()
    return copies


def _chosen(
    others: list[tuple[str, float]], query: str, options: MiningOptions
) -> list[tuple[str, float]]:
    """Return a seeded choice of negatives, best first."""
    if len(others) <= options.negatives:
        return others
    chance = random.Random(f"{options.seed} {query}")
    places = sorted(chance.sample(range(len(others)), options.negatives))
    return [others[place] for place in places]
