"""Peers: real workers behind real pipes, checked before they are timed; failures are reported."""

import html.parser
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corom.benchmarks import contestants, match
from corom.benchmarks.chart import write_charts
from corom.benchmarks.cli_peers import chosen_peers, sample
from corom.benchmarks.contestants import PEERS, Contestant, as_executed, rungs
from corom.benchmarks.figures import Spread, ratio_spread, spread
from corom.benchmarks.machine import checkout
from corom.benchmarks.match import Conditions, Entry, check, entered, play, warm
from corom.benchmarks.peer_environment import (
    COMPLETE,
    ensure_environment,
    environment_folder,
    requirements_of,
)
from corom.benchmarks.peer_folders import peer_folders
from corom.benchmarks.peer_process import WORKER, PeerError, PeerProcess, worker_command
from corom.benchmarks.peer_source import peer_checkpoint, reference_vectors, token_ids
from corom.benchmarks.roofline import Roofline
from corom.benchmarks.standings import standings, tables
from corom.runtime.backend import PRECISIONS
from corom.runtime.errors import InputError

Corom = Callable[..., subprocess.CompletedProcess[str]]
TEXTS = ["头痛怎么办", "发烧吃什么药好得快一些", "今天天气不错", "胃出血一般住院多少天"] * 4
HERE = Contestant("transformers, here", "fp32", "transformers", "here", "torch")
"""A peer whose environment is the tests' own, so that none has to be made."""


