"""The fp16 graph that ONNX Runtime executes on GPUs: its own fused operators, written by hand.

The portable graph has about thirty operators a layer, and a GPU spends more time on beginning them
than on their arithmetic. Here a layer has seven. Products sum in fp32; what is between operators,
and what LayerNorm sums, is fp16. Inputs are an engine's: int32 ids and lengths. Knows no torch
module: it is built from the checkpoint's own weights, so that an error there is not one here too.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from corom.runtime.batching import pad, plan_batches
from corom.runtime.errors import ParityError
from corom.runtime.golden import Golden
from corom.runtime.graph_interface import OUTPUT
from corom.runtime.manifest import Tolerance
from corom.runtime.onnx_runtime import onnxruntime
from corom.runtime.parity import compare
from corom.runtime.tokens import Tokenizer
from corom.runtime.vectors import Vectors

from .checkpoint import Checkpoint
from .graph import save_graph

OPSET = 18
ORT_DOMAIN = "com.microsoft"


def export_fused_graph(checkpoint: Checkpoint, path: Path, dtype: type[np.floating[Any]]) -> None:
    """Write the graph with weights of this type: fp16 for GPUs, fp32 to be checked on a CPU."""
    graph = _Graph(dtype)
    _build(graph, checkpoint)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "tokens"])
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"])
    shape = ("batch", checkpoint.config.hidden)
    vectors = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape)
    made = helper.make_graph(graph.nodes, "fused", [ids, lengths], [vectors], graph.weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(ORT_DOMAIN, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9)
    save_graph(model, path, domains=("", ORT_DOMAIN))


def check_fused_graph(
    checkpoint: Checkpoint, golden: Golden, tolerance: Tolerance, staging: Path
) -> None:
    """Execute the graph with fp32 weights on the CPU; raises ``ParityError`` if it differs.

    ``tolerance``: of fp32. ``staging``: has room for the graph for as long as that takes. The CPU
    has no fp16 kernels for it, and what a GPU computes is compared with the golden vectors whenever
    a bundle is opened on one.
    """
    limits = checkpoint.max_length, checkpoint.config.max_positions
    tokens = Tokenizer(checkpoint.tokenizer_json, *limits)(golden.texts)
    with tempfile.TemporaryDirectory(dir=staging) as folder:
        path = Path(folder) / "fused.onnx"
        export_fused_graph(checkpoint, path, np.float32)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def vectors(batch_tokens: int) -> Vectors:
            found = np.empty_like(golden.vectors)
            for rows in plan_batches(tokens.lengths, batch_tokens):
                ids, lengths = pad(tokens, rows)
                inputs = {"input_ids": ids.astype(np.int32), "lengths": lengths.astype(np.int32)}
                found[rows] = session.run([OUTPUT], inputs)[0]
            return found

        parity = compare(golden.texts, golden.vectors, vectors(1), [vectors(4096)])
    if failures := parity.failures(tolerance):
        raise ParityError(
            f"the fused graph, with fp32 weights, failed parity with torch: {'; '.join(failures)}."
        )


class _Graph:
    """A graph as it grows. What takes or makes a tensor goes by its name."""

    def __init__(self, dtype: type[np.floating[Any]]) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, values: torch.Tensor) -> str:
        """Add a weight in the graph's own type."""
        return self.constant(values.numpy().astype(self.dtype))

    def constant(self, values: npt.NDArray[Any]) -> str:
        """Add a constant as it is."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def standard(self, op: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        """Add an operator of ONNX."""
        return self._add(op, "", inputs, attributes)

    def fused(self, op: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        """Add an operator of ONNX Runtime."""
        return self._add(op, ORT_DOMAIN, inputs, attributes)

    def _add(
        self, op: str, domain: str, inputs: tuple[str, ...], attributes: dict[str, Any]
    ) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], domain=domain, **attributes))
        return name


def _build(graph: _Graph, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    hidden = _embed(graph, checkpoint)
    for layer in range(config.layers):
        cls = checkpoint.pooling == "cls" and layer == config.layers - 1
        hidden = _layer(graph, checkpoint, f"encoder.layer.{layer}.", hidden, first_only=cls)
    pool = _first if checkpoint.pooling == "cls" else _mean
    pool(graph, hidden)
    graph.nodes[-1].output[0] = OUTPUT


def _embed(graph: _Graph, checkpoint: Checkpoint) -> str:
    """Words, positions and the one token type, summed and normalized: (B, S, H)."""
    state, config = checkpoint.state, checkpoint.config
    first = config.position_offset
    positions = state["embeddings.position_embeddings.weight"]
    positions = positions[first : first + config.max_positions]
    types = state["embeddings.token_type_embeddings.weight"]
    name = graph.fused(
        "EmbedLayerNormalization",
        "input_ids",
        "",
        graph.weight(state["embeddings.word_embeddings.weight"]),
        graph.weight(positions + types[0]),
        "",
        *_norm(graph, checkpoint, "embeddings.LayerNorm"),
        epsilon=config.layer_norm_eps,
    )
    graph.nodes[-1].output.append("unused")  # an index of the mask, which it is not given
    return name


def _layer(
    graph: _Graph, checkpoint: Checkpoint, prefix: str, hidden: str, *, first_only: bool
) -> str:
    """One layer, (B, S, H) to the same; with ``first_only`` to (B, 1, H), the first token's."""
    state, config = checkpoint.state, checkpoint.config

    def linear(name: str, inputs: str) -> tuple[str, str]:
        """Return a product, and the bias that whatever comes next adds."""
        weight = graph.weight(state[f"{prefix}{name}.weight"].T)
        return graph.standard("MatMul", inputs, weight), graph.weight(state[f"{prefix}{name}.bias"])

    def add_and_norm(name: str, product: tuple[str, str], residual: str) -> str:
        return graph.fused(
            "SkipLayerNormalization",
            product[0],
            residual,
            *_norm(graph, checkpoint, f"{prefix}{name}.LayerNorm"),
            product[1],
            epsilon=config.layer_norm_eps,
        )

    three = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
    gathered = graph.fused(
        "Attention",
        hidden,
        graph.weight(torch.cat([state[f"{name}.weight"].T for name in three], dim=1)),
        graph.weight(torch.cat([state[f"{name}.bias"] for name in three])),
        "lengths",
        num_heads=config.heads,
    )
    if first_only:
        zero = graph.constant(np.array([0], np.int64))
        gathered = graph.standard("Gather", gathered, zero, axis=1)
        hidden = graph.standard("Gather", hidden, zero, axis=1)
    hidden = add_and_norm("attention.output", linear("attention.output.dense", gathered), hidden)
    product = linear("intermediate.dense", hidden)
    if config.activation == "relu":
        inner = graph.standard("Relu", graph.standard("Add", *product))
    else:
        inner = graph.fused(_BIAS_GELU[config.activation], *product)
    return add_and_norm("output", linear("output.dense", inner), hidden)


