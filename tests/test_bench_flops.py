"""Arithmetic counted by formula, against torch's own count of the module that is exported."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_checkpoint import HEADS, HIDDEN, INNER, LAYERS, random_checkpoint, random_ids
from torch.utils.flop_counter import FlopCounterMode

from corom.benchmarks.flops import EncoderShape, text_flops, texts_flops
from corom.benchmarks.gemm import gemm_rates, layer_products
from corom.export.encoder import TorchEncoder
from corom.runtime.manifest import Pooling


def counted_by_torch(pooling: Pooling, tokens: int, *, flat: bool) -> int:
    """What torch executes in matrix products, for one text without padding."""
    encoder = TorchEncoder(random_checkpoint(pooling), flat=flat)
    ids = torch.tensor(random_ids([tokens]))
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        encoder(ids, torch.ones_like(ids))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("tokens", [2, 3, 17, 128])
def test_the_formula_is_what_torch_counts(pooling: Pooling, tokens: int, flat: bool) -> None:
    shape = EncoderShape(HIDDEN, LAYERS, HEADS, INNER, cls_only=pooling == "cls", flat=flat)
    assert text_flops(shape, tokens) == counted_by_torch(pooling, tokens, flat=flat)


shapes = st.builds(
    EncoderShape,
    hidden=st.integers(1, 64),
    layers=st.integers(1, 6),
    heads=st.integers(1, 4),
    intermediate=st.integers(1, 64),
    cls_only=st.booleans(),
    flat=st.booleans(),
    looked_up=st.booleans(),
)


def brute_force(shape: EncoderShape, tokens: int) -> int:
    """Count every product of every output value of every layer."""
    flops = 0
    for layer in range(shape.layers):
        last = layer == shape.layers - 1
        if shape.cls_only and shape.flat and last:
            flops += 4 * 2 * shape.hidden * shape.hidden  # query, key, value, output: of one row
            flops += 2 * 2 * shape.hidden * shape.intermediate
            # a score and a sum of whole tokens, each token and head
            flops += sum(2 * 2 * shape.hidden for _ in range(tokens * shape.heads))
            continue
        known = shape.looked_up and layer == 0  # its queries, keys and values
        for token in range(tokens):
            flops += 0 if known else 2 * 2 * shape.hidden * shape.hidden  # key and value
            if shape.cls_only and last and token > 0:
                continue
            flops += (1 if known else 2) * 2 * shape.hidden * shape.hidden  # query and output
            flops += 2 * 2 * shape.hidden * shape.intermediate  # in and out again
            flops += sum(2 * 2 * shape.hidden for _ in range(tokens))  # score and sum, each token
    return flops


@settings(deadline=None)
@given(shapes, st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_the_formula_is_what_counting_each_value_gives(
    shape: EncoderShape, lengths: list[int]
) -> None:
    assert texts_flops(shape, lengths) == sum(brute_force(shape, n) for n in lengths)


def test_the_roof_is_measured_for_every_precision() -> None:
    shape = EncoderShape(64, 2, 4, 128, cls_only=True)
    rates = gemm_rates(shape, threads=1, seconds=0.002)
    assert set(rates) == {"fp32", "bf16", "int8"}
    assert all(rate.gflops > 0.1 for rate in rates.values())
    weights = sum(times * a * b for a, b, times in layer_products(shape))
    assert weights == 4 * 64 * 64 + 2 * 64 * 128
