"""The fused graph: transformers' vectors by ONNX Runtime's own operators, and its engine."""

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import numpy as np
import onnx
import pytest
from conftest import MakeCheckpoint
from host_device import HostDevice

from corom.benchmarks.gpu_checks import random_batch
from corom.export.checkpoint import Checkpoint, load_checkpoint
from corom.export.fused_graph import check_fused_graph, export_fused_graph
from corom.export.parity import reference_golden
from corom.export.recipe import Recipe
from corom.export.reference import Reference
from corom.export.sources import ResolvedSource
from corom.runtime import backend_onnxruntime_cuda, engine_onnxruntime
from corom.runtime.backend import open_backend
from corom.runtime.backend_lanes import LANES, LaneBackend
from corom.runtime.batching import Batch
from corom.runtime.engine import Addresses
from corom.runtime.engine_onnxruntime import OnnxRuntimeEngine, open_fused
from corom.runtime.errors import BundleError, DeviceMemoryError, EngineError, ParityError
from corom.runtime.golden import Golden
from corom.runtime.gpu_machine import this_machine
from corom.runtime.graph_interface import FUSED_GRAPH
from corom.runtime.manifest import Tolerance, Variant, describe_files, load_manifest
from corom.runtime.onnx_runtime import onnxruntime
from corom.runtime.shapes import Bucket
from corom.runtime.vectors import Vectors

FP32 = Tolerance(cosine_min=0.999999, max_abs_error=1e-5, batch_invariance=1e-5)
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {},
    "gelu_new": {"hidden_act": "gelu_new"},
    "relu, wide epsilon": {"hidden_act": "relu", "layer_norm_eps": 1e-3},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1},
    "roberta": {"model_type": "roberta"},
    "xlm-roberta": {"model_type": "xlm-roberta", "layer_norm_eps": 1e-5},
}


def opened(folder: Path, pooling: str, texts: list[str]) -> tuple[Checkpoint, Golden]:
    """Return a checkpoint, and texts with the vectors that transformers gives them."""
    recipe = Recipe(source="", pooling=pooling)  # type: ignore[arg-type]
    checkpoint = load_checkpoint(ResolvedSource(folder, "folder:test"), recipe)
    return checkpoint, reference_golden(checkpoint, Reference(checkpoint), texts)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_weights_give_transformers_vectors(
    make_checkpoint: MakeCheckpoint,
    parity_texts: list[str],
    tmp_path: Path,
    shape: str,
    pooling: str,
) -> None:
    texts = [*parity_texts[:24], "痛"]
    checkpoint, golden = opened(make_checkpoint(**SHAPES[shape]), pooling, texts)
    check_fused_graph(checkpoint, golden, FP32, tmp_path)


def test_a_graph_that_gives_other_vectors_is_refused(
    tiny_checkpoint: Path, parity_texts: list[str], tmp_path: Path
) -> None:
    checkpoint, golden = opened(tiny_checkpoint, "cls", parity_texts[:8])
    wrong = Golden(golden.texts, golden.vectors + np.float32(1e-3))
    with pytest.raises(ParityError, match=r"the fused graph.*max abs error 0\.001 is above"):
        check_fused_graph(checkpoint, wrong, FP32, tmp_path)


def test_fp16_weights_are_fp16_and_every_operator_is_there(
    tiny_checkpoint: Path, tmp_path: Path, parity_texts: list[str]
) -> None:
    checkpoint, _ = opened(tiny_checkpoint, "cls", parity_texts[:2])
    export_fused_graph(checkpoint, tmp_path / "fused.onnx", np.float16)
    graph = onnx.load(tmp_path / "fused.onnx").graph
    floats = {t.data_type for t in graph.initializer} - {onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.FLOAT16}
    assert [i.name for i in graph.input] == ["input_ids", "lengths"]
    a_layer = (len(graph.node) - 1 - 2 - 2) / checkpoint.config.layers
    assert a_layer == 7  # beside embeddings, [CLS] of two tensors, and what makes it a vector
    used = {tensor for node in graph.node for tensor in node.input}
    assert {t.name for t in graph.initializer} <= used


