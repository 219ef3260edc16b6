"""int8: scales that keep the products right, and a graph that both engines execute in integers."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_checkpoint import LAYERS, random_checkpoint

from corom.export.calibration import MOST_TEXTS, Inputs, linear_inputs, read_calibration_texts
from corom.export.encoder import TorchEncoder
from corom.export.quantization import (
    InputScheme,
    choose_scheme,
    corrected_bias,
    int8_weights,
)
from corom.export.quantized_graph import INT8_GRAPH, export_int8_graph
from corom.runtime.manifest import Pooling

TEXTS = [" ".join(str((17 * row + 3 * k) % 500) for k in range(2 + row % 30)) for row in range(40)]


def inputs_of(rows: torch.Tensor) -> Inputs:
    return Inputs(rows, rows.amin(0), rows.amax(0))


def relative_error(rows: torch.Tensor, weight: torch.Tensor, scheme: InputScheme) -> float:
    exact = rows @ weight.T
    found = scheme.rounded(rows) @ int8_weights(weight, scheme).rounded().T
    return float((found - exact).norm() / exact.norm())


def test_large_columns_do_not_cost_the_small_ones_their_digits() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(400, 64, generator=generator)
    rows[:, 5] *= 80
    weight = torch.randn(96, 64, generator=generator) / 8
    weight[:, 5] /= 80
    plain = InputScheme(
        float(rows.max() - rows.min()) / 255,
        round(float(-rows.min() / (rows.max() - rows.min()) * 255)),
        torch.ones(64),
    )
    chosen = choose_scheme(inputs_of(rows), [weight])
    assert relative_error(rows, weight, chosen) < 0.02
    assert relative_error(rows, weight, plain) > 0.2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.floats(-3, 3), st.floats(0.001, 1000))
def test_a_scheme_fits_what_it_has_seen(seed: int, shift: float, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(200, 16, generator=generator) + shift) * size
    weights = [torch.randn(n, 16, generator=generator) for n in (4, 24)]
    scheme = choose_scheme(inputs_of(rows), weights)
    assert 0 <= scheme.zero <= 255
    assert scheme.scale > 0
    for weight in weights:
        assert relative_error(rows, weight, scheme) < 0.06
        codes = int8_weights(weight, scheme).codes
        assert codes.dtype == torch.int8
        assert codes.abs().amax(1).tolist() == [127] * len(weight)
    assert float(scheme.rounded(torch.zeros(1, 16)).abs().max()) == 0


def test_inputs_and_weights_of_nothing_but_zeros_are_no_error() -> None:
    scheme = choose_scheme(inputs_of(torch.zeros(8, 4)), [torch.zeros(3, 4)])
    assert relative_zero(scheme) == 0


def relative_zero(scheme: InputScheme) -> float:
    found = scheme.rounded(torch.zeros(2, 4)) @ int8_weights(torch.zeros(3, 4), scheme).rounded().T
    return float(found.abs().max())


def test_the_bias_takes_up_what_rounding_shifts() -> None:
    rows = torch.rand(300, 8) * 0.1 + 3
    weight, bias = torch.randn(5, 8), torch.randn(5)
    scheme = InputScheme(0.05, 0, torch.ones(8))
    found = scheme.rounded(rows) @ int8_weights(weight, scheme).rounded().T
    corrected = found + corrected_bias(inputs_of(rows), weight, bias, scheme)
    exact = rows @ weight.T + bias
    assert torch.allclose(corrected.mean(0), exact.mean(0), atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_calibration_sees_every_kept_token_and_no_padding(pooling: Pooling) -> None:
    checkpoint = random_checkpoint(pooling)
    encoder = TorchEncoder(checkpoint)
    seen = linear_inputs(encoder, checkpoint, TEXTS)
    assert len(seen) == 6 * LAYERS
    alone = [linear_inputs(encoder, checkpoint, [text]) for text in TEXTS]
    for name, inputs in seen.items():
        for bound, found in (("low", inputs.low), ("high", inputs.high)):
            parts = torch.stack([getattr(one[name], bound) for one in alone])
            expected = parts.amin(0) if bound == "low" else parts.amax(0)
            assert torch.allclose(found, expected, atol=1e-4), name
        assert bool((inputs.sample >= inputs.low).all() & (inputs.sample <= inputs.high).all())


def test_many_calibration_texts_are_thinned_out(tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text("".join(f"{k}\n" for k in range(5 * MOST_TEXTS)))
    texts = read_calibration_texts(file, ["int8"])
    assert len(texts) == MOST_TEXTS
    assert texts[-1] == str(5 * MOST_TEXTS - 5)


@pytest.fixture(scope="module", params=["cls", pytest.param("mean", marks=pytest.mark.slow)])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 graph of a random encoder; all its biases are equal, as those of new ones are.

    With mean pooling, slow, the last layer is as the first is with [CLS].
    """
    checkpoint = random_checkpoint(request.param, scales={"bias": 0.0})
    folder = tmp_path_factory.mktemp("graphs")
    encoder = TorchEncoder(checkpoint)
    export_int8_graph(folder, encoder, 20, checkpoint, TEXTS)
    return folder / INT8_GRAPH


def test_onnx_runtime_multiplies_integers(graph: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["MatMulIntegerToFloat"] == 6 * LAYERS
    assert kinds["MatMul"] == 2 * LAYERS  # attention
    assert kinds["DequantizeLinear"] == 0


def test_openvino_multiplies_integers(graph: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    kinds = Counter(
        n["runtimePrecision"].astype(str)
        for n in nodes
        if n["layerType"].astype(str) == "FullyConnected"
    )
    assert kinds == {"u8": 6 * LAYERS}


def test_weights_are_kept_once_as_8_bit(graph: Path) -> None:
    model = onnx.load(graph)
    large = [t for t in model.graph.initializer if np.prod(t.dims) >= 64 * 64]
    floats = {t.name for t in large if t.data_type == onnx.TensorProto.FLOAT}
    assert floats == {"embeddings.words.weight", "embeddings.positions"}
    assert {n.domain for n in model.graph.node} == {""}
