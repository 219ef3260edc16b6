"""Torch encoder to ONNX graph: portable, dynamic in batch and length, checked."""

import logging
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
import torch

from corom.runtime.errors import InputError
from corom.runtime.manifest import weights_beside

OPSETS = range(18, 21)
"""Opsets that every runtime takes; newer ones bring an Attention op that some refuse."""
# Sizes that no other dimension has, so that the exporter cannot take one for another.
_BATCH, _TOKENS = 2, 7
PORTABLE_INPUTS = {
    "input_ids": torch.ones(_BATCH, _TOKENS, dtype=torch.int64),
    "attention_mask": torch.ones(_BATCH, _TOKENS, dtype=torch.int64),
}
"""Input names of the graphs that every runtime takes, with an example of each."""
ENGINE_INPUTS = {
    "input_ids": torch.ones(_BATCH, _TOKENS, dtype=torch.int32),
    "lengths": torch.full((_BATCH,), _TOKENS, dtype=torch.int32),
}
"""Input names of the graph that engines are built from, with an example of each."""
OUTPUT = "sentence_embedding"
EXTERNAL_DATA_BYTES = 2**31 - 2**24
"""Protobuf ends at 2 GiB; weights above this go into a file beside the graph."""


def export_graph(
    encoder: torch.nn.Module,
    path: Path,
    opset: int,
    inputs: Mapping[str, torch.Tensor] = PORTABLE_INPUTS,
) -> None:
    """Write the encoder as an ONNX graph, ``inputs`` by name to (B, H) vectors.

    Only standard operators; batch and length are free. Raises ``InputError`` for another opset
    than ``OPSETS``.
    """
    if opset not in OPSETS:
        raise InputError(f"opset is {opset}; allowed: {OPSETS.start} to {OPSETS.stop - 1}.")
    axes = (torch.export.Dim("batch"), torch.export.Dim("tokens"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch itself
        program = torch.onnx.export(
            encoder.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_shapes=tuple(dict(enumerate(axes[: t.ndim])) for t in inputs.values()),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip_traces(model)
    if inputs is PORTABLE_INPUTS:
        _permute_keys_in_two_steps(model)
    save_graph(model, path)


def save_graph(model: onnx.ModelProto, path: Path, domains: Collection[str] = ("",)) -> None:
    """Check a graph and write it; weights beyond protobuf's limit go into ``path``.data.

    ``domains``: the operators it may hold; "" is ONNX's own.
    """
    foreign = {n.op_type for n in model.graph.node if n.domain not in {*domains, "ai.onnx"}}
    if foreign:
        raise InputError(f"the graph holds operators outside the standard domain: {foreign}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    weight_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    data_of(path).unlink(missing_ok=True)  # onnx would write behind what is there
    if weight_bytes > EXTERNAL_DATA_BYTES:
        onnx.save(model, path, save_as_external_data=True, location=data_of(path).name)
    else:
        onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)


def data_of(path: Path) -> Path:
    """Return where the weights of a graph are that are too large for its own file."""
    return path.with_name(weights_beside(path.name))


def remove_graph(path: Path) -> None:
    """Remove a graph, and its weights where they are in a file of their own."""
    path.unlink()
    data_of(path).unlink(missing_ok=True)


def _permute_keys_in_two_steps(model: onnx.ModelProto) -> None:
    """Have keys swap tokens with heads, then with values: the exporter joins the two.

    OpenVINO takes the first step into its attention kernel, but copies for both at once.
    """
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Transpose" and list(node.attribute[0].ints) == [0, 2, 3, 1]:
            swapped = f"{node.output[0]}.by_head"
            nodes += [
                onnx.helper.make_node("Transpose", node.input, [swapped], perm=[0, 2, 1, 3]),
                onnx.helper.make_node("Transpose", [swapped], node.output, perm=[0, 1, 3, 2]),
            ]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove the stack traces that torch notes on every node: they name this machine's folders."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for item in [*model.graph.node, *model.graph.value_info, *model.graph.input]:
        del item.metadata_props[:]
    for output in model.graph.output:
        del output.metadata_props[:]
    del model.functions[:]
    model.doc_string = ""


logging.getLogger("torch.onnx").setLevel(logging.ERROR)
logging.getLogger("onnxscript").setLevel(logging.ERROR)
