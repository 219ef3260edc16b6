"""Backend native: corom's own kernels against the arithmetic they stand for, written in NumPy."""

import mmap
import resource
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from corom.benchmarks.tuning import Way, measure
from corom.export import graph as graph_module
from corom.export.bundle import export_bundle
from corom.export.native_index import BUMP_ENDS, REST_NAME, activation_pieces
from corom.runtime import DynamicBatcher, Encoder, load_manifest, native_library
from corom.runtime.availability import why_not_auto
from corom.runtime.backend import choose_backend
from corom.runtime.backend_native import NativeBackend
from corom.runtime.batching import pad
from corom.runtime.cpus import available_cpus, cpu_flags, has_vnni
from corom.runtime.errors import (
    BundleError,
    CoromError,
    InputError,
    ParityError,
    UnavailableError,
)
from corom.runtime.manifest import Pooling, Precision, save_manifest
from corom.runtime.native_library import (
    AMX,
    BUILDS,
    PRECISIONS,
    NativeEncoder,
    NativeRunner,
    native_executes,
    require_native,
)
from corom.runtime.native_weights import (
    COARSE,
    FINE,
    INDEX_NAME,
    PIECES,
    NativeWeights,
    Sizes,
    array_shapes,
    load_native_weights,
)
from corom.runtime.options import check_options
from corom.runtime.preemption import Preemption

HERE = [precision for precision in PRECISIONS if native_executes(precision)]
needs_native = pytest.mark.skipif(
    "fp32" not in HERE,
    reason="run it on Linux on x86-64 with AVX2, and with a C++20 compiler to install with",
)


def least_for(precision: Precision) -> tuple[str, ...]:
    """Return what a CPU must have for a precision."""
    return [needed[precision] for needed in BUILDS.values() if precision in needed][-1]


every_rung = pytest.mark.parametrize(
    "precision",
    [
        pytest.param(
            rung,
            marks=pytest.mark.skipif(
                rung not in HERE, reason=f"run it on a CPU with {', '.join(least_for(rung))}"
            ),
        )
        for rung in PRECISIONS
    ],
)
every_build = pytest.mark.parametrize(
    ("build", "precision"),
    [
        pytest.param(
            build,
            rung,
            marks=pytest.mark.skipif(
                rung not in HERE or not cpu_flags().issuperset(needed),
                reason=f"run it on a CPU with {', '.join(needed)}",
            ),
        )
        for build, precisions in BUILDS.items()
        for rung, needed in precisions.items()
    ],
)
ACTIVATIONS = {
    "gelu": torch.nn.GELU(),
    "gelu_new": torch.nn.GELU(approximate="tanh"),
    "relu": torch.nn.ReLU(),
}


@pytest.mark.skipif(
    bool(set(least_for("fp32")) - cpu_flags()) or shutil.which("g++") is None,
    reason="run it on Linux on x86-64 with AVX2 and g++",
)
def test_the_kernels_are_installed_where_they_can_be() -> None:
    assert native_executes("fp32")


# --- The arithmetic


