"""The chart of a comparison with peers: a picture, and a page that needs nothing but itself."""

import html
from pathlib import Path
from typing import Any

from .figures import Spread
from .page import OURS, THEIRS, html_page, html_table, write_beside

PANELS = (
    ("texts_per_second", "texts a second, many at once (more is better)"),
    ("p50_ms", "milliseconds, one text alone, p50 (less is better)"),
)


def write_charts(report: dict[str, Any], json_file: Path) -> list[Path]:
    """Write the picture (.png) and the page (.html) beside the report's JSON file."""
    return write_beside(json_file, report, write_picture, page_of)


def write_picture(report: dict[str, Any], file: Path) -> None:
    """Draw both figures of every contestant as bars, best first, with the spread of the rounds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    contestants = report["contestants"]
    figure = Figure(figsize=(12, 1.8 + 0.36 * len(contestants)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title_of(report), fontsize=11)
    for place, (key, title) in enumerate(PANELS, 1):
        axes = figure.add_subplot(1, len(PANELS), place)
        ranked = _ranked(contestants, key)[::-1]
        medians = [c[key]["median"] for c in ranked]
        low = [c[key]["median"] - c[key]["low"] for c in ranked]
        high = [c[key]["high"] - c[key]["median"] for c in ranked]
        colors = [OURS if c["ours"] else THEIRS for c in ranked]
        bars = axes.barh([c["name"] for c in ranked], medians, xerr=[low, high], color=colors)
        axes.bar_label(bars, [f" {_short(value)}" for value in medians], fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


def page_of(report: dict[str, Any]) -> str:
    """Return the page: bars, every figure and every ratio, without a script or a link."""
    parts = []
    machine = report["machine"]
    words = (
        f"{report['time']} · {machine['cpu']}, {report['threads']} threads · {machine['commit']}"
    )
    parts.append(f"<p>{html.escape(words)}</p>")
    for key, title in PANELS:
        parts.append(f"<h2>{html.escape(title)}</h2>{_bars(report['contestants'], key)}")
    parts.append(f"<h2>Figures</h2>{_figures(report['contestants'])}")
    for figure, title in (("throughput", "times the texts/s"), ("p50", "times lower p50")):
        parts.append(f"<h2>corom by peer, {title}</h2>{_ratios(report['ratios'], figure)}")
    gemm = report["roofline"]["gemm_gflops"]
    rates = [[roof, _short(rate["median"]), rate["by"]] for roof, rate in gemm.items()]
    parts.append(f"<h2>GEMM rate here</h2>{html_table(['precision', 'GFLOP/s', 'by'], rates)}")
    absent = [[row["name"], row["why"]] for row in report["absent"]]
    if absent:
        parts.append(f"<h2>Took no part</h2>{html_table(['peer', 'why'], absent)}")
    return html_page(title_of(report), parts)


def title_of(report: dict[str, Any]) -> str:
    """Return what was compared, in words."""
    return (
        f"{report['model']}, {report['pooling']} pooling: {report['count']} texts of "
        f"{report['tokens_per_text']:.0f} tokens ({report['texts']}), {report['rounds']} rounds"
    )


def _ranked(contestants: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    better_is_more = key == "texts_per_second"
    return sorted(contestants, key=lambda c: float(c[key]["median"]), reverse=better_is_more)


def _bars(contestants: list[dict[str, Any]], key: str) -> str:
    most = max(c[key]["median"] for c in contestants)
    rows = []
    for c in _ranked(contestants, key):
        value, width = Spread(**c[key]), 100 * c[key]["median"] / most
        kind = "ours" if c["ours"] else "theirs"
        bar = f'<span class="{kind}" style="width:{width:.1f}%"></span>'
        rows.append(
            f'<div class="row"><span class="name">{html.escape(c["name"])}</span>'
            f'<span class="track">{bar}</span><span class="value">{value}</span></div>'
        )
    return "".join(rows)


def _figures(contestants: list[dict[str, Any]]) -> str:
    header = ["", "p50 ms", "p99 ms", "texts/s", "cosine min", "share of GEMM rate", "versions"]
    rows = [
        [
            c["name"],
            str(Spread(**c["p50_ms"])),
            _short(c["p99_ms"]),
            str(Spread(**c["texts_per_second"])),
            f"{c['cosine_min']:.5f}",
            "" if c["share_of_gemm"] is None else f"{c['share_of_gemm']['median']:.0%}",
            ", ".join(f"{name} {version}" for name, version in c["versions"].items()),
        ]
        for c in contestants
    ]
    return html_table(header, rows)


def _ratios(ratios: list[dict[str, Any]], figure: str) -> str:
    peers = list(dict.fromkeys(ratio["peer"] for ratio in ratios))
    rows: dict[str, list[str]] = {}
    for ratio in ratios:
        rows.setdefault(ratio["ours"], []).append(str(Spread(**ratio[figure])))
    return html_table(["", *peers], [[name, *cells] for name, cells in rows.items()])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
