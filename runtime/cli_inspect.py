"""`corom inspect`: what a bundle holds, and what of it can run on this machine."""

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from .backend import BACKENDS
from .cli_options import bundle_argument, json_option
from .engine_cache import shipped_engines
from .engine_table import engine_table
from .gpu_machine import this_machine
from .manifest import Manifest, load_manifest
from .parity_table import parity_table, variant_rows


@click.command()
@bundle_argument
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds and what of it runs here; `corom verify` checks files and vectors."""
    manifest = load_manifest(bundle)
    engines = shipped_engines(bundle, manifest, this_machine())
    if as_json:
        record = msgspec.to_builtins(manifest) | {"engines": [e._asdict() for e in engines]}
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
    for engine in engines:
        console.print(engine_table(engine))


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
        "backends": ", ".join(BACKENDS),
        "made with": ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, value)
    return table
