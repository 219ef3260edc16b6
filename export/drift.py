"""Where a graph leaves its reference: the first layer whose output is out of tolerance.

Every layer of a BERT ends in a LayerNormalization, in every precision; their outputs are compared,
in order, with the hidden states of the reference.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from corom.runtime.backend_openvino import execute_once
from corom.runtime.manifest import Precision, Tolerance
from corom.runtime.onnx_runtime import onnxruntime
from corom.runtime.parity import row_cosines

from .reference import Reference


class LayerDrift(NamedTuple):
    """Difference of one layer's output from the reference, for one text."""

    name: str
    cosine_min: float
    max_abs_error: float

    def exceeds(self, tolerance: Tolerance) -> bool:
        """Whether this layer's output alone is out of tolerance."""
        bound = np.inf if tolerance.max_abs_error is None else tolerance.max_abs_error
        within = self.cosine_min >= tolerance.cosine_min and self.max_abs_error <= bound
        return not within


def layer_drifts(
    graph: Path,
    reference: Reference,
    token_ids: list[int],
    backend: str = "onnxruntime",
    precision: Precision = "fp32",
) -> list[LayerDrift]:
    """Return the drift of each layer of an ONNX graph on one text, from the embeddings up.

    Empty if the graph's layers cannot be told apart (not one LayerNormalization for each), and for
    a backend that executes no graph.
    """
    if backend == "native":
        return []
    ids = np.array([token_ids], np.int64)
    names, model = _normalizations(graph)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if backend == "openvino":
        found = execute_once(model, feeds, precision)
    else:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        found = session.run(names, feeds)
    return drifts_from(reference, ids, [np.asarray(output, np.float32) for output in found])


def drifts_from(
    reference: Reference, ids: npt.NDArray[np.int64], found: list[npt.NDArray[np.float32]]
) -> list[LayerDrift]:
    """Return the drift of each layer on one text, (1, S) ids, from what the layers give."""
    expected = reference.hidden_states(ids, np.ones_like(ids))
    if len(found) != len(expected):
        return []
    return [_drift(name, want, got) for (name, want), got in zip(expected, found, strict=True)]


def first_drift(drifts: list[LayerDrift], tolerance: Tolerance) -> str:
    """Return, in words, the first layer that is out of tolerance."""
    for drift in drifts:
        if drift.exceeds(tolerance):
            return (
                f"{drift.name} (cosine {drift.cosine_min:.6f}, max abs {drift.max_abs_error:.3g})"
            )
    return "none of the layers alone" if drifts else "not known: what executes does not tell"


def _drift(
    name: str, expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]
) -> LayerDrift:
    width = expected.shape[-1]
    got = found.reshape(-1, width)
    # A last layer computed for [CLS] alone has one row; it is the reference's first.
    want = expected.reshape(-1, width)[: len(got)]
    with np.errstate(all="ignore"):
        cosine, error = row_cosines(want, got).min(), np.abs(want - got).max()
    return LayerDrift(name, float(np.nan_to_num(cosine, nan=-1.0)), float(error))


def _normalizations(graph: Path) -> tuple[list[str], bytes]:
    """Return the names of what the layers give, and the graph with these as its outputs."""
    model = onnx.load(graph)
    names = [n.output[0] for n in model.graph.node if n.op_type == "LayerNormalization"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return names, model.SerializeToString()
