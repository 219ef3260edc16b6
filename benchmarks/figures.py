"""Durations to figures, and figures to a table. Pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TAIL_SAMPLES = 1000


class Latency(NamedTuple):
    """Percentiles of a sample of durations, microseconds."""

    p50_us: float
    p95_us: float
    p99_us: float
    p999_us: float | None
    samples: int
    """Fewer than ``TAIL_SAMPLES`` say nothing of p99.9, which then is None."""


def latency(durations_s: Sequence[float]) -> Latency:
    """Return the percentiles of durations in seconds; at least one."""
    found = np.percentile(np.asarray(durations_s) * 1e6, [50, 95, 99, 99.9]).tolist()
    p50, p95, p99, p999 = found
    return Latency(
        p50, p95, p99, p999 if len(durations_s) >= TAIL_SAMPLES else None, len(durations_s)
    )


class Spread(NamedTuple):
    """The median of repeated measurements, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_cell(self.median)} ({_cell(self.low)} to {_cell(self.high)})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the range of repeated measurements; at least one."""
    return Spread(float(np.median(values)), float(min(values)), float(max(values)))


def ratio_spread(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of ours ÷ theirs, round by round, so that noise of a round is shared."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown; numbers are rounded to what is worth reading."""
    cells = [
        list(header),
        ["---"] * len(header),
        *([_cell(value) for value in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, Spread):
        return str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
    return str(value)
