"""Stand-ins for a GPU and an engine: real bytes, real ONNX Runtime, no CUDA and no speed.

Work on a stream is deferred until ``synchronize``, so that what is read or overwritten too early
shows as a wrong vector.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from corom.runtime.engine import Addresses
from corom.runtime.errors import CudaError, DeviceMemoryError, EngineError
from corom.runtime.packing import Bytes
from corom.runtime.shapes import Bucket
from corom.runtime.sidecar import Profile

PROFILES = (
    Profile(name="single", batch=(1, 1, 4), length=(1, 16, 32)),
    Profile(name="bulk", batch=(1, 16, 64), length=(1, 32, 64)),
)
VOCABULARY, DIMENSION = 100, 6


def engine_graph() -> onnx.ModelProto:
    """ids (B, S) and lengths (B,), int32, to the sum of the embeddings that are not padding."""
    table = np.random.default_rng(0).integers(-8, 8, (VOCABULARY, DIMENSION)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
        helper.make_node("Shape", ["input_ids"], ["width"], start=1, end=2),
        helper.make_node("Squeeze", ["width"], ["end"]),
        helper.make_node("Range", ["zero", "end", "one"], ["positions"]),
        helper.make_node("Cast", ["lengths"], ["ends"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["ends", "axis1"], ["column"]),
        helper.make_node("Less", ["positions", "column"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis2"], ["weights"]),
        helper.make_node("Mul", ["hidden", "weights"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis1"], ["sentence_embedding"], keepdims=0),
    ]
    constants = {
        "table": table,
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["B", "S"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["B", DIMENSION])],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class StandInDevice:
    """Device memory is host memory by address; streams hold what is to be done."""

    adapter = "cuda-bindings"

    def __init__(self, limit: int = 1 << 24) -> None:
        self.limit, self.calls = limit, Counter()
        self.failures = defaultdict(list)
        self.closed = False
        self._blocks, self._pinned, self._graphs, self._streams = {}, {}, {}, {}
        self._capturing = {}
        self._next, self._lock, self._here = 256, threading.Lock(), threading.local()

    @property
    def held(self) -> tuple[int, ...]:
        return len(self._blocks), len(self._pinned), len(self._graphs), len(self._streams)

    @property
    def used(self) -> int:
        return sum(block.nbytes for block in self._blocks.values())

    @contextmanager
    def use(self) -> Iterator[None]:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        try:
            yield
        finally:
            self._here.depth -= 1

    def stream(self) -> int:
        self._called("stream")
        return self._keep(self._streams, [])

    def free_stream(self, stream: int) -> None:
        self._called("free_stream")
        assert not self._streams.pop(stream)

    def allocate(self, size: int) -> int:
        self._called("allocate")
        if self.used + size > self.limit:
            raise DeviceMemoryError("stand-in memory is full")
        return self._keep(self._blocks, np.full(size, 0xA5, np.uint8))

    def free(self, address: int) -> None:
        self._called("free")
        del self._blocks[address]

    def pinned(self, size: int) -> Bytes:
        self._called("pinned")
        block = np.full(size, 0xA5, np.uint8)
        self._pinned[block.ctypes.data] = block
        return block

    def free_pinned(self, block: Bytes) -> None:
        self._called("free_pinned")
        self._pinned.pop(block.ctypes.data)[:] = 0xA5

    def copy_in(self, address: int, block: Bytes, stream: int) -> None:
        self._called("copy_in")

        def copy() -> None:
            self.memory(address, block.nbytes)[:] = block

        self.submit(stream, copy)

    def copy_out(self, block: Bytes, address: int, stream: int) -> None:
        self._called("copy_out")

        def copy() -> None:
            block[:] = self.memory(address, block.nbytes)

        self.submit(stream, copy)

    def synchronize(self, stream: int) -> None:
        assert stream not in self._capturing
        work, self._streams[stream] = self._streams[stream], []
        for step in work:
            step()
        self._called("synchronize")

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        self._called("capture")
        self._capturing[stream] = steps = []
        try:
            work()
        finally:
            del self._capturing[stream]
        return self._keep(self._graphs, steps)

    def launch(self, graph: int, stream: int) -> None:
        self._called("launch")
        self._streams[stream] += self._graphs[graph]

    def free_graph(self, graph: int) -> None:
        self._called("free_graph")
        del self._graphs[graph]

    def free_memory(self) -> tuple[int, int]:
        return self.limit - self.used, self.limit

    def close(self) -> None:
        self.closed = True

    def submit(self, stream: int, step: Callable[[], None]) -> None:
        self._capturing.get(stream, self._streams[stream]).append(step)

    def memory(self, address: int, size: int) -> Bytes:
        for base, block in self._blocks.items():
            if base <= address < base + block.nbytes:
                assert address + size <= base + block.nbytes, "beyond the block"
                return block[address - base : address - base + size]
        raise AssertionError("no such device memory")

    def _called(self, name: str) -> None:
        assert getattr(self._here, "depth", 0), f"{name} outside device.use()"
        self.calls[name] += 1
        if self.failures[name]:
            error = self.failures[name].pop(0)
            if error is not None:
                raise error

    def _keep(self, table: dict[int, Any], value: Any) -> int:
        with self._lock:
            handle, self._next = self._next, self._next + (1 << 20)
        table[handle] = value
        return handle


class StandInEngine:
    """Executes the engine's graph by ONNX Runtime on the bytes of the stand-in device."""

    def __init__(
        self,
        device: StandInDevice,
        profiles: tuple[Profile, ...] = PROFILES,
        scratch_per_token: int = 4,
    ) -> None:
        self.device, self.profiles, self.dimension = device, profiles, DIMENSION
        self.scratch_per_token = scratch_per_token
        self.session = onnxruntime.InferenceSession(engine_graph().SerializeToString())
        self.open_executions, self.refusals, self.closed = 0, 0, False

    def prepare(self, bucket: Bucket, stream: int) -> "StandInExecution":
        self.device.synchronize(stream)
        self.open_executions += 1
        return StandInExecution(self, bucket)

    def close(self) -> None:
        assert self.open_executions == 0
        self.closed = True


class StandInExecution:
    def __init__(self, engine: StandInEngine, bucket: Bucket) -> None:
        self.engine, self.bucket = engine, bucket
        self.scratch_bytes = bucket.rows * bucket.width * engine.scratch_per_token

    def bind(self, addresses: Addresses) -> None:
        assert addresses.scratch_bytes >= self.scratch_bytes
        for address in addresses[:4]:
            assert address % 256 == 0
        self.addresses = addresses

    def enqueue(self, stream: int) -> None:
        if self.engine.refusals:
            self.engine.refusals -= 1
            raise EngineError("stand-in refuses")
        self.engine.device.submit(stream, self.execute)

    def execute(self) -> None:
        rows, width, _ = self.bucket
        memory, at = self.engine.device.memory, self.addresses
        memory(at.scratch, self.scratch_bytes)[:] = 1
        inputs = {
            "lengths": memory(at.lengths, 4 * rows).view(np.int32),
            "input_ids": memory(at.ids, 4 * rows * width).view(np.int32).reshape(rows, width),
        }
        vectors = self.engine.session.run(None, inputs)[0]
        memory(at.vectors, vectors.nbytes)[:] = vectors.view(np.uint8).reshape(-1)

    def close(self) -> None:
        self.engine.open_executions -= 1


FATAL = CudaError("cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS (700).", fatal=True)
