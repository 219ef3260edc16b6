"""fp16 graphs: what is fp16, what stays fp32, what overflows, and that this is noticed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from random_checkpoint import HIDDEN, random_checkpoint, random_ids

from corom.export.checkpoint import Checkpoint
from corom.export.encoder import TorchEncoder
from corom.export.errors import CheckpointError
from corom.export.graph import PORTABLE_INPUTS
from corom.export.precision import (
    ENGINE_GRAPH,
    HALF_GRAPH,
    LARGEST,
    export_half_graphs,
    half_encoder,
)
from corom.export.recipe import DEFAULT_TOLERANCES
from corom.export.reference import Reference
from corom.export.rounding import RoundedProducts, check_rounding, rounded_vectors
from corom.runtime.errors import ParityError
from corom.runtime.golden import Golden
from corom.runtime.parity import row_cosines

Array = npt.NDArray[Any]
Rows = list[list[int]]
Graphs = tuple[Checkpoint, Path]
TOLERANCE = DEFAULT_TOLERANCES["fp16"]
LENGTHS = (40, 3, 17, 128, 1, 64, 2, 31)


@pytest.fixture(scope="module", params=["cls", "mean"])
def graphs(request: pytest.FixtureRequest, half_graphs_once: Callable[[str], Path]) -> Graphs:
    """The checkpoint and the folder with its fp16 graphs."""
    return random_checkpoint(request.param), half_graphs_once(request.param)


def padded(rows: Rows) -> tuple[Array, Array]:
    lengths = np.array([len(ids) for ids in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids, lengths


def run(path: Path, **inputs: Array) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (vectors,) = session.run(["sentence_embedding"], inputs)
    return vectors


def run_half(folder: Path, ids: Array, lengths: Array) -> Array:
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    return run(folder / HALF_GRAPH, input_ids=ids, attention_mask=mask)


def run_engine_graph(folder: Path, ids: Array, lengths: Array) -> Array:
    return run(
        folder / ENGINE_GRAPH, input_ids=ids.astype(np.int32), lengths=lengths.astype(np.int32)
    )


def types(path: Path) -> tuple[Any, dict[str, int]]:
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return graph, found | {t.name: t.data_type for t in graph.initializer}


def golden_of(checkpoint: Checkpoint, rows: Rows) -> Golden:
    texts = [" ".join(map(str, ids)) for ids in rows]
    return Golden(texts, Reference(checkpoint).vectors(rows))


def test_products_are_fp16_and_norms_fp32(graphs: Graphs) -> None:
    for name in (HALF_GRAPH, ENGINE_GRAPH):
        graph, found = types(graphs[1] / name)
        products = [n for n in graph.node if n.op_type in {"MatMul", "Gemm", "Softmax", "Gelu"}]
        norms = [n for n in graph.node if n.op_type == "LayerNormalization"]
        assert len(norms) == 5
        assert len(products) == 2 * (6 + 2 + 1 + 1)
        for node in products:
            assert {found[v] for v in [*node.input, *node.output]} == {TensorProto.FLOAT16}
        for node in norms:
            assert {found[v] for v in [*node.input, *node.output]} == {TensorProto.FLOAT}


def test_inputs_and_outputs(graphs: Graphs) -> None:
    graph, found = types(graphs[1] / HALF_GRAPH)
    assert [v.name for v in graph.input] == list(PORTABLE_INPUTS)
    assert {found[v.name] for v in graph.input} == {TensorProto.INT64}
    assert found["sentence_embedding"] == TensorProto.FLOAT
    graph, found = types(graphs[1] / ENGINE_GRAPH)
    assert [v.name for v in graph.input] == ["input_ids", "lengths"]
    assert {found[v.name] for v in graph.input} == {TensorProto.INT32}
    assert found["sentence_embedding"] == TensorProto.FLOAT


def test_parity_through_onnx_runtime_and_in_fp16_arithmetic(graphs: Graphs) -> None:
    checkpoint, folder = graphs
    rows = random_ids(LENGTHS)
    golden = golden_of(checkpoint, rows)
    ids, lengths = padded(rows)
    for vectors in (
        run_half(folder, ids, lengths),
        rounded_vectors(half_encoder(TorchEncoder(checkpoint)), rows),
    ):
        assert row_cosines(golden.vectors, vectors).min() >= 0.99999
    alone = np.concatenate([run_half(folder, *padded([row])) for row in rows])
    assert np.abs(alone - run_half(folder, ids, lengths)).max() < 0.01


def test_engine_graph_equals_the_portable_one(graphs: Graphs) -> None:
    _, folder = graphs
    ids, lengths = padded(random_ids(LENGTHS))
    portable = run_half(folder, ids, lengths)
    assert np.array_equal(run_engine_graph(folder, ids, lengths), portable)
    wider = np.pad(ids, ((0, 0), (0, 20)), constant_values=9)
    np.testing.assert_allclose(run_engine_graph(folder, wider, lengths), portable, atol=0.01)


def test_only_the_cls_row_of_the_last_layer_is_computed(graphs: Graphs) -> None:
    checkpoint, folder = graphs
    graph, _ = types(folder / ENGINE_GRAPH)
    slices = sum(n.op_type == "Slice" for n in graph.node)
    assert slices == (2 if checkpoint.pooling == "cls" else 1)  # positions, and the first row


def test_padding_alone_gives_finite_vectors(graphs: Graphs) -> None:
    checkpoint, folder = graphs
    ids, lengths = padded(random_ids((9, 4)))
    lengths[1] = 0
    half = half_encoder(TorchEncoder(checkpoint))
    with torch.inference_mode(), RoundedProducts():
        mask = torch.from_numpy(np.arange(9) < lengths[:, None])
        rounded = half(torch.from_numpy(ids), mask).numpy()
    for vectors in (
        run_half(folder, ids, lengths),
        run_engine_graph(folder, ids, lengths),
        rounded,
    ):
        assert np.isfinite(vectors).all()


def test_large_activations_stay_exact_because_norms_are_fp32() -> None:
    # Squares of the hidden values are beyond fp16, so a LayerNorm in fp16 could not be computed.
    checkpoint = random_checkpoint(scales={"attention.output.LayerNorm.weight": 400.0})
    rows = random_ids(LENGTHS)
    ids = np.array(rows[:1])
    hidden = dict(Reference(checkpoint).hidden_states(ids, np.ones_like(ids)))
    assert np.abs(hidden["layer 0 attention"]).max() ** 2 > LARGEST
    golden = golden_of(checkpoint, rows)
    vectors = rounded_vectors(half_encoder(TorchEncoder(checkpoint)), rows)
    assert row_cosines(golden.vectors, vectors).min() >= 0.9995


@pytest.mark.parametrize(
    ("suffix", "scale", "layer"),
    [
        ("0.output.LayerNorm.weight", 3e4, "layer 0 output"),
        ("1.attention.self.query.weight", 6e4, "layer 1 attention"),
        ("1.intermediate.dense.weight", 6e4, "layer 1 output"),
    ],
)
def test_overflow_is_found_in_the_layer_where_it_happens(
    suffix: str, scale: float, layer: str
) -> None:
    checkpoint = random_checkpoint(scales={suffix: scale})
    rows = random_ids(LENGTHS)
    half = half_encoder(TorchEncoder(checkpoint))
    with pytest.raises(
        ParityError, match=f"NaN or infinite(.|\n)*First layer that drifts: {layer}"
    ):
        check_rounding(
            half, Reference(checkpoint), golden_of(checkpoint, rows), checkpoint, TOLERANCE
        )


def test_onnx_runtime_on_the_cpu_hides_overflow(
    half_graphs_once: Callable[[str], Path], tmp_path: Path
) -> None:
    """The reason for fp16 arithmetic of our own; if this fails, it is no longer needed."""
    model = onnx.load(half_graphs_once("cls") / HALF_GRAPH)
    # As in the test above, where it overflows; a graph made of such weights is no other.
    (sum_,) = [n for n in model.graph.node if "layers.1.inner.bias" in n.input]
    (product,) = [n for n in model.graph.node if n.output[0] in sum_.input]
    (large,) = [w for w in model.graph.initializer if w.name in product.input]
    values = onnx.numpy_helper.to_array(large) * np.float16(6e4)
    assert np.isfinite(values).all()
    large.CopyFrom(onnx.numpy_helper.from_array(values, large.name))
    (tmp_path / HALF_GRAPH).parent.mkdir()
    onnx.save(model, tmp_path / HALF_GRAPH)
    assert np.isfinite(run_half(tmp_path, *padded(random_ids(LENGTHS)))).all()


@pytest.mark.parametrize(
    ("suffix", "scale", "message"),
    [
        ("0.attention.self.key.weight", 1e6, "above 65504: layers.0.attention.key.weight"),
        ("0.attention.self.value.bias", 1e6, "above 65504: layers.0.attention.value.bias"),
        ("1.output.dense.weight", 1e-6, "too small .*: layers.1.outer.weight"),
        ("word_embeddings.weight", 1e-6, "too small .*: embeddings.words.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(suffix: str, scale: float, message: str) -> None:
    encoder = TorchEncoder(random_checkpoint(scales={suffix: scale}))
    with pytest.raises(CheckpointError, match=message):
        half_encoder(encoder)


def test_tiny_biases_are_no_error() -> None:
    half_encoder(TorchEncoder(random_checkpoint(scales={"key.bias": 1e-9})))


def test_the_encoder_itself_stays_fp32() -> None:
    encoder = TorchEncoder(random_checkpoint())
    half_encoder(encoder)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder.matmul_dtype == torch.float32


@pytest.mark.slow
def test_the_oldest_opset(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("mean")
    export_half_graphs(TorchEncoder(checkpoint), tmp_path, 18, for_engines=True)
    rows = random_ids(LENGTHS)
    ids, lengths = padded(rows)
    vectors = run_engine_graph(tmp_path, ids, lengths)
    assert vectors.shape == (len(rows), HIDDEN)
    assert row_cosines(golden_of(checkpoint, rows).vectors, vectors).min() >= 0.99999