@pytest.fixture(scope="module")
def conditions(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_bundle: Path
) -> Conditions:
    work = tmp_path_factory.mktemp("work")
    checkpoint = peer_checkpoint(str(tiny_checkpoint), "cls")
    folders = peer_folders(checkpoint, work, 128) | {"bundle": tiny_bundle}
    return Conditions(folders, 1, 128, "cls", checkpoint.config.hidden)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment "here" is this interpreter; all others are made as ever."""

    def ensure(environment: str) -> Path:
        return Path(sys.executable) if environment == "here" else ensure_environment(environment)

    monkeypatch.setattr(match, "ensure_environment", ensure)


def job(conditions: Conditions) -> dict[str, Any]:
    return conditions.job(HERE)


def numpy_worker() -> PeerProcess:
    """A worker whose library prints, in Python and below, and gives all texts the same vector."""
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from peer_worker import serve\n"
        "def opened(job):\n"
        "    print('loading …', flush=True)\n"
        "    os.write(1, b'by a library in C')\n"
        "    return (lambda texts, batch: [[1.0]] * len(texts)), ['numpy']\n"
        "serve({'numpy': opened})"
    )
    return PeerProcess([sys.executable, "-c", program, WORKER.parent], 1)


# --- The worker


def test_a_worker_gives_the_references_vectors_and_times_itself(
    conditions: Conditions, tiny_checkpoint: Path
) -> None:
    with PeerProcess(worker_command(sys.executable), 1) as worker:
        versions = worker.ask("open", **job(conditions))["versions"]
        assert set(versions) == {"transformers", "torch"}
        checkpoint = peer_checkpoint(str(tiny_checkpoint), "cls")
        expected = reference_vectors(checkpoint, TEXTS, 128)
        np.testing.assert_allclose(worker.vectors(TEXTS), expected, atol=1e-4)
        alone = worker.ask("latency", texts=TEXTS[:3], seconds=0)["seconds"]
        assert len(alone) == 3
        assert all(seconds > 0 for seconds in alone)
        start = time.perf_counter()
        longer = worker.ask("latency", texts=TEXTS[:3], seconds=0.1)["seconds"]
        assert time.perf_counter() - start >= 0.1
        assert len(longer) % 3 == 0
        start = time.perf_counter()
        of_one = worker.ask("throughput", texts=TEXTS, setting=8, seconds=0)["seconds"]
        assert 0 < of_one < time.perf_counter() - start
        start = time.perf_counter()
        of_many = worker.ask("throughput", texts=TEXTS, setting=8, seconds=0.5)["seconds"]
        assert time.perf_counter() - start >= 0.5 > of_many > 0
        # What fails is answered, and the next request works.
        with pytest.raises(PeerError, match="'latency' failed: TypeError"):
            worker.ask("latency", texts=None, seconds=0)
        assert worker.vectors(TEXTS[:1]).shape == (1, 48)


def test_a_worker_reports_what_it_cannot_open(conditions: Conditions) -> None:
    with PeerProcess(worker_command(sys.executable), 1) as worker:
        with pytest.raises(PeerError, match="nothing is open"):
            worker.ask("vectors", texts=TEXTS, file="unused")
        with pytest.raises(PeerError, match="KeyError: 'unheard-of'"):
            worker.ask("open", **job(conditions) | {"kind": "unheard-of"})
        with pytest.raises(PeerError, match="No module named 'fastembed'"):
            worker.ask("open", **job(conditions) | {"kind": "fastembed"})


def test_what_a_library_prints_is_no_answer() -> None:
    with numpy_worker() as worker:
        assert set(worker.ask("open", kind="numpy", threads=1)["versions"]) == {"numpy"}
        assert worker.vectors(["a"]).tolist() == [[1.0]]
    talker = [sys.executable, "-c", "print('hello'); input()"]
    with PeerProcess(talker, 1) as worker, pytest.raises(PeerError, match="no JSON: 'hello"):
        worker.ask("open")


def test_a_worker_that_dies_or_hangs_does_not_hang_us() -> None:
    dying = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit('out of luck')"]
    with PeerProcess(dying, 1) as worker, pytest.raises(PeerError, match="out of luck"):
        worker.ask("open")
    hanging = [sys.executable, "-c", "import time; time.sleep(60)"]
    with PeerProcess(hanging, 1) as worker, pytest.raises(PeerError, match=r"within 0 s"):
        worker.ask("open", timeout=0.2)


# --- Environments


def test_every_environment_is_pinned_to_the_last_package() -> None:
    for environment in {peer.environment for peer in PEERS}:
        assert environment is not None
        lines = [x for x in requirements_of(environment).splitlines() if not x.startswith("#")]
        assert len(lines) > 10
        assert all(line.count("==") == 1 and " " not in line for line in lines), environment


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COROM_CACHE", str(tmp_path))
    made = environment_folder("empty", "# nothing\n")
    made.mkdir(parents=True)
    (made / COMPLETE).touch()
    assert ensure_environment("empty", "# nothing\n").is_relative_to(made)
    assert environment_folder("empty", "# other\n") != made


# --- A match


@pytest.mark.usefixtures("here")
def test_a_match_of_a_peer_and_corom(
    conditions: Conditions,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = peer_checkpoint(str(tiny_checkpoint), "cls")
    ours = [rung for rung in rungs(tiny_bundle) if rung.job["backend"] == "onnxruntime"]
    wrong = replace(HERE, name="other pooling", job={"pooling": "mean"})
    broken = replace(HERE, name="broken", kind="unheard-of")
    said: list[str] = []
    lengths = [len(ids) for ids in token_ids(checkpoint, TEXTS, 128)]
    roof = Roofline(checkpoint, lengths, 1, seconds=0.002)
    with entered([HERE, wrong, broken, *ours], conditions, said.append) as entries:
        check(entries, TEXTS, reference_vectors(checkpoint, TEXTS, 128))
        for name in ("TURN_SECONDS", "CALLER_SECONDS"):
            monkeypatch.setattr(match, name, 0.1)
        warm(entries, TEXTS, 1)
        play(entries, TEXTS[:3], TEXTS, 2, roof.measure, callers=4)
        assert sum(entry.process is not None for entry in entries) == 1 + len(ours)
    found = standings(entries, roof)
    assert [c["name"] for c in found["contestants"]] == [HERE.name, ours[0].name]
    absent = {row["name"]: row["why"] for row in found["absent"]}
    assert "its vectors are not the reference's" in absent["other pooling"]
    assert "unheard-of" in absent["broken"]
    assert any(line.startswith("broken takes no part") for line in said)
    (ratio,) = found["ratios"]
    peer, rung = entries[0], entries[3]
    assert ratio["throughput"]["median"] == pytest.approx(
        np.median([a / b for a, b in zip(rung.rates, peer.rates, strict=True)])
    )
    share = found["contestants"][1]["share_of_gemm"]
    assert 0 < share["low"] <= share["median"] <= share["high"] < 1
    assert found["contestants"][0]["share_of_gemm"] is None
    about = {
        "model": "tiny <random>", "pooling": "cls", "count": 16, "tokens_per_text": 9.0,
        "threads": 1, "rounds": 2, "callers": 4, "texts": "texts", "time": "now",
        "machine": {"cpu": "a CPU", "commit": "0123"},
    }  # fmt: skip
    report = json.loads(json.dumps(about | found))
    shown = tables(report)
    assert found["contestants"][0]["callers"] is None
    assert found["contestants"][1]["callers"]["p99_by_p50"] >= 1
    assert "4 callers of single texts at once" in shown
    assert ours[0].name in shown
    assert "took no part: broken" in shown
    picture, page = write_charts(report, tmp_path / "run.json")
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = page.read_text("utf-8")
    html.parser.HTMLParser().feed(written)
    assert "tiny &lt;random&gt;" in written
    for name in (HERE.name, ours[0].name, "other pooling"):
        assert name in written
    assert "http" not in written  # it needs nothing but itself
    assert "<script" not in written


def test_a_peer_that_fails_in_a_round_is_dropped_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(match, "TURN_SECONDS", 0.1)
    with numpy_worker() as first, numpy_worker() as second:
        entries = [
            Entry(replace(HERE, name=str(k)), process=p) for k, p in enumerate((first, second))
        ]
        for worker in (first, second):
            worker.ask("open", kind="numpy", threads=1)
        play(entries, TEXTS[:1], TEXTS[:2], 1, lambda: None)
        first._process.kill()
        play(entries, TEXTS[:1], TEXTS[:2], 1, lambda: None)
    assert entries[0].failure is not None
    assert "the process ended" in entries[0].failure
    assert (entries[1].failure, len(entries[1].rates)) == (None, 2)


@pytest.mark.slow
def test_the_command_reports_a_peer_that_cannot_be_installed(
    shell: Corom, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """fastembed, where no package can be had; corom's own rungs go on."""
    words = [tiny_checkpoint, "--bundle", tiny_bundle, "-o", tmp_path / "run.json"]
    options = "--only fastembed --rounds 1 --count 8 --alone 2 --callers 0"
    environment = f"COROM_CACHE={tmp_path / 'cache'} PIP_NO_INDEX=1"
    done = shell(f"{environment} corom bench peers {options} {' '.join(map(str, words))}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run.json").read_bytes())
    (absent,) = report["absent"]
    assert absent["name"] == "fastembed"
    assert "cannot be installed" in absent["why"]
    assert "took no part: fastembed" in done.stdout
    assert report["contestants"][0]["name"] == "corom fp32 onnxruntime"
    assert (tmp_path / "run.png").exists()
    assert (tmp_path / "run.html").exists()


