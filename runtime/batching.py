"""Lengths to batches. Pure functions: which rows go together, and the padded arrays they become.

Rows of similar length share a batch, so that little of it is padding. Knows no text and no graph.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .tokens import Tokens

Rows = npt.NDArray[np.intp]


class Batch(NamedTuple):
    """Padded input of one execution, right-padded to S tokens."""

    input_ids: npt.NDArray[np.int64]
    """(B, S) token ids."""
    lengths: npt.NDArray[np.int64]
    """(B,) number of ids that are not padding."""


def plan_batches(
    lengths: npt.NDArray[np.int64], max_batch_tokens: int, max_batch_size: int | None = None
) -> Iterator[Rows]:
    """Yield the rows of each batch, longest texts first; every row comes exactly once.

    A batch of B rows padded to the longest of them, S tokens, has B·S ≤ ``max_batch_tokens``; a
    text longer than that alone gets a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    for part in cuts(lengths[order].tolist(), max_batch_tokens, max_batch_size):
        yield order[part]


def cuts(
    longest_first: Sequence[int], max_batch_tokens: int, max_batch_size: int | None = None
) -> Iterator[slice]:
    """Yield where in these lengths each batch lies, as ``plan_batches`` makes them."""
    start = 0
    while start < len(longest_first):
        size = max(1, max_batch_tokens // max(1, longest_first[start]))
        if max_batch_size is not None:
            size = min(size, max_batch_size)
        yield slice(start, start + size)
        start += size


def pad(tokens: Tokens, rows: Rows) -> Batch:
    """Return the batch of these rows, padded to the longest of them.

    Padding is id 0, in every vocabulary: it is masked, so its value never reaches a vector.
    """
    lengths = tokens.lengths[rows]
    width = int(lengths.max())
    input_ids = np.zeros((len(rows), width), np.int64)
    for target, row in enumerate(rows.tolist()):
        ids = tokens.ids[row]
        input_ids[target, : len(ids)] = ids
    return Batch(input_ids, lengths)


_ONES = np.ones((1, 512), np.int64)
_ONES.setflags(write=False)
"""The mask of any one text, cut to its length: most calls are for one."""


def attention_mask(lengths: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Return the mask (B, S) of rows with these lengths (B,): 1 for tokens, 0 for padding."""
    if len(lengths) == 1 and lengths[0] == width <= _ONES.shape[1]:
        return _ONES[:, :width]
    mask: npt.NDArray[np.int64] = (np.arange(width) < lengths[:, None]).astype(np.int64)
    return mask
