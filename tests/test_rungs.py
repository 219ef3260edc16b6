"""The precision ladder: each rung proven where it is executed, or left out with the reason."""

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.export.bundle import export_bundle
from corom.export.errors import RungError
from corom.runtime import Encoder, load_manifest
from corom.runtime.backend_openvino import open_core
from corom.runtime.cpus import int8_saturates
from corom.runtime.errors import InputError, ParityError, UnavailableError
from corom.runtime.golden import GOLDEN_NAME, Golden, load_golden, save_golden
from corom.runtime.manifest import Precision, save_manifest

Corom = Callable[..., subprocess.CompletedProcess[str]]
TracingSpared = Callable[[], AbstractContextManager[None]]

HAS_BF16 = "BF16" in open_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
LADDER: list[Precision] = ["fp32", *(["bf16"] if HAS_BF16 else []), "int8"]  # type: ignore[list-item]
RUNGS = [
    (p, b) for p in LADDER for b in ("onnxruntime", "openvino") if p != "bf16" or b == "openvino"
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> str:
    """Of ``tiny_checkpoint``: its large random weights saturate where a CPU has no VNNI."""
    file = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    file.write_text(
        f'source = "{tiny_checkpoint}"\n'
        "[tolerance.int8]\ncosine_min = 0.98\nbatch_invariance = 0.2\n"
    )
    return str(file)


@pytest.fixture(scope="module")
def ladder(
    tmp_path_factory: pytest.TempPathFactory,
    recipe: str,
    parity_file: Path,
    tracing_spared: TracingSpared,
) -> Path:
    """The bundle of ``tiny_checkpoint`` with every rung that this CPU has."""
    bundle = tmp_path_factory.mktemp("bundles") / "ladder"
    with tracing_spared():
        export_bundle(recipe, bundle, precisions=LADDER, parity_texts=parity_file)
    return bundle


@pytest.fixture(scope="module", params=RUNGS, ids=" ".join)
def rung(request: pytest.FixtureRequest, ladder: Path) -> Iterator[Encoder]:
    precision, backend = request.param
    with Encoder(ladder, precision=precision, backend=backend, threads=1) as encoder:
        yield encoder


def test_every_rung_is_in_the_manifest_with_its_parity(ladder: Path) -> None:
    manifest = load_manifest(ladder)
    proven = [(v.precision, backend) for v in manifest.variants for backend in v.parity]
    assert proven == RUNGS
    for variant in manifest.variants:
        for parity in variant.parity.values():
            assert parity.failures(variant.tolerance) == []
    readme = (ladder / "README.md").read_text("utf-8")
    assert readme.count("| int8 |") == 2
    assert manifest.tools["openvino"]
    assert {v.file for v in manifest.variants} == {"onnx/model.onnx", "onnx/model_int8.onnx"}


def test_int8_weighs_a_quarter_but_for_the_embeddings(ladder: Path) -> None:
    manifest = load_manifest(ladder)
    sizes = {v.precision: manifest.entry(v.file).size_bytes for v in manifest.variants}
    embeddings = 4 * 48 * (2000 + 160)
    products = sizes["fp32"] - embeddings
    assert sizes["int8"] - embeddings < 0.6 * products  # scales and biases weigh more in tiny ones


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_vector_depends_on_its_batch_by_no_more_than_the_bound(
    rung: Encoder, parity_texts: list[str], data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.sampled_from(parity_texts), min_size=2, max_size=9))
    variant = rung.manifest.variant(rung.precision)  # type: ignore[arg-type]
    assert variant is not None
    bound = variant.tolerance.batch_invariance
    assert bound is not None
    together = rung.encode_together(texts)
    alone = np.concatenate([rung.encode_together([text]) for text in texts])
    assert np.abs(together - alone).max() <= bound


