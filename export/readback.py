"""What precision an engine really has: read from its network, and from the plan that was built.

A typed graph in fp32 gives an fp32 engine without a word, so nothing is taken on trust.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corom.runtime.errors import EngineError
from corom.runtime.gpu_machine import this_machine

Half = npt.NDArray[np.float16]

WINDOW = 32
"""Numbers of a weight that are looked for in a plan: within one head, however heads are arranged,
and too many to be found by chance."""


class Products(NamedTuple):
    """The matrix products of a network: how many, and samples of their constant operands."""

    total: int
    samples: list[Half]


def half_products(trt: Any, network: Any) -> Products:  # noqa: ANN401  # the bindings have no types
    """Return the matrix products of a network; raises ``EngineError`` unless all are fp16."""
    layers = [network.get_layer(k) for k in range(network.num_layers)]
    makers = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    wide, samples = [], []
    for layer in products:
        operands = [layer.get_input(k) for k in range(2)]
        types = {tensor.dtype for tensor in [*operands, layer.get_output(0)]}
        if types != {trt.DataType.HALF}:
            wide.append(f"{layer.name} ({', '.join(sorted(t.name for t in types))})")
        samples += [s for s in (_constant(trt, t, makers) for t in operands) if s is not None]
    if wide or not products:
        found = f"{len(wide)} of {len(products)} are not, such as {wide[0]}" if wide else "has none"
        raise EngineError(
            f"the matrix products of the graph must be fp16; found: {found}. TensorRT would build "
            "the engine in that precision. Export the graph again with --engine."
        )
    return Products(len(products), samples)


def read_back(trt: Any, plan: bytes, products: Products, log: Any) -> dict[str, str | int]:  # noqa: ANN401
    """Return what shows that a plan computes in fp16, in words, for its sidecar.

    Looks for the weights of the products among the plan's bytes, which needs no GPU; where there is
    one, the layers of the opened engine are read as well. Raises ``EngineError`` if either shows
    fp32.
    """
    half = sum(sample.tobytes() in plan for sample in products.samples)
    if half < len(products.samples):
        wide = sum(sample.astype(np.float32).tobytes() in plan for sample in products.samples)
        # A plan may keep weights in an order of its own; TensorRT-RTX's keeps them as they are.
        if wide or (not half and trt.__name__ == "tensorrt_rtx"):
            raise EngineError(
                f"{wide} of {len(products.samples)} weights are fp32 in the engine "
                f"({half} are fp16) that TensorRT built from an fp16 graph; all must be fp16. "
                "Report this with the TensorRT version."
            )
    found: dict[str, str | int] = {
        "fp16_products": products.total,
        "fp16_weights_in_plan": f"{half} of {len(products.samples)}",
    }
    if this_machine().gpu is not None and (layers := _engine_layers(trt, plan, log)):
        found["fp16_layers"] = _half_layers(layers)
    return found


def _engine_layers(trt: Any, plan: bytes, log: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return the layers of an opened engine; none if this GPU does not open it."""
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return [entry for entry in layers if isinstance(entry, dict)]


def _half_layers(layers: list[dict[str, Any]]) -> str:
    """Return how many products of an engine take fp16; raises ``EngineError`` if none does."""
    products = [entry for entry in layers if _is_product(entry)]
    half = [entry for entry in products if {"half", "fp16"} & _types(entry)]
    if products and not half:
        raise EngineError(
            f"none of the {len(products)} matrix products of the built engine takes fp16; the "
            f"first takes {', '.join(sorted(_types(products[0])))}. Report this with the TensorRT "
            "version."
        )
    return f"{len(half)} of {len(products)}"


def _is_product(entry: dict[str, Any]) -> bool:
    words = f"{entry.get('LayerType', '')} {entry.get('Name', '')} {entry.get('TacticName', '')}"
    return any(word in words.lower() for word in ("gemm", "matmul", "matrix_multiply", "mha"))


def _types(entry: dict[str, Any]) -> set[str]:
    words = " ".join(str(t.get("Format/Datatype", "")) for t in entry.get("Inputs", []))
    return set(words.lower().replace(",", " ").split())


def _constant(trt: Any, tensor: Any, makers: dict[str, Any]) -> Half | None:  # noqa: ANN401
    """Return the first numbers of a constant operand; None if it is none, or says nothing."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type == trt.LayerType.SHUFFLE:
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type != trt.LayerType.CONSTANT:
        return None
    maker.__class__ = trt.IConstantLayer
    sample = np.asarray(maker.weights).ravel()[:WINDOW].astype(np.float16)
    return sample if len(np.unique(sample)) > WINDOW // 2 else None
