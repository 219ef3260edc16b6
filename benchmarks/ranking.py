"""How well a ranking answers queries: the usual measures by a library, differences with intervals.

Knows rankings and judgements; no encoder, no file.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corom.runtime.qrels import Qrels

Scores = Mapping[str, Mapping[str, float]]
"""Query id → passage id → score."""
MEASURES = ("RR@10", "R@10", "R@100", "R@1000", "nDCG@10")
DEPTH = 1000
RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean difference, and where 95 of 100 resamples of the queries put it."""

    difference: float
    low: float
    high: float


def query_measures(scores: Scores, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Return measure → query id → value, of every query with a relevant passage.

    A query without a ranking counts as 0. Passages of equal score stand in the order that
    trec_eval gives them.
    """
    import ir_measures

    judged = {query: dict.fromkeys(passages, 1) for query, passages in qrels.items() if passages}
    found: dict[str, dict[str, float]] = {name: dict.fromkeys(judged, 0.0) for name in MEASURES}
    measures = [ir_measures.parse_measure(name) for name in MEASURES]
    for metric in ir_measures.iter_calc(measures, judged, scores):
        found[str(metric.measure)][metric.query_id] = float(metric.value)
    return found


def means(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over the queries of each measure."""
    return {name: float(np.mean(list(values.values()))) for name, values in found.items()}


def paired_interval(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean of ours - theirs, query by query, with its 95 % bootstrap interval."""
    differences: npt.NDArray[np.float64] = np.subtract(ours, theirs, dtype=np.float64)
    random = np.random.default_rng(seed)
    rows = random.integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(differences[rows].mean(axis=1), [2.5, 97.5]).tolist()
    return Interval(float(differences.mean()), low, high)