_BIAS_GELU = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}


def _norm(graph: _Graph, checkpoint: Checkpoint, name: str) -> tuple[str, str]:
    state = checkpoint.state
    return graph.weight(state[f"{name}.weight"]), graph.weight(state[f"{name}.bias"])


def _first(graph: _Graph, hidden: str) -> None:
    """The one token of (B, 1, H) in fp32: (B, H)."""
    first = graph.standard("Squeeze", hidden, graph.constant(np.array([1], np.int64)))
    graph.standard("Cast", first, to=TensorProto.FLOAT)


def _mean(graph: _Graph, hidden: str) -> None:
    """The mean over the tokens of each text in fp32: (B, H).

    Positions are counted on the device, as a sum of ones: a shape would be taken to the CPU.
    """
    one = graph.constant(np.array([1], np.int64))
    lengths = graph.standard("Unsqueeze", "lengths", one)
    ids = graph.standard("Cast", "input_ids", to=TensorProto.FLOAT)
    zeros = graph.standard("Mul", ids, graph.constant(np.array(0, np.float32)))
    ones = graph.standard("Add", zeros, graph.constant(np.array(1, np.float32)))
    places = graph.standard("CumSum", ones, graph.constant(np.array(1, np.int64)))
    lengths = graph.standard("Cast", lengths, to=TensorProto.FLOAT)
    kept = graph.standard(
        "Cast", graph.standard("LessOrEqual", places, lengths), to=TensorProto.FLOAT
    )
    kept = graph.standard("Unsqueeze", kept, one)  # (B, 1, S)
    total = graph.standard("MatMul", kept, graph.standard("Cast", hidden, to=TensorProto.FLOAT))
    graph.standard("Div", graph.standard("Squeeze", total, one), lengths)
