"""ONNX Runtime: executes an ONNX graph on the CPU."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from .batching import Batch
from .errors import BundleError

_INPUTS = {"input_ids", "attention_mask"}
_OUTPUT = "sentence_embedding"
_ONES = np.ones((1, 512), np.int64)
_ONES.setflags(write=False)
"""The mask of any one text, cut to its length: most calls are for one."""


class OnnxRuntimeBackend:
    """One ONNX Runtime session on the CPU, shared by all threads."""

    # Past this the activations of a layer leave the last-level cache; benchmarks/README.md.
    batch_tokens = 512

    def __init__(self, graph: Path, dimension: int, threads: int) -> None:
        self._session = open_session(graph, dimension, threads, [("CPUExecutionProvider", {})])

    def run(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return the un-normalized vectors of a batch, (B, H)."""
        mask = attention_mask(batch.lengths, batch.input_ids.shape[1])
        inputs = {"input_ids": batch.input_ids, "attention_mask": mask}
        vectors: npt.NDArray[np.float32] = self._session.run([_OUTPUT], inputs)[0]
        return vectors

    def close(self) -> None:
        """Drop the session."""
        del self._session


def open_session(
    graph: Path, dimension: int, threads: int, providers: list[tuple[str, dict[str, str]]]
) -> onnxruntime.InferenceSession:
    """Open a graph; raises ``BundleError`` for one that is none or is not a bundle's encoder."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # each of the library's error classes derives from Exception
        raise BundleError(f"ONNX Runtime cannot open '{graph}': {error}") from None
    inputs = {item.name for item in session.get_inputs()}
    outputs = {item.name: item.shape for item in session.get_outputs()}
    if inputs != _INPUTS or outputs.get(_OUTPUT, [None])[-1] != dimension:
        raise BundleError(
            f"'{graph}' takes {sorted(inputs)} and gives {outputs}; expected {sorted(_INPUTS)} "
            f"and {_OUTPUT} of {dimension} dimensions. Export the bundle again."
        )
    return session


def attention_mask(lengths: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Return the mask (B, S) of rows with these lengths (B,): 1 for tokens, 0 for padding."""
    if len(lengths) == 1 and lengths[0] == width <= _ONES.shape[1]:
        return _ONES[:, :width]
    mask: npt.NDArray[np.int64] = (np.arange(width) < lengths[:, None]).astype(np.int64)
    return mask
