"""Backend native: corom's own kernels against the arithmetic they stand for, written in NumPy."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.export.bundle import export_bundle
from corom.export.native_encoder import BUMP_END, activation_polynomial
from corom.runtime import DynamicBatcher, Encoder, load_manifest
from corom.runtime.cpus import cpu_flags
from corom.runtime.errors import BundleError, CoromError, InputError, UnavailableError
from corom.runtime.native_library import (
    NEEDED,
    NativeModel,
    NativeRunner,
    native_is_here,
    require_native,
)
from corom.runtime.native_weights import (
    NATIVE_NAME,
    Linear,
    NativeWeights,
    load_native_weights,
    save_native_weights,
)

needs_native = pytest.mark.skipif(
    not native_is_here(),
    reason="run it on Linux on x86-64 with AVX-512 VNNI, and with a C++20 compiler to install with",
)
ACTIVATIONS = {
    "gelu": torch.nn.GELU(),
    "gelu_new": torch.nn.GELU(approximate="tanh"),
    "relu": torch.nn.ReLU(),
}


@pytest.mark.skipif(
    bool(set(NEEDED) - cpu_flags()) or shutil.which("g++") is None,
    reason="run it on Linux on x86-64 with AVX-512 VNNI and g++",
)
def test_the_kernels_are_installed_where_they_can_be() -> None:
    assert native_is_here()


# --- The arithmetic


def coded(values: np.ndarray) -> np.ndarray:
    """Return what codes of 8 bits, a scale for each 64 of them, leave of (T, K) values."""
    groups = values.reshape(len(values), -1, 64)
    steps = np.maximum(np.abs(groups).max(-1, keepdims=True), 1e-30) / 127
    return (np.round(groups / steps) * steps).reshape(values.shape)


def written_out(
    weights: NativeWeights, ids: np.ndarray, activation: torch.nn.Module, *, mean: bool
) -> np.ndarray:
    """Return the vector of one text, every product with coded inputs and weights, in float64."""

    def norm(values: np.ndarray, weight_and_bias: np.ndarray) -> np.ndarray:
        centred = values - values.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + weights.epsilon)
        return centred / deviation * weight_and_bias[0] + weight_and_bias[1]

    def linear(name: str, layer: int, values: np.ndarray) -> np.ndarray:
        codes, scales, bias = (part[layer] for part in getattr(weights, name))
        return coded(values) @ (codes * scales[:, None].astype(np.float64)).T + bias

    hidden = norm(weights.words[ids].astype(np.float64) + weights.positions[: len(ids)],
                  weights.norm)  # fmt: skip
    for layer in range(len(weights.output_norm)):
        query, key, value = (
            part.reshape(len(ids), -1, 64).transpose(1, 0, 2)
            for part in np.split(linear("query_key_value", layer, hidden), 3, axis=-1)
        )
        scores = query @ key.transpose(0, 2, 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = shares / shares.sum(-1, keepdims=True) @ value
        gathered = linear("output", layer, mixed.transpose(1, 0, 2).reshape(hidden.shape))
        hidden = norm(hidden + gathered, weights.attention_norm[layer])
        inner = activation(torch.from_numpy(linear("inner", layer, hidden))).numpy()
        hidden = norm(hidden + linear("outer", layer, inner), weights.output_norm[layer])
    return hidden.mean(0) if mean else hidden[0]


def random_weights(seed: int, hidden: int, inner: int, layers: int = 2) -> NativeWeights:
    """Return weights of the size that training gives."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def linear(outputs: int, inputs: int) -> Any:
        codes = rng.integers(-127, 128, (layers, outputs, inputs)).astype(np.int8)
        scales = rng.uniform(0.5, 1.5, (layers, outputs)) * inputs**-0.5 / 73
        return Linear(codes, scales.astype(np.float32), normal(layers, outputs, scale=0.2))

    norms = np.array([1, 0], np.float32)[:, None]
    return NativeWeights(
        epsilon=np.array([1e-12], np.float32),
        activation=activation_polynomial(ACTIVATIONS["gelu"]),
        words=normal(300, hidden),
        positions=normal(160, hidden, scale=0.2),
        norm=norms + normal(2, hidden, scale=0.1),
        query_key_value=linear(3 * hidden, hidden),
        output=linear(hidden, hidden),
        attention_norm=norms + normal(layers, 2, hidden, scale=0.1),
        inner=linear(inner, hidden),
        outer=linear(hidden, inner),
        output_norm=norms + normal(layers, 2, hidden, scale=0.1),
    )


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Return 1 - the cosine of two vectors.

    About 1e-8, unless a value lies so near the middle between two codes that float32 and float64
    take different ones: then it is that of a step, which the layers after it make more of.
    """
    return float(1 - found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))


def distances(
    weights: NativeWeights, activation: torch.nn.Module, lengths: list[int], *, mean: bool
) -> list[float]:
    """Return how far the kernels' vectors are from the written-out ones of random ids."""
    runner = NativeRunner(NativeModel(weights, mean_pooled=mean), threads=1)
    rng = np.random.default_rng(2)
    found = []
    for length in lengths:
        ids = rng.integers(0, 300, length)
        (vector,) = runner.run(ids[None], np.array([length]))
        found.append(distance(vector, written_out(weights, ids, activation, mean=mean)))
    return found


