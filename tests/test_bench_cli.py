"""`corom bench`: each command for real on a tiny bundle, in its own process, and bad input."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.benchmarks.cli import BENCHMARKS
from corom.benchmarks.cli_latency import calls_of
from corom.benchmarks.texts import LOG_NORMAL, made_texts, read_texts, shipped_texts
from corom.runtime.errors import InputError

Corom = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


def test_help_lists_every_benchmark_quickly(start: Start) -> None:
    before = os.times()
    with start("bench", "--help") as process:
        out, err = process.communicate()
    after = os.times()
    assert after.children_user - before.children_user < 2
    assert (process.returncode, err) == (0, "")
    for name, (_, line) in BENCHMARKS.items():
        assert f"  {name} " in out
        assert line in out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_help(corom: Corom, name: str) -> None:
    done = corom("bench", name, "--help")
    assert (done.returncode, done.stderr) == (0, "")


# --- latency


def test_latency_of_every_load(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    options = ["--backend", "onnxruntime", "--seconds", "0.2", "--rate", "200", "--rate", "50"]
    done = corom("bench", "latency", tiny_bundle, *options, "--json", "-o", file)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads(file.read_bytes()) == report
    loads = report["loads"]
    assert list(loads) == ["closed loop", "open loop, poisson, 200/s", "open loop, poisson, 50/s"]
    for load in loads.values():
        assert 0 < load["p50_us"] <= load["p95_us"] <= load["p99_us"]
        assert load["texts_per_second"] > 0
    assert loads["open loop, poisson, 200/s"]["samples"] == 40
    assert loads["open loop, poisson, 50/s"]["p999_us"] is None  # of 10 calls
    assert report["lengths_never_seen"]["first"]["samples"] > 10
    assert {"cpu", "cpus", "versions", "commit"} <= set(report["machine"])


def test_latency_of_callers_and_batches(corom: Corom, tiny_bundle: Path) -> None:
    options = ["--backend", "onnxruntime", "--seconds", "0.1"]
    done = corom("bench", "latency", tiny_bundle, *options, "--concurrency", "4", "--rate", "100")
    assert done.returncode == 0, done.stderr
    assert "closed loop, 4 callers" in done.stdout
    assert "open loop, poisson, 100/s" in done.stdout
    done = corom("bench", "latency", tiny_bundle, *options, "--batch", "8", "--mix", "passages")
    assert done.returncode == 0, done.stderr
    done = corom("bench", "latency", tiny_bundle, "--batch", "2", "--concurrency", "2")
    assert (done.returncode, "leave --batch out" in done.stderr) == (2, True)
    for number in ("0", "nan", "inf", "-1", "x"):
        for option in ("--rate", "--seconds"):
            done = corom("bench", "latency", tiny_bundle, option, number)
            assert (done.returncode, option in done.stderr) == (2, True), done.stderr


# --- throughput


def test_throughput_of_every_mix(corom: Corom, tiny_bundle: Path) -> None:
    options = ["--backend", "onnxruntime", "--count", "60", "--rounds", "2"]
    done = corom("bench", "throughput", tiny_bundle, *options, "--json")
    assert done.returncode == 0, done.stderr
    mixes = json.loads(done.stdout)["mixes"]
    assert list(mixes) == ["queries", "passages", "both"]
    for found in mixes.values():
        rate = found["texts_per_second"]
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]
    tokens = [found["tokens_per_text"] for found in mixes.values()]
    assert tokens[0] < tokens[2] < tokens[1]


def test_throughput_of_a_file(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "queries.tsv"
    file.write_text("1\t头痛怎么办\n2\t发烧吃什么药\n", "utf-8")
    options = ["--backend", "onnxruntime", "--rounds", "1"]
    done = corom("bench", "throughput", tiny_bundle, *options, "--texts", file, "--json")
    found = json.loads(done.stdout)["mixes"]["queries.tsv"]
    assert (found["texts"], found["tokens_per_text"]) == (2, 7.5)
    done = corom("bench", "throughput", tiny_bundle, "--texts", file, "--mix", "both")
    assert (done.returncode, "leave --mix out" in done.stderr) == (2, True)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "has no text"), (b"\xff\xfe\n", "is not UTF-8"), (None, "cannot be read"),
])  # fmt: skip
def test_texts_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(file)


def test_made_texts_have_the_lengths_of_real_ones_and_are_always_the_same() -> None:
    for mix, mean in (("queries", 47), ("passages", 120)):
        assert mix in LOG_NORMAL
        texts = made_texts(mix, 4000)  # type: ignore[arg-type]
        assert sum(map(len, texts)) / len(texts) == pytest.approx(mean, rel=0.05)
        assert texts == made_texts(mix, 4000)  # type: ignore[arg-type]
        assert len(set(texts)) > 3900
    both = made_texts("both", 7)
    assert both[::2] == made_texts("queries", 4)
    assert len(both) == 7
    assert all(text for text in both)
    assert set("".join(both)) <= set(" ".join(shipped_texts()))


# --- retrieval


@pytest.fixture
def collection(tmp_path: Path) -> list[str | Path]:
    texts = shipped_texts()[:120]
    rows = [f"p{row}\t{text}" for row, text in enumerate(texts)]
    (tmp_path / "corpus.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    asked = [f"q{row}\t{texts[row][: max(2, len(texts[row]) // 2)]}" for row in range(0, 120, 6)]
    (tmp_path / "queries.tsv").write_text("\n".join([*asked, "q999\t没有答案"]) + "\n", "utf-8")
    judged = [f"q{row}\t0\tp{row}\t1" for row in range(0, 120, 6)]
    (tmp_path / "qrels.tsv").write_text("\n".join(judged) + "\n", "utf-8")
    names = ("corpus", "queries", "qrels")
    return [word for name in names for word in (f"--{name}", tmp_path / f"{name}.tsv")]


@pytest.mark.slow
def test_retrieval_of_every_rung_beside_torch_and_bm25(
    corom: Corom, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, collection: list[str]
) -> None:
    each = tmp_path / "each.jsonl"
    options = ["--reference", tiny_checkpoint, "--per-query", each, "--json"]
    done = corom("bench", "retrieval", tiny_bundle, *collection, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["name"]: row for row in report["rows"]}
    assert {"torch", "corom fp32 onnxruntime", "BM25"} <= set(rows)
    assert report["queries_without_answer"] == 1
    assert rows["BM25"]["means"]["RR@10"] > 0.8  # a half of the passage is asked for
    assert rows["torch"]["means"]["R@1000"] == 1.0
    for name in rows.keys() - {"torch", "BM25"}:
        if "fp32" in name:
            difference = rows[name]["differences"]["RR@10"]
            assert difference == {"difference": 0.0, "low": 0.0, "high": 0.0}, name
    assert "differences" not in rows["torch"]
    lines = [json.loads(line) for line in each.read_text("utf-8").splitlines()]
    assert len(lines) == 20
    assert lines[0]["torch"]["RR@10"] == lines[0]["corom fp32 onnxruntime"]["RR@10"]


def test_retrieval_refuses_what_does_not_belong_together(
    corom_here: Corom, tiny_bundle: Path, tiny_mean_checkpoint: Path, tmp_path: Path,
    collection: list[str],
) -> None:  # fmt: skip
    options = ["--reference", tiny_mean_checkpoint, "--no-bm25"]
    done = corom_here("bench", "retrieval", tiny_bundle, *collection, *options)
    assert (done.returncode, "has other weights than" in done.stderr) == (2, True)
    (tmp_path / "qrels.tsv").write_text("q0\t0\tp999\t1\n", "utf-8")
    done = corom_here("bench", "retrieval", tiny_bundle, *collection)
    assert (done.returncode, "such as 'p999'" in done.stderr) == (2, True)
    (tmp_path / "qrels.tsv").write_text("q0\t0\tp0\t0\n", "utf-8")
    done = corom_here("bench", "retrieval", tiny_bundle, *collection)
    assert (done.returncode, "has no relevant passage" in done.stderr) == (2, True)


@given(st.integers(1, 9), st.integers(2, 20))
def test_every_call_has_as_many_texts_as_are_asked_for(count: int, batch: int) -> None:
    calls = calls_of([f"{k}" for k in range(count)], batch)
    assert {len(call) for call in calls} == {batch}
    assert {text for call in calls for text in call} == {f"{k}" for k in range(count)}
