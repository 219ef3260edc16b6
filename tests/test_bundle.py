"""`corom export`: checkpoint to bundle, whole or not at all, whatever happens on the way."""

import json
import os
import re
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandServer

from corom.export.bundle import export_bundle
from corom.runtime import Encoder, load_manifest
from corom.runtime.errors import InputError, UnavailableError
from corom.runtime.golden import load_golden
from corom.runtime.manifest import describe_files, sha256_of

Corom = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
FILES = ["README.md", "golden.npz", "manifest.json", "onnx/model.onnx", "tokenizer.json"]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --- What is published


def test_a_bundle_is_complete_and_nothing_else(tiny_bundle: Path) -> None:
    assert files(tiny_bundle) == FILES
    assert load_manifest(tiny_bundle).files == describe_files(tiny_bundle)
    assert [p.name for p in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_the_manifest_says_what_it_is(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = load_manifest(tiny_bundle)
    assert manifest.name == "tiny"
    # The folder's name alone; which process exported it first decides the number in it.
    assert re.fullmatch(r"folder:checkpoint\d+", manifest.source.uri)
    assert manifest.source.weights_sha256 == sha256_of(tiny_checkpoint / "pytorch_model.bin")
    assert manifest.source.architecture == "bert"
    assert (manifest.dimension, manifest.max_length, manifest.max_positions) == (48, 128, 160)
    assert (manifest.pooling, manifest.normalize, manifest.similarity) == ("cls", False, "dot")
    assert set(manifest.tools) >= {"corom", "onnx", "onnxruntime", "tokenizers", "torch"}
    (variant,) = manifest.variants
    assert (variant.precision, variant.file) == ("fp32", "onnx/model.onnx")
    assert "onnxruntime" in variant.parity
    assert variant.parity["onnxruntime"].failures(variant.tolerance) == []
    assert variant.tolerance.max_abs_error == 1e-4


def test_a_sentence_transformers_folder_brings_its_conventions(tiny_mean_bundle: Path) -> None:
    manifest = load_manifest(tiny_mean_bundle)
    assert (manifest.pooling, manifest.normalize, manifest.similarity) == ("mean", True, "cosine")
    assert manifest.max_length == 96
    assert manifest.prompts["query"] == "查询："


def test_nothing_of_this_machine_is_in_a_bundle(tiny_bundle: Path) -> None:
    for name in FILES:
        content = (tiny_bundle / name).read_bytes()
        for words in (str(tiny_bundle.parent), str(Path.cwd()), str(Path.home())):
            assert words.encode() not in content, (name, words)


def test_the_readme_of_a_bundle_says_how_exact_and_whose_it_is(demo_bundle: Path) -> None:
    text = (demo_bundle / "README.md").read_text("utf-8")
    manifest = load_manifest(demo_bundle)
    for words in (
        "# m3e-small",
        "research use only",
        "512 dimensions, mean pooling",
        "| fp32 |",
        "| onnxruntime |",
    ):
        assert words in text
    assert manifest.source.weights_sha256 in text
    assert "/work" not in text


def test_exporting_twice_gives_the_same_files(
    tmp_path: Path, tiny_bundle: Path, tiny_checkpoint: Path, parity_file: Path
) -> None:
    export_bundle(str(tiny_checkpoint), tmp_path / "tiny", parity_texts=parity_file)
    first, second = (
        load_golden(tiny_bundle / "golden.npz"),
        load_golden(tmp_path / "tiny/golden.npz"),
    )
    assert first.texts == second.texts
    np.testing.assert_allclose(first.vectors, second.vectors, atol=1e-6)
    for name in ("onnx/model.onnx", "tokenizer.json"):
        assert sha256_of(tiny_bundle / name) == sha256_of(tmp_path / "tiny" / name), name


@pytest.fixture
def export(
    exporter: CommandServer, tmp_path: Path, one_layer_checkpoint: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return the function that exports with the parity texts of corom, in a process of its own."""

    def export(output: Path, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        words = ["corom", "export", str(one_layer_checkpoint), "-o", str(output), *options]
        return exporter.run(words, tmp_path, {}, "", **more)

    return export


def test_the_command_reports_what_it_published(export: Corom, corom: Corom, tmp_path: Path) -> None:
    """With the parity texts that come with corom, and every option."""
    options = ["--pooling", "mean", "--normalize", "--max-length", "64", "--opset", "18"]
    done = export(tmp_path / "new" / "b", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "new/b/manifest.json").read_bytes())
    manifest = load_manifest(tmp_path / "new" / "b")
    assert (manifest.pooling, manifest.normalize, manifest.max_length) == ("mean", True, 64)
    assert "onnxruntime" in manifest.variants[0].parity
    assert manifest.variants[0].parity["onnxruntime"].texts >= 200
    for stage in ("Reading the checkpoint", "Exporting the ONNX graph", "Publishing"):
        assert stage in done.stderr
    assert (tmp_path / "new" / "b").stat().st_mode & 0o055 == 0o055
    assert corom("verify", tmp_path / "new" / "b").returncode == 0


# --- Bad input: nothing is published


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "absent"}, "'absent' does not exist. SOURCE is a folder"),
        ({"source": "absent.toml"}, r"no recipe 'absent\.toml'. Recipes: "),
        ({"source": ""}, "SOURCE is|config.json|not a checkpoint"),
        ({"parity_texts": Path("absent.txt")}, r"'absent\.txt' cannot be read"),
        ({"opset": 23}, "opset is 23; allowed: 18 to 20"),
        ({"max_length": 161}, "max_length is 161"),
        ({"revision": "v1"}, "has no revisions"),
    ],
)
def test_bad_input_publishes_nothing(
    tmp_path: Path,
    tiny_checkpoint: Path,
    parity_file: Path,
    arguments: dict[str, Any],
    message: str,
) -> None:
    given = {"source": str(tiny_checkpoint), "parity_texts": parity_file} | arguments
    with pytest.raises(InputError, match=message):
        export_bundle(given.pop("source"), tmp_path / "new" / "bundle", **given)
    assert not any(tmp_path.iterdir())


def test_offline_without_a_cache_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COROM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError, match="--offline"):
        export_bundle("demo", tmp_path / "bundle", offline=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("traced_before")
def test_what_is_there_is_not_replaced_unless_asked(
    altered: Path, tiny_checkpoint: Path, parity_file: Path
) -> None:
    before = sha256_of(altered / "manifest.json")
    with pytest.raises(InputError, match="exists. Choose another folder, or .*--overwrite"):
        export_bundle(str(tiny_checkpoint), altered, parity_texts=parity_file)
    assert sha256_of(altered / "manifest.json") == before
    options: dict[str, Any] = {"parity_texts": parity_file, "overwrite": True, "max_length": 32}
    export_bundle(str(tiny_checkpoint), altered, **options)
    assert load_manifest(altered).max_length == 32
    assert files(altered.parent) == [f"altered/{name}" for name in FILES]


# --- Interruptions and full disks: nothing is left behind


@pytest.mark.parametrize(
    ("number", "stage", "code"),
    [
        (signal.SIGINT, "Exporting the ONNX graph", 130),
        (signal.SIGTERM, "Measuring parity", 143),
    ],
    ids=["Ctrl-C in the export", "kill in the measuring"],
)
def test_when_interrupted_nothing_is_left_behind(
    export: Corom, tmp_path: Path, number: int, stage: str, code: int
) -> None:
    was_there = []

    def interrupt(process: int, line: str) -> None:
        if stage in line and not was_there:
            was_there.extend((tmp_path / "new").glob(".bundle.*.partial"))
            os.kill(process, number)

    done = export(tmp_path / "new" / "bundle", heard=interrupt)
    assert was_there
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_of_two_exports_to_one_folder_exactly_one_succeeds(
    start: Start, corom: Corom, tmp_path: Path, tiny_checkpoint: Path, parity_file: Path
) -> None:
    arguments = ("export", tiny_checkpoint, "-o", tmp_path / "b", "--parity-texts", parity_file)
    said: dict[int, str] = {}

    def finish(process: subprocess.Popen[str]) -> None:
        with process:
            said[process.wait()] = process.communicate()[1]

    threads = [threading.Thread(target=finish, args=(start(*arguments),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [0, 2], said
    assert "another process published" in said[2] or "exists. Choose another" in said[2]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert corom("verify", tmp_path / "b").returncode == 0


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_behind(
    corom: Corom, tmp_path: Path, tiny_checkpoint: Path, parity_file: Path
) -> None:
    # A limit on the size of files stands for the disk; the graph is larger than that.
    output = tmp_path / "new" / "bundle"
    limit = (300_000, 300_000)
    done = corom(
        *("export", tiny_checkpoint, "-o", output, "--parity-texts", parity_file),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte; skips where mounting is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.usefixtures("traced_before")
def test_a_small_disk_is_left_empty(
    small_disk: Path, tiny_checkpoint: Path, parity_file: Path
) -> None:
    with pytest.raises(OSError, match="No space left"):
        export_bundle(str(tiny_checkpoint), small_disk / "new" / "b", parity_texts=parity_file)
    assert not any(small_disk.iterdir())


@pytest.mark.usefixtures("traced_before")
def test_a_small_disk_keeps_the_bundle_that_was_to_be_replaced(
    small_disk: Path, tiny_bundle: Path, tiny_checkpoint: Path, parity_file: Path
) -> None:
    old = small_disk / "bundle"
    old.mkdir()
    (old / "manifest.json").write_bytes((tiny_bundle / "manifest.json").read_bytes())
    with pytest.raises(OSError, match="No space left"):
        export_bundle(str(tiny_checkpoint), old, parity_texts=parity_file, overwrite=True)
    assert files(small_disk) == ["bundle/manifest.json"]


@pytest.mark.parametrize("place", ["/proc/corom", "below a file", "read-only folder"])
def test_where_nothing_can_be_written_the_work_does_not_begin(
    tmp_path: Path, tiny_checkpoint: Path, parity_file: Path, place: str
) -> None:
    folder = tmp_path / "place"
    if place == "/proc/corom":
        folder = Path(place)
    elif place == "below a file":
        folder.touch()
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        folder.mkdir(mode=0o555)
    stages: list[str] = []
    refused: tuple[type[Exception], str] = (OSError, r"No such file|denied")
    if place == "below a file":
        refused = (InputError, "is a file; 'b' needs a folder")
    with pytest.raises(refused[0], match=refused[1]):
        export_bundle(
            str(tiny_checkpoint), folder / "b", parity_texts=parity_file, say=stages.append
        )
    assert stages == []
    assert files(tmp_path) == (["place"] if place == "below a file" else [])


# --- The demo


def test_the_demo_shows_the_model_cards_example(
    demo_bundle: Path, shell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = shell(f"python -m corom.export.demo '{demo_bundle}'")
    assert done.returncode == 0, done.stderr
    for words in ("m3e-small", "research use only", "fp32", "text_embedding: (3, 512) float32"):
        assert words in done.stdout
    scores = [float(line.split()[1]) for line in done.stdout.splitlines() if "score " in line]
    assert len(scores) == 2
    assert scores[0] > scores[1]


def test_demo_vectors_make_sense(demo_bundle: Path) -> None:
    with Encoder(demo_bundle) as encoder:
        assert (encoder.dimension, encoder.max_length) == (512, 512)
        questions = encoder.encode(["头痛怎么办", "今天天气怎么样"])
        answers = encoder.encode(["头疼的治疗方法", "明天会不会下雨"])
        scores = encoder.similarity(questions, answers)
    assert scores.argmax(axis=1).tolist() == [0, 1]
