"""What a benchmark ends in: a table for people, one JSON document with what it was measured on."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from corom.runtime import Encoder

from .machine import describe_machine

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.json",
    help="Write the figures there too.",
)


def stamped(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report with when, on what, and by which commit it was measured."""
    return {**report, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": describe_machine()}


def say_if_equal(name: str, texts: Sequence[str]) -> None:
    """Tell that some of the texts of a window are equal: `Encoder` computes them once."""
    if (distinct := len(set(texts))) < len(texts):
        click.echo(
            f"{name}: {distinct} of {len(texts)} texts are distinct; equal ones are computed once, "
            "so this is faster than as many different ones would be",
            err=True,
        )


def save(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


def show(
    report: dict[str, Any], table: str, output: Path | None, *, as_json: bool
) -> dict[str, Any]:
    """Print the report as JSON or as a table on stdout, and write it to ``output``.

    Returns it as it was printed, stamped.
    """
    report = stamped(report)
    click.echo(json.dumps(report, ensure_ascii=False) if as_json else table)
    if output is not None:  # what was measured is shown, even if it cannot be written
        save(report, output)
        click.echo(f"written: {output}", err=True)
    return report


def say_what_executes(encoder: Encoder) -> None:
    """Say on stderr what is measured, and on what."""
    machine = describe_machine()
    click.echo(f"{encoder.manifest.name}: {encoder.choice}", err=True)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    on = f"{machine['cpu']}, {machine['cpus']} CPUs, Python {machine['python']}, {versions}"
    click.echo(f"on {on}, commit {machine['commit']}", err=True)


def say_if_cut(encoder: Encoder) -> None:
    """Say on stderr that some of what was measured was cut."""
    if encoder.truncated_texts:
        click.echo(f"Texts of more than {encoder.max_length} tokens were cut.", err=True)
