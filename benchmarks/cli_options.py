"""Options that several benchmarks share."""

from collections.abc import Callable

import click

from corom.runtime.cli_options import Command

from .texts import MIXES

mix_option = click.option(
    "--mix",
    type=click.Choice(MIXES),
    default="queries",
    show_default=True,
    help="Which made texts, without --texts.",
)


def rounds_option(default: int) -> Callable[[Command], Command]:
    """Return the option of how often what is measured takes turns."""
    return click.option(
        "--rounds",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="How often all take turns.",
    )
