"""The report of a GPU check: one JSON document, and the tables that people read. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import text_table
from .gpu_checks import Check
from .gpu_inventory import Component

REQUIRED = ("libcuda.so.1", "GPU", "cuda-bindings")
"""Without one of these nothing can be checked."""


def inventory_table(components: Sequence[Component]) -> str:
    """Return what is here and what is missing, with the reason."""
    rows = [(c.name, c.found or "missing", c.missing or "") for c in components]
    return text_table(("part", "found", "why it is missing"), rows)


def lacking(components: Sequence[Component]) -> list[str]:
    """Return the required parts that are missing."""
    return [c.name for c in components if c.found is None and c.name in REQUIRED]


def checks_table(checks: Sequence[Check]) -> str:
    """Return the checks; what could not be checked is missing, not passed."""
    rows = [(c.name, c.outcome, c.detail.strip().splitlines()[-1][:160]) for c in checks]
    return text_table(("check", "outcome", "detail"), rows)


def latency_table(models: Mapping[str, Any]) -> str:
    """Return the latencies of every model, load and road."""
    rows = []
    for model, result in models.items():
        for load, roads in result.get("latency", {}).items():
            for road, found in roads.items():
                figures = [None] * 3 if "missing" in found else list(found.values())[:3]
                rows.append((model, load, road, *figures))
    return text_table(("model", "load", "road", "p50 µs", "p95 µs", "p99 µs"), rows)


def throughput_table(models: Mapping[str, Any]) -> str:
    """Return texts a second of every model and road."""
    rows = [
        (model, road, rate if isinstance(rate, float) else None)
        for model, result in models.items()
        for road, rate in result.get("throughput", {}).items()
    ]
    return text_table(("model", "road", "texts/s"), rows)


def verdict(checks: Sequence[Check]) -> int:
    """Return the exit code: 1 if a check failed, 0 if none did; missing ones are in the table."""
    return int(any(check.outcome == "failed" for check in checks))
