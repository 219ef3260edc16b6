"""Few shapes for a backend that makes code for each shape it has not seen. Pure functions."""

from collections.abc import Iterator

import numpy as np

from .batching import Batch

STEPS = 8
"""Sizes between two powers of two: padding adds at most an eighth, in the middle 4%."""


def snap(size: int) -> int:
    """Return the smallest size of those that are executed that is at least ``size``.

    1 to 16 are, then 18, 20, … 32, 36, … 64, 72, and so on: at most an eighth larger.
    """
    step = 1 << max(0, (size - 1).bit_length() - STEPS.bit_length())
    return -(-size // step) * step


def snapped_sizes(longest: int) -> Iterator[int]:
    """Yield the sizes up to that which holds ``longest``, ascending."""
    size = 0
    while size < longest:
        size = snap(size + 1)
        yield size


def snapped(batch: Batch, max_width: int) -> Batch:
    """Return the batch with rows and tokens added up to the nearest size that is executed.

    ``max_width``: tokens that the model has positions for. Added tokens are masked; added rows are
    one token each and come last, so that the first B vectors are those of the batch.
    """
    rows, width = batch.input_ids.shape
    shape = (snap(rows), min(snap(width), max_width))
    if shape == (rows, width):
        return batch
    input_ids = np.zeros(shape, np.int64)
    input_ids[:rows, :width] = batch.input_ids
    lengths = np.ones(shape[0], np.int64)
    lengths[:rows] = batch.lengths
    return Batch(input_ids, lengths)
