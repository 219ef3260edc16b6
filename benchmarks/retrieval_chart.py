"""The chart of retrieval quality: every variant, and how far it is from torch, with intervals."""

import html
from pathlib import Path
from typing import Any

from .page import OURS, THEIRS, html_page, html_table, write_beside

PANELS = (("RR@10", "MRR@10"), ("R@1000", "Recall@1000"))


def write_charts(report: dict[str, Any], json_file: Path) -> list[Path]:
    """Write the picture (.png) and the page (.html) beside the report's JSON file."""
    return write_beside(json_file, report, write_picture, page_of)


def write_picture(report: dict[str, Any], file: Path) -> None:
    """Draw the means of every row as bars, and beside them the differences with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, compared = report["rows"][::-1], _compared(report)[::-1]
    columns = 2 if compared else 1
    size = (6.5 * columns, 1.4 + 0.62 * len(rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title_of(report), fontsize=10)
    for line, (measure, title) in enumerate(PANELS):
        axes = figure.add_subplot(len(PANELS), columns, line * columns + 1)
        colors = [OURS if row["name"].startswith("corom") else THEIRS for row in rows]
        means = [row["means"][measure] for row in rows]
        bars = axes.barh([row["name"] for row in rows], means, color=colors)
        axes.bar_label(bars, [f" {mean:.4f}" for mean in means], fontsize=7)
        axes.margins(x=0.2)
        drawn = [(axes, title)]
        if compared:
            beside = figure.add_subplot(len(PANELS), columns, line * columns + 2)
            _draw_differences(beside, compared, measure)
            drawn.append((beside, f"{title}, difference from torch (95 % of resamples)"))
        for panel, words in drawn:
            panel.set_title(words, fontsize=8)
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


def _draw_differences(axes: Any, compared: list[dict[str, Any]], measure: str) -> None:  # noqa: ANN401
    found = [row["differences"][measure] for row in compared]
    middle = [d["difference"] for d in found]
    # A bootstrap interval need not hold the mean where few queries differ.
    low = [max(0.0, d["difference"] - d["low"]) for d in found]
    high = [max(0.0, d["high"] - d["difference"]) for d in found]
    names = [row["name"] for row in compared]
    axes.errorbar(middle, names, xerr=[low, high], fmt="o", color=OURS, capsize=3, markersize=4)
    axes.axvline(0, color=THEIRS, linewidth=1)
    axes.margins(y=0.15)


def page_of(report: dict[str, Any]) -> str:
    """Return the page: bars, every mean, every difference with its interval."""
    machine = report["machine"]
    words = f"{report['time']} · {machine['cpu']} · {machine['commit']}"
    parts = [f"<p>{html.escape(words)}</p>"]
    for measure, title in PANELS:
        parts.append(f"<h2>{title}</h2>{_bars(report['rows'], measure)}")
    measures = list(report["rows"][0]["means"])
    rows = [[r["name"], *(f"{r['means'][m]:.4f}" for m in measures)] for r in report["rows"]]
    rows += [[row["name"], *_card_cells(row, measures)] for row in report["model_card"]]
    parts.append(f"<h2>Means over the queries</h2>{html_table(['', *measures], rows)}")
    if compared := _compared(report):
        rows = [[r["name"], *(_interval(r["differences"][m]) for m in measures)] for r in compared]
        parts.append(
            "<h2>Difference from torch, with the interval of 95 % of resamples of the queries</h2>"
            + html_table(["", *measures], rows)
        )
    return html_page(title_of(report), parts)


def title_of(report: dict[str, Any]) -> str:
    """Return what was measured, in words."""
    return (
        f"{report['bundle']}, {report['pooling']} pooling, at most {report['max_length']} tokens: "
        f"{report['queries'] - report['queries_without_answer']:,} queries, "
        f"{report['passages']:,} passages"
    )


def _compared(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that were compared with torch; BM25 is no variant of it."""
    rows: list[dict[str, Any]] = report["rows"]
    return [row for row in rows if "differences" in row and row["name"] != "BM25"]


def _card_cells(row: dict[str, Any], measures: list[str]) -> list[str]:
    return [f"{row[m]:.4f}" if m in row else "" for m in measures]


def _interval(found: dict[str, float]) -> str:
    return f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"


def _bars(rows: list[dict[str, Any]], measure: str) -> str:
    most = max(row["means"][measure] for row in rows) or 1.0
    lines = []
    for row in rows:
        kind = "ours" if row["name"].startswith("corom") else "theirs"
        value = row["means"][measure]
        bar = f'<span class="{kind}" style="width:{100 * value / most:.1f}%"></span>'
        lines.append(
            f'<div class="row"><span class="name">{html.escape(row["name"])}</span>'
            f'<span class="track">{bar}</span><span class="value">{value:.4f}</span></div>'
        )
    return "".join(lines)
