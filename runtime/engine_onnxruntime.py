"""ONNX Runtime in a lane: its fused fp16 kernels, replayed as CUDA graphs, on the lane's stream.

The graph is the bundle's own for this: int32 ids and lengths in, few operators, every one of them a
kernel of the CUDA provider. A lane then captures copies and kernels together, as it does with
TensorRT, and a request is one launch.
"""

from pathlib import Path
from typing import Any

import numpy as np

from .backend_lanes import LaneBackend
from .backend_onnxruntime import open_session, refuse_if_memory_is_short
from .backend_onnxruntime_cuda import (
    DEVICE,
    PROVIDER,
    load_cuda_libraries,
    require_cuda_provider,
    require_started,
)
from .cuda import Adapter, open_device
from .engine import Addresses
from .errors import EngineError
from .graph_interface import ENGINE_INPUT_NAMES, OUTPUT
from .onnx_runtime import onnxruntime
from .shapes import Bucket
from .sidecar import Profile

MAX_ROWS = 512
SLOTS = 96
"""Enough for every bucket of texts of up to 128 tokens: what is kept for one is its graph alone."""
ATTENTION_KERNELS = 1 + 2 + 4 + 16 + 32
"""Flash, memory-efficient, TensorRT's and unfused attention. Without cuDNN's: that is built for
each new shape, for 50 ms and more."""


def open_fused(
    graph: Path,
    dimension: int,
    max_positions: int,
    *,
    graphs: bool = True,
    device_id: int = 0,
    adapter: Adapter | None = None,
) -> LaneBackend:
    """Open a fused graph on a GPU. ``graphs``: replay captured CUDA graphs; see ``open_device``.

    Raises ``UnavailableError`` if a package, the provider or the GPU is not there.
    """
    require_cuda_provider()
    load_cuda_libraries()
    device = open_device(device_id, adapter)
    engine = OnnxRuntimeEngine(graph, dimension, max_positions, device_id)
    backend = LaneBackend(device, engine, graphs=graphs, slots=SLOTS)
    try:
        with device.use():
            for stream in backend.streams:
                engine.open(stream)  # takes a second, which no request is to wait for
    except BaseException:
        backend.close()
        raise
    return backend


class OnnxRuntimeEngine:
    """A graph that is opened once for each stream it is executed on; see ``engine.Engine``.

    A session's memory for what lies between operators is one pool, used in the order of its stream:
    two streams need two sessions, each with weights of its own.
    """

    def __init__(self, graph: Path, dimension: int, max_positions: int, device_id: int = 0) -> None:
        self.dimension = dimension
        self.profiles: tuple[Profile, ...] = (
            Profile(
                name="any",
                batch=(1, 64, MAX_ROWS),
                length=(1, min(64, max_positions), max_positions),
            ),
        )
        self._graph, self._device_id = graph, device_id
        self._sessions: dict[int, Any] = {}

    def prepare(self, bucket: Bucket, stream: int) -> "OnnxRuntimeExecution":
        """Return an execution of a bucket; the first on a stream opens the graph for it."""
        if stream not in self._sessions:
            self.open(stream)
        return OnnxRuntimeExecution(self._sessions[stream], bucket, self.dimension, self._device_id)

    def open(self, stream: int) -> None:
        """Open the graph for a stream."""
        chosen = {
            "device_id": str(self._device_id),
            "user_compute_stream": str(stream),
            "sdpa_kernel": str(ATTENTION_KERNELS),
        }
        session = open_session(
            self._graph, self.dimension, 1, [(PROVIDER, chosen)], inputs=ENGINE_INPUT_NAMES
        )
        require_started(session)
        self._sessions[stream] = session

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()


class OnnxRuntimeExecution:
    """One shape bound to its addresses; see ``engine.Execution``."""

    scratch_bytes = 0

    def __init__(self, session: Any, bucket: Bucket, dimension: int, device_id: int) -> None:  # noqa: ANN401
        self._session, self._bucket = session, bucket
        self._dimension, self._device_id = dimension, device_id
        self._options = onnxruntime.RunOptions()
        # The lane waits for its stream itself, and a wait within a capture would end it.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(self, addresses: Addresses) -> None:
        """Set where inputs and output lie."""
        rows, width, _ = self._bucket
        self._binding = self._session.io_binding()
        place = (DEVICE, self._device_id)
        self._binding.bind_input("input_ids", *place, np.int32, [rows, width], addresses.ids)
        self._binding.bind_input("lengths", *place, np.int32, [rows], addresses.lengths)
        vectors = [rows, self._dimension]
        self._binding.bind_output(OUTPUT, *place, np.float32, vectors, addresses.vectors)

    def enqueue(self, stream: int) -> None:  # noqa: ARG002  # the session knows its stream
        """Begin to execute."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # each of the library's error classes derives from Exception
            refuse_if_memory_is_short(error)
            raise EngineError(f"ONNX Runtime failed on the GPU: {error}") from None

    def close(self) -> None:
        """Nothing is held beside the session."""
