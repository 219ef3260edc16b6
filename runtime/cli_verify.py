"""`corom verify`: does this bundle still give the reference's vectors, on this machine?"""

from pathlib import Path

import click
import msgspec
from rich.console import Console

from .cli_options import bundle_argument, json_option
from .errors import ParityError, UnavailableError
from .parity_table import parity_rows, parity_table
from .verify import Verdict, verify_bundle


@click.command()
@bundle_argument
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@json_option
def verify(bundle: Path, threads: int | None, as_json: bool) -> None:
    """Check every file's hash, then the golden texts with every variant that can run here.

    Exit code 1: a variant's vectors are out of tolerance; 3: no variant can run here.
    """
    verdicts = list(verify_bundle(bundle, threads))
    if as_json:
        click.echo(msgspec.json.encode([_record(verdict) for verdict in verdicts]).decode())
    else:
        _show(verdicts)
    failed = [f"{v.variant.precision} by {v.backend} on {v.device}" for v in verdicts if v.failed]
    if failed:
        raise ParityError(f"out of tolerance on this machine: {', '.join(failed)}.")
    if not any(v.parity for v in verdicts):
        raise UnavailableError("no variant of this bundle can run here.")


def _show(verdicts: list[Verdict]) -> None:
    rows = [
        row
        for v in verdicts
        if v.parity
        for row in parity_rows(
            f"{v.variant.precision} {v.backend} {v.device}", v.parity, v.variant.tolerance
        )
    ]
    Console().print(parity_table(rows, "Parity with the torch reference, on this machine"))
    for verdict in verdicts:
        for problem in verdict.problems:
            click.echo(f"{verdict.variant.precision}: {problem}", err=True)


def _record(verdict: Verdict) -> dict[str, object]:
    return {
        "precision": verdict.variant.precision,
        "backend": verdict.backend,
        "device": verdict.device,
        "parity": verdict.parity,
        "tolerance": verdict.variant.tolerance,
        "problems": verdict.problems,
    }
