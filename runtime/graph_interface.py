"""What the ONNX graphs of a bundle take and give, whichever backend executes them."""

from collections.abc import Mapping, Set
from pathlib import Path

from .errors import BundleError

INPUTS = frozenset({"input_ids", "attention_mask"})
"""What a portable graph takes, (B, S) each."""
ENGINE_INPUT_NAMES = frozenset({"input_ids", "lengths"})
"""What a graph for engines takes: (B, S) and (B,), int32, so that one copy carries both."""
OUTPUT = "sentence_embedding"
FUSED_GRAPH = "onnx/model_fp16_fused.onnx"
"""The fp16 graph of ONNX Runtime's own operators, for its CUDA provider alone."""


def require_interface(
    graph: Path,
    inputs: Set[str],
    outputs: Mapping[str, object],
    dimension: int,
    expected: Set[str] = INPUTS,
) -> None:
    """Raise ``BundleError`` unless these are a bundle's encoder's inputs and outputs.

    ``outputs``: the last dimension of each, by name. ``expected``: its inputs.
    """
    if inputs != expected or outputs.get(OUTPUT) != dimension:
        raise BundleError(
            f"'{graph}' takes {sorted(inputs)} and gives {dict(outputs)}; expected "
            f"{sorted(expected)} and {OUTPUT} of {dimension} dimensions. Export the bundle again."
        )
