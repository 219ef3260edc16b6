"""How much corom's own Python adds to a one-text `encode`, over the tokenizer and session.run.

The two calls that do the work are timed inside the very call that is measured; what remains of it
is ours. So noise of the machine, which is larger than the figure, stays out of it.

Run: python -m corom.benchmarks.overhead BUNDLE
"""

import json
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from corom.runtime import Encoder

from .machine import describe_machine

TEXT = "上消化道出血手术大约多久需要住院吗"
ROUNDS = 3000


class Clock:
    """Adds up the time that one function takes."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.nanoseconds = 0

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401
        """Call the function and add the time it took."""
        start = time.perf_counter_ns()
        result = self._call(*args)
        self.nanoseconds += time.perf_counter_ns() - start
        return result


def measure(bundle: str) -> dict[str, Any]:
    """Return medians and 99th percentiles of one-text `encode` and its parts, in µs."""
    with Encoder(bundle, backend="onnxruntime", device="cpu") as encoder:
        tokenizer = Clock(encoder._tokenizer._tokenizer.encode_batch_fast)
        session = Clock(encoder._backend._session.run)  # type: ignore[attr-defined]
        encoder._tokenizer._tokenizer = SimpleNamespace(encode_batch_fast=tokenizer)  # type: ignore[assignment]
        encoder._backend._session = SimpleNamespace(run=session)  # type: ignore[attr-defined]
        rows = np.empty((ROUNDS, 3))
        for row in range(-200, ROUNDS):
            tokenizer.nanoseconds = session.nanoseconds = 0
            start = time.perf_counter_ns()
            encoder.encode(TEXT)
            total = time.perf_counter_ns() - start
            if row >= 0:
                rows[row] = total, tokenizer.nanoseconds, session.nanoseconds
    total, tokenize, execute = rows.T / 1000
    parts = {"encode": total, "tokenizer": tokenize, "session.run": execute}
    parts["corom's own"] = total - tokenize - execute
    return {
        name: {
            "p50_us": round(float(np.median(t)), 1),
            "p99_us": round(float(np.percentile(t, 99)), 1),
        }
        for name, t in parts.items()
    }


if __name__ == "__main__":
    result = measure(sys.argv[1])
    for name, value in result.items():
        line = f"{name:12} p50 {value['p50_us']:8.1f} µs   p99 {value['p99_us']:8.1f} µs"
        print(line, file=sys.stderr)  # noqa: T201
    print(json.dumps({"benchmark": "overhead", "parts": result, **describe_machine()}))  # noqa: T201
