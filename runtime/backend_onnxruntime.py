"""ONNX Runtime: executes an ONNX graph on the CPU."""

from collections.abc import Set
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .batching import Batch, attention_mask
from .errors import BundleError, DeviceMemoryError
from .graph_interface import INPUTS, OUTPUT, require_interface
from .onnx_runtime import onnxruntime


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
        vectors: npt.NDArray[np.float32] = self._session.run([OUTPUT], inputs)[0]
        return vectors

    def close(self) -> None:
        """Drop the session."""
        del self._session


def open_session(
    graph: Path,
    dimension: int,
    threads: int,
    providers: list[tuple[str, dict[str, str]]],
    inputs: Set[str] = INPUTS,
) -> onnxruntime.InferenceSession:
    """Open a graph; raises ``BundleError`` for one that is none or is not a bundle's encoder."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads would go on spinning after a run, on the CPUs that whoever waits for it needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # each of the library's error classes derives from Exception
        refuse_if_memory_is_short(error)
        raise BundleError(f"ONNX Runtime cannot open '{graph}': {error}") from None
    found = {item.name for item in session.get_inputs()}
    outputs = {item.name: (item.shape or [None])[-1] for item in session.get_outputs()}
    require_interface(graph, found, outputs, dimension, inputs)
    return session


def refuse_if_memory_is_short(error: Exception) -> None:
    """Raise ``DeviceMemoryError`` if that is what the library's error says of a GPU."""
    words = str(error)
    if any(
        sign in words for sign in ("Failed to allocate memory", "out of memory", "ALLOC_FAILED")
    ):
        raise DeviceMemoryError(f"ONNX Runtime found too little device memory: {words}") from None