@pytest.mark.slow
def test_64_threads_for_a_minute_stay_within_the_bound_in_flat_memory(
    rung: Encoder, parity_texts: list[str]
) -> None:
    """Alone, in a batch, by whichever thread: as `test_a_vector_depends…` says."""
    variant = rung.manifest.variant(rung.precision)  # type: ignore[arg-type]
    assert variant is not None
    bound = variant.tolerance.batch_invariance
    assert bound is not None
    pool = {text: rung.encode_together([text])[0] for text in parity_texts[::3]}
    texts = sorted(pool)

    def call(seed: int, until: float) -> int:
        chance = random.Random(seed)
        count = 0
        while time.monotonic() < until:
            chosen = chance.choices(texts, k=chance.choice([1, 1, 5, 30]))
            found = rung.encode(chosen if len(chosen) > 1 else chosen[0])
            assert np.abs(found - [pool[text] for text in chosen]).max() <= bound
            count += len(chosen)
        return count

    process = psutil.Process()
    with ThreadPoolExecutor(64) as threads:
        for seconds in (15, 60):  # the first to reach the most that it takes
            before = process.memory_info().rss
            until = time.monotonic() + seconds
            answered = sum(threads.map(call, range(64), [until] * 64))
    assert answered > 5_000
    assert process.memory_info().rss - before < 24 * 2**20