# --- Small parts


def test_peers_are_chosen_by_name_and_texts_always_alike() -> None:
    assert [peer.name for peer in chosen_peers(("int8",))] == ["sentence-transformers ONNX int8"]
    assert chosen_peers(()) == list(PEERS)
    with pytest.raises(InputError, match="no peer's name has unheard-of"):
        chosen_peers(("unheard-of",))
    assert sample(list("abcdef"), 3) == sample(list("abcdef"), 3)
    assert sample(list("abc"), 9) == list("abc")


def test_without_bf16_nobody_is_said_to_execute_it(tiny_checkpoint: Path) -> None:
    precisions = {p.name: as_executed(p, ("fp32", "int8")).precision for p in PEERS}
    assert precisions["sentence-transformers OpenVINO"] == "fp32"
    assert precisions["sentence-transformers ONNX int8"] == "int8"
    assert [as_executed(p, ("fp32", "bf16", "int8")) for p in PEERS] == list(PEERS)
    checkpoint = peer_checkpoint(str(tiny_checkpoint), "cls")
    roof = Roofline(checkpoint, [5, 9], threads=1, seconds=0.001, bf16=False)
    roof.measure()
    assert set(roof.described()["gemm_gflops"]) == {"fp32", "int8"}


def test_a_figure_names_the_commit_and_whether_code_was_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        user = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", tmp_path, *user, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    folder = tmp_path / "benchmarks"
    for path in ("benchmarks/machine.py", "benchmarks/results/run.json", "runtime/encoder.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1")
    git("init", "-q")
    git("add", "-A", "--", ":!benchmarks/machine.py")
    git("commit", "-qm", "one")
    assert checkout(folder) == {"commit": None, "tree": None}  # another project's repository
    git("add", "-A")
    git("commit", "-qm", "two")
    commit, tree = (git("rev-parse", "--short=12", name) for name in ("HEAD", "HEAD^{tree}"))
    assert checkout(folder) == {"commit": commit, "tree": tree}
    (folder / "results" / "run.json").write_text("2")  # what an earlier benchmark wrote
    assert checkout(folder)["commit"] == commit
    (tmp_path / "runtime" / "new.py").write_text("3")
    assert checkout(folder) == {"commit": f"{commit}-dirty", "tree": tree}


def test_the_ratio_is_round_by_round() -> None:
    # A round in which everything is half as fast changes no ratio.
    assert ratio_spread([4.0, 2.0, 4.0], [2.0, 1.0, 2.0]) == Spread(2.0, 2.0, 2.0)
    assert str(spread([1.0, 3.0, 2.0])) == "2 (1 to 3)"


def test_only_a_bundle_of_the_same_checkpoint_takes_part(
    corom_here: Corom, tiny_mean_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    words = ["bench", "peers", tiny_mean_checkpoint, "--bundle", tiny_bundle, "--work", tmp_path]
    done = corom_here(*words)
    assert (done.returncode, "has other weights than" in done.stderr) == (2, True)


def test_a_checkpoint_that_does_not_say_its_pooling_gets_the_one_asked_for(
    make_checkpoint: Callable[..., Path],
) -> None:
    folder = make_checkpoint(layout="huggingface")
    for pooling in ("cls", "mean"):
        checkpoint = peer_checkpoint(str(folder), pooling)
        assert (checkpoint.pooling, checkpoint.normalize) == (pooling, False)


def test_an_entry_that_gave_up_has_no_process() -> None:
    entry = Entry(HERE)
    entry.give_up(PeerError("why"))
    assert (entry.failure, entry.process) == ("why", None)
    assert set(contestants.COSINE_MIN) == set(PRECISIONS) - {"fp16"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_real_peers_in_their_own_environments(
    corom: Corom, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Makes gigabytes of environments in the cache, once."""
    file = tmp_path / "run.json"
    options = ["--rounds", "1", "--count", "16", "--alone", "2", "--work", tmp_path]
    words = ["bench", "peers", tiny_checkpoint, "--bundle", tiny_bundle, *options, "-o", file]
    done = corom(*words)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_bytes())
    assert report["absent"] == []
    assert len(report["contestants"]) >= 1 + len(PEERS)
