"""`corom embed`, in real processes: lines in, vectors out; nothing lost, nothing left behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from corom.benchmarks.peak_memory import COMMAND
from corom.runtime import Encoder

Corom = Callable[..., subprocess.CompletedProcess[str]]
Shell = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

LINES = ["上消化道出血手术大约多久", "", "CT 12 mg", "  ", "头痛\u2028怎么办\x85", "上消化道", "🤒"]


@pytest.fixture(scope="module")
def vectors(tiny_bundle: Path) -> np.ndarray:
    """The vectors of ``LINES``, from Python."""
    with Encoder(tiny_bundle) as encoder:
        return encoder.encode(LINES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of ``LINES``, alone in its folder."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "lines.txt"
    path.write_bytes("".join(f"{line}\n" for line in LINES).encode())
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder to write to, for looking at what is left in it."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def rows(text: str) -> tuple[list[str], np.ndarray]:
    """Return the texts and vectors of JSON lines."""
    records = [json.loads(line) for line in text.split("\n")[:-1]]
    return [r["text"] for r in records], np.array([r["embedding"] for r in records], np.float32)


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


# --- The same vectors as Encoder.encode, wherever they come from and go to


def test_texts_to_stdout(corom: Corom, tiny_bundle: Path, vectors: np.ndarray) -> None:
    done = corom("embed", tiny_bundle, "--", *LINES)
    assert done.returncode == 0
    texts, found = rows(done.stdout)
    assert texts == LINES
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    assert "tiny: fp32 by onnxruntime on cpu" in done.stderr


@pytest.mark.parametrize("way", ["-i FILE", "-i -", "pipe"])
def test_lines_to_npy(
    corom: Corom, tiny_bundle: Path, vectors: np.ndarray, file: Path, out: Path, way: str
) -> None:
    arguments = {"-i FILE": ["-i", file], "-i -": ["-i", "-"], "pipe": []}[way]
    given = "" if way == "-i FILE" else file.read_text("utf-8")
    done = corom("embed", tiny_bundle, *arguments, "-o", out / "v.npy", input=given)
    assert (done.returncode, done.stdout) == (0, "")
    assert "7 vectors of 48" in done.stderr
    found = np.load(out / "v.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, vectors, atol=1e-5)


def test_lines_to_jsonl_and_parquet(
    corom: Corom, tiny_bundle: Path, vectors: np.ndarray, file: Path, out: Path
) -> None:
    for name in ("v.jsonl", "v.parquet"):
        assert corom("embed", tiny_bundle, "-i", file, "-o", out / name).returncode == 0
    texts, found = rows((out / "v.jsonl").read_text("utf-8"))
    table = pyarrow.parquet.read_table(out / "v.parquet")
    assert texts == table["text"].to_pylist() == LINES
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), vectors, atol=1e-5)
    assert sorted(p.name for p in out.iterdir()) == ["v.jsonl", "v.parquet"]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        pytest.param(b"a\r\nb\r\n\r\nc", ["a", "b", "", "c"], id="CRLF, no end of line at the end"),
        pytest.param(b"\xef\xbb\xbfa\nb\n", ["a", "b"], id="BOM"),
        pytest.param(b"\xef\xbb\xbf\n", [""], id="BOM alone"),
        pytest.param(b"a\xef\xbb\xbf\n", ["a\ufeff"], id="no BOM where none belongs"),
        pytest.param(b"\n\n\n", ["", "", ""], id="empty lines"),
        pytest.param(b"a\rb\x0bc\x0cd\n", ["a\rb\x0bc\x0cd"], id="other ends of line"),
        pytest.param(b"a\x00b\n\x00", ["a\x00b", "\x00"], id="NUL"),
    ],
)
def test_a_line_is_what_ends_with_a_newline(
    corom: Corom, tiny_bundle: Path, file: Path, content: bytes, texts: list[str]
) -> None:
    file.write_bytes(content)
    done = corom("embed", tiny_bundle, "-i", file)
    assert rows(done.stdout)[0] == texts


def test_a_megabyte_in_one_line(corom: Corom, tiny_bundle: Path, out: Path) -> None:
    done = corom("embed", tiny_bundle, "-o", out / "v.npy", input="头痛怎么办" * 70_000 + "\n短\n")
    assert done.returncode == 0
    assert "2 vectors of 48" in done.stderr
    assert "1 text was longer than 128 tokens and cut; " in done.stderr


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_nothing_in_nothing_out(corom: Corom, tiny_bundle: Path, out: Path, suffix: str) -> None:
    done = corom("embed", tiny_bundle, "-o", out / f"v{suffix}")
    assert done.returncode == 0
    if suffix == ".npy":
        assert np.load(out / "v.npy").shape == (0, 48)


def test_options_are_those_of_encode(
    corom: Corom, tiny_bundle: Path, tiny_mean_bundle: Path
) -> None:
    with Encoder(tiny_bundle, max_length=8) as encoder:
        expected = encoder.encode(LINES, normalize_embeddings=True, truncate_dim=9)
    options = ["--normalize", "--truncate-dim", "9", "--max-length", "8", "--threads", "1"]
    _, found = rows(corom("embed", tiny_bundle, *options, "--", *LINES).stdout)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with Encoder(tiny_mean_bundle) as encoder:
        expected = encoder.encode(LINES, normalize_embeddings=False, prompt_name="query")
    options = ["--no-normalize", "--prompt-name", "query", "--max-batch-tokens", "64"]
    _, found = rows(corom("embed", tiny_mean_bundle, *options, "--", *LINES).stdout)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- Bad input: exit code 2, one message, nothing written


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (["text", "-i", "FILE"], "", "not both"),
        (["-i", "absent.txt"], "", "there is no file 'absent.txt'"),
        (["-i", "."], "", "'.' is a folder. Give its files: '*.jsonl'"),
        (["-o", "v.txt", "x"], "", "must end in one of: .npy, .jsonl, .parquet"),
        (["-o", "v", "x"], "", "must end in one of"),
        (["-o", "absent/v.npy", "x"], "", "there is no folder 'absent'"),
        (["-o", ".", "x"], "", "must end in one of"),
        (["--truncate-dim", "0", "x"], "", "truncate-dim"),
        (["--truncate-dim", "49", "-o", "v.npy"], "", "the vectors have 48 dimensions"),
        (["--prompt-name", "query", "-o", "v.npy"], "", "no prompt 'query'"),
        (["--max-length", "500", "x"], "", "max_length is 500; it must be 3"),
        (["--max-batch-tokens", "0", "x"], "", "max-batch-tokens"),
        (["--threads", "0", "x"], "", "threads"),
        (["--backend", "tensorflow", "x"], "", "'tensorflow' is not one of"),
        (["--unknown", "x"], "", "No such option"),
        (["--error-on-truncate", "x", "长" * 200], "", "text 1 has 202 tokens"),
        ([b"\xff\xfe"], "", "text 0 holds a lone surrogate"),
    ],
)
def test_bad_usage_is_said_and_nothing_is_written(
    corom: Corom, tiny_bundle: Path, out: Path, arguments: list[Any], given: str, message: str
) -> None:
    arguments = [os.fsdecode(a) if isinstance(a, bytes) else a for a in arguments]
    done = corom("embed", tiny_bundle, *arguments, input=given, cwd=out)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not any(out.iterdir())


def test_a_line_that_is_not_utf8_is_named(
    corom: Corom, tiny_bundle: Path, file: Path, out: Path
) -> None:
    file.write_bytes("头痛\n".encode() * 4500 + "发烧\n".encode("gb18030"))
    done = corom("embed", tiny_bundle, "-i", file, "-o", out / "v.npy")
    assert done.returncode == 2
    assert f"row 4501 of '{file}': it is not UTF-8" in done.stderr
    assert not any(out.iterdir())


def test_a_line_that_is_too_long_can_be_found(corom: Corom, tiny_bundle: Path, out: Path) -> None:
    lines = ["头痛"] * 4500 + ["长" * 200]
    done = corom(
        "embed", tiny_bundle, "--error-on-truncate", "-o", out / "v.npy", input="\n".join(lines)
    )
    assert done.returncode == 2
    # text 404 of those that begin at row 4097: row 4501
    assert "text 404 has 202 tokens" in done.stderr
    assert "Text 0 is row 4097." in done.stderr
    assert not any(out.iterdir())


def test_a_folder_that_is_no_bundle(corom: Corom, tmp_path: Path) -> None:
    done = corom("embed", tmp_path, "x")
    assert done.returncode == 2
    assert "is not a bundle" in done.stderr


def test_a_precision_that_is_not_here_is_exit_code_3(corom: Corom, tiny_bundle: Path) -> None:
    done = corom("embed", tiny_bundle, "--precision", "int8", "x")
    assert done.returncode == 3
    assert "no variant of precision 'int8'" in done.stderr


def test_a_terminal_without_texts_is_told_what_to_do(start: Start, tiny_bundle: Path) -> None:
    terminal, stdin = os.openpty()
    with start("embed", tiny_bundle, stdin=stdin) as process:
        _, said = process.communicate()
    os.close(terminal)
    os.close(stdin)
    assert process.returncode == 2
    assert "Nothing to embed" in said


# --- Interruptions: nothing is left behind


def feed(process: subprocess.Popen[str], lines: int = 6000) -> None:
    """Give more lines than a window, so that rows are being written while input is awaited."""
    assert process.stdin is not None
    process.stdin.write("".join(f"第{n}个\n" for n in range(lines)))
    process.stdin.flush()


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "Interrupted."),
        (signal.SIGTERM, 143, ""),
        (signal.SIGHUP, 129, ""),
    ],
    ids=["Ctrl-C", "kill", "hung up"],
)
def test_when_interrupted_nothing_is_left_behind(
    start: Start, tiny_bundle: Path, out: Path, suffix: str, number: int, code: int, said: str
) -> None:
    with start("embed", tiny_bundle, "-o", out / f"v{suffix}") as process:
        feed(process)
        wait_for(lambda: any(p.stat().st_size > 4096 for p in out.iterdir()))
        process.send_signal(number)
        _, stderr = process.communicate()
    assert process.returncode == code
    assert said in stderr
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr
    assert not any(out.iterdir())


def test_when_interrupted_what_was_there_stays(start: Start, tiny_bundle: Path, out: Path) -> None:
    (out / "v.npy").write_bytes(b"before")
    with start("embed", tiny_bundle, "-o", out / "v.npy") as process:
        feed(process)
        wait_for(lambda: len(list(out.iterdir())) == 2)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"v.npy": b"before"}


def test_a_reader_that_goes_away_ends_it_quietly(start: Start, tiny_bundle: Path) -> None:
    with start("embed", tiny_bundle) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        feed(process)
        assert process.stdout.readline().startswith('{"text":')
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert said.splitlines() == ["tiny: fp32 by onnxruntime on cpu"]


def test_head_is_a_reader_that_goes_away(shell: Shell, tiny_bundle: Path, file: Path) -> None:
    file.write_text("头痛怎么办\n" * 20_000, "utf-8")
    done = shell(f"corom embed '{tiny_bundle}' -i '{file}' | head -n 1")
    assert done.returncode == 141
    assert done.stdout.count("\n") == 1
    assert done.stderr == "tiny: fp32 by onnxruntime on cpu\n"


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_a_full_disk_leaves_nothing_behind(
    corom: Corom, tiny_bundle: Path, out: Path, suffix: str
) -> None:
    # A limit on the size of files stands for the disk: the same errors at the same calls.
    done = corom(
        "embed",
        tiny_bundle,
        "-o",
        out / f"v{suffix}",
        input="".join(f"{n} 毫克\n" for n in range(20_000)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 3
    assert "File too large" in done.stderr
    assert "Exception ignored" not in done.stderr
    assert not any(out.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_exit_code_3(start: Start, tiny_bundle: Path) -> None:
    with (
        Path("/dev/full").open("w") as full,
        start("embed", tiny_bundle, "头痛", stdout=full) as process,
    ):
        _, said = process.communicate()
    assert process.returncode == 3
    assert "No space left on device" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("closed", "code", "said"), [
    ("<&-", 2, "Nothing to embed"),
    ("-i - <&-", 2, "standard input is closed"),
    ("头痛 >&-", 2, "standard output is closed"),
])  # fmt: skip
def test_closed_descriptors_are_said(
    shell: Shell, tiny_bundle: Path, closed: str, code: int, said: str
) -> None:
    done = shell(f"corom embed '{tiny_bundle}' {closed}")
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(corom: Corom, tiny_bundle: Path, out: Path) -> None:
    out.chmod(0o555)
    done = corom("embed", tiny_bundle, "-o", out / "v.npy", "x")
    out.chmod(0o755)
    assert done.returncode == 3
    assert "Permission denied" in done.stderr


def test_a_folder_that_takes_no_files(corom: Corom, tiny_bundle: Path) -> None:
    done = corom("embed", tiny_bundle, "-o", "/proc/v.npy", "x")
    assert done.returncode == 3
    assert "/proc/" in done.stderr


# --- Memory


def peak_bytes(
    start: Start, bundle: Path, out: Path, lines: int, options: tuple[str, ...] = ()
) -> int:
    """Return the peak memory of a process that embeds so many lines from a pipe."""
    reads, writes = os.pipe()
    words = ("-c", COMMAND, writes, "embed", bundle, "-o", out / "v.npy", *options)
    with start(*words, program=sys.executable, pass_fds=[writes]) as process:
        assert process.stdin is not None
        for first in range(0, lines, 10_000):
            count = min(10_000, lines - first)
            text = "".join(f"{n} 毫克{'药' * (n % 5)}\n" for n in range(first, first + count))
            process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        os.close(writes)
        assert process.wait() == 0
    assert np.load(out / "v.npy", mmap_mode="r").shape == (lines, 48)
    with os.fdopen(reads) as told:
        return int(told.read())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_lines(start: Start, tiny_bundle: Path, out: Path) -> None:
    few, many = (peak_bytes(start, tiny_bundle, out, lines) for lines in (10_000, 200_000))
    assert many - few < 30 * 2**20


@pytest.mark.slow
def test_a_million_lines_stay_within_200_megabytes_of_the_start(
    start: Start, tiny_bundle: Path, out: Path
) -> None:
    few, many = (peak_bytes(start, tiny_bundle, out, lines) for lines in (1, 1_000_000))
    assert many - few < 200 * 2**20


def test_texts_that_were_cut_are_always_told(corom: Corom, tiny_bundle: Path) -> None:
    for arguments in (("embed", tiny_bundle, "长" * 300), ("score", tiny_bundle, "短", "长" * 300)):
        done = corom(*arguments)
        assert done.returncode == 0
        assert "1 text was longer than 128 tokens and cut; " in done.stderr


def test_a_closed_standard_error_is_no_failure(
    shell: Callable[..., subprocess.CompletedProcess[str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    done = shell(f"corom embed {tiny_bundle} 好 -o {tmp_path}/v.npy 2>&-")
    assert done.returncode == 0
    assert np.load(tmp_path / "v.npy").shape == (1, 48)


def test_a_link_is_followed_to_the_file_it_names(
    corom: Corom, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "target.npy").write_bytes(b"old")
    (tmp_path / "link.npy").symlink_to(tmp_path / "target.npy")
    assert corom("embed", tiny_bundle, "好", "-o", tmp_path / "link.npy").returncode == 0
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "target.npy").shape == (1, 48)
