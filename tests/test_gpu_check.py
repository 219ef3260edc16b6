"""The GPU check's pure parts, its exit where there is no GPU, and its run on a stand-in driver."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from driver import build_fake_driver

from corom.benchmarks import gpu_inventory
from corom.benchmarks.figures import latency, text_table
from corom.benchmarks.gpu import flavours_here, main
from corom.benchmarks.gpu_checks import GROWTH_BYTES, Check, _growth, random_batch, run_check
from corom.benchmarks.gpu_figures import different_texts, texts_of
from corom.benchmarks.gpu_inventory import Component, component, inventory
from corom.benchmarks.gpu_measure import (
    TURN,
    interleaved,
    text_latencies,
    throughput,
    tokenize_rate,
)
from corom.benchmarks.gpu_report import (
    checks_table,
    lacking,
    latency_table,
    throughput_table,
    verdict,
)
from corom.benchmarks.gpu_roads import RECOMPILE_LIMIT, Road, few_shapes
from corom.benchmarks.gpu_standin import expected_vectors
from corom.benchmarks.texts import shipped_texts
from corom.runtime.batching import Batch
from corom.runtime.errors import (
    CudaError,
    DeviceMemoryError,
    EngineError,
    EngineMismatchError,
    ParityError,
    UnavailableError,
)
from corom.runtime.gpu_machine import this_machine
from corom.runtime.tokens import Tokens

no_gpu = pytest.mark.skipif(this_machine().gpu is not None, reason="this machine has a GPU")


def test_latency_is_percentiles_in_microseconds() -> None:
    found = latency([k / 1e6 for k in range(1, 101)])
    assert found.p50_us == pytest.approx(50.5)
    assert found.p99_us == pytest.approx(99.01)
    assert found.samples == 100


def test_a_table_says_missing_and_rounds() -> None:
    table = text_table(("a", "b"), [("x", 1234.5678), ("y", None), ("z", 0.012345)])
    assert table.splitlines()[2:] == ["| x | 1,235 |", "| y | missing |", "| z | 0.0123 |"]


def test_interleaved_runs_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    durations = interleaved(runs, TURN + 5)  # type: ignore[arg-type]
    turns = "".join(order[-2 * (TURN + 5) :])
    assert turns == "a" * TURN + "b" * TURN + "a" * 5 + "b" * 5
    assert [len(d) for d in durations.values()] == [TURN + 5] * 2


def test_texts_for_throughput_are_different_and_as_long_as_the_shipped_ones() -> None:
    shipped = shipped_texts()
    texts = different_texts(3 * len(shipped))
    assert len(texts) == 3 * len(shipped)
    assert len(set(texts)) > 0.95 * len(texts)
    assert [len(text) for text in texts[: len(shipped)]] == [len(text) for text in shipped]


def test_a_check_passes_fails_or_is_missing() -> None:
    def fails() -> str:
        raise AssertionError("wrong vectors")

    def absent() -> str:
        raise UnavailableError("no torch")

    def full() -> str:
        raise DeviceMemoryError("full")

    outcomes = [run_check("x", check) for check in (lambda: "fine", fails, absent, full)]
    assert [check.outcome for check in outcomes] == ["passed", "failed", "missing", "failed"]
    assert "wrong vectors" in outcomes[1].detail
    assert verdict(outcomes) == 1
    assert verdict([outcomes[0], outcomes[2]]) == 0
    assert "| x | missing | no torch |" in checks_table(outcomes)


def test_a_probe_that_fails_in_any_way_is_a_missing_part() -> None:
    def explodes() -> str:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    part = component("x", explodes)
    assert (part.found, part.missing) == (None, "Failed to dlopen libcuda.so.1")


def test_only_what_nothing_works_without_is_required() -> None:
    parts = [Component(name, None, "x") for name in gpu_inventory.PROBES]
    assert lacking(parts) == ["libcuda.so.1", "GPU", "cuda-bindings"]
    assert flavours_here([Component("tensorrt_rtx", "1.7", None), *parts]) == ("tensorrt-rtx",)


def test_tables_show_missing_roads_as_missing() -> None:
    models = {
        "m": {
            "latency": {
                "1 texts of 16 tokens": {
                    "here": latency([1e-4])._asdict(),
                    "not": {"missing": "no tensorrt"},
                }
            },
            "throughput": {"here": 10.0, "not": "missing: no tensorrt"},
        },
        "gone": {"missing": "not exported"},
    }
    assert "| not | missing | missing | missing |" in latency_table(models)
    assert "| m | not | missing |" in throughput_table(models)
    assert "| m | here | 10 |" in throughput_table(models)


def test_loads_have_the_tokens_they_say() -> None:
    for rows, width in ((1, 16), (32, 128)):
        texts = texts_of(rows, width)
        assert [len(text) for text in texts] == [width - 2] * rows
        assert len(set(texts)) == rows
    assert len(shipped_texts()) > 100


def test_the_stand_in_kernel_is_told_from_a_wrong_one() -> None:
    batch = Batch(np.array([[5, 7, 9], [3, 0, 0]]), np.array([3, 1]))
    assert expected_vectors(batch, 2).tolist() == [[46.0, 47.0], [3.0, 4.0]]
    ids, lengths = random_batch(3)
    assert (ids[:, 0] > 0).all()
    assert lengths.max() == ids.shape[1]


class Characters:
    """A tokenizer that gives a token a character."""

    def __call__(self, texts: list[str]) -> Tokens:
        ids = [[1 + ord(c) % 99 for c in text] for text in texts]
        return Tokens(ids, np.array([len(i) for i in ids]), 0)


def test_every_road_that_is_there_runs_every_text() -> None:
    seen: list[int] = []

    def run(batch: Batch) -> np.ndarray:
        seen.append(len(batch.lengths))
        return np.zeros((len(batch.lengths), 2), np.float32)

    roads = [Road("here", run, None), Road("gone", None, "why")]
    tokenizer: Any = Characters()
    assert list(text_latencies(roads, tokenizer, texts_of(8, 16), 3)) == ["here"]
    seen.clear()
    texts = shipped_texts() * 20
    assert throughput(roads[0], tokenizer, texts, 2000) > 0
    assert sum(seen) == 2 * len(texts)  # once to warm up
    encoded: list[int] = []
    encoder = Road("Encoder", None, None, lambda some: encoded.append(len(some)))
    assert throughput(encoder, tokenizer, texts, 2000) > 0
    assert encoded == [len(texts)] * 2
    assert list(text_latencies([encoder], tokenizer, texts_of(8, 16), 3)) == ["Encoder"]
    assert tokenize_rate(tokenizer, texts) > 0


def test_a_compiled_road_sees_few_shapes_and_the_same_texts() -> None:
    seen = set()
    for seed in range(200):
        batch = random_batch(seed)
        ids, mask = few_shapes(batch)
        rows, width = batch.input_ids.shape
        assert ids.shape == mask.shape
        assert np.array_equal(ids[:rows, :width], batch.input_ids)
        assert np.array_equal(mask[:rows].sum(axis=1), batch.lengths)
        assert (mask[rows:] == 1).all()  # a row without a token would give NaN
        seen.add(ids.shape)
    assert len(seen) <= RECOMPILE_LIMIT // 4


def test_memory_that_grows_is_a_failure() -> None:
    before = {"device": 1 << 30, "host": 1 << 28}
    assert _growth([before, before]) == "device +0 bytes, host +0 bytes"
    with pytest.raises(AssertionError, match=r"device \+0 bytes, host \+67,108,865 bytes"):
        _growth([before, before | {"host": before["host"] + GROWTH_BYTES + 1}])


@no_gpu
def test_without_a_gpu_it_exits_3_and_says_what_is_missing() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 3
    assert "No GPU check is possible here. Missing: libcuda.so.1, GPU" in result.output
    for part in inventory():
        assert part.name in result.output
        assert part.found or part.missing


@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed")
def test_stand_in_driver_takes_the_whole_device_part(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = ["-m", "corom.benchmarks.gpu", "--quick", "--rounds", "5", "-o", str(report)]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(build_fake_driver(tmp_path)),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads(report.read_text())
    assert content["machine"]["GPU"].startswith("stand-in (no GPU)")
    assert content["stand_in"]["label"].startswith("stand-in kernel, no model")
    checks = [Check(**check) for check in content["checks"]]
    assert sum(check.outcome == "passed" for check in checks) >= 5
    assert verdict(checks) == 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (EngineMismatchError("for another GPU"), "missing"),
        (UnavailableError("no TensorRT"), "missing"),
        (EngineError("gave False"), "failed"),
        (CudaError("illegal address", fatal=True), "failed"),
        (ParityError("wrong vectors"), "failed"),
    ],
)
def test_what_fails_is_not_taken_for_missing(error: Exception, outcome: str) -> None:
    def check() -> str:
        raise error

    assert run_check("x", check).outcome == outcome