LENGTHS = [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 64, 65, 100, 128, 160]


@needs_native
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (128, 320), (448, 128)])
def test_vectors_are_those_of_the_arithmetic(shape: tuple[int, int], mean: bool) -> None:
    weights = random_weights(1, *shape)
    found = distances(weights, ACTIVATIONS["gelu"], LENGTHS, mean=mean)
    assert np.median(found) < 2e-6
    assert max(found) < 1e-3


@needs_native
@pytest.mark.parametrize("field", ["query_key_value", "output", "inner", "outer"])
def test_a_wrong_weight_would_be_noticed(field: str) -> None:
    weights = random_weights(1, 128, 256)
    linear = getattr(weights, field)
    codes = linear.codes.copy()
    codes[0, 3, 5] ^= 64
    changed = weights._replace(**{field: linear._replace(codes=codes)})
    ids = np.arange(20)
    (vector,) = NativeRunner(NativeModel(changed, mean_pooled=False), threads=1).run(
        ids[None], np.array([20])
    )
    assert distance(vector, written_out(weights, ids, ACTIVATIONS["gelu"], mean=False)) > 1e-5


@needs_native
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_is_executed(name: str) -> None:
    polynomial = activation_polynomial(ACTIVATIONS[name])
    weights = random_weights(3, 128, 256)._replace(activation=polynomial)
    assert np.median(distances(weights, ACTIVATIONS[name], LENGTHS, mean=False)) < 2e-6


@pytest.mark.parametrize(("name", "bound"), [("gelu", 1e-5), ("gelu_new", 3e-5), ("relu", 0)])
def test_an_activation_is_its_polynomial(name: str, bound: float) -> None:
    end, *coefficients = activation_polynomial(ACTIVATIONS[name])
    assert end == BUMP_END
    values = np.linspace(-9, 9, 100_001)
    sizes = np.minimum(np.abs(values), end)
    bump = np.polynomial.polynomial.polyval(sizes * 2 / end - 1, coefficients)
    expected = ACTIVATIONS[name](torch.from_numpy(values)).numpy()
    assert np.abs(np.maximum(values, 0) - bump - expected).max() <= bound