@pytest.fixture
def fused(tiny_checkpoint: Path, tmp_path: Path, parity_texts: list[str]) -> Path:
    """The fused graph of a tiny checkpoint, with fp32 weights: a CPU executes it."""
    checkpoint, _ = opened(tiny_checkpoint, "cls", parity_texts[:2])
    export_fused_graph(checkpoint, tmp_path / "fused.onnx", np.float32)
    return tmp_path / "fused.onnx"


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (engine_onnxruntime, backend_onnxruntime_cuda):
        monkeypatch.setattr(module, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(engine_onnxruntime, "DEVICE", "cpu")


def vectors_of(graph: Path, batch: Batch) -> Vectors:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    ids, lengths = (array.astype(np.int32) for array in batch)
    found: Vectors = session.run(None, {"input_ids": ids, "lengths": lengths})[0]
    return found


@pytest.mark.usefixtures("on_the_cpu")
def test_lanes_on_the_cpu_provider_give_the_vectors(fused: Path) -> None:
    backend = LaneBackend(HostDevice(), OnnxRuntimeEngine(fused, 48, 160), graphs=False)
    for rows, width in ((1, 3), (5, 40), (1, 3), (70, 17), (2, 160)):
        generator = np.random.default_rng(rows)
        lengths = np.sort(generator.integers(1, width + 1, rows))[::-1].copy()
        lengths[0] = width
        ids = generator.integers(5, 100, (rows, width))
        ids[np.arange(width) >= lengths[:, None]] = 0
        batch = Batch(ids, lengths)
        np.testing.assert_allclose(backend.run(batch), vectors_of(fused, batch), atol=1e-5)
    backend.close()


@pytest.mark.usefixtures("on_the_cpu")
def test_each_stream_has_a_session_of_its_own(fused: Path) -> None:
    engine = OnnxRuntimeEngine(fused, 48, 160)
    backend = LaneBackend(HostDevice(), engine)
    assert len(set(backend.streams)) == LANES
    executions = [engine.prepare(Bucket(1, 16, 0), stream) for stream in backend.streams * 2]
    assert len({id(execution._session) for execution in executions}) == LANES
    backend.close()


@pytest.mark.usefixtures("on_the_cpu")
def test_what_the_library_says_is_an_engine_error(fused: Path) -> None:
    engine = OnnxRuntimeEngine(fused, 48, 160)
    execution = engine.prepare(Bucket(1, 16, 0), 1)
    execution._binding = execution._session.io_binding()
    with pytest.raises(EngineError, match="ONNX Runtime failed on the GPU: .*output"):
        execution.enqueue(1)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_portable_graph_is_no_fused_one(tiny_bundle: Path) -> None:
    engine = OnnxRuntimeEngine(tiny_bundle / "onnx" / "model.onnx", 48, 160)
    with pytest.raises(BundleError, match=r"takes .*attention_mask.*expected .*lengths"):
        engine.open(1)


def test_fp16_on_a_gpu_is_the_fused_graph_where_the_bundle_has_one(
    tmp_path: Path, fused: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(engine_onnxruntime, "open_fused", lambda *a, **o: asked.append((a, o)))
    bundle = tmp_path / "bundle"
    (bundle / "onnx").mkdir(parents=True)
    (bundle / FUSED_GRAPH).write_bytes(fused.read_bytes())
    manifest = msgspec.structs.replace(load_manifest(tiny_bundle), files=describe_files(bundle))
    variant = Variant(precision="fp16", file="onnx/model_fp16.onnx", tolerance=FP32, parity={})
    for graphs, replayed in ((None, True), (True, True), (False, False)):
        open_backend("onnxruntime", "cuda", bundle, manifest, variant, 1, cuda_graphs=graphs)
        assert asked.pop() == ((bundle / FUSED_GRAPH, 48, 160), {"graphs": replayed})
    (bundle / FUSED_GRAPH).write_bytes(b"altered")
    with pytest.raises(BundleError, match="fused"):
        open_backend("onnxruntime", "cuda", bundle, manifest, variant, 1)
    assert not asked


@pytest.mark.parametrize(
    "words",
    [
        "BFCArena: Failed to allocate memory for requested buffer of size 1024",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
@pytest.mark.usefixtures("on_the_cpu")
def test_too_little_device_memory_is_known_by_what_the_library_says(
    fused: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    class Full:
        def run_with_iobinding(self, *_arguments: object) -> None:
            raise RuntimeError(words)

        io_binding = MagicMock

    engine = OnnxRuntimeEngine(fused, 48, 160)
    monkeypatch.setitem(engine._sessions, 1, Full())
    execution = engine.prepare(Bucket(1, 16, 0), 1)
    execution.bind(Addresses(1, 2, 3, 0, 0))
    with pytest.raises(DeviceMemoryError, match="too little device memory"):
        execution.enqueue(1)


def test_weights_beyond_protobufs_limit_lie_beside_the_graph(
    tiny_checkpoint: Path, tmp_path: Path, parity_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corom.export.graph.EXTERNAL_DATA_BYTES", 1000)
    checkpoint, golden = opened(tiny_checkpoint, "cls", parity_texts[:8])
    check_fused_graph(checkpoint, golden, FP32, tmp_path)
    export_fused_graph(checkpoint, tmp_path / "fused.onnx", np.float16)
    assert (tmp_path / "fused.onnx.data").stat().st_size > 1000


@pytest.mark.gpu
@pytest.mark.skipif(
    this_machine().gpu is None, reason="no NVIDIA GPU here; run `make gpu-check` where one is"
)
@pytest.mark.parametrize("adapter", ["pycuda", "cuda-bindings"])
def test_threads_on_the_gpu_get_their_own_vectors(
    tiny_checkpoint: Path, tmp_path: Path, parity_texts: list[str], adapter: Any
) -> None:
    if find_spec(adapter.replace("-bindings", "")) is None:
        pytest.skip(f"{adapter} is not installed")
    checkpoint, _ = opened(tiny_checkpoint, "cls", parity_texts[:2])
    graphs = tmp_path / "fp16.onnx", tmp_path / "fp32.onnx"
    for path, dtype in zip(graphs, (np.float16, np.float32), strict=True):
        export_fused_graph(checkpoint, path, dtype)
    backend = open_fused(graphs[0], 48, 160, adapter=adapter)
    batches = [random_batch(seed, rows=1 + seed % 9) for seed in range(40)]
    batches = [Batch(ids % 90, lengths) for ids, lengths in batches]  # words of this vocabulary
    expected = [vectors_of(graphs[1], batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            for found, wanted in zip(pool.map(backend.run, batches), expected, strict=True):
                np.testing.assert_allclose(found, wanted, atol=0.05)
    assert any(state.executed_by == "graph" for state in backend.states())
    backend.close()