def in_bf16(values: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bf16."""
    return torch.from_numpy(values.astype(np.float32)).bfloat16().double().numpy()


def coded(values: np.ndarray, span: int) -> np.ndarray:
    """Return what codes of 8 bits, a scale for each ``span`` of them, leave of (T, K) values."""
    left = []
    for first in range(0, values.shape[1], span):
        part = values[:, first : first + span]
        steps = np.maximum(np.abs(part).max(-1, keepdims=True), 1e-30) / 127
        left.append(np.round(part / steps) * steps)
    return np.concatenate(left, axis=1)


def coded_weight(weight: np.ndarray) -> np.ndarray:
    """Return what codes of 8 bits, a scale for each row, leave of (outputs, inputs) float32."""
    scales = np.abs(weight).max(1, keepdims=True) / np.float32(127)
    return np.round(weight / scales) * scales.astype(np.float64)


def product(
    precision: Precision, values: np.ndarray, weight: np.ndarray, smoothing: Any, span: int
) -> np.ndarray:
    """Return (T, K) · (outputs, K) transposed, of what the precision leaves of both."""
    if precision == "fp32":
        return values @ weight.astype(np.float64).T
    if precision == "bf16":
        return in_bf16(values) @ in_bf16(weight).T
    return coded(values / smoothing, span) @ coded_weight(weight * smoothing).T


def has_bf16() -> bool:
    """Say whether this CPU multiplies bf16, so that native attends in it."""
    return "avx512_bf16" in native_library.cpu_flags()


def take_away(monkeypatch: pytest.MonkeyPatch, *taken: str) -> None:
    """Have this CPU say that it does not have some of its flags."""
    flags = cpu_flags() - set(taken)
    monkeypatch.setattr(native_library, "cpu_flags", lambda: flags)


def take_other_builds_away(monkeypatch: pytest.MonkeyPatch, build: str) -> None:
    """Have this CPU say that it has what a build needs, and nothing that a faster one does."""
    names = list(BUILDS)
    faster = [BUILDS[name] for name in names[: names.index(build)]]
    needed = {flag for precisions in faster for flags in precisions.values() for flag in flags}
    own = {flag for flags in BUILDS[build].values() for flag in flags}
    more = AMX if faster else set()
    take_away(monkeypatch, *(needed - own), *more)


def take_bf16_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this CPU say that it does not multiply bf16, so that attention is in fp32."""
    take_away(monkeypatch, "avx512_bf16")


needs_amx = pytest.mark.skipif(
    "bf16" not in HERE
    or not cpu_flags() >= AMX
    or not native_library._library("avx512").corom_ask_for_amx(),
    reason="run it on a CPU with AMX, on a system that allows it",
)


def written_out(
    weights: NativeWeights,
    ids: np.ndarray,
    activation: torch.nn.Module,
    precision: Precision,
    pooling: Pooling,
) -> np.ndarray:
    """Return the vector of one text: products of rounded values and weights, all else in float64.

    Attention is in bf16 where the CPU has that, unless the precision is fp32. The first token's
    attention in the last layer is rounded nowhere but for its query; the first layer's queries,
    keys and values are made without rounding if they are made of words and positions.
    """
    sizes = weights.sizes
    in_attention = in_bf16 if precision != "fp32" and has_bf16() else np.asarray
    embedded = 12 * sizes.hidden * (sizes.words + sizes.positions) <= 256 * 2**20

    def norm(name: str, values: np.ndarray) -> np.ndarray:
        weight, bias = weights.arrays[f"{name}.weight"], weights.arrays[f"{name}.bias"]
        centred = values - values.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + weights.epsilon)
        return centred / deviation * weight + bias

    def linear(
        name: str,
        values: np.ndarray,
        smoothed_by: str | None = None,
        precision: Precision = precision,
        taken: float = 1,
        given: float = 1,
    ) -> Any:
        """Return what a layer makes of values, which are multiplied in steps, so many to 1."""
        smoothing = weights.arrays[f"{smoothed_by}.smoothing"] if smoothed_by else np.float32(1)
        # A token that a norm gives has one scale; else 256 values have, which is four heads.
        span = values.shape[1] if smoothed_by else 256
        weight, bias = weights.arrays[f"{name}.weight"], weights.arrays.get(f"{name}.bias", 0)
        weight = weight * np.float32(given / taken)
        return product(precision, values * taken, weight, smoothing, span) / given + bias

    def heads(values: np.ndarray) -> np.ndarray:
        return values.reshape(len(values), -1, 64).transpose(1, 0, 2)

    hidden = norm(
        "embeddings.norm",
        weights.arrays["embeddings.words.weight"][ids].astype(np.float64)
        + weights.arrays["embeddings.positions"][: len(ids)],
    )
    for layer in range(weights.sizes.layers):
        own = f"layers.{layer}."
        before = f"layers.{layer - 1}.output_norm" if layer else "embeddings.norm"
        first = pooling == "cls" and layer == weights.sizes.layers - 1
        rows = hidden[:1] if first else hidden
        exact = layer == 0 and embedded and not first
        query = heads(linear(f"{own}attention.query", rows, before, "fp32" if exact else precision))
        key, value = (
            heads(
                linear(
                    f"{own}attention.{part}",
                    hidden,
                    before,
                    "fp32" if exact or first else precision,
                )
            )
            for part in ("key", "value")
        )
        rounded = np.asarray if first else in_attention
        scores = rounded(query) @ rounded(key).transpose(0, 2, 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = rounded(shares / shares.sum(-1, keepdims=True)) @ rounded(value)
        gathered = linear(f"{own}attention.output", mixed.transpose(1, 0, 2).reshape(rows.shape))
        rows = norm(f"{own}attention_norm", rows + gathered)
        steps = (PIECES - 1) / weights.activation[FINE if precision == "fp32" else COARSE][0]
        widened = linear(f"{own}inner", rows, f"{own}attention_norm", given=steps)
        inner = activation(torch.from_numpy(widened)).numpy()
        hidden = norm(f"{own}output_norm", rows + linear(f"{own}outer", inner, taken=steps))
    return hidden.mean(0) if pooling == "mean" else hidden[0]


TOO_MANY_WORDS = 350_000
"""Of 64 values: three products of each, of 4 bytes, are more than 256 MiB."""


def random_weights(
    seed: int,
    hidden: int,
    inner: int,
    pooling: Pooling = "cls",
    activation: str = "gelu",
    words: int = 300,
    layers: int = 2,
) -> NativeWeights:
    """Return weights of the size that training gives; words beyond the 300th are zeros."""
    rng = np.random.default_rng(seed)
    sizes = Sizes(layers=layers, hidden=hidden, inner=inner, words=words, positions=160)

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "embeddings.words.weight":
            table = np.zeros(shape, np.float32)
            table[:300] = rng.standard_normal((300, hidden))
            return table
        values = rng.standard_normal(shape)
        if name.endswith("smoothing"):
            values = 2.0 ** rng.integers(-2, 2, shape)
        elif "norm" in name:
            values = values * 0.1 + name.endswith("weight")
        elif len(shape) == 1 or name == "embeddings.positions":
            values *= 0.2
        else:
            values *= shape[1] ** -0.5
        return values.astype(np.float32)

    return NativeWeights(
        sizes=sizes,
        epsilon=1e-12,
        activation={d: activation_pieces(ACTIVATIONS[activation], d) for d in (COARSE, FINE)},
        arrays={name: array(name, shape) for name, shape in array_shapes(sizes, pooling).items()},
    )


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Return 1 - the cosine of two vectors.

    Far below a step between two codes, unless a value lies so near the middle between two that
    float32 and float64 take different ones: then it is that of a step, which the layers after it
    make more of.
    """
    found = found.astype(np.float64)
    return float(1 - found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))


def distances(
    weights: NativeWeights,
    precision: Precision,
    pooling: Pooling,
    activation: str = "gelu",
) -> list[float]:
    """Return how far the kernels' vectors are from the written-out ones of random ids."""
    runner = NativeRunner(NativeEncoder(weights, precision, pooling), threads=1)
    rng = np.random.default_rng(2)
    found = []
    for length in [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 64, 65, 100, 128, 160]:
        ids = rng.integers(0, 300, length)
        (vector,) = runner.run(ids[None], np.array([length]))
        expected = written_out(weights, ids, ACTIVATIONS[activation], precision, pooling)
        found.append(distance(vector, expected))
    return found


USUAL: dict[Precision, float] = {"fp32": 1e-11, "bf16": 3e-6, "int8-per-token": 2e-6}
WORST: dict[Precision, float] = {"fp32": 1e-10, "bf16": 3e-5, "int8-per-token": 1e-3}
USUAL_IN_BOTH = 3e-4
"""Of codes beside attention in bf16: a value that is rounded to the one instead of the other number
of bf16 is followed by other codes."""


def usual(precision: Precision) -> float:
    """Return how far vectors are usually from the written-out ones."""
    in_both = precision == "int8-per-token" and has_bf16()
    return USUAL_IN_BOTH if in_both else USUAL[precision]


@every_build
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", [(64, 64), (128, 320), (448, 128)])
def test_vectors_are_those_of_the_arithmetic(
    build: str,
    precision: Precision,
    shape: tuple[int, int],
    pooling: Pooling,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_other_builds_away(monkeypatch, build)
    assert require_native(precision) == build
    found = distances(random_weights(1, *shape, pooling), precision, pooling)
    assert np.median(found) < usual(precision)
    assert max(found) < WORST[precision]


@pytest.mark.skipif("int8-per-token" not in HERE, reason="run it on a CPU with avx2")
def test_a_cpu_that_hides_some_of_its_flags_is_one_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As virtual ones may: bf16 and AMX are for the build that multiplies by AVX-512."""
    weights = random_weights(1, 128, 320, "mean")
    lengths = np.array([1, 17, 100, 160])
    ids = np.random.default_rng(2).integers(0, 300, (len(lengths), 160))

    def vectors(flags: set[str]) -> np.ndarray:
        monkeypatch.setattr(native_library, "cpu_flags", lambda: flags)
        runner = NativeRunner(NativeEncoder(weights, "int8-per-token", "mean"), threads=1)
        return runner.run(ids, lengths)

    least = set(least_for("int8-per-token"))
    np.testing.assert_array_equal(vectors(least | {"avx512_bf16", *AMX}), vectors(least))


@pytest.mark.skipif("int8-per-token" not in HERE, reason="run it on a CPU with avx2")
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", [(64, 64), (128, 320), (448, 128)])
def test_int8_attends_in_fp32_on_cpus_without_bf16(
    shape: tuple[int, int], pooling: Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_bf16_away(monkeypatch)
    found = distances(random_weights(1, *shape, pooling), "int8-per-token", pooling)
    assert np.median(found) < USUAL["int8-per-token"]
    assert max(found) < WORST["int8-per-token"]


@needs_amx
@pytest.mark.parametrize("rung", ["bf16", "int8-per-token"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", [(64, 64), (128, 320), (448, 128)])
def test_vectors_are_those_of_the_arithmetic_on_cpus_without_amx(
    rung: Precision, shape: tuple[int, int], pooling: Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch, *AMX)
    found = distances(random_weights(1, *shape, pooling), rung, pooling)
    assert np.median(found) < usual(rung)
    assert max(found) < WORST[rung]


@needs_amx
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", [(64, 64), (128, 320), (448, 1024), (1024, 128)])
def test_codes_have_the_same_sums_with_amx_and_without(
    shape: tuple[int, int], pooling: Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights(1, *shape, pooling, layers=3)
    lengths = np.array([1, 2, 15, 16, 17, 31, 32, 33, 100, 160, 3, 64])
    ids = np.random.default_rng(2).integers(0, 300, (len(lengths), 160))

    def vectors() -> np.ndarray:
        runner = NativeRunner(NativeEncoder(weights, "int8-per-token", pooling), threads=1)
        return runner.run(ids, lengths)

    take_away(monkeypatch, "avx512_bf16")
    with_amx = vectors()
    take_away(monkeypatch, "avx512_bf16", *AMX)
    np.testing.assert_array_equal(vectors(), with_amx)


@needs_amx
def test_amx_is_done_without_where_the_system_does_not_allow_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, ids = random_weights(1, 64, 64), np.arange(50)[None]

    def vector() -> np.ndarray:
        return NativeRunner(NativeEncoder(weights, "bf16", "cls"), 1).run(ids, np.array([50]))[0]

    allowed = vector()
    monkeypatch.setattr(native_library._library("avx512"), "corom_ask_for_amx", lambda: 0)
    refused = vector()
    assert not np.array_equal(refused, allowed)
    take_away(monkeypatch, *AMX)
    np.testing.assert_array_equal(vector(), refused)


@pytest.mark.skipif("bf16" not in HERE, reason="run it on a CPU with avx512_bf16")
@pytest.mark.parametrize("precision", ["fp32", "int8-per-token"])
def test_attention_is_in_bf16_with_codes_alone(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, ids = random_weights(1, 64, 64, "mean", layers=1), np.arange(50)[None]

    def vector() -> np.ndarray:
        runner = NativeRunner(NativeEncoder(weights, precision, "mean"), threads=1)
        return runner.run(ids, np.array([50]))[0]

    with_bf16 = vector()
    take_bf16_away(monkeypatch)
    assert np.array_equal(vector(), with_bf16) == (precision == "fp32")


@every_rung
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_one_layer_is_that_of_the_arithmetic(precision: Precision, pooling: Pooling) -> None:
    found = distances(random_weights(1, 128, 128, pooling, layers=1), precision, pooling)
    # With [CLS] the first token alone attends, in fp32.
    assert np.median(found) < (USUAL[precision] if pooling == "cls" else usual(precision))
    assert max(found) < WORST[precision]


@every_rung
def test_more_words_than_are_kept_multiplied_are_tokens_as_in_other_layers(
    precision: Precision,
) -> None:
    weights = random_weights(1, 64, 64, words=TOO_MANY_WORDS)
    found = distances(weights, precision, "cls")
    assert np.median(found) < usual(precision)
    assert max(found) < WORST[precision]


@needs_native
def test_words_that_find_no_room_are_tokens_as_in_other_layers() -> None:
    """As where a process may have only so many addresses."""
    weights = random_weights(1, 64, 64, words=300_000)
    ids, lengths = np.arange(100)[None], np.array([100])
    expected = NativeRunner(NativeEncoder(weights, "fp32", "cls"), threads=1).run(ids, lengths)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + (100 << 20), hard))
    try:
        with pytest.raises(OSError, match="Cannot allocate"):
            mmap.mmap(-1, weights.sizes.words * 3 * 64 * 4)
        found = NativeRunner(NativeEncoder(weights, "fp32", "cls"), threads=1).run(ids, lengths)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert distance(found[0], expected[0].astype(np.float64)) < USUAL["fp32"]


@every_rung
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "part",
    ["attention.query", "attention.key", "attention.value", "attention.output", "inner", "outer"],
)
def test_a_wrong_weight_would_be_noticed(
    precision: Precision, part: str, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision == "int8-per-token":  # where the bound is the narrow one
        take_bf16_away(monkeypatch)
    weights = random_weights(1, 128, 256)
    ids = np.arange(20)
    expected = written_out(weights, ids, ACTIVATIONS["gelu"], precision, "cls")
    weights.arrays[f"layers.{layer}.{part}.weight"][:4] += 1
    (vector,) = NativeRunner(NativeEncoder(weights, precision, "cls"), threads=1).run(
        ids[None], np.array([20])
    )
    assert distance(vector, expected) > 3 * USUAL[precision]


@every_rung
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_is_executed(precision: Precision, name: str) -> None:
    weights = random_weights(3, 128, 256, activation=name)
    assert np.median(distances(weights, precision, "cls", name)) < usual(precision)


@pytest.mark.parametrize(
    ("name", "degree", "bound"),
    [
        ("gelu", COARSE, 1e-5),
        ("gelu_new", COARSE, 1e-5),
        ("relu", COARSE, 0),
        ("gelu", FINE, 2e-7),
        ("gelu_new", FINE, 2e-7),
        ("relu", FINE, 0),
    ],
)
def test_an_activation_is_its_polynomials(name: str, degree: int, bound: float) -> None:
    end, *coefficients = activation_pieces(ACTIVATIONS[name], degree)
    assert end == BUMP_ENDS[degree]
    values = np.linspace(-9, 9, 100_001)
    steps = np.minimum(np.abs(values), end) * (PIECES - 1) / end
    nearest = np.rint(steps).astype(int)
    powers = np.reshape(coefficients, (degree + 1, PIECES))[:, nearest]
    bump = (powers * (steps - nearest) ** np.arange(degree + 1)[:, None]).sum(0)
    expected = ACTIVATIONS[name](torch.from_numpy(values)).numpy()
    assert np.abs(np.maximum(values, 0) - bump - expected).max() <= bound


@needs_native
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_vector_is_the_same_alone_in_any_batch_and_by_any_threads(
    encoders: list[NativeEncoder], data: st.DataObject
) -> None:
    encoder = data.draw(st.sampled_from(encoders))
    lengths = data.draw(st.lists(st.integers(1, 160), min_size=1, max_size=24))
    width = max(lengths) + data.draw(st.integers(0, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    ids = rng.integers(0, 300, (len(lengths), width))
    runner = NativeRunner(encoder, threads=data.draw(st.sampled_from([1, 2, 3, 5, 16])))
    together = runner.run(ids, np.array(lengths))
    one = NativeRunner(encoder, threads=1)
    for row, length in enumerate(lengths):
        (alone,) = one.run(ids[row : row + 1, :length], np.array([length]))
        np.testing.assert_array_equal(together[row], alone)


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_vector_is_the_same_among_hundreds(encoders: list[NativeEncoder], threads: int) -> None:
    """In parts for each thread, whose first tokens it has the last layer for together."""
    rng = np.random.default_rng(threads)
    lengths = rng.integers(1, 40, 300)
    ids = rng.integers(0, 300, (300, 40))
    for encoder in encoders:
        together = NativeRunner(encoder, threads).run(ids, lengths)
        one = NativeRunner(encoder, threads=1)
        for row, length in enumerate(lengths):
            (alone,) = one.run(ids[row : row + 1, :length], lengths[row : row + 1])
            np.testing.assert_array_equal(together[row], alone)


@needs_native
def test_many_texts_of_one_token_are_executed_together(encoders: list[NativeEncoder]) -> None:
    ids = np.arange(60)[:, None]
    for encoder in encoders:
        together = NativeRunner(encoder, threads=1).run(ids, np.ones(60, np.int64))
        one = NativeRunner(encoder, threads=1)
        for row in range(60):
            np.testing.assert_array_equal(
                together[row], one.run(ids[row : row + 1], np.ones(1, int))[0]
            )


@needs_native
def test_a_batch_that_is_put_aside_and_the_one_in_its_middle_have_their_vectors(
    encoders: list[NativeEncoder],
) -> None:
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, 40, 60)
    ids = rng.integers(0, 300, (60, 40))
    for encoder in encoders:
        runner, aside = NativeRunner(encoder, threads=1), NativeRunner(encoder, threads=1)
        expected, shorter = runner.run(ids, lengths), aside.run(ids[:3], lengths[:3])
        found: list[np.ndarray] = []
        seen: list[int] = []

        def serve(
            aside: NativeRunner = aside, found: list[np.ndarray] = found, seen: list[int] = seen
        ) -> None:
            seen.append(threading.get_ident())
            found.append(aside.run(ids[:3], lengths[:3]))

        preemption = Preemption(serve)
        np.testing.assert_array_equal(runner.run(ids, lengths, preemption), expected)
        assert found == []  # it was not wanted
        preemption.want()
        np.testing.assert_array_equal(runner.run(ids, lengths, preemption), expected)
        assert len(found) >= 8  # between any two steps, and it stays wanted
        for vectors in found:
            np.testing.assert_array_equal(vectors, shorter)
        assert set(seen) == {threading.get_ident()}
        assert preemption.seconds > 0


@needs_native
@pytest.mark.parametrize("tokens", [5, 160])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_of_several_threads_is_not_put_aside(
    encoders: list[NativeEncoder], threads: int, tokens: int
) -> None:
    times: list[None] = []
    preemption = Preemption(lambda: times.append(None))
    preemption.want()
    ids, lengths = np.ones((2, tokens), np.int64), np.full(2, tokens)
    NativeRunner(encoders[0], threads).run(ids, lengths, preemption)
    assert bool(times) == (threads == 1)


@every_rung
def test_a_vector_is_the_same_whoever_saw_its_words_first(precision: Precision) -> None:
    weights = random_weights(5, 128, 128)
    rng = np.random.default_rng(6)
    texts = [rng.integers(0, 300, (1, length)) for length in rng.integers(1, 120, 40)]
    lengths = [np.array([text.size]) for text in texts]
    one = NativeRunner(NativeEncoder(weights, precision, "cls"), threads=1)
    expected = [one.run(text, length) for text, length in zip(texts, lengths, strict=True)]
    for _ in range(5):
        encoder = NativeEncoder(weights, precision, "cls")
        found: dict[int, np.ndarray] = {}
        begin = threading.Barrier(4)

        def read(
            seed: int,
            encoder: NativeEncoder = encoder,
            found: dict[int, np.ndarray] = found,
            begin: threading.Barrier = begin,
        ) -> None:
            runner = NativeRunner(encoder, threads=1 + seed % 2)
            begin.wait()
            for row in np.random.default_rng(seed).permutation(len(texts)).tolist():
                found[40 * seed + row] = runner.run(texts[row], lengths[row])

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert len(found) == 4 * 40
        for place, vector in found.items():
            np.testing.assert_array_equal(vector, expected[place % 40])


@pytest.fixture(scope="module")
def encoders() -> list[NativeEncoder]:
    poolings: tuple[Pooling, ...] = ("cls", "mean")
    return [
        NativeEncoder(random_weights(4, *shape, pooling), precision, pooling)
        for precision in HERE
        for pooling in poolings
        for shape in ((128, 192), (448, 320), (64, 832))  # the last: four spans, one not whole
    ]


@needs_native
@pytest.mark.parametrize("threads", [1025, 3_000_000_000, 2**32])
def test_more_threads_than_can_be_are_refused(encoders: list[NativeEncoder], threads: int) -> None:
    with pytest.raises(UnavailableError, match=f"no {threads} threads can be started here"):
        NativeRunner(encoders[0], threads)


@needs_native
@pytest.mark.parametrize(
    ("ids", "lengths"),
    [([[5, 300]], [2]), ([[5, -1]], [2]), ([[5, 6]], [0]), ([[5, 6]], [3]), ([[5] * 161], [161])],
)
def test_what_the_model_has_no_vector_for_is_refused(
    encoders: list[NativeEncoder], ids: list[list[int]], lengths: list[int]
) -> None:
    with pytest.raises(InputError, match="token ids or a length that the model does not have"):
        NativeRunner(encoders[0], threads=1).run(np.array(ids), np.array(lengths))


# --- The bundle


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint with heads of 64 values."""
    return make_checkpoint(hidden_size=128, intermediate_size=256, num_attention_heads=2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, parity_file: Path) -> Path:
    made = tmp_path_factory.mktemp("bundles") / "native"
    rungs: Any = [rung for rung in HERE if rung != "fp32"]
    export_bundle(str(checkpoint), made, precisions=rungs, parity_texts=parity_file, pooling="cls")
    return made


@every_rung
def test_a_bundle_is_proven_on_it_and_invariance_is_exact(
    bundle: Path, precision: Precision
) -> None:
    rung = load_manifest(bundle).variant(precision)
    assert rung is not None
    assert rung.tolerance.cosine_min <= rung.parity["native"].cosine_min
    assert (rung.parity["native"].cosine_min < 0.9999999) == (precision != "fp32")
    assert rung.parity["native"].batch_invariance == 0


@needs_native
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_bundle_holds_the_weights_once(
    checkpoint: Path, parity_file: Path, tmp_path: Path, pooling: Pooling
) -> None:
    made = tmp_path / "b"
    manifest = export_bundle(str(checkpoint), made, parity_texts=parity_file, pooling=pooling)
    weights = load_native_weights(made, manifest)
    total = sum(array.nbytes for array in weights.arrays.values())
    # But for [CLS]'s values, turned round in the graph, and arrays of nothing but zeros or ones.
    rest = [entry.size_bytes for entry in manifest.files if entry.path == REST_NAME]
    assert 0 not in rest
    assert sum(rest) < total / 20
    state = load_file(checkpoint / "model.safetensors")
    for part, own in (("attention.value", "attention.self.value"), ("outer", "output.dense")):
        for layer in range(weights.sizes.layers):
            np.testing.assert_array_equal(
                weights.arrays[f"layers.{layer}.{part}.weight"],
                state[f"encoder.layer.{layer}.{own}.weight"].numpy(),
            )


def test_values_that_are_large_in_every_token_are_smoothed(
    make_checkpoint: Callable[..., Path], parity_file: Path, tmp_path: Path
) -> None:
    made = make_checkpoint(hidden_size=128, intermediate_size=256, num_attention_heads=2)
    state = load_file(made / "model.safetensors")
    large = {
        "embeddings.LayerNorm": ("embeddings.norm", 5),
        "encoder.layer.0.attention.output.LayerNorm": ("layers.0.attention_norm", 70),
        "encoder.layer.0.output.LayerNorm": ("layers.0.output_norm", 127),
    }
    for name, (_, column) in large.items():
        state[f"{name}.weight"][column] = 40.0
    save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    bundle = tmp_path / "b"
    manifest = export_bundle(str(made), bundle, parity_texts=parity_file, pooling="cls")
    arrays = load_native_weights(bundle, manifest).arrays
    for name, column in large.values():
        smoothing = arrays[f"{name}.smoothing"]
        np.testing.assert_array_equal(np.frexp(smoothing)[0], 0.5)  # powers of two
        assert smoothing.argmax() == column
        assert smoothing[column] >= 4 * np.median(smoothing)


@needs_native
def test_positions_may_begin_later_and_tokens_be_averaged(
    make_checkpoint: Callable[..., Path], parity_file: Path, tmp_path: Path
) -> None:
    made = make_checkpoint(
        model_type="roberta", tokenizer="tokenizer.json",
        hidden_size=64, intermediate_size=128, num_attention_heads=1,
    )  # fmt: skip
    rungs: Any = ["int8-per-token"]
    manifest = export_bundle(
        str(made), tmp_path / "b", precisions=rungs, parity_texts=parity_file, pooling="mean"
    )
    assert manifest.variants[-1].parity["native"].cosine_min >= 0.998


@needs_native
def test_tune_tries_its_own_budget_alone(bundle: Path) -> None:
    (found,) = measure(bundle, Way("native", "fp32", 2, 1), ["头痛", "发烧"], 0.9999, 0.001)
    assert found.batch_tokens == 2 * 8192


@needs_native
def test_auto_takes_it_and_says_so(bundle: Path) -> None:
    for precision in HERE:
        with Encoder(bundle, precision=precision) as encoder:
            assert encoder.choice == f"{precision} by native on cpu"
    for backend in ("auto", "native"):
        with Encoder(bundle, backend=backend) as encoder:
            assert encoder.choice == "fp32 by native on cpu"
    with pytest.raises(UnavailableError, match="executes fp32, bf16, int8-per-token, not int8"):
        Encoder(bundle, backend="native", precision="int8")


@every_rung
def test_kernels_that_give_wrong_vectors_are_noticed_when_they_are_opened(
    precision: Precision, changed: Callable[..., Path]
) -> None:
    def swap(index: dict[str, Any]) -> None:
        arrays = index["arrays"]
        first, second = "layers.0.attention.query.weight", "layers.0.attention.key.weight"
        arrays[first], arrays[second] = arrays[second], arrays[first]

    with pytest.raises(ParityError, match=f"{precision} by native on cpu gives wrong vectors"):
        Encoder(changed(swap), backend="native", precision=precision)


@needs_native
def test_auto_does_not_take_it_where_it_was_not_proven(bundle: Path, tmp_path: Path) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(bundle, changed)
    manifest = load_manifest(changed)
    fp32 = manifest.variants[0]
    parity = {"onnxruntime": fp32.parity["onnxruntime"]}
    variants = (msgspec.structs.replace(fp32, parity=parity), *manifest.variants[1:])
    save_manifest(msgspec.structs.replace(manifest, variants=variants), changed)
    with Encoder(changed) as encoder:
        assert encoder.choice == "fp32 by onnxruntime on cpu"
    with Encoder(changed, backend="native") as encoder:
        assert encoder.choice == "fp32 by native on cpu"
    with pytest.raises(UnavailableError, match="fp32 was proven on: onnxruntime; ask for another"):
        choose_backend(
            "auto",
            "cpu",
            lambda *pair: (
                why_not_auto(changed, load_manifest(changed), "fp32", "off", *pair)
                if pair[0] == "native"
                else "not here"
            ),
        )


@every_rung
def test_encode_gives_the_same_whatever_workers_threads_and_batches(
    bundle: Path, parity_texts: list[str], precision: Precision
) -> None:
    texts = parity_texts[:60]
    expected = None
    for workers, threads, tokens in ((1, 1, 16384), (1, 2, 100), (2, 1, 64), (3, 2, 1)):
        with Encoder(
            bundle, backend="native", precision=precision, workers=workers, threads=threads,
            max_batch_tokens=tokens,
        ) as encoder:  # fmt: skip
            found = encoder.encode(texts)
            alone = encoder.encode(texts[7])
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(alone, expected[7])


@needs_native
@pytest.mark.parametrize(
    ("threads", "workers", "tokens"),
    [(1, 1, 512), (2, 1, 16384), (1, 2, 512), (2, 2, 512), (4, 2, 1024)],
)
def test_batches_are_large_where_the_threads_of_one_worker_share_them(
    encoders: list[NativeEncoder], threads: int, workers: int, tokens: int
) -> None:
    backend = NativeBackend(encoders[0], threads, workers)
    assert backend.batch_tokens == tokens
    assert backend.with_threads(3).batch_tokens == 3 * 8192


@every_rung
def test_a_cold_batch_is_the_same_by_several_threads(precision: Precision) -> None:
    weights = random_weights(7, 128, 128)
    rng = np.random.default_rng(8)
    lengths = rng.integers(1, 161, 40)
    lengths[0] = 160
    ids = rng.integers(0, 300, (40, 160))
    ids[0, :2] = 0, 299
    one, *others = (
        NativeRunner(NativeEncoder(weights, precision, "cls"), threads).run(ids, lengths)
        for threads in (1, 2, 5)
    )
    for found in others:
        np.testing.assert_array_equal(found, one)


@needs_native
def test_one_model_is_executed_by_all_threads_and_by_each(
    bundle: Path, parity_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[NativeEncoder] = []
    begin = NativeEncoder.__init__

    def note(self: NativeEncoder, *arguments: Any) -> None:
        opened.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(NativeEncoder, "__init__", note)
    with Encoder(bundle, backend="native", threads=2, adaptive=True) as encoder:
        assert encoder.workers == 2
        batch = pad(
            encoder.tokenize(parity_texts[:9], check_options(encoder.manifest)), np.arange(9)
        )
        np.testing.assert_array_equal(encoder.run_alone(batch), encoder.run(batch))
    freed = weakref.ref(opened.pop())
    assert opened == []
    assert freed() is None


@needs_native
def test_many_threads_get_their_own_vectors(bundle: Path, parity_texts: list[str]) -> None:
    texts = parity_texts[:40]
    wrong: list[str] = []
    with Encoder(bundle, precision="fp32", adaptive=True) as encoder:
        expected = encoder.encode(texts)

        def ask(seed: int, encode: Callable[[str], np.ndarray]) -> None:
            rows = np.random.default_rng(seed).integers(0, len(texts), 60).tolist()
            wrong.extend(
                texts[row] for row in rows if not np.array_equal(encode(texts[row]), expected[row])
            )

        with DynamicBatcher(encoder) as batcher:
            threads = [
                threading.Thread(target=ask, args=(seed, encode))
                for seed in range(16)
                for encode in (encoder.encode, lambda text: batcher.submit(text).result())
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert wrong == []


@needs_native
def test_closing_it_under_running_calls_ends_them_well(
    bundle: Path, parity_texts: list[str]
) -> None:
    for _ in range(10):
        encoder = Encoder(bundle, precision="fp32", threads=2)
        ended: list[str] = []
        begun = threading.Barrier(5)

        def encode(encoder: Encoder = encoder, ended: list[str] = ended,
                   begun: threading.Barrier = begun) -> None:  # fmt: skip
            begun.wait()
            try:
                while True:
                    assert encoder.encode(parity_texts[:20]).shape == (20, 128)
            except CoromError as error:
                ended.append(str(error))

        threads = [threading.Thread(target=encode) for _ in range(4)]
        for thread in threads:
            thread.start()
        begun.wait()
        encoder.close()
        for thread in threads:
            thread.join()
        assert len(ended) == 4
        assert all("closed" in message for message in ended)


@needs_native
def test_a_forked_process_is_told_to_open_its_own(bundle: Path) -> None:
    program = f"""
import os
from corom.runtime import Encoder
import threading
encoder = Encoder({str(bundle)!r}, precision="fp32", threads=2)
encoder.encode("头痛")
going = threading.Thread(target=encoder.encode, args=(["头痛" * 60] * 2000,))
going.start()
if os.fork() == 0:
    try:
        encoder.encode("头痛")
    except Exception as error:
        print(type(error).__name__, error)
else:
    assert os.wait()[1] == 0
    print(encoder.encode("头痛").shape)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    child, parent = done.stdout.splitlines()
    assert child.startswith("CoromError this encoder was opened before the process forked")
    assert parent == "(128,)"


# --- What cannot be had


@pytest.mark.parametrize(
    ("precision", "flag"),
    [
        ("fp32", "avx2"),
        ("fp32", "fma"),
        ("bf16", "avx512_bf16"),
        ("bf16", "avx512f"),
        ("int8-per-token", "fma"),
    ],
)
def test_a_cpu_without_it_is_told_so(
    precision: Precision, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = set(least_for(precision)) - {flag}
    monkeypatch.setattr("corom.runtime.native_library.cpu_flags", lambda: others)
    with pytest.raises(UnavailableError, match=f"has no {flag}, or does not tell: .*{precision}"):
        require_native(precision)


@pytest.mark.parametrize(
    ("missing", "precision", "build"),
    [
        ((), "fp32", "avx512"),
        (("avx512bw",), "fp32", "avx2"),
        ((), "int8-per-token", "avx512"),
        (("avx512_vnni",), "int8-per-token", "avx2"),  # as the first CPUs with AVX-512
    ],
)
@needs_native
def test_the_fastest_build_that_a_cpu_executes_is_taken(
    missing: tuple[str, ...], precision: Precision, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {flag for needed in BUILDS.values() for all_of in needed.values() for flag in all_of}
    monkeypatch.setattr("corom.runtime.native_library.cpu_flags", lambda: flags - {*missing})
    assert require_native(precision) == build


@needs_native
def test_an_installation_without_it_says_how_to_get_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corom.runtime.native_library.find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match=r"compiled when .* pip install --force-reinstall"):
        Encoder(bundle, backend="native", precision="fp32")
    with Encoder(bundle) as encoder:
        assert encoder.backend_name == "onnxruntime"


def test_weights_beside_the_graph_are_found_too(
    checkpoint: Path, parity_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_module, "EXTERNAL_DATA_BYTES", 100_000)  # as 2 GiB are
    made = tmp_path / "b"
    manifest = export_bundle(str(checkpoint), made, parity_texts=parity_file, pooling="mean")
    index = msgspec.json.decode((made / INDEX_NAME).read_bytes())
    assert index["arrays"]["embeddings.words.weight"]["file"] == "onnx/model.onnx.data"
    words = load_file(checkpoint / "model.safetensors")["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(
        load_native_weights(made, manifest).arrays["embeddings.words.weight"], words.numpy()
    )


@needs_native
def test_one_layer_is_enough(
    make_checkpoint: Callable[..., Path], parity_file: Path, tmp_path: Path
) -> None:
    made = make_checkpoint(
        hidden_size=64, intermediate_size=64, num_attention_heads=1, num_hidden_layers=1
    )
    manifest = export_bundle(str(made), tmp_path / "b", parity_texts=parity_file, pooling="cls")
    assert manifest.variants[0].parity["native"].cosine_min > 0.99999


@needs_native
def test_other_heads_are_left_to_others(
    make_checkpoint: Callable[..., Path], parity_file: Path, tmp_path: Path
) -> None:
    made = make_checkpoint(hidden_size=128, intermediate_size=256, num_attention_heads=4)
    rungs: Any = ["int8-per-token"] if has_vnni() else []  # or OpenVINO has no codes
    manifest = export_bundle(
        str(made), tmp_path / "b", precisions=rungs, parity_texts=parity_file, pooling="cls"
    )
    assert {variant.precision: list(variant.parity) for variant in manifest.variants} == {
        "fp32": ["onnxruntime", "openvino"],
        **dict.fromkeys(rungs, ["openvino"]),
    }
    with pytest.raises(UnavailableError, match="its attention heads have not 64 values"):
        Encoder(tmp_path / "b", backend="native")
    for precision, backend in [("fp32", "onnxruntime"), *((rung, "openvino") for rung in rungs)]:
        with Encoder(tmp_path / "b", precision=precision) as encoder:
            assert encoder.backend_name == backend


# --- The index


def test_equal_arrays_share_a_place(
    make_checkpoint: Callable[..., Path], parity_file: Path, tmp_path: Path
) -> None:
    def equal(state: dict[str, torch.Tensor]) -> None:
        for name, values in state.items():
            if name.endswith("bias"):
                values.zero_()
            elif "LayerNorm" in name:
                values.fill_(1.0)

    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
    folder = make_checkpoint(num_hidden_layers=8, edit=equal, **shape)
    made = tmp_path / "made"
    export_bundle(str(folder), made, parity_texts=parity_file, pooling="mean")
    arrays = load_native_weights(made, load_manifest(made)).arrays
    biases = [array for name, array in arrays.items() if name.endswith("bias")]
    assert len(biases) > 10
    assert not any(array.any() for array in biases)


@pytest.fixture
def changed(bundle: Path, tmp_path: Path, rehash: Callable[..., None]) -> Callable[..., Path]:
    """Return a bundle whose index was changed by a function of its contents."""

    def change(by: Callable[[dict[str, Any]], object]) -> Path:
        copied = tmp_path / "bundle"
        shutil.copytree(bundle, copied)
        index = msgspec.json.decode((copied / INDEX_NAME).read_bytes())
        by(index)
        (copied / INDEX_NAME).write_bytes(msgspec.json.encode(index))
        rehash(copied)
        return copied

    return change


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "a layer less": lambda index: index["sizes"].update(layers=1),
    "a layer more": lambda index: index["sizes"].update(layers=9),
    "more layers than can be listed": lambda index: index["sizes"].update(layers=10**15),
    "an epsilon below nothing": lambda index: index.update(epsilon=-1.0),
    "an epsilon beyond float32": lambda index: index.update(epsilon=1e39),
    "a polynomial of huge numbers": lambda index: index["activation"].update(
        {str(FINE): [5.5] + [1e39] * (FINE + 1)}
    ),
    "a bump of no width": lambda index: index["activation"][str(FINE)].__setitem__(0, 0.0),
    "no layers": lambda index: index.update(sizes=index["sizes"] | {"layers": 0}, arrays={}),
    "another width": lambda index: index["sizes"].update(hidden=64),
    "a width of no group": lambda index: index["sizes"].update(inner=100),
    "an array missing": lambda index: index["arrays"].pop("embeddings.words.weight"),
    "an unknown array": lambda index: index["arrays"].update(
        more=index["arrays"]["embeddings.words.weight"]
    ),
    "no polynomial": lambda index: index["activation"].pop(str(FINE)),
    "a polynomial cut short": lambda index: index["activation"][str(COARSE)].pop(),
    "another field": lambda index: index.update(more=1),
    "a text for a number": lambda index: index.update(epsilon="small"),
    "a place behind the end": lambda index: index["arrays"]["embeddings.words.weight"].update(
        offset=10**9
    ),
    "a place before the beginning": lambda index: index["arrays"]["embeddings.words.weight"].update(
        offset=-4
    ),
    "more words than there are": lambda index: index["sizes"].update(words=10**9),
    "more words than a number of 64 bits": lambda index: index["sizes"].update(words=2**63 - 1),
    "a file that is not listed": lambda index: index["arrays"]["embeddings.words.weight"].update(
        file="x"
    ),
    "a file outside": lambda index: index["arrays"]["embeddings.words.weight"].update(file="../x"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_an_index_that_points_to_no_encoder_is_refused(
    name: str, changed: Callable[..., Path]
) -> None:
    bundle = changed(BROKEN[name])
    with pytest.raises(BundleError, match=r"\. Export the bundle again"):
        load_native_weights(bundle, load_manifest(bundle))


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"[" * 100_000, b"null"])
def test_an_index_that_is_none_is_refused(
    content: bytes, changed: Callable[..., Path], rehash: Callable[..., None]
) -> None:
    bundle = changed(lambda _index: None)
    (bundle / INDEX_NAME).write_bytes(content)
    rehash(bundle)
    with pytest.raises(BundleError, match=r"cannot be read: .* Export the bundle again"):
        load_native_weights(bundle, load_manifest(bundle))


@pytest.mark.parametrize("file", [INDEX_NAME, REST_NAME, "onnx/model.onnx"])
def test_a_file_that_was_altered_is_refused(file: str, changed: Callable[..., Path]) -> None:
    bundle = changed(lambda _index: None)
    content = bytearray((bundle / file).read_bytes())
    content[-1] ^= 1
    (bundle / file).write_bytes(content)
    with pytest.raises(BundleError, match=f"{file}' was altered"):
        load_native_weights(bundle, load_manifest(bundle))


# --- CPUs that others use too


@needs_native
@pytest.mark.slow
def test_a_busy_machine_does_not_keep_threads_waiting_for_each_other(bundle: Path) -> None:
    """With a process that computes on each CPU a text took eighteen times as long."""
    text = "头痛怎么办" * 8

    def p50(threads: int) -> tuple[float, np.ndarray]:
        with Encoder(bundle, precision="fp32", backend="native", threads=threads) as encoder:
            took: list[float] = []
            vectors: list[np.ndarray] = []
            until = time.monotonic() + 4
            while time.monotonic() < until:
                start = time.perf_counter()
                vectors.append(encoder.encode(text))
                took.append(time.perf_counter() - start)
        for vector in vectors:
            np.testing.assert_array_equal(vector, vectors[0])
        return float(np.median(took)), vectors[0]

    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(available_cpus())
    ]
    try:
        (by_one, alone), (by_two, together) = p50(1), p50(2)
    finally:
        for other in others:
            other.kill()
            other.wait()
    np.testing.assert_array_equal(alone, together)
    assert by_two < 5 * by_one
