"""The tensors of a Triton repository's models, and how config.pbtxt describes one."""

from typing import NamedTuple

from .text_proto import Word

TEXT, EMBEDDING, TRUNCATED = "TEXT", "SENTENCE_EMBEDDING", "TRUNCATED"
"""Tensors of the ensemble: text in; vector, and whether the text was cut, out."""

Message = dict[str, object]


class Tensor(NamedTuple):
    """One tensor of a model, without its first axis, that of the batch."""

    name: str
    type: str
    dims: tuple[int, ...]


IDS, MASK, LENGTHS = "input_ids", "attention_mask", "lengths"
TAKES: dict[str, tuple[Tensor, ...]] = {
    "onnxruntime": (Tensor(IDS, "INT64", (-1,)), Tensor(MASK, "INT64", (-1,))),
    "tensorrt": (Tensor(IDS, "INT32", (-1,)), Tensor(LENGTHS, "INT32", (1,))),
    "python": (Tensor(IDS, "INT32", (-1,)), Tensor(LENGTHS, "INT32", (1,))),
}
"""What each encoder takes: what a bundle's graph, its engine and `Encoder.encode_tokens` do."""


def described(tensor: Tensor) -> Message:
    """Return a tensor as config.pbtxt describes it."""
    return {
        "name": tensor.name,
        "data_type": Word(f"TYPE_{tensor.type}"),
        "dims": [*tensor.dims],
    }
