"""A page of HTML that needs nothing but itself: no script, no link. With a picture, a chart."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OURS, THEIRS = "#1f6feb", "#9aa4b2"


def write_beside(
    json_file: Path,
    report: dict[str, Any],
    write_picture: Callable[[dict[str, Any], Path], None],
    page_of: Callable[[dict[str, Any]], str],
) -> list[Path]:
    """Write the picture (.png) and the page (.html) of a report beside its JSON file."""
    picture, page = json_file.with_suffix(".png"), json_file.with_suffix(".html")
    write_picture(report, picture)
    page.write_text(page_of(report), "utf-8")
    return [picture, page]


def html_page(title: str, parts: Sequence[str]) -> str:
    """Return the page of these parts of HTML, headed by its title."""
    heading = html.escape(title)
    body = "\n".join([f"<h1>{heading}</h1>", *parts])
    return _PAGE.format(title=heading, body=body, ours=OURS, theirs=THEIRS)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls by itself where it is too wide; cells are text."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.25rem; }} h2 {{ font-size: 1rem; margin-top: 2rem; }}
.row {{ display: grid; grid-template-columns: 17rem 1fr 12rem; gap: .6rem; align-items: center; }}
.track span {{ display: block; height: .95rem; border-radius: 2px; }}
.ours {{ background: {ours}; }} .theirs {{ background: {theirs}; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid #8884; }}
@media (max-width: 45rem) {{ .row {{ grid-template-columns: 1fr; gap: 0; }} }}
</style></head><body>
{body}
</body></html>
"""
