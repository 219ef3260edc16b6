"""What is done to vectors after the encoder: shorten, normalize, compare."""

import math

import numpy as np
import numpy.typing as npt

from .errors import InputError, InputTypeError
from .manifest import Similarity

Vectors = npt.NDArray[np.float32]


def shorten(vectors: Vectors, dimension: int) -> Vectors:
    """Return the first ``dimension`` values of each row."""
    check_dimension(dimension, vectors.shape[1])
    return np.ascontiguousarray(vectors[:, :dimension])


def check_dimension(dimension: int, present: int) -> None:
    """Raise ``InputError`` unless vectors of ``present`` values can be cut to ``dimension``."""
    if isinstance(dimension, bool) or not isinstance(dimension, int):
        raise InputTypeError(f"truncate_dim is {dimension!r}; pass a whole number.")
    if not 1 <= dimension <= present:
        raise InputError(f"truncate_dim is {dimension}; the vectors have {present} dimensions.")


def normalize(vectors: Vectors) -> Vectors:
    """Return the rows of (N, H) scaled to length 1; a row of zeros stays as it is.

    One that holds NaN or infinity does not become one that holds neither.
    """
    norms = np.sqrt(np.einsum("nh,nh->n", vectors, vectors))[:, None]
    with np.errstate(invalid="ignore"):
        scaled: Vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms != 0)
    return scaled


def are_finite(vectors: Vectors) -> bool:
    """Say whether no value is NaN or infinite: their sum tells, in one pass."""
    with np.errstate(invalid="ignore"):
        return math.isfinite(np.add.reduce(vectors, axis=None))


def similarity(queries: Vectors, documents: Vectors, kind: Similarity) -> Vectors:
    """Return the (Q, D) scores of (Q, H) against (D, H): inner products, or cosines.

    One vector (H,) counts as one row. Raises ``InputError`` if the widths differ.
    """
    queries, documents = np.atleast_2d(queries), np.atleast_2d(documents)
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise InputError(
            f"vectors of the shapes {queries.shape} and {documents.shape} cannot be compared; "
            "pass (Q, H) and (D, H) of the same encoder."
        )
    if kind == "cosine":
        queries, documents = normalize(queries), normalize(documents)
    scores: Vectors = queries @ documents.T
    return scores


def similarity_pairwise(first: Vectors, second: Vectors, kind: Similarity) -> Vectors:
    """Return the scores (N,) of each row of (N, H) with the same row of the other (N, H).

    One vector (H,) counts as one row. Raises ``InputError`` if the shapes differ.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(
            f"vectors of the shapes {first.shape} and {second.shape} cannot be compared in pairs; "
            "pass (N, H) twice."
        )
    if kind == "cosine":
        first, second = normalize(first), normalize(second)
    scores: Vectors = np.einsum("nh,nh->n", first, second)
    return scores


def grow(vectors: Vectors, rows: int) -> None:
    """Make room for at least ``rows`` rows, in place, at least doubling what was there."""
    if rows > len(vectors):
        vectors.resize((max(rows, 2 * len(vectors)), vectors.shape[1]), refcheck=False)
