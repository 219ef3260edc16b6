"""The command `corom`, in real processes: results on stdout, the rest on stderr, exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest
from rich.console import Console

from corom.runtime import CoromError, Encoder
from corom.runtime.cli import COMMANDS, exit_codes
from corom.runtime.cli_inspect import Here, here_table
from corom.runtime.manifest import load_manifest, save_manifest

Corom = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
Shell = Callable[..., subprocess.CompletedProcess[str]]


# --- Help and usage


def test_help_lists_every_command_without_loading_it(corom: Corom) -> None:
    done = corom("--help")
    assert done.returncode == 0
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert line in done.stdout
    assert corom("-h").stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(corom: Corom, command: str) -> None:
    done = corom(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: corom {command} [OPTIONS]" in done.stdout


def test_version(corom: Corom) -> None:
    from importlib.metadata import version

    assert corom("--version").stdout == f"corom, version {version('corom')}\n"


def test_help_is_quick(start: Start) -> None:
    """In CPU time of the process, what else the machine does is not its doing; nor its speed."""

    def seconds(run: Callable[[], object]) -> float:
        start = os.times()
        run()
        end = os.times()
        return end.children_user + end.children_system - start.children_user - start.children_system

    python = min(seconds(lambda: subprocess.run([sys.executable, "-c", ""])) for _ in range(5))
    assert min(seconds(lambda: start("--help").communicate()) for _ in range(5)) < max(
        0.5, 25 * python
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: corom"),
        (["unknown"], "No such command 'unknown'"),
        (["--unknown"], "No such option"),
        (["embed"], "Missing argument 'BUNDLE'"),
        (["export", "demo"], "Missing option '-o'"),
        (["score", "bundle", "one"], "Missing argument 'OTHER...'"),
        (["inspect"], "Missing argument 'BUNDLE'"),
        (["inspect", "absent"], "'absent' is not a bundle: there is no such folder"),
        (["inspect", os.devnull], f"'{os.devnull}' is not a bundle: it is a file"),
        (["verify", "absent"], "'absent' is not a bundle"),
        (["score", "absent", "a", "b"], "'absent' is not a bundle"),
        (["embed", "absent", "a"], "'absent' is not a bundle"),
        (["export", "demo", "-o", "out", "--pooling", "max"], "'max' is not one of"),
        (["export", "demo", "-o", "out", "--max-length", "0"], "max-length"),
    ],
)
def test_usage_and_bad_input_are_exit_code_2(
    corom: Corom, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = corom(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("line", [
    "corom --help", "corom embed --help", "corom inspect BUNDLE", "corom inspect --json BUNDLE",
    "corom verify BUNDLE", "corom score BUNDLE a b c",
])  # fmt: skip
def test_a_reader_that_goes_away_is_141_and_never_1(
    shell: Shell, tiny_bundle: Path, line: str
) -> None:
    done = shell(f"({line.replace('BUNDLE', str(tiny_bundle))}; echo $? >&2) | true")
    assert done.stderr.splitlines()[-1] == "141"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# --- score


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_mean_bundle"])
def test_score_is_the_similarity_of_query_and_documents(
    request: pytest.FixtureRequest, corom: Corom, bundle: str
) -> None:
    folder = request.getfixturevalue(bundle)
    others = ["头疼的治疗", "今天天气不错", ""]
    with Encoder(folder) as encoder:
        query, documents = encoder.encode_query(["头痛"]), encoder.encode_document(others)
        expected = encoder.similarity(query, documents)[0]
        kind = encoder.manifest.similarity
    done = corom("score", folder, "头痛", *others)
    assert done.returncode == 0
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [text for _, text in lines] == others
    np.testing.assert_allclose([float(score) for score, _ in lines], expected, atol=1e-3)
    result = json.loads(corom("score", "--json", folder, "头痛", *others).stdout)
    assert (result["sentence"], result["similarity"]) == ("头痛", kind)
    assert [row["text"] for row in result["scores"]] == others
    np.testing.assert_allclose([row["score"] for row in result["scores"]], expected, atol=1e-4)


# --- inspect


def test_inspect_shows_what_a_bundle_holds(corom: Corom, tiny_mean_bundle: Path) -> None:
    done = corom("inspect", tiny_mean_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("tiny-mean", "bert", "48", "96 tokens", "mean", "cosine", "查询：", "fp32"):
        assert words in done.stdout
    for file in ("README.md", "golden.npz", "onnx/model.onnx", "tokenizer.json"):
        assert file in done.stdout


def test_inspect_shows_a_prompt_that_looks_like_markup(corom: Corom, altered: Path) -> None:
    manifest = msgspec.structs.replace(load_manifest(altered), prompts={"query": "[INST] [/INST] "})
    save_manifest(manifest, altered)
    done = corom("inspect", altered)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[INST] [/INST]" in done.stdout


def test_inspect_as_json_is_the_manifest_and_the_engines(corom: Corom, tiny_bundle: Path) -> None:
    done = corom("inspect", "--json", tiny_bundle)
    manifest = json.loads((tiny_bundle / "manifest.json").read_bytes())
    shown = json.loads(done.stdout)
    here = shown.pop("here")
    assert shown == manifest | {"engines": []}
    assert ["onnxruntime", "cpu", ["fp32"], {}] in [list(way.values()) for way in here]
    # What is said to run here can be opened; what is not says so when it is asked for.
    for way in here:
        chosen = {"backend": way["backend"], "device": way["device"]}
        for precision in way["precisions"]:
            Encoder(tiny_bundle, precision=precision, **chosen).close()
        for precision in way["why_not"]:
            with pytest.raises(CoromError):
                Encoder(tiny_bundle, precision=precision, **chosen)


def test_inspect_shows_commands_whole(capsys: pytest.CaptureFixture[str]) -> None:
    why = "no package. Run: pip install 'corom[tensorrt]'"
    Console(width=200).print(here_table([Here("tensorrt", "cuda", [], {"fp32": why})]))
    assert why in capsys.readouterr().out


# --- What is not here


def test_a_manifest_that_is_no_file(corom: Corom, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    done = corom("inspect", tmp_path)
    assert done.returncode == 2
    assert "manifest.json' cannot be read: Is a directory" in done.stderr


def test_a_missing_extra_is_exit_code_3_with_the_pip_line(
    shell: Shell, tiny_bundle: Path, tmp_path: Path
) -> None:
    # As in an environment with only the base install: these packages cannot be found.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'pyarrow'}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    done = shell(f"PYTHONPATH={tmp_path} corom embed '{tiny_bundle}' x -o {tmp_path}/v.parquet")
    assert done.returncode == 3
    assert "pip install 'corom[parquet]'" in done.stderr
    assert not list(tmp_path.glob("*v.parquet*"))


@pytest.mark.parametrize("encoding", ["gb18030", "latin-1", "ascii"])
def test_what_a_terminal_cannot_show_is_no_reason_to_fail(
    shell: Shell, tiny_mean_bundle: Path, encoding: str
) -> None:
    for line in ("inspect BUNDLE", "verify BUNDLE", "score BUNDLE 头痛 🤒", "embed BUNDLE 头痛"):
        command = f"corom {line.replace('BUNDLE', str(tiny_mean_bundle))}"
        done = shell(f"PYTHONIOENCODING={encoding} {command}", errors="replace")
        assert done.returncode == 0, done.stderr


def test_an_unexpected_error_is_not_taken_for_failed_parity(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(click.exceptions.Exit) as end, exit_codes():
        raise MemoryError
    assert end.value.exit_code == 70
    assert "This is a bug in corom" in capsys.readouterr().err
