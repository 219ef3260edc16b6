"""The fp32 graph with 8-bit weights, for an engine that quantizes what they multiply as it comes.

One scale a column, no zero points. Nothing is chosen on texts: OpenVINO takes the scale of each
token, and of each ``GROUP`` of its values, from the values themselves, so a text's vector
does not depend on its batch-mates.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from corom.runtime.errors import InputError
from corom.runtime.native_weights import GROUP

from .config import EncoderConfig
from .graph import save_graph
from .quantized_graph import FP32_GRAPH

PER_TOKEN_GRAPH = "onnx/model_int8_per_token.onnx"


def export_per_token_graph(folder: Path) -> None:
    """Write the fp32 graph of a bundle with the weights of every linear layer in 8 bits.

    With [CLS] pooling those that ``FirstRowAttention`` has by head stay as they are.
    """
    model = onnx.load(folder / FP32_GRAPH)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type in {"MatMul", "Gemm"} and _is_matrix(constants.get(node.input[1])):
            weight = constants.pop(node.input[1])
            columns_first = any(a.name == "transB" and a.i for a in node.attribute)
            nodes.append(_dequantized(weight, 0 if columns_first else 1, constants))
        nodes.append(node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants.values())
    save_graph(model, folder / PER_TOKEN_GRAPH)


def int8_codes(
    weight: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return int8 codes and one scale for each index of ``axis``; codes · scales is the weight."""
    largest = np.abs(weight).max(1 - axis, keepdims=True)
    scales = np.maximum(largest, np.finfo(np.float32).tiny) / np.float32(127)
    codes = np.round(weight / scales).clip(-127, 127).astype(np.int8)
    return codes, scales.reshape(-1)


def require_groups(config: EncoderConfig) -> None:
    """Raise ``InputError`` unless a model's layers can be cut into groups of ``GROUP`` values."""
    if config.hidden % GROUP or config.intermediate % GROUP:
        raise InputError(
            f"int8-per-token needs layers whose width is a multiple of {GROUP}; this model's "
            f"are {config.hidden} and {config.intermediate} wide. Take int8."
        )


def _is_matrix(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and len(tensor.dims) == 2


def _dequantized(
    tensor: onnx.TensorProto, axis: int, constants: dict[str, onnx.TensorProto]
) -> onnx.NodeProto:
    """Put the 8-bit form of a matrix among the constants; return the node that gives its values."""
    weight = numpy_helper.to_array(tensor)
    codes, scales = int8_codes(weight, axis)
    names = [f"{tensor.name}.codes", f"{tensor.name}.scales"]
    constants[names[0]] = numpy_helper.from_array(codes, names[0])
    constants[names[1]] = numpy_helper.from_array(scales, names[1])
    return helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis)
