"""What every ONNX graph of a bundle takes and gives, whichever backend executes it."""

from collections.abc import Mapping, Set
from pathlib import Path

from .errors import BundleError

INPUTS = frozenset({"input_ids", "attention_mask"})
OUTPUT = "sentence_embedding"


def require_interface(
    graph: Path, inputs: Set[str], outputs: Mapping[str, object], dimension: int
) -> None:
    """Raise ``BundleError`` unless these are a bundle's encoder's inputs and outputs.

    ``outputs``: the last dimension of each, by name.
    """
    if inputs != INPUTS or outputs.get(OUTPUT) != dimension:
        raise BundleError(
            f"'{graph}' takes {sorted(inputs)} and gives {dict(outputs)}; expected "
            f"{sorted(INPUTS)} and {OUTPUT} of {dimension} dimensions. Export the bundle again."
        )