def test_tune_leaves_out_what_fails_its_proof_here_or_was_not_proven(
    corom: Corom,
    ladder: Path,
    parity_file: Path,
    offline_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(ladder, bundle)
    manifest = load_manifest(bundle)
    variants = []
    for variant in manifest.variants:
        if variant.precision == "int8":
            impossible = msgspec.structs.replace(variant.tolerance, cosine_min=0.9999999)
            variant = msgspec.structs.replace(variant, tolerance=impossible)  # noqa: PLW2901
        elif variant.precision == "fp32":
            parity = {"onnxruntime": variant.parity["onnxruntime"]}
            variant = msgspec.structs.replace(variant, parity=parity)  # noqa: PLW2901
        variants.append(variant)
    save_manifest(msgspec.structs.replace(manifest, variants=variants), bundle)
    environment = offline_environment | {"COROM_CACHE": str(tmp_path / "cache")}
    options = ["--min-cosine", "0.5", "--seconds", "0.001", "--cpus", "99", "--texts", parity_file]
    done = corom("tune", bundle, *options, env=environment)
    assert done.returncode == 0, done.stderr
    assert "left out: int8 by onnxruntime: " in done.stderr
    assert "| fp32 onnxruntime |" in done.stdout
    assert "| fp32 openvino |" not in done.stdout
    assert "| int8 " not in done.stdout


def test_what_was_measured_is_shown_even_if_it_cannot_be_written(
    corom: Corom, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = corom(
        "bench", "throughput", tiny_bundle, "--count", "9", "-o", tmp_path / "file" / "x.json"
    )
    assert (done.returncode, "texts/s" in done.stdout) == (3, True), done.stderr


def test_every_rung_verifies(corom: Corom, ladder: Path) -> None:
    done = corom("verify", ladder, "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)
    measured = [(v["precision"], v["backend"]) for v in verdicts if v["parity"]]
    assert measured == RUNGS
    shown = corom("inspect", ladder).stdout
    assert shown.count("int8") >= 2


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({}, "fp32 by onnxruntime"),
        ({"precision": "fp32"}, "fp32 by onnxruntime"),
        ({"backend": "openvino"}, "fp32 by openvino"),
        ({"precision": "int8"}, f"int8 by {'onnxruntime' if int8_saturates() else 'openvino'}"),
        ({"precision": "int8", "backend": "onnxruntime"}, "int8 by onnxruntime"),
        pytest.param(
            {"precision": "bf16"},
            "bf16 by openvino",
            marks=pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16"),
        ),
    ],
)
def test_auto_is_exact_unless_speed_is_asked_for(
    ladder: Path, asked: dict[str, Any], chosen: str
) -> None:
    with Encoder(ladder, device="cpu", **asked) as encoder:
        assert encoder.choice == f"{chosen} on cpu"


def test_auto_takes_only_what_was_proven(ladder: Path, tmp_path: Path, rehash: Any) -> None:
    import shutil

    import msgspec

    bundle = shutil.copytree(ladder, tmp_path / "bundle")
    *others, int8 = load_manifest(bundle).variants
    by_one = {"onnxruntime": int8.parity["onnxruntime"]}
    rehash(bundle, variants=(*others, msgspec.structs.replace(int8, parity=by_one)))
    with Encoder(bundle, precision="int8") as encoder:
        assert encoder.backend_name == "onnxruntime"
    with Encoder(bundle, precision="int8", backend="openvino") as encoder:  # proven when opened
        assert encoder.backend_name == "openvino"


def test_int8_that_gives_other_vectors_on_this_cpu_is_not_opened(
    ladder: Path, tmp_path: Path, rehash: Any
) -> None:
    import shutil

    bundle = shutil.copytree(ladder, tmp_path / "bundle")
    golden = load_golden(bundle / GOLDEN_NAME)
    save_golden(bundle / GOLDEN_NAME, Golden(golden.texts, golden.vectors[:, ::-1].copy()))
    rehash(bundle)
    with pytest.raises(ParityError, match="int8 by onnxruntime on cpu gives wrong vectors"):
        Encoder(bundle, precision="int8", backend="onnxruntime")


def test_a_rung_that_fails_is_left_out_and_the_others_are_published(
    corom_here: Corom, tmp_path: Path, one_layer_checkpoint: Path, parity_file: Path
) -> None:
    recipe = tmp_path / "strict.toml"
    recipe.write_text(f'source = "{one_layer_checkpoint}"\n[tolerance.int8]\ncosine_min = 1.1\n')
    output = tmp_path / "bundle"
    options = ["--precision", "int8", "--precision", "fp16", "--parity-texts", parity_file]
    done = corom_here("export", recipe, "-o", output, *options, "--json")
    assert done.returncode == 1
    for backend in ("onnxruntime", "openvino"):
        assert f"int8 by {backend} failed parity with torch: cosine 0.9" in done.stderr
    assert done.stderr.count("Worst text: ") == 2
    assert ("This CPU has no VNNI" in done.stderr) == int8_saturates()
    assert done.stderr.count("First layer that drifts: embeddings (cosine 1.000000") == 2
    assert "without that: fp32 by onnxruntime and openvino, fp16 by onnxruntime." in done.stderr
    manifest = load_manifest(output)
    assert [v.precision for v in manifest.variants] == ["fp32", "fp16"]
    assert json.loads(done.stdout) == json.loads((output / "manifest.json").read_bytes())
    assert not (output / "onnx" / "model_int8.onnx").exists()
    with pytest.raises(UnavailableError, match="no variant of precision 'int8'"):
        Encoder(output, precision="int8")
    assert "int8" not in (output / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_fp16_that_fails_is_left_out_too(
    tmp_path: Path, tiny_checkpoint: Path, parity_file: Path
) -> None:
    recipe = tmp_path / "strict.toml"
    recipe.write_text(f'source = "{tiny_checkpoint}"\n[tolerance.fp16]\ncosine_min = 1.1\n')
    with pytest.raises(RungError, match=r"fp16 arithmetic failed parity(.|\n)*without that") as e:
        export_bundle(
            str(recipe), tmp_path / "bundle", precisions=["fp16"], parity_texts=parity_file
        )
    assert [v.precision for v in e.value.manifest.variants] == ["fp32"]
    assert sorted(p.name for p in (tmp_path / "bundle" / "onnx").iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 texts; choosing the scales of int8 needs at least 32, one a line"),
        ("头痛\n".encode() * 31, "has 31 texts"),
        ("头痛\n".encode() * 40 + b"\xff\xfe", r"is not UTF-8 \(byte 280\)"),
        (None, "cannot be read: No such file"),
    ],
)
def test_calibration_texts_without_use_are_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        export_bundle("absent", tmp_path / "b", precisions=["int8"], calibration_texts=file)
    with pytest.raises(InputError, match="for int8 only: add --precision int8"):
        export_bundle("absent", tmp_path / "b", calibration_texts=file)


@pytest.mark.slow
def test_without_calibration_texts_it_says_that_ones_own_are_better(
    tmp_path: Path, recipe: str, parity_file: Path, parity_texts: list[str]
) -> None:
    own = tmp_path / "own.txt"
    own.write_text("".join(f"{text}\n" for text in parity_texts[:40]), "utf-8")
    for texts in (None, own):
        said: list[str] = []
        export_bundle(
            recipe,
            tmp_path / f"bundle-{texts is None}",
            precisions=["int8"],
            parity_texts=parity_file,
            calibration_texts=texts,
            say=said.append,
        )
        assert any("--calibration-texts FILE" in line for line in said) == (texts is None)
