"""ONNX Runtime on the GPU: what is said without one, and its bindings on the CPU provider."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from corom.runtime import backend_onnxruntime_cuda
from corom.runtime.backend_onnxruntime_cuda import OnnxRuntimeCudaBackend, require_cuda_provider
from corom.runtime.batching import Batch
from corom.runtime.errors import BundleError, UnavailableError
from corom.runtime.gpu_machine import this_machine

no_gpu = pytest.mark.skipif(this_machine().gpu is not None, reason="this machine has a GPU")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """ids and mask (B, S), int64, to the sums of ids that are not padding, in three columns."""
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["values", "axis"], ["sum"], keepdims=1),
        helper.make_node("Concat", ["sum", "sum", "sum"], ["sentence_embedding"], axis=1),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "S"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["B", 3])
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")
    made = helper.make_graph(nodes, "sums", inputs, [output], [axis])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "sums.onnx")
    return tmp_path / "sums.onnx"


@no_gpu
def test_a_provider_that_is_not_there_is_an_error_with_the_pip_line(graph: Path) -> None:
    with pytest.raises(
        UnavailableError,
        match=r"found \[.*CPUExecutionProvider.*pip install 'onnxruntime-gpu\[cuda",
    ):
        require_cuda_provider()
    with pytest.raises(UnavailableError, match="CUDAExecutionProvider"):
        OnnxRuntimeCudaBackend(graph, 3, 1)


def test_a_provider_that_did_not_start_is_an_error(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_onnxruntime_cuda, "require_cuda_provider", lambda: None)
    with (
        pytest.warns(UserWarning, match="provider"),
        pytest.raises((UnavailableError, BundleError)),
    ):
        OnnxRuntimeCudaBackend(graph, 3, 1)


def test_fp32_is_not_multiplied_as_tf32(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def opened(*arguments: Any) -> Any:
        asked.extend(arguments)
        raise BundleError("asked")

    monkeypatch.setattr(backend_onnxruntime_cuda, "require_cuda_provider", lambda: None)
    monkeypatch.setattr(backend_onnxruntime_cuda, "open_session", opened)
    with pytest.raises(BundleError, match="asked"):
        OnnxRuntimeCudaBackend(graph, 3, 1)
    ((provider, options),) = asked[-1]
    assert (provider, options["use_tf32"]) == ("CUDAExecutionProvider", "0")


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_bindings_on_the_cpu_provider_give_the_vectors(
    graph: Path, monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    monkeypatch.setattr(backend_onnxruntime_cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(backend_onnxruntime_cuda, "DEVICE", "cpu")
    backend = OnnxRuntimeCudaBackend(graph, 3, 1, cuda_graphs=cuda_graphs)
    for rows, width in ((1, 3), (5, 40), (1, 3), (2, 600)):
        ids = np.random.default_rng(rows).integers(1, 100, (rows, width))
        lengths = np.full(rows, width - 1)
        found = backend.run(Batch(ids, lengths))
        assert found.shape == (rows, 3)
        assert found[:, 2].tolist() == ids[:, :-1].sum(axis=1).tolist()
    backend.close()
