"""What `corom embed --engine ray` costs on one machine: its rate beside that of the local engine.

Both run as users run them, as processes with all CPUs, in turns; a round gives one ratio. Two rates
a run: of the whole command, and without what a run on one row takes (interpreter, encoder, Ray's
start), which a large corpus does not notice.

Run: python -m corom.benchmarks.ray_engine BUNDLE CORPUS [ROUNDS] [OPTIONS OF corom embed ...]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .machine import describe_machine

ENGINES: dict[str, list[str]] = {
    "local": [],
    "ray, 1 worker": ["--engine", "ray"],
    "ray, 2 workers": ["--engine", "ray", "--num-workers", "2"],
}


def seconds(bundle: str, corpus: Path, options: list[str]) -> float:
    """Return how long one run takes, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["corom", "embed", bundle, "-i", str(corpus), "-o", f"{folder}/v", *options]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def measure(bundle: str, corpus: Path, rounds: int, options: list[str]) -> dict[str, Any]:
    """Return for each engine the median rates, and the median ratio to the local one."""
    lines = corpus.read_bytes().splitlines(keepends=True)
    rows = len(lines)
    whole: dict[str, list[float]] = {name: [] for name in ENGINES}
    steady: dict[str, list[float]] = {name: [] for name in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder, f"one{corpus.suffix}")
        one.write_bytes(lines[0])
        for _ in range(rounds):
            for name, more in ENGINES.items():
                start = seconds(bundle, one, options + more)
                took = seconds(bundle, corpus, options + more)
                whole[name].append(rows / took)
                steady[name].append((rows - 1) / (took - start))
    return {
        name: {
            "rows_per_s": round(statistics.median(steady[name]), 1),
            "rows_per_s_with_start": round(statistics.median(whole[name]), 1),
            "of_local": round(_ratio(steady[name], steady["local"]), 3),
            "of_local_with_start": round(_ratio(whole[name], whole["local"]), 3),
        }
        for name in ENGINES
    }


def _ratio(rates: list[float], local: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(rates, local, strict=True))


if __name__ == "__main__":
    bundle, corpus, rounds, *options = sys.argv[1:]
    result = measure(bundle, Path(corpus), int(rounds), options)
    record = {"benchmark": "ray_engine", "options": options, "engines": result}
    print(json.dumps(record | describe_machine()))  # noqa: T201
