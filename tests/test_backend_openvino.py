"""The OpenVINO backend: ONNX Runtime's vectors, from any thread, in the precision asked for."""

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.runtime import Encoder, load_manifest
from corom.runtime import backend_openvino as module
from corom.runtime.backend_openvino import OpenVinoBackend, open_core, require_precision
from corom.runtime.batching import Batch
from corom.runtime.errors import BundleError, UnavailableError
from corom.runtime.manifest import sha256_of


@pytest.fixture(scope="module", params=["tiny_bundle", "tiny_mean_bundle"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Encoder, Encoder]]:
    """The same bundle by ONNX Runtime and by OpenVINO."""
    bundle = request.getfixturevalue(request.param)
    with Encoder(bundle) as expected, Encoder(bundle, backend="openvino", threads=1) as found:
        yield expected, found


def opened(bundle: Path, **options: Any) -> OpenVinoBackend:
    graph = bundle / "onnx" / "model.onnx"
    settings = {"dimension": 48, "threads": 1, "precision": "fp32"}
    settings |= {"max_tokens": 40, "max_positions": 160} | options
    return OpenVinoBackend(graph, sha256_of(graph)[:16], **settings)  # type: ignore[arg-type]


def test_real_text_gives_onnx_runtimes_vectors(
    pair: tuple[Encoder, Encoder], parity_texts: list[str]
) -> None:
    expected, found = pair
    assert found.choice == "fp32 by openvino on cpu"
    texts = parity_texts[::5]
    np.testing.assert_allclose(found.encode(texts), expected.encode(texts), atol=2e-5)
    alone = np.stack([found.encode(text) for text in texts])
    np.testing.assert_allclose(alone, found.encode(texts), atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_batch_gives_onnx_runtimes_vectors(
    pair: tuple[Encoder, Encoder], data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 160), min_size=1, max_size=12))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    batch = Batch(generator.integers(0, 2000, (len(lengths), max(lengths))), np.array(lengths))
    expected, found = (encoder._backend.run(batch) for encoder in pair)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    again = pair[1]._backend.run(batch)
    again[:] = 0  # what run returns is the caller's
    np.testing.assert_array_equal(pair[1]._backend.run(batch), found)


def test_many_threads_each_get_their_own_vectors(
    pair: tuple[Encoder, Encoder], parity_texts: list[str]
) -> None:
    expected, found = pair
    texts = parity_texts[:: len(parity_texts) // 24]
    vectors = expected.encode(texts)

    def check(turn: int) -> None:
        at = turn % len(texts)
        np.testing.assert_allclose(found.encode(texts[at]), vectors[at], atol=2e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(400)))
    assert len(found._backend._idle) <= 8  # type: ignore[attr-defined]


def test_the_second_opening_reads_what_the_first_compiled(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COROM_CACHE", str(tmp_path))
    first = opened(tiny_bundle)
    (blob,) = tmp_path.rglob("*.blob")
    assert blob.parent.name == sha256_of(tiny_bundle / "onnx" / "model.onnx")[:16] + "-f32"
    second = opened(tiny_bundle)
    assert [b._model.get_property("LOADED_FROM_CACHE") for b in (first, second)] == [False, True]
    batch = Batch(np.full((2, 9), 5), np.array([9, 4]))
    np.testing.assert_array_equal(first.run(batch), second.run(batch))


def test_no_precision_takes_what_another_compiled(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO would: with NaN, or a crash, on CPUs with AMX."""
    if "BF16" not in open_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("run it on a CPU with bf16")
    monkeypatch.setenv("COROM_CACHE", str(tmp_path))
    exact, rounded = opened(tiny_bundle), opened(tiny_bundle, precision="bf16")
    assert not rounded._model.get_property("LOADED_FROM_CACHE")
    batch = Batch(np.full((2, 30), 5), np.array([30, 4]))
    np.testing.assert_allclose(rounded.run(batch), exact.run(batch), atol=0.1)


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COROM_CACHE", str(tmp_path / "file"))
    caplog.set_level(logging.INFO, "corom")
    assert opened(tiny_bundle).run(Batch(np.full((1, 4), 3), np.array([4]))).shape == (1, 48)
    assert "compiled models are not kept" in caplog.text


def test_fp32_is_fp32_and_threads_are_as_asked(tiny_bundle: Path) -> None:
    model = opened(tiny_bundle, threads=1)._model
    assert model.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert model.get_property("INFERENCE_NUM_THREADS") == 1
    nodes = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    products = [n for n in nodes if n["layerType"].astype(str) == "FullyConnected"]
    assert {n["runtimePrecision"].astype(str) for n in products} == {"f32"}


class OldCpu:
    """What OpenVINO says of a CPU without bf16."""

    def get_property(self, _device: str, name: str) -> Any:
        return {"OPTIMIZATION_CAPABILITIES": ["FP32", "INT8"], "FULL_DEVICE_NAME": "Old CPU"}[name]


def test_bf16_is_refused_where_the_cpu_lacks_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from corom.export.bundle import export_bundle

    monkeypatch.setattr(module, "open_core", OldCpu)
    message = r"this CPU \(Old CPU\) has no bf16: OpenVINO finds FP32, INT8"
    with pytest.raises(UnavailableError, match=message):
        opened(tiny_bundle, precision="bf16")
    monkeypatch.setattr("corom.export.rungs.open_core", OldCpu)
    monkeypatch.setattr("corom.runtime.native_library.cpu_flags", set)
    with pytest.raises(UnavailableError, match=message):  # before the source is even looked at
        export_bundle("absent", tmp_path / "bundle", precisions=("bf16",))


def test_a_hint_that_is_not_followed_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = open_core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    require_precision(core, "bf16")

    class Stubborn:
        get_property = core.get_property

        def compile_model(self, graph: Path, device: str, options: dict[str, Any]) -> Any:
            return core.compile_model(graph, device, options | {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(module, "open_core", Stubborn)
    with pytest.raises(UnavailableError, match="computes in f32 on this CPU, not in bf16"):
        opened(tiny_bundle, precision="bf16")


def test_without_the_package_it_says_how_to_install_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnavailableError, match=r"pip install 'corom\[openvino\]'"):
        Encoder(tiny_bundle, backend="openvino")
    with Encoder(tiny_bundle) as encoder:
        assert encoder.backend_name == "onnxruntime"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_backend_does_not_execute_a_precision_as_another(
    altered: Path, rehash: Callable[..., None], precision: Any
) -> None:
    import msgspec

    (fp32,) = load_manifest(altered).variants
    rehash(altered, variants=(msgspec.structs.replace(fp32, precision=precision),))
    backend = {"fp16": "openvino", "bf16": "onnxruntime"}[precision]
    with pytest.raises(UnavailableError, match=f"backend '{backend}' executes .*, not {precision}"):
        Encoder(altered, backend=backend, device="cpu", precision=precision)


def test_what_is_no_graph_or_another_ones_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gives .*48.*; expected .* of 49 dimensions"):
        opened(tiny_bundle, dimension=49)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="OpenVINO cannot open"):
        opened(tmp_path)
