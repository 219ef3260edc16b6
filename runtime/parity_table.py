"""The parity table that people see: on a terminal and, as Markdown, in a bundle's README."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .manifest import Parity, Tolerance, Variant

COLUMNS = ("variant", "cosine min", "mean", "max abs", "invariance", "top 10", "verdict")
NOTE = (
    "cosine and max abs: against torch, un-normalized; invariance: max abs between a text alone "
    "and in a batch; top 10: share of each text's ten nearest that torch names too."
)

Row = tuple[str, ...]


def parity_rows(label: str, parity: Parity, tolerance: Tolerance) -> list[Row]:
    """Return the cells of one variant: what was measured, and below it what is allowed.

    ``label``: the precision, which stands above, and what executed it.
    """
    precision, _, executed_by = label.partition(" ")
    measured = (
        precision,
        f"{parity.cosine_min:.7f}",
        f"{parity.cosine_mean:.7f}",
        f"{parity.max_abs_error:.1e}",
        f"{parity.batch_invariance:.1e}",
        f"{parity.rank_agreement:.1%}",
        "FAILED" if parity.failures(tolerance) else "ok",
    )
    bounds = (tolerance.max_abs_error, tolerance.batch_invariance)
    allowed = ["" if bound is None else f"≤ {bound:.0e}" for bound in bounds]
    return [measured, (executed_by, f"≥ {tolerance.cosine_min:g}", "", *allowed, "", "")]


def variant_rows(variants: Iterable[Variant]) -> list[Row]:
    """Return the cells of the variants, once for each backend they were measured on."""
    return [
        row
        for v in variants
        for backend, parity in v.parity.items()
        for row in parity_rows(f"{v.precision} {backend}", parity, v.tolerance)
    ]


def parity_table(rows: Iterable[Row], title: str) -> Table:
    """Return the table for a terminal of 80 columns."""
    # Wider spaces or lines between columns would have names cut.
    table = Table(*COLUMNS, title=title, caption=NOTE, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    for row in rows:
        table.add_row(*row)
    return table


def parity_markdown(rows: Iterable[Row]) -> str:
    """Return the table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{NOTE}\n"
