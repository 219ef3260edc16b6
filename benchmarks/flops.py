"""How much arithmetic a text needs: the matrix products of the encoder, for its own tokens.

Padding, embeddings, LayerNorm, softmax and GELU count as nothing, so a share of the measured rate
of matrix products is what all of them, and the Python around, leave of it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class EncoderShape(NamedTuple):
    """What of an encoder the arithmetic depends on.

    ``cls_only``: the last layer computes queries, attention output and feed-forward for [CLS]
    alone, keys and values for all tokens; or, ``flat``, no keys and values at all. ``looked_up``:
    the first layer's queries, keys and values are sums of what was multiplied before.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    cls_only: bool
    flat: bool = False
    looked_up: bool = False


def text_flops(shape: EncoderShape, tokens: int) -> int:
    """Return the floating-point operations of one text; a multiplication and addition are two."""
    of_first_row = shape.cls_only and shape.flat
    earlier = (shape.layers - 1) * _layer_flops(shape, tokens, tokens)
    if shape.looked_up and not (of_first_row and shape.layers == 1):
        queries = 1 if shape.cls_only and shape.layers == 1 else tokens
        earlier -= 2 * (queries + 2 * tokens) * shape.hidden * shape.hidden
    if of_first_row:
        return earlier + _first_row_flops(shape, tokens)
    return earlier + _layer_flops(shape, tokens, 1 if shape.cls_only else tokens)


def texts_flops(shape: EncoderShape, lengths: Sequence[int]) -> int:
    """Return the operations of texts with these lengths in tokens, without padding."""
    return sum(text_flops(shape, length) for length in lengths)


def _layer_flops(shape: EncoderShape, tokens: int, queries: int) -> int:
    """Return the operations of a layer whose output is needed for so many of the tokens."""
    hidden = shape.hidden
    keys_and_values = 2 * tokens * hidden * hidden
    query_and_output = 2 * queries * hidden * hidden
    attention = 2 * queries * tokens * hidden  # scores, then their sum over the values
    feed_forward = 2 * queries * hidden * shape.intermediate
    return 2 * (keys_and_values + query_and_output + attention + feed_forward)


def _first_row_flops(shape: EncoderShape, tokens: int) -> int:
    """Return the operations of a last layer whose weights of keys and values meet one row."""
    hidden = shape.hidden
    projections = 4 * hidden * hidden
    attention = 2 * shape.heads * tokens * hidden
    feed_forward = 2 * hidden * shape.intermediate
    return 2 * (projections + attention + feed_forward)