@needs_native
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_vector_is_the_same_alone_in_any_batch_and_by_any_threads(
    models: tuple[NativeModel, NativeModel], data: st.DataObject
) -> None:
    model = data.draw(st.sampled_from(models))
    lengths = data.draw(st.lists(st.integers(1, 160), min_size=1, max_size=24))
    width = max(lengths) + data.draw(st.integers(0, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    ids = rng.integers(0, 300, (len(lengths), width))
    runner = NativeRunner(model, threads=data.draw(st.sampled_from([1, 2, 3])))
    together = runner.run(ids, np.array(lengths))
    one = NativeRunner(model, threads=1)
    for row, length in enumerate(lengths):
        (alone,) = one.run(ids[row : row + 1, :length], np.array([length]))
        np.testing.assert_array_equal(together[row], alone)


@pytest.fixture(scope="module")
def models() -> tuple[NativeModel, NativeModel]:
    weights = random_weights(4, 128, 192)
    return NativeModel(weights, mean_pooled=False), NativeModel(weights, mean_pooled=True)


@needs_native
@pytest.mark.parametrize("threads", [1025, 3_000_000_000, 2**32])
def test_more_threads_than_can_be_are_refused(
    models: tuple[NativeModel, NativeModel], threads: int
) -> None:
    with pytest.raises(UnavailableError, match=f"no {threads} threads can be started here"):
        NativeRunner(models[0], threads)


@needs_native
@pytest.mark.parametrize(
    ("ids", "lengths"),
    [([[5, 300]], [2]), ([[5, -1]], [2]), ([[5, 6]], [0]), ([[5, 6]], [3]), ([[5] * 161], [161])],
)
def test_what_the_model_has_no_vector_for_is_refused(
    models: tuple[NativeModel, NativeModel], ids: list[list[int]], lengths: list[int]
) -> None:
    with pytest.raises(InputError, match="token ids or a length that the model does not have"):
        NativeRunner(models[0], threads=1).run(np.array(ids), np.array(lengths))


# --- The bundle


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint with heads of 64 values."""
    return make_checkpoint(hidden_size=128, intermediate_size=256, num_attention_heads=2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, parity_file: Path) -> Path:
    made = tmp_path_factory.mktemp("bundles") / "native"
    rungs: Any = ["int8-per-token"]
    export_bundle(str(checkpoint), made, precisions=rungs, parity_texts=parity_file, pooling="cls")
    return made


@needs_native
def test_a_bundle_is_proven_on_it_and_invariance_is_exact(bundle: Path) -> None:
    rung = load_manifest(bundle).variants[-1]
    assert rung.precision == "int8-per-token"
    assert 0.998 <= rung.parity["native"].cosine_min < 0.999999
    assert rung.parity["native"].batch_invariance == 0


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
def test_auto_takes_it_for_int8_per_token_and_says_so(bundle: Path) -> None:
    with Encoder(bundle, precision="int8-per-token") as encoder:
        assert encoder.choice == "int8-per-token by native on cpu"
    with Encoder(bundle) as encoder:
        assert encoder.choice == "fp32 by onnxruntime on cpu"
    with Encoder(bundle, backend="native") as encoder:
        assert encoder.precision == "int8-per-token"
    with pytest.raises(UnavailableError, match="executes int8-per-token, not fp32"):
        Encoder(bundle, backend="native", precision="fp32")


@needs_native
def test_encode_gives_the_same_whatever_workers_threads_and_batches(
    bundle: Path, parity_texts: list[str]
) -> None:
    texts = parity_texts[:60]
    expected = None
    for workers, threads, tokens in ((1, 1, 16384), (1, 2, 100), (2, 1, 64), (3, 2, 1)):
        with Encoder(
            bundle, precision="int8-per-token", workers=workers, threads=threads,
            max_batch_tokens=tokens,
        ) as encoder:  # fmt: skip
            found = encoder.encode(texts)
            alone = encoder.encode(texts[7])
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(alone, expected[7])


@needs_native
def test_many_threads_get_their_own_vectors(bundle: Path, parity_texts: list[str]) -> None:
    texts = parity_texts[:40]
    wrong: list[str] = []
    with Encoder(bundle, precision="int8-per-token", adaptive=True) as encoder:
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
        encoder = Encoder(bundle, precision="int8-per-token", threads=2)
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
encoder = Encoder({str(bundle)!r}, precision="int8-per-token", threads=2)
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


def test_a_cpu_without_it_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "corom.runtime.native_library.cpu_flags", lambda: set(NEEDED) - {"avx512_vnni"}
    )
    with pytest.raises(UnavailableError, match="has no avx512_vnni, or does not tell: backend"):
        require_native()


@needs_native
def test_an_installation_without_it_says_how_to_get_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corom.runtime.native_library.find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match=r"compiled when .* pip install --force-reinstall"):
        Encoder(bundle, backend="native", precision="int8-per-token")
    with Encoder(bundle, precision="int8-per-token") as encoder:
        assert encoder.backend_name == "openvino"


@needs_native
def test_other_heads_are_left_to_openvino(
    make_checkpoint: Callable[..., Path], parity_file: Path, tmp_path: Path
) -> None:
    made = make_checkpoint(hidden_size=128, intermediate_size=256, num_attention_heads=4)
    rungs: Any = ["int8-per-token"]
    manifest = export_bundle(
        str(made), tmp_path / "b", precisions=rungs, parity_texts=parity_file, pooling="cls"
    )
    assert list(manifest.variants[-1].parity) == ["openvino"]
    with pytest.raises(UnavailableError, match="its attention heads have not 64 values"):
        Encoder(tmp_path / "b", backend="native", precision="int8-per-token")
    with Encoder(tmp_path / "b", precision="int8-per-token") as encoder:
        assert encoder.backend_name == "openvino"


def test_weights_come_back_as_they_were_written(tmp_path: Path) -> None:
    weights = random_weights(5, 64, 128)
    save_native_weights(tmp_path / "native" / "w.npz", weights)
    found = load_native_weights(tmp_path / "native" / "w.npz")
    for written, read in zip(weights, found, strict=True):
        np.testing.assert_equal(read, written)


BROKEN: dict[str, Callable[[NativeWeights], NativeWeights]] = {
    "a layer less": lambda w: w._replace(output=Linear(*(part[:1] for part in w.output))),
    "another width": lambda w: w._replace(words=w.words[:, :32]),
    "another type": lambda w: w._replace(positions=w.positions.astype(np.float64)),
    "no words": lambda w: w._replace(words=w.words[:0]),
    "codes of 16 bits": lambda w: w._replace(
        inner=w.inner._replace(codes=w.inner.codes.astype(np.int16))
    ),
    "words of one dimension": lambda w: w._replace(words=w.words[0]),
    "too wide": lambda _: random_weights(5, 4160, 64, layers=1),
    "no group fits": lambda _: random_weights(5, 96, 96),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_weights_that_are_no_encoder_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "native" / "w.npz"
    save_native_weights(file, BROKEN[name](random_weights(5, 64, 128)))
    with pytest.raises(BundleError, match=r"(no|not) .*\. Export the bundle again"):
        load_native_weights(file)


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", None])
def test_a_file_that_is_cut_short_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "native" / "w.npz"
    save_native_weights(file, random_weights(5, 64, 128))
    file.write_bytes(file.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(BundleError, match=r"cannot be read: .* Export the bundle again"):
        load_native_weights(file)


@needs_native
def test_vectors_of_another_width_than_the_manifest_says_are_refused(
    bundle: Path, tmp_path: Path, rehash: Callable[..., None]
) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(bundle, changed)
    save_native_weights(changed / NATIVE_NAME, random_weights(5, 64, 128))
    rehash(changed)
    with pytest.raises(BundleError, match="gives vectors of 64 values, the manifest says 128"):
        Encoder(changed, backend="native", precision="int8-per-token")
