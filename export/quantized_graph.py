"""The fp32 graph rewritten into int8: every product with weights becomes one integer kernel.

The form is QuantizeLinear, DequantizeLinear, MatMul of the standard domain. What makes engines
execute it in integers, found by trying (benchmarks/README.md): inputs are unsigned 8 bit, weights
signed, one scale a column; every MatMul has a DequantizeLinear of its own, even where the input is
shared. Everything between the products stays in fp32, embeddings too.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from .calibration import Inputs, linear_inputs
from .checkpoint import Checkpoint
from .encoder import TorchEncoder
from .graph import export_graph, save_graph
from .quantization import InputScheme, choose_scheme, corrected_bias, int8_weights

FP32_GRAPH = "onnx/model.onnx"
INT8_GRAPH = "onnx/model_int8.onnx"


def export_int8_graph(
    folder: Path, encoder: TorchEncoder, opset: int, checkpoint: Checkpoint, texts: list[str]
) -> None:
    """Write the int8 form of the encoder's graph, with scales chosen on ``texts``."""
    # Not flat: ONNX Runtime would take product and sum together in fp32 before it sees the codes.
    assert not encoder.flat
    export_graph(encoder, folder / INT8_GRAPH, opset)
    model = onnx.load(folder / INT8_GRAPH)
    linears = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.Linear)}
    products = _products(model, linears)
    inputs = linear_inputs(encoder, checkpoint, texts)
    rewriting = _Rewriting(model)
    for tensor in dict.fromkeys(node.input[0] for node in products.values()):
        names = [name for name, node in products.items() if node.input[0] == tensor]
        seen = inputs[names[0]]
        scheme = choose_scheme(seen, [linears[name].weight for name in names])
        rewriting.quantize_input(tensor, scheme)
        for name in names:
            rewriting.quantize_product(name, products[name], linears[name], seen, scheme)
    rewriting.finish()
    save_graph(model, folder / INT8_GRAPH)


def _products(model: onnx.ModelProto, linears: dict[str, nn.Linear]) -> dict[str, onnx.NodeProto]:
    """Return the MatMul of each linear layer, known by its weights: the exporter names neither."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    names: dict[bytes, list[str]] = {}
    for name, linear in linears.items():
        names.setdefault(_digest(linear.weight.numpy().T), []).append(name)
    products = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            weight = numpy_helper.to_array(constants[node.input[1]])
            # Layers of equal weights come in the order in which they are executed.
            products[names[_digest(weight)].pop(0)] = node
    assert products.keys() == linears.keys()
    return products


def _digest(weight: npt.NDArray[np.float32]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(weight).tobytes()).digest()


class _Rewriting:
    """Collects what replaces the products of a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._before: dict[str, list[onnx.NodeProto]] = {}
        """Nodes to put before the node that gives a tensor's first product."""
        self._constants: dict[str, onnx.TensorProto] = {
            tensor.name: tensor for tensor in model.graph.initializer
        }

    def quantize_input(self, tensor: str, scheme: InputScheme) -> None:
        """Add the 8-bit form of a tensor."""
        factors = self._constant(f"{tensor}.factors", scheme.factors.numpy())
        scale = self._constant(f"{tensor}.scale", np.float32(scheme.scale))
        zero = self._constant(f"{tensor}.zero", np.uint8(scheme.zero))
        self._before[tensor] = [
            helper.make_node("Mul", [tensor, factors], [f"{tensor}.even"]),
            helper.make_node(
                "QuantizeLinear", [f"{tensor}.even", scale, zero], [f"{tensor}.codes"]
            ),
        ]

    def quantize_product(
        self,
        name: str,
        product: onnx.NodeProto,
        linear: nn.Linear,
        inputs: Inputs,
        scheme: InputScheme,
    ) -> None:
        """Let a product multiply codes; its layer's bias is corrected."""
        tensor = product.input[0]
        with torch.inference_mode():
            weights = int8_weights(linear.weight, scheme)
            bias = corrected_bias(inputs, linear.weight, linear.bias, scheme)
        codes = self._constant(f"{name}.codes", weights.codes.numpy().T)
        scales = self._constant(f"{name}.scales", weights.scales.numpy())
        zeros = self._constant(f"{name}.zeros", np.zeros(len(weights.scales), np.int8))
        (addition,) = (n for n in self._model.graph.node if product.output[0] in n.input)
        # A constant of its own: equal biases of several layers are one in the graph.
        addition.input[:] = [product.output[0], self._constant(f"{name}.offset", bias.numpy())]
        self._before.setdefault(product.output[0], []).extend(
            [
                helper.make_node(
                    "DequantizeLinear",
                    [f"{tensor}.codes", f"{tensor}.scale", f"{tensor}.zero"],
                    [f"{name}.input"],
                ),
                helper.make_node(
                    "DequantizeLinear", [codes, scales, zeros], [f"{name}.weight"], axis=1
                ),
            ]
        )
        product.input[:] = [f"{name}.input", f"{name}.weight"]

    def finish(self) -> None:
        """Put everything in its place, in an order of execution."""
        nodes = []
        for node in self._model.graph.node:
            nodes += self._before.pop(node.output[0], []) if node.op_type == "MatMul" else []
            nodes.append(node)
            nodes += self._before.pop(node.output[0], [])
        del self._model.graph.node[:]
        self._model.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        del self._model.graph.initializer[:]
        self._model.graph.initializer.extend(t for n, t in self._constants.items() if n in used)

    def _constant(self, name: str, value: npt.NDArray[np.generic] | np.generic) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name
