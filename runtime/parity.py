"""How far vectors are from the reference. Pure arithmetic on arrays; knows no model."""

import numpy as np
import numpy.typing as npt

from .manifest import Parity
from .vectors import Vectors, normalize

NEAREST = 10


def compare(
    texts: list[str], reference: Vectors, alone: Vectors, in_batches: list[Vectors]
) -> Parity:
    """Return the parity of a variant's un-normalized vectors, (N, H) each, with the reference.

    ``alone``: each text executed by itself; ``in_batches``: the same texts in several batch shapes.
    """
    candidates = [alone, *in_batches]
    with np.errstate(all="ignore"):  # NaN and overflow are what is being looked for
        cosines = np.stack([row_cosines(reference, vectors) for vectors in candidates])
        errors = np.stack([np.abs(vectors - reference).max(axis=1) for vectors in candidates])
        drifts = [np.abs(vectors - alone).max(initial=0.0) for vectors in in_batches]
    worst = int(np.argmin(np.nan_to_num(cosines.min(axis=0), nan=-2.0)))
    return Parity(
        texts=len(texts),
        cosine_min=_bad_if_nan(cosines.min(), -1.0),
        cosine_mean=_bad_if_nan(cosines.mean(), -1.0),
        max_abs_error=_bad_if_nan(errors.max(), _HUGE),
        non_finite=int(sum((~np.isfinite(vectors)).sum() for vectors in candidates)),
        rank_agreement=rank_agreement(reference, np.nan_to_num(in_batches[0])),
        batch_invariance=_bad_if_nan(np.max(drifts), _HUGE),
        worst_text=texts[worst],
    )


def row_cosines(a: Vectors, b: Vectors) -> npt.NDArray[np.float64]:
    """Return the cosine (N,) of each row of ``a`` with the same row of ``b``, in double."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines: npt.NDArray[np.float64] = np.einsum("nh,nh->n", x, y) / scale
    return cosines


def rank_agreement(reference: Vectors, candidate: Vectors) -> float:
    """Return the mean share of each row's ten nearest other rows that both agree on.

    Rows that the reference cannot tell apart have no order among themselves: of each group of
    equal rows only the first takes part.
    """
    _, first = np.unique(reference, axis=0, return_index=True)
    neighbours = [_nearest(vectors[np.sort(first)]) for vectors in (reference, candidate)]
    shares = [len(set(a) & set(b)) / len(a) for a, b in zip(*neighbours, strict=True) if a]
    return float(np.mean(shares)) if shares else 1.0


def _nearest(vectors: Vectors) -> list[list[int]]:
    scaled = normalize(vectors)
    scores = scaled @ scaled.T
    np.fill_diagonal(scores, -np.inf)
    order: list[list[int]] = np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST].tolist()
    return [[column for column in row if column != at] for at, row in enumerate(order)]


_HUGE = float(np.finfo(np.float32).max)
"""Stands for an error that is NaN or infinite, which JSON cannot say."""


def _bad_if_nan(value: float, bad: float) -> float:
    return float(value) if np.isfinite(value) else bad
