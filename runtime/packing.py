"""A batch to the bytes an engine reads, and back. Pure functions on byte buffers; knows no GPU.

One block holds int32 lengths (rows,) and then int32 ids (rows, width), each aligned as TensorRT
asks, so that one copy carries both.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .batching import Batch
from .shapes import Bucket

ALIGNMENT = 256
"""Bytes; what TensorRT asks of every tensor's address."""

Bytes = npt.NDArray[np.uint8]


class Layout(NamedTuple):
    """Byte offsets of a bucket's tensors within its input block, and sizes in bytes."""

    ids_offset: int
    in_bytes: int
    out_bytes: int


def layout(bucket: Bucket, dimension: int) -> Layout:
    """Return where the tensors of a bucket lie; lengths begin the block."""
    ids_offset = aligned(4 * bucket.rows)
    in_bytes = ids_offset + 4 * bucket.rows * bucket.width
    return Layout(ids_offset, in_bytes, 4 * bucket.rows * dimension)


def aligned(size: int) -> int:
    """Return ``size`` bytes rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Views(NamedTuple):
    """Arrays over an input block: (rows,) lengths and (rows, width) ids, int32."""

    lengths: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]


def views(block: Bytes, bucket: Bucket, place: Layout) -> Views:
    """Return the arrays of a bucket over its block; nothing is copied."""
    lengths = block[: 4 * bucket.rows].view(np.int32)
    ids = block[place.ids_offset : place.in_bytes].view(np.int32)
    return Views(lengths, ids.reshape(bucket.rows, bucket.width))


def pack(batch: Batch, into: Views) -> None:
    """Write a batch of at most (rows, width) into the block; all other ids become 0.

    Rows without a text get length 1: a row of length 0 has nothing to attend to and is NaN.
    """
    rows, width = batch.input_ids.shape
    into.lengths[:rows] = batch.lengths
    into.lengths[rows:] = 1
    into.ids[:rows, :width] = batch.input_ids
    into.ids[:rows, width:] = 0
    into.ids[rows:] = 0
