"""verify: hashes first, then every golden text with every variant; 1 if a vector is wrong."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from corom.runtime import Encoder, load_manifest
from corom.runtime.batching import Batch
from corom.runtime.errors import BundleError, CoromError, ParityError
from corom.runtime.golden import GOLDEN_NAME, Golden, load_golden, save_golden
from corom.runtime.manifest import Tolerance, Variant
from corom.runtime.native_library import native_executes
from corom.runtime.proof import prove
from corom.runtime.vectors import Vectors
from corom.runtime.verify import measure, verify_bundle

Corom = Callable[..., subprocess.CompletedProcess[str]]
Rehash = Callable[..., None]


LOOSE = Tolerance(cosine_min=0.9995)

CPU_BACKENDS = ["onnxruntime", "openvino"]
"""What executes fp32 on a machine without a GPU."""


def disagree(bundle: Path, rehash: Rehash, row: int, by: float) -> str:
    """Alter one golden vector, consistently with the hashes, and return its text."""
    golden = load_golden(bundle / GOLDEN_NAME)
    vectors = golden.vectors.copy()
    vectors[row] += by * np.linspace(-1, 1, vectors.shape[1], dtype=np.float32)
    save_golden(bundle / GOLDEN_NAME, Golden(golden.texts, vectors))
    rehash(bundle)
    return golden.texts[row]


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_mean_bundle"])
def test_a_published_bundle_passes(request: pytest.FixtureRequest, bundle: str) -> None:
    verdicts = list(verify_bundle(request.getfixturevalue(bundle), threads=1))
    assert [verdict.backend for verdict in verdicts] == CPU_BACKENDS
    for verdict in verdicts:
        assert (verdict.problems, verdict.device) == ([], "cpu")
        assert verdict.parity is not None
        assert verdict.parity.max_abs_error <= 1e-4
        assert verdict.parity.batch_invariance <= 1e-5
        assert verdict.parity.rank_agreement == 1


def test_the_demo_bundle_passes(corom: Corom, demo_bundle: Path) -> None:
    done = corom("verify", "--json", demo_bundle)
    assert done.returncode == 0
    verdicts = json.loads(done.stdout)
    # Its heads have 64 values, as the kernels want them.
    native = ["native"] if native_executes("fp32") else []
    assert [verdict["backend"] for verdict in verdicts] == native + CPU_BACKENDS
    for verdict in verdicts:
        assert verdict["problems"] == []
        assert verdict["parity"]["max_abs_error"] <= 1e-4
        assert verdict["parity"]["rank_agreement"] == 1


def test_golden_texts_come_with_the_unnormalized_reference(
    tiny_mean_bundle: Path,
    tiny_mean_checkpoint: Path,
    transformers_vectors: Callable[..., np.ndarray],
) -> None:
    golden = load_golden(tiny_mean_bundle / GOLDEN_NAME)
    expected = transformers_vectors(tiny_mean_checkpoint, golden.texts, "mean", 96)
    np.testing.assert_allclose(golden.vectors, expected, atol=1e-5)


def test_verify_prints_a_table(corom: Corom, tiny_bundle: Path) -> None:
    done = corom("verify", tiny_bundle, "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fp32" in done.stdout
    assert "ok" in done.stdout


@pytest.mark.parametrize("by", [0.01, float("nan"), float("inf")])
def test_a_golden_vector_that_disagrees_is_exit_code_1(
    corom: Corom, altered: Path, rehash: Rehash, by: float
) -> None:
    text = disagree(altered, rehash, 5, by)
    done = corom("verify", altered)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "out of tolerance on this machine: fp32" in done.stderr
    done = corom("verify", "--json", altered)
    assert done.returncode == 1
    for verdict in json.loads(done.stdout):
        assert verdict["problems"]
        assert verdict["parity"]["worst_text"] == text


def test_measuring_sees_a_drift_that_only_batches_have(tiny_bundle: Path) -> None:
    class Drifting(Encoder):
        """Gives a text another vector where it has company, as per-tensor int8 does."""

        def encode_together(self, texts: list[str]) -> np.ndarray:
            return super().encode_together(texts) + 0.01 * (len(texts) > 1)

    golden = load_golden(tiny_bundle / GOLDEN_NAME)
    with Drifting(tiny_bundle) as encoder:
        parity = measure(encoder, golden)
    assert parity.batch_invariance == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("file", ["README.md", GOLDEN_NAME, "onnx/model.onnx", "tokenizer.json"])
def test_any_altered_file_is_found_and_exit_code_2(corom: Corom, altered: Path, file: str) -> None:
    content = bytearray((altered / file).read_bytes())
    content[-1] ^= 1
    (altered / file).write_bytes(content)
    done = corom("verify", altered)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{file}' was altered or cut short" in done.stderr


def test_golden_vectors_that_the_manifest_does_not_list_are_not_used(altered: Path) -> None:
    manifest = json.loads((altered / "manifest.json").read_bytes())
    manifest["files"] = [f for f in manifest["files"] if f["path"] != GOLDEN_NAME]
    (altered / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"lists no file 'golden\.npz'"):
        list(verify_bundle(altered))


def test_golden_vectors_of_another_dimension_are_refused(altered: Path, rehash: Rehash) -> None:
    golden = load_golden(altered / GOLDEN_NAME)
    save_golden(altered / GOLDEN_NAME, Golden(golden.texts, golden.vectors[:, :9].copy()))
    rehash(altered)
    with pytest.raises(BundleError, match="another dimension"):
        list(verify_bundle(altered))


def test_a_damaged_graph_that_hashes_well_is_exit_code_2(
    corom: Corom, altered: Path, rehash: Rehash
) -> None:
    (altered / "onnx" / "model.onnx").write_bytes(b"no graph")
    rehash(altered)
    done = corom("verify", altered)
    assert done.returncode == 2
    assert "ONNX Runtime cannot open" in done.stderr


def test_each_variant_has_a_verdict(altered: Path, rehash: Rehash) -> None:
    (fp32,) = load_manifest(altered).variants
    strict = msgspec.structs.replace(fp32.tolerance, cosine_min=1.1)
    fp16: Variant = msgspec.structs.replace(fp32, precision="fp16", tolerance=strict)
    rehash(altered, variants=(fp32, fp16))
    *passed, failed = verify_bundle(altered)
    assert [verdict.backend for verdict in passed] == CPU_BACKENDS
    assert all(verdict.problems == [] for verdict in passed)
    assert (failed.variant.precision, failed.backend) == ("fp16", "onnxruntime")
    assert failed.problems == ["cosine 1.0000000 is below 1.1"]


def test_an_engine_that_gives_wrong_vectors_is_refused_when_opened(
    altered: Path, rehash: Rehash
) -> None:
    """The check that TensorRT engines go through at load, on a backend that runs anywhere."""
    tokenizer_json = (altered / "tokenizer.json").read_bytes()
    with Encoder(altered) as encoder:
        encoder._prove(altered, tokenizer_json, Tolerance(cosine_min=0.99999))
    golden = load_golden(altered / GOLDEN_NAME)
    save_golden(altered / GOLDEN_NAME, Golden(golden.texts, golden.vectors[:, ::-1].copy()))
    rehash(altered)
    encoder = Encoder(altered)
    with pytest.raises(ParityError, match="gives wrong vectors on this machine"):
        encoder._prove(altered, tokenizer_json, Tolerance(cosine_min=0.9995))
    with pytest.raises(CoromError, match="closed"):
        encoder.encode("一")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("broken", [0, -1])
def test_a_vector_that_has_no_cosine_is_a_wrong_one(
    altered: Path, broken: int, value: float
) -> None:
    tokenizer_json = (altered / "tokenizer.json").read_bytes()
    golden = load_golden(altered / GOLDEN_NAME)
    with Encoder(altered) as encoder:
        batches = 0

        def run(batch: Batch) -> Vectors:
            nonlocal batches
            vectors = encoder.run(batch)
            if batches == broken % len(golden.texts):
                vectors[:] = value
            batches += 1
            return vectors

        with pytest.raises(ParityError, match="gives wrong vectors on this machine"):
            prove(run, 1, altered, encoder.manifest, tokenizer_json, LOOSE, encoder.choice)
    assert batches == len(golden.texts)


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.001])
def test_vectors_of_another_length_are_wrong_ones(altered: Path, factor: float) -> None:
    """Cosines do not see it; inner products, CoROM's similarity, do."""
    tokenizer_json = (altered / "tokenizer.json").read_bytes()
    with Encoder(altered) as encoder:

        def run(batch: Batch) -> Vectors:
            return encoder.run(batch) * np.float32(factor)

        (fp32,) = encoder.manifest.variants
        for tolerance in (LOOSE, fp32.tolerance):
            if tolerance is LOOSE and factor == 1.001:  # as codes of 8 bits may
                continue
            with pytest.raises(ParityError, match="gives wrong vectors on this machine"):
                prove(run, 99, altered, encoder.manifest, tokenizer_json, tolerance, "")
