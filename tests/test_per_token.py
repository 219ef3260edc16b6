"""int8-per-token: 8-bit weights in the graph, 8-bit tokens by OpenVINO, nothing chosen on texts."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from corom.export.bundle import export_bundle
from corom.export.per_token_graph import PER_TOKEN_GRAPH
from corom.runtime import Encoder, load_manifest
from corom.runtime.backend_openvino import execute_once
from corom.runtime.cpus import has_vnni
from corom.runtime.errors import InputError, UnavailableError

needs_vnni = pytest.mark.skipif(not has_vnni(), reason="run it on a CPU with VNNI")


def export(checkpoint: Path, made: Path, parity_file: Path) -> None:
    """Make a bundle with the rung."""
    export_bundle(
        str(checkpoint),
        made,
        precisions=["int8-per-token"],
        parity_texts=parity_file,
        pooling="cls",
    )


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    make_checkpoint: Callable[..., Path],
    parity_file: Path,
) -> Path:
    """A bundle with the rung; its layers are as wide as groups that share a scale."""
    made = tmp_path_factory.mktemp("bundles") / "per-token"
    export(make_checkpoint(hidden_size=128, intermediate_size=256), made, parity_file)
    return made


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> Iterator[Encoder]:
    with Encoder(bundle, precision="int8-per-token", threads=1) as opened:
        yield opened


@needs_vnni
def test_it_is_proven_by_what_executes_it(bundle: Path, encoder: Encoder) -> None:
    exact, rung = load_manifest(bundle).variants
    assert (exact.precision, rung.precision) == ("fp32", "int8-per-token")
    (parity,) = rung.parity.values()
    assert list(rung.parity) == ["openvino"]
    assert 0.998 <= parity.cosine_min < 0.999999
    assert encoder.backend_name == "openvino"
    manifest = load_manifest(bundle)
    weights = manifest.entry(exact.file).size_bytes - 4 * 128 * (2000 + 160)
    codes = manifest.entry(rung.file).size_bytes - 4 * 128 * (2000 + 160)
    assert codes < 0.45 * weights  # keys and values of the last layer stay as they are


@needs_vnni
def test_the_weights_are_within_half_a_step(bundle: Path) -> None:
    def matrices(file: str) -> dict[str, np.ndarray]:
        graph = onnx.load(bundle / file).graph
        return {t.name: numpy_helper.to_array(t) for t in graph.initializer}

    exact, rung = matrices("onnx/model.onnx"), matrices(PER_TOKEN_GRAPH)
    rewritten = [name for name in exact if f"{name}.codes" in rung]
    assert len(rewritten) == 6 * 2 + 4
    for name in rewritten:
        codes, scales = rung[f"{name}.codes"], rung[f"{name}.scales"]
        assert codes.dtype == np.int8
        # The exporter keeps some transposed: a scale is that of a row there.
        rows, columns = (len(scales) == size for size in codes.shape)
        steps = [scales[:, None]] * rows + [scales[None]] * columns
        errors = [np.abs(codes - exact[name] / step).max() for step in steps]
        assert min(errors) <= 0.5001


@needs_vnni
def test_tokens_have_8_bits_too(bundle: Path, encoder: Encoder) -> None:
    model = (bundle / PER_TOKEN_GRAPH).read_bytes()
    ids = np.array(encoder.token_ids(["头痛怎么办"]))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (exact,), (rounded,) = (execute_once(model, feeds, p) for p in ("fp32", "int8-per-token"))
    assert 1e-4 < np.abs(exact - rounded).max() < 0.5


@needs_vnni
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_vector_depends_on_its_batch_by_no_more_than_the_bound(
    encoder: Encoder, parity_texts: list[str], data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.sampled_from(parity_texts), min_size=2, max_size=9))
    variant = encoder.manifest.variant("int8-per-token")
    assert variant is not None
    assert variant.tolerance.batch_invariance is not None
    together = encoder.encode_together(texts)
    alone = np.concatenate([encoder.encode_together([text]) for text in texts])
    assert np.abs(together - alone).max() <= variant.tolerance.batch_invariance


@needs_vnni
def test_another_backend_does_not_stand_in(
    bundle: Path, corom: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with pytest.raises(UnavailableError, match="int8-per-token is executed by: native, openvino"):
        Encoder(bundle, precision="int8-per-token", backend="onnxruntime")
    done = corom("embed", bundle, "头痛", "--precision", "int8-per-token")
    assert done.returncode == 0, done.stderr
    assert "int8-per-token by openvino on cpu" in done.stderr


@needs_vnni
def test_layers_that_no_group_fits_are_refused(
    tiny_checkpoint: Path, parity_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"multiple of 64; .* are 48 and 96 wide\. Take int8"):
        export(tiny_checkpoint, tmp_path / "b", parity_file)
    assert not (tmp_path / "b").exists()


def test_without_vnni_it_is_refused_and_nothing_is_made(
    tiny_checkpoint: Path, parity_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corom.runtime.backend_openvino.has_vnni", lambda: False)
    monkeypatch.setattr("corom.runtime.native_library.cpu_flags", set)
    with pytest.raises(UnavailableError, match=r"has no VNNI, .* Take fp32 or int8"):
        export(tiny_checkpoint, tmp_path / "b", parity_file)
    assert not (tmp_path / "b").exists()
