"""What the loads came to: the limits they are held to, and the tables. Pure functions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .figures import Spread, text_table


class Floor(NamedTuple):
    """A figure and the limit it is held to. ``met``: None if the figure could not be measured."""

    name: str
    value: float | None
    limit: str
    met: bool | None


def floors(report: dict[str, Any], deadline_s: float) -> list[Floor]:
    """Return every limit with the figure that was measured for it."""
    loads, unloaded = report["loads"], report["loads"]["one caller"]
    found = [_at_most("HTTP over encode, p50, ms", report["overhead"]["p50_overhead_ms"], 1.0)]
    busy, burst = loads["open loop, 90 %"], loads["open loop, 200 %"]
    for kind in _latencies(busy):
        alone = unloaded.get(kind)  # nobody's, if one caller got to none of them
        share = alone and busy[kind]["p99_us"] / alone["p50_us"]
        found.append(_at_most(f"90 %: p99 by unloaded p50, {kind}", share, 5.0))
    refused = burst.get("refused")
    found.append(_at_most("200 %: 429 after, p99, ms", refused and refused["p99_us"] / 1e3, 100.0))
    number = burst["statuses"].get("429", 0)
    without = number - burst.get("refused_with_retry_after", 0)
    found.append(_at_most("200 %: 429 without Retry-After", without, 0))
    slowest = burst.get("slowest_ms")  # none, if nothing was accepted
    found.append(_at_most("200 %: slowest accepted, s", slowest and slowest / 1e3, deadline_s))
    others = sum(n for load in loads.values() for n in _other(load["statuses"]))
    found.append(_at_most("answers that are neither 200 nor 429", others, 0))
    back = report["recovery"]["seconds"]  # None: it did not return while that was watched
    returned = back is not None and back <= 5.0
    found.append(Floor("after it: latency back after, s", back, "≤ 5", returned))
    grown = report["memory"]["grown_again"] * 100
    found.append(_at_most("memory grown by the last load, once more, %", grown, 5.0))
    if (peer := report.get("peer")) is not None:
        for count, figures in peer["callers"].items():
            times = figures["times the requests/s"]["median"]
            name = f"{count} callers: times infinity's requests/s"
            found.append(Floor(name, times, "≥ 2", times >= 2))
        share = peer["callers"]["1"]["p50 by infinity's"]["median"]
        found.append(_at_most("1 caller: p50 by infinity's", share, 0.3))
    return found


def tables(report: dict[str, Any]) -> str:
    """Return the report as tables in Markdown."""
    about = (
        f"{report['model']}, {report['choice']}: {report['texts']} texts ({report['source']}), "
        f"every tenth request of {report['batch_texts']} texts; capacity "
        f"{report['capacity']:.0f} requests/s"
    )
    header = (
        "load",
        "requests/s",
        "texts/s",
        "p50 ms",
        "p99 ms",
        "slowest ms",
        "429",
        "client CPU",
    )
    rows = [
        [
            name,
            load["requests_per_second"],
            load["texts_per_second"],
            *(_ms(load, figure) for figure in ("p50_us", "p99_us")),
            load.get("slowest_ms", ""),
            load["statuses"].get("429", 0),
            f"{load['client_cpu_share']:.0%}",
        ]
        for name, load in report["loads"].items()
    ]
    memory = report["memory"]
    of_memory = (
        f"memory: {memory['first_mb']:.0f} MB as the loads began, {memory['peak_mb']:.0f} at most, "
        f"{memory['after_mb']:.0f} after them, {memory['again_mb']:.0f} after the last once more"
    )
    ideal = "; ".join(
        f"{size} text{'s'[: size != 1]}: "
        + ", ".join(f"{times:.3g} ({order})" for order, times in by_order.items())
        for size, by_order in report["ideal"].items()
    )
    of_ideal = f"90 %: p99 by unloaded p50 of a server without overhead, by order: {ideal}"
    parts = [about, text_table(header, rows), _indexing(report["indexing"]), of_memory, of_ideal]
    if (peer := report.get("peer")) is not None:
        parts.append(_peer_table(peer))
    limits = [
        [floor["name"], floor["value"], floor["limit"], _YES_NO[floor["met"]]]
        for floor in report["floors"]
    ]
    parts.append(text_table(("", "measured", "limit", "met"), limits))
    return "\n\n".join(parts)


_YES_NO = {True: "yes", False: "no", None: "not measured"}


def _peer_table(peer: dict[str, Any]) -> str:
    counts = ("callers", "corom requests/s", "infinity's", "times", "corom p50 ms", "infinity's")
    rows = [
        [
            count,
            *(Spread(**found[who]["requests_per_second"]) for who in ("corom", "infinity")),
            Spread(**found["times the requests/s"]),
            *(Spread(**found[who]["p50_ms"]) for who in ("corom", "infinity")),
        ]
        for count, found in peer["callers"].items()
    ]
    title = f"beside infinity's server, {peer['rounds']} rounds: median (lowest to highest)"
    indexing = peer["beside indexing"]
    header = ("", "indexed texts/s", "p50 ms of single texts beside")
    beside = [
        [
            who,
            Spread(**indexing[who]["indexed_texts_per_second"]),
            Spread(**indexing[who]["p50_ms"]),
        ]
        for who in ("corom", "infinity")
    ]
    return f"{title}\n\n{text_table(counts, rows)}\n\n{text_table(header, beside)}"


def _indexing(load: dict[str, Any]) -> str:
    took = "all were refused"
    if (latency := load.get("latency")) is not None:
        took = f"p50 {latency['p50_us'] / 1e3:.3g} ms, p99 {latency['p99_us'] / 1e3:.3g}"
    return (
        f"single texts, {load['rate']:.0f} a second, beside a caller who asks for many at a time "
        f"and gets {load['indexed_texts_per_second']:.0f} a second: {took}"
    )


def _at_most(name: str, value: float | None, limit: float) -> Floor:
    return Floor(name, value, f"≤ {limit:g}", None if value is None else value <= limit)


def _latencies(load: dict[str, Any]) -> Sequence[str]:
    # By size: what eight texts take says nothing beside what one takes.
    return [name for name in load if name.startswith("latency, ")]


def _other(statuses: dict[str, int]) -> list[int]:
    return [count for status, count in statuses.items() if status not in {"200", "429"}]


def _ms(load: dict[str, Any], figure: str) -> object:
    return load["latency"][figure] / 1e3 if "latency" in load else ""
