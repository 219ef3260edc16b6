"""TensorRT's own part, on a stand-in for its module: what each refusal becomes (no TensorRT here).

That every name exists in NVIDIA's bindings is test_tensorrt_names.py's business.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from standin import DIMENSION, PROFILES, VOCABULARY, StandInDevice, StandInEngine, StandInExecution

from corom.runtime.backend_lanes import LaneBackend
from corom.runtime.batching import Batch
from corom.runtime.engine import Addresses
from corom.runtime.engine_tensorrt import TensorRTEngine, import_tensorrt, tensorrt_log
from corom.runtime.errors import BundleError, DeviceMemoryError, EngineError, UnavailableError
from corom.runtime.shapes import Bucket
from corom.runtime.sidecar import Profile, Sidecar

PLAN = b"plan"
SIDECAR = Sidecar(
    flavour="tensorrt",
    version="11.4.0.106",
    precision="fp16",
    gpu=None,
    compute_capability=None,
    driver=None,
    cuda=None,
    graph="onnx/engine_fp16.onnx",
    graph_sha256="0",
    engine_sha256=hashlib.sha256(PLAN).hexdigest(),
    dimension=DIMENSION,
    profiles=PROFILES,
    options={},
)


class Context:
    """Answers as IExecutionContext does: False for a refusal, never an exception."""

    def __init__(self, module: "StandInTensorRT") -> None:
        self.module, self.shapes, self.addresses = module, {}, {}

    def refuse(self, what: str) -> bool:
        if self.module.refused == what:
            self.module.log.log(self.module.ILogger.ERROR, self.module.reason)
            return True
        return False

    def set_optimization_profile_async(self, profile: int, _stream: int) -> bool:
        self.profile = profile
        return not self.refuse("profile")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return not self.refuse("shape")

    def infer_shapes(self) -> list[str]:
        return ["sentence_embedding"] if self.module.refused == "infer" else []

    def update_device_memory_size_for_shapes(self) -> int:
        return 1000

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return not self.refuse("address")

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = address, size

    def execute_async_v3(self, stream: int) -> bool:
        if self.refuse("execute"):
            return False
        rows, width = self.shapes["input_ids"]
        assert self.shapes["lengths"] == (rows,)
        execution = StandInExecution(self.module.engine, Bucket(rows, width, self.profile))
        names = ("input_ids", "lengths", "sentence_embedding")
        execution.bind(Addresses(*(self.addresses[n] for n in names), *self.scratch))
        self.module.engine.device.submit(stream, execution.execute)
        return True


class StandInTensorRT:
    """What corom uses of the module `tensorrt`."""

    __version__ = "11.4.0.106"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

    def __init__(self, device: StandInDevice) -> None:
        self.engine = StandInEngine(device, scratch_per_token=0)
        self.refused, self.reason = "", "because"
        self.names = ["input_ids", "lengths", "sentence_embedding"]
        self.num_io_tensors, self.num_optimization_profiles = 3, len(PROFILES)

    def Runtime(self, log: Any) -> "StandInTensorRT":  # noqa: N802
        self.log = log
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> "StandInTensorRT | None":
        assert plan == PLAN
        if self.refused == "deserialize":
            self.log.log(self.ILogger.ERROR, self.reason)
            return None
        return self

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, DIMENSION)

    def get_tensor_profile_shape(self, _name: str, index: int) -> list[tuple[int, int]]:
        return list(zip(PROFILES[index].batch, PROFILES[index].length, strict=True))

    def create_execution_context(self, strategy: int) -> Context | None:
        assert strategy == 2
        if self.refused == "context":
            self.log.log(self.ILogger.ERROR, self.reason)
            return None
        return Context(self)


@pytest.fixture
def device() -> StandInDevice:
    return StandInDevice()


@pytest.fixture
def module(device: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInTensorRT]:
    module = StandInTensorRT(device)
    monkeypatch.setitem(sys.modules, "tensorrt", module)  # type: ignore[arg-type]
    tensorrt_log.cache_clear()
    yield module
    tensorrt_log.cache_clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.engine"
    path.write_bytes(PLAN)
    return path


def batch() -> Batch:
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (3, 9))
    return Batch(ids, np.array([9, 9, 9]))


def test_stand_in_batches_go_through_an_engine(
    module: StandInTensorRT, device: StandInDevice, file: Path
) -> None:
    backend = LaneBackend(device, TensorRTEngine(file, SIDECAR, device))
    for _ in range(8):
        found = backend.run(batch())
    ids, lengths = batch()
    inputs = {"input_ids": ids.astype(np.int32), "lengths": lengths.astype(np.int32)}
    assert np.array_equal(found, module.engine.session.run(None, inputs)[0])
    assert {state.executed_by for state in backend.states()} == {"graph"}
    backend.close()
    assert device.held == (0, 0, 0, 0)


def test_stand_in_an_engine_that_cannot_be_opened_says_tensorrts_reason(
    module: StandInTensorRT, device: StandInDevice, file: Path
) -> None:
    module.refused, module.reason = "deserialize", "magic tag does not match"
    with pytest.raises(EngineError, match="cannot be opened: magic tag does not match"):
        TensorRTEngine(file, SIDECAR, device)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ("context", "context cannot be made: because"),
        ("profile", "refuses profile 0: because"),
        ("shape", "refuses shape .* of input_ids: because"),
        ("infer", "sentence_embedding"),
        ("address", "refuses address of input_ids: because"),
        ("execute", "refuses this execution: because"),
    ],
)
def test_stand_in_every_refusal_is_an_error_and_the_encoder_goes_on(
    module: StandInTensorRT, device: StandInDevice, file: Path, refused: str, words: str
) -> None:
    backend = LaneBackend(device, TensorRTEngine(file, SIDECAR, device))
    module.refused = refused
    with pytest.raises(EngineError, match=words):
        backend.run(batch())
    module.refused = ""
    assert backend.run(batch()).shape == (3, DIMENSION)
    backend.close()


def test_stand_in_out_of_memory_in_tensorrt_is_out_of_memory_here(
    module: StandInTensorRT, device: StandInDevice, file: Path
) -> None:
    backend = LaneBackend(device, TensorRTEngine(file, SIDECAR, device))
    module.refused, module.reason = "context", "Cuda Runtime (out of memory)"
    with pytest.raises(DeviceMemoryError, match="too little free memory"):
        backend.run(batch())
    module.refused = ""
    assert backend.run(batch()).shape == (3, DIMENSION)
    backend.close()


def test_stand_in_a_corrupt_engine_is_never_handed_to_tensorrt(
    module: StandInTensorRT, device: StandInDevice, file: Path
) -> None:
    assert module is not None
    file.write_bytes(b"other")
    with pytest.raises(BundleError, match=r"altered or cut short.*--rebuild"):
        TensorRTEngine(file, SIDECAR, device)
    file.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        TensorRTEngine(file, SIDECAR, device)


def test_stand_in_an_engine_with_other_tensors_or_profiles_is_refused(
    module: StandInTensorRT, device: StandInDevice, file: Path
) -> None:
    other = (Profile(name="x", batch=(1, 1, 2), length=(1, 1, 2)),)
    with pytest.raises(EngineError, match="its sidecar says"):
        TensorRTEngine(file, msgspec.structs.replace(SIDECAR, profiles=other), device)
    module.names = ["input_ids", "attention_mask", "sentence_embedding"]
    with pytest.raises(EngineError, match=r"has the tensors .*attention_mask.*expected"):
        TensorRTEngine(file, SIDECAR, device)


def test_tensorrt_missing_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match="tensorrt"):
        import_tensorrt("tensorrt")


def test_tensorrt_without_its_libraries_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "libnvinfer.so.11: cannot open shared object file"
    (tmp_path / "tensorrt.py").write_text(f"raise ImportError({reason!r})")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"libnvinfer.so.11.*LD_LIBRARY_PATH"):
        import_tensorrt("tensorrt")
