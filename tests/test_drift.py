"""Drift: the first layer that leaves the reference is named, through real graphs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from corom.export.checkpoint import load_checkpoint
from corom.export.drift import LayerDrift, first_drift, layer_drifts
from corom.export.recipe import DEFAULT_TOLERANCES
from corom.export.reference import Reference
from corom.export.sources import resolve_source
from corom.runtime.manifest import Tolerance

IDS = [2, 700, 800, 900, 701, 3]
PARTS = ("attention", "output")
LAYERS = ["embeddings", *(f"layer {k} {part}" for k in range(3) for part in PARTS)]
FP32 = DEFAULT_TOLERANCES["fp32"]


@pytest.fixture(scope="module", params=["tiny", "tiny_mean"])
def pair(request: pytest.FixtureRequest) -> tuple[Path, Reference]:
    """The graph and the reference of a [CLS] and of a mean checkpoint."""
    checkpoint: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    bundle: Path = request.getfixturevalue(f"{request.param}_bundle")
    reference = Reference(load_checkpoint(resolve_source(str(checkpoint))))
    return bundle / "onnx" / "model.onnx", reference


def test_an_exported_graph_drifts_nowhere(pair: tuple[Path, Reference]) -> None:
    graph, reference = pair
    drifts = layer_drifts(graph, reference, IDS)
    assert [drift.name for drift in drifts] == LAYERS
    assert not any(drift.exceeds(FP32) for drift in drifts)
    assert first_drift(drifts, FP32) == "none of the layers alone"


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("by", [0.01, 3.0, float("nan"), float("inf")])
def test_the_layer_whose_weights_were_altered_is_the_first(
    pair: tuple[Path, Reference], tmp_path: Path, place: int, by: float
) -> None:
    graph, reference = pair
    model = onnx.load(graph)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    (weight,) = [w for w in model.graph.initializer if w.name == norms[place].input[1]]
    altered = numpy_helper.to_array(weight) + np.float32(by)
    weight.CopyFrom(numpy_helper.from_array(altered, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    drifts = layer_drifts(tmp_path / "model.onnx", reference, IDS)
    assert first_drift(drifts, FP32).startswith(f"{LAYERS[place]} (cosine ")


def test_layers_that_cannot_be_told_apart_are_said_so(
    pair: tuple[Path, Reference], tmp_path: Path
) -> None:
    graph, reference = pair
    model = onnx.load(graph)
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    norm.op_type = "Identity"
    del norm.input[1:], norm.attribute[:]
    onnx.save(model, tmp_path / "model.onnx")
    drifts = layer_drifts(tmp_path / "model.onnx", reference, IDS)
    assert drifts == []
    assert "not known" in first_drift(drifts, FP32)


@pytest.mark.parametrize(
    ("cosine", "error", "tolerance", "exceeds"),
    [
        (1.0, 0.0, FP32, False),
        (0.9, 0.0, FP32, True),
        (1.0, 0.1, FP32, True),
        (1.0, float("nan"), FP32, True),
        (1.0, 9.9, Tolerance(cosine_min=0.99), False),
        (0.9, 9.9, Tolerance(cosine_min=0.99), True),
    ],
)
def test_a_layer_is_judged_by_the_variants_own_tolerance(
    cosine: float, error: float, tolerance: Tolerance, exceeds: bool
) -> None:
    assert LayerDrift("layer 0 output", cosine, error).exceeds(tolerance) is exceeds
