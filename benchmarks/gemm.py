"""The rate of matrix products that this machine reaches: the roof for every precision.

Measured with the very products of a model's layers, operands of that precision, by each library
that is here; the highest rate counts. int8: 8-bit operands, 32-bit sums, nothing scaled back.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from .flops import EncoderShape

Roof = Literal["fp32", "bf16", "int8"]
ROOFS: tuple[Roof, ...] = ("fp32", "bf16", "int8")
ROWS = (512, 2048)
"""Tokens of a batch: those that fit the nearest caches, and those that throughput is reached at."""


class Rate(NamedTuple):
    """Operations a second, in billions, and what reached them."""

    gflops: float
    by: str


def gemm_rates(
    shape: EncoderShape, threads: int, seconds: float = 0.1, roofs: Sequence[Roof] = ROOFS
) -> dict[Roof, Rate]:
    """Return the highest rate found for each precision; each product runs about ``seconds``."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return {roof: max(_rates(shape, threads, seconds, roof)) for roof in roofs}
    finally:
        torch.set_num_threads(before)


def _rates(shape: EncoderShape, threads: int, seconds: float, roof: Roof) -> list[Rate]:
    makers: dict[str, Callable[[int, int, int], Callable[[], object]]]
    makers = {"torch": lambda m, k, n: _torch_product(m, k, n, roof)}
    if roof != "bf16":  # ONNX Runtime has none on CPUs
        makers["onnxruntime"] = lambda m, k, n: _onnxruntime_product(m, k, n, roof, threads)
    rates = []
    for library, make in makers.items():
        for rows in ROWS:
            operations = duration = 0.0
            for inner, outer, times in layer_products(shape):
                product = make(rows, inner, outer)
                operations += times * 2.0 * rows * inner * outer
                duration += times * _median_seconds(product, seconds)
            rates.append(Rate(operations / duration / 1e9, f"{library}, {rows} rows"))
    return rates


def layer_products(shape: EncoderShape) -> list[tuple[int, int, int]]:
    """Return the products of a layer with its weights: inner size, outer size, how often."""
    hidden, wide = shape.hidden, shape.intermediate
    return [(hidden, hidden, 4), (hidden, wide, 1), (wide, hidden, 1)]


def _torch_product(rows: int, inner: int, outer: int, roof: Roof) -> Callable[[], object]:
    import torch

    if roof == "int8":
        left = torch.randint(-127, 127, (rows, inner), dtype=torch.int8)
        right = torch.randint(-127, 127, (inner, outer), dtype=torch.int8)
        return lambda: torch._int_mm(left, right)
    kind = torch.bfloat16 if roof == "bf16" else torch.float32
    a, b = torch.randn(rows, inner, dtype=kind), torch.randn(inner, outer, dtype=kind)
    return lambda: a @ b


def _onnxruntime_product(
    rows: int, inner: int, outer: int, roof: Roof, threads: int
) -> Callable[[], object]:
    """A graph of one product with constant weights, which the library packs when it opens it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from corom.runtime.onnx_runtime import onnxruntime

    random = np.random.default_rng(0)
    if roof == "int8":
        left: Any = random.integers(0, 255, (rows, inner)).astype(np.uint8)
        right: Any = random.integers(-127, 127, (inner, outer)).astype(np.int8)
        node = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
        kinds = (TensorProto.UINT8, TensorProto.INT32)
    else:
        left = random.standard_normal((rows, inner), np.float32)
        right = random.standard_normal((inner, outer), np.float32)
        node = helper.make_node("MatMul", ["left", "right"], ["product"])
        kinds = (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("left", kinds[0], left.shape)],
        [helper.make_tensor_value_info("product", kinds[1], (rows, outer))],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"left": left})


def _median_seconds(product: Callable[[], object], seconds: float) -> float:
    product()
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(durations) < 3:
        start = time.perf_counter()
        product()
        durations.append(time.perf_counter() - start)
    return float(np.median(durations))
