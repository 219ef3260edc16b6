"""`corom inspect`: what a bundle holds, and what of it can run on this machine."""

from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .availability import why_not
from .backend import EXECUTES, pairs
from .cli_options import bundle_argument, json_option
from .engine_cache import shipped_engines
from .engine_table import engine_table
from .gpu_machine import this_machine
from .manifest import Manifest, Precision, load_manifest
from .parity_table import parity_table, variant_rows


@click.command()
@bundle_argument
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds and what of it runs here; `corom verify` checks files and vectors."""
    manifest = load_manifest(bundle)
    engines = shipped_engines(bundle, manifest, this_machine())
    here = what_runs_here(bundle, manifest)
    if as_json:
        record = msgspec.to_builtins(manifest) | {
            "engines": [engine._asdict() for engine in engines],
            "here": [way._asdict() for way in here],
        }
        click.echo(msgspec.json.encode(record).decode())
        return
    console = Console()
    console.print(_facts(manifest))
    rows = variant_rows(manifest.variants)
    console.print(parity_table(rows, "Parity with the torch reference, as measured at export"))
    files = Table("file", "bytes", "sha256", title="Files", title_justify="left")
    for entry in manifest.files:
        files.add_row(entry.path, f"{entry.size_bytes:,}", entry.sha256[:16] + "…")
    console.print(files)
    console.print(here_table(here))
    for engine in engines:
        console.print(engine_table(engine))


class Here(NamedTuple):
    """What of a bundle a backend runs on a device of this machine."""

    backend: str
    device: str
    precisions: list[Precision]
    why_not: dict[Precision, str]
    """Of the bundle's other precisions that this backend executes."""


def what_runs_here(bundle: Path, manifest: Manifest) -> list[Here]:
    """Return what each backend runs here on each device, in the order that "auto" tries them in."""
    found = []
    for backend, device in pairs():
        asked = [v.precision for v in manifest.variants if v.precision in EXECUTES[backend]]
        reasons = {p: why_not(bundle, manifest, p, "auto", backend, device) for p in asked}
        runs = [precision for precision, reason in reasons.items() if reason is None]
        found.append(Here(backend, device, runs, {p: why for p, why in reasons.items() if why}))
    return found


def here_table(here: list[Here]) -> Table:
    """Return what runs here, and why the rest does not, as a table."""
    table = Table(
        "backend", "on", "runs", "does not", title="On this machine", title_justify="left"
    )
    for backend, device, precisions, reasons in here:
        alike = {why: [p for p in reasons if reasons[p] == why] for why in reasons.values()}
        lines = [f"{', '.join(which)}: {why}" for why, which in alike.items()]
        runs = ", ".join(precisions) or "nothing"
        table.add_row(backend, device, runs, escape("\n".join(lines)))  # corom[gpu] is no style
    return table


def _facts(manifest: Manifest) -> Table:
    source = manifest.source
    facts = {
        "name": manifest.name,
        "source": source.uri + (f" @ {source.revision}" if source.revision else ""),
        "architecture": source.architecture,
        "weights sha256": source.weights_sha256,
        "licence of the weights": source.license or "not stated",
        "dimension": str(manifest.dimension),
        "max length": f"{manifest.max_length} tokens (positions: {manifest.max_positions})",
        "pooling": manifest.pooling,
        "normalize": "yes" if manifest.normalize else "no",
        "similarity": manifest.similarity,
        "prompts": ", ".join(f"{k}: {v!r}" for k, v in manifest.prompts.items()) or "none",
        "made with": ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, escape(value))  # a prompt may hold what looks like a style
    return table
