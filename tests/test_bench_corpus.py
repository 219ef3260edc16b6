"""`corom bench corpus`: figures against floors, and one small run of the command itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from corom.benchmarks.cli_corpus import Run, figures_of, verdicts

Corom = Callable[..., subprocess.CompletedProcess[str]]


def test_ratios_are_of_a_round_and_floors_are_compared() -> None:
    jobs = {
        "local": [Run(100.0, 400_000_000), Run(220.0, 500_000_000)],
        "ray": [Run(125.0, 1), Run(440.0, 1)],
    }
    ends = (Run(20.0, 490_000_000), Run(5.5, 1), 1.9)
    figures = figures_of(10_000, [95.0, 200.0], jobs, ends)
    assert figures["local job ÷ encode"]["low"] == pytest.approx(200 / 220)
    assert figures["local job ÷ encode"]["high"] == pytest.approx(0.95)
    assert figures["ray job ÷ local job"] == {"median": 0.65, "low": 0.5, "high": 0.8}
    assert figures["peak memory, MB"] == 500
    assert figures["a million rows, local, hours (extrapolated)"] == pytest.approx(16000 / 3600)
    found = {verdict["figure"]: verdict["passed"] for verdict in verdicts(figures)}
    assert found == {
        "local job ÷ encode": True,
        "ray job ÷ local job": False,
        "peak memory, MB": True,
        "peak memory ÷ that of the short job": True,
        "going on where all shards are there, s": False,
        "search, 1000 queries, s": True,
    }
    del jobs["ray"]
    local = verdicts(figures_of(10_000, [95.0, 200.0], jobs, ends))
    assert [verdict["figure"] for verdict in local].count("ray job ÷ local job") == 0


def test_a_process_tells_its_own_peak_and_not_that_of_who_started_it() -> None:
    child = "from corom.benchmarks.peak_memory import peak_bytes; print(peak_bytes())"
    parent = (
        "import subprocess, sys\n"
        "large = b'x' * 2**29\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, check=True)
    assert 2**22 < int(done.stdout) < 2**28


def test_one_command_measures_and_judges(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus.json"
    command = ["bench", "corpus", tiny_bundle, "--rows", 200, "--rounds", 1, "-o", out]
    done = corom(*command, *("--threads", 1))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_bytes())
    assert report["rows"] == 200
    assert len(report["floors"]) == 5
    assert report["passed"] == all(verdict["passed"] for verdict in report["floors"])
    assert report["figures"]["local job, rows/s"]["median"] > 0
    assert "| search, 1000 queries, s |" in done.stdout
    assert "≤ 2: reached" in done.stdout
