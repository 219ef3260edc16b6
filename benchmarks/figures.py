"""Durations to figures, and figures to a table. Pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Latency(NamedTuple):
    """Percentiles of a sample of durations, microseconds."""

    p50_us: float
    p95_us: float
    p99_us: float
    samples: int


def latency(durations_s: Sequence[float]) -> Latency:
    """Return the percentiles of durations in seconds; at least one."""
    p50, p95, p99 = np.percentile(np.asarray(durations_s) * 1e6, [50, 95, 99]).tolist()
    return Latency(p50, p95, p99, len(durations_s))


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
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
    return str(value)
