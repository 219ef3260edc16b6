"""What a match came to: figures of each contestant, and ratios round by round. No measuring."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from .figures import Spread, latency, ratio_spread, spread, text_table
from .match import Entry
from .roofline import Roofline


def standings(entries: Sequence[Entry], roof: Roofline) -> dict[str, Any]:
    """Return everything that was found, ready for JSON."""
    ready = [entry for entry in entries if entry.failure is None and entry.rates]
    ours = [entry for entry in ready if entry.contestant.ours]
    theirs = [entry for entry in ready if not entry.contestant.ours]
    return {
        "roofline": roof.described(),
        "contestants": [_figures(entry, roof) for entry in ready],
        "absent": absent(entries),
        "ratios": [_ratios(a, b) for a in ours for b in theirs],
    }


def absent(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return who took no part, or not to the end, and why."""
    return [
        {"name": e.contestant.name, "why": e.failure, "ours": e.contestant.ours}
        for e in entries
        if e.failure is not None
    ]


def _figures(entry: Entry, roof: Roofline) -> dict[str, Any]:
    contestant = entry.contestant
    medians = [float(np.median(seconds)) * 1000 for seconds in entry.latencies]
    tail = latency(list(chain.from_iterable(entry.latencies)))
    share = None
    if contestant.ours:
        share = roof.share(contestant.precision, contestant.job["backend"], entry.rates)
    return {
        "name": contestant.name,
        "ours": contestant.ours,
        "precision": contestant.precision,
        "versions": entry.versions,
        "cosine_min": entry.cosine_min,
        "setting": entry.setting,
        "p50_ms": spread(medians)._asdict(),
        "p99_ms": tail.p99_us / 1000,
        "samples": sum(map(len, entry.latencies)),
        "texts_per_second": spread(entry.rates)._asdict(),
        "share_of_gemm": share and share._asdict(),
        "callers": _callers(entry) if entry.caller_rates else None,
        "rounds": {"p50_ms": medians, "texts_per_second": entry.rates},
    }


def _callers(entry: Entry) -> dict[str, Any]:
    """Return what many callers of single texts got, and what share of the offline rate it is."""
    found = latency(list(chain.from_iterable(entry.caller_latencies)))
    return {
        "texts_per_second": spread(entry.caller_rates)._asdict(),
        "share_of_offline": ratio_spread(entry.caller_rates, entry.rates)._asdict(),
        "p50_ms": found.p50_us / 1000,
        "p99_ms": found.p99_us / 1000,
        "p99_by_p50": found.p99_us / found.p50_us,
    }


def _ratios(ours: Entry, theirs: Entry) -> dict[str, Any]:
    """Return how many times better ours is; above 1 is better in both."""
    p50 = [[float(np.median(seconds)) for seconds in e.latencies] for e in (theirs, ours)]
    return {
        "ours": ours.contestant.name,
        "peer": theirs.contestant.name,
        "p50": ratio_spread(*p50)._asdict(),
        "throughput": ratio_spread(ours.rates, theirs.rates)._asdict(),
    }


def tables(report: dict[str, Any]) -> str:
    """Return the report as tables in Markdown."""
    header = ("", "p50 ms", "p99 ms", "texts/s", "cosine min", "share of GEMM rate")
    rows = [
        [
            c["name"],
            Spread(**c["p50_ms"]),
            c["p99_ms"],
            Spread(**c["texts_per_second"]),
            f"{c['cosine_min']:.5f}",
            _percent(c["share_of_gemm"]),
        ]
        for c in report["contestants"]
    ]
    parts = [
        f"{report['model']}, {report['pooling']} pooling, {report['count']} texts of "
        f"{report['tokens_per_text']:.1f} tokens, {report['threads']} threads, "
        f"{report['rounds']} rounds: median (lowest to highest)",
        text_table(header, rows),
    ]
    for figure, title in (
        ("p50", "times lower p50, one text"),
        ("throughput", "times the texts/s"),
    ):
        parts.append(f"{title}, than the peer of the column\n\n{_ratio_table(report, figure)}")
    if report["callers"]:
        parts.append(_callers_table(report))
    gemm = report["roofline"]["gemm_gflops"]
    rates = ", ".join(f"{roof} {rate['median']:.0f} ({rate['by']})" for roof, rate in gemm.items())
    parts.append(f"GEMM rate here, GFLOP/s: {rates}")
    parts += [f"took no part: {row['name']}: {row['why']}" for row in report["absent"]]
    return "\n\n".join(parts)


def _ratio_table(report: dict[str, Any], figure: str) -> str:
    peers = list(dict.fromkeys(ratio["peer"] for ratio in report["ratios"]))
    rows: dict[str, dict[str, Spread]] = {}
    for ratio in report["ratios"]:
        rows.setdefault(ratio["ours"], {})[ratio["peer"]] = Spread(**ratio[figure])
    return text_table(
        ["", *peers], [[name, *(row[p] for p in peers)] for name, row in rows.items()]
    )


def _callers_table(report: dict[str, Any]) -> str:
    header = ("", "texts/s", "share of offline", "p50 ms", "p99 ms", "p99 by p50")
    rows = [
        [
            c["name"],
            Spread(**found["texts_per_second"]),
            _percent(found["share_of_offline"]),
            *(found[key] for key in ("p50_ms", "p99_ms", "p99_by_p50")),
        ]
        for c in report["contestants"]
        if (found := c["callers"])
    ]
    title = f"{report['callers']} callers of single texts at once, through DynamicBatcher"
    return f"{title}\n\n{text_table(header, rows)}"


def _percent(share: dict[str, float] | None) -> str:
    return (
        "" if share is None else f"{share['median']:.0%} ({share['low']:.0%}-{share['high']:.0%})"
    )
