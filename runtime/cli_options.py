"""Options that several commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .backend import BACKENDS, PRECISIONS

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A number in a range, which neither nan nor infinity is in."""

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """Return the range for --help; click shows one without ends as "x<=None"."""
        return "" if self.min is None is self.max else super()._describe_range()


bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
id_column_option = click.option(
    "--id-column",
    default="1",
    show_default=True,
    metavar="NAME|NUMBER",
    help="Column with the id; a number, from 1, where there is no header line.",
)
text_column_option = click.option(
    "--text-column",
    default="2",
    show_default=True,
    metavar="NAME|NUMBER",
    help="Column with the text, likewise.",
)


def encoder_options(command: Command) -> Command:
    """Add the options that choose what executes; their names are parameters of ``Encoder``."""
    devices = sorted({device for devices in BACKENDS.values() for device in devices})
    options = [
        click.option(
            "--backend",
            type=click.Choice(["auto", *BACKENDS]),
            default="auto",
            help="What executes; auto: `corom tune`'s winner, else the first that can run here.",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", *devices]),
            default="auto",
            help="Where; auto: wherever that backend runs here.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", *PRECISIONS]),
            default="auto",
            help="Of those in the bundle; auto: the winner's, else the most exact; fp16 on a GPU.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1),
            help="CPU threads; default: the CPUs this process may use.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="Batches executed at once, which share those CPUs; default: 1, and for "
            "`corom serve` one a thread while there is much to do.",
        ),
        click.option("--max-length", type=click.IntRange(1), help="Tokens a text is cut to."),
        click.option(
            "--rebuild",
            "engine_cache",
            flag_value="auto",
            default="off",
            help="Build a TensorRT engine for this machine once, if none of the bundle's fits.",
        ),
        click.option(
            "--cuda-graphs/--no-cuda-graphs",
            default=None,
            help="Replay a captured graph for each shape; default: of engines and of fused graphs.",
        ),
        click.option(
            "--tuned",
            type=click.Choice(["throughput", "latency", "off"]),
            default="throughput",
            help="Which winner of `corom tune` auto takes, if it was run here.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def say_cut(count: int, max_length: int) -> None:
    """Say on stderr how many texts were cut, if any."""
    if count:
        which = "1 text was" if count == 1 else f"{count} texts were"
        click.echo(
            f"{which} longer than {max_length} tokens and cut; corom embed refuses them with "
            "--error-on-truncate.",
            err=True,
        )
