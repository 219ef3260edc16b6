"""The command `corom`: the table of sub-commands, and how errors become messages and exit codes.

Exit codes: 0 ok · 1 parity failed · 2 usage or bad input · 3 environment or engine mismatch ·
70 a bug · 130 interrupted · 141 the output pipe was closed · 129, 143 hung up, terminated.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, metadata
from io import TextIOWrapper
from types import FrameType
from typing import Any

import click

from .errors import CoromError

COMMANDS = {
    "export": ("corom.export.cli", "Turn a checkpoint into a bundle proven equal to it."),
    "embed": ("corom.runtime.cli_embed", "Turn texts into vectors."),
    "search": ("corom.runtime.cli_search", "Find the nearest passages of an embedded corpus."),
    "mine": ("corom.runtime.cli_mine", "Find hard negatives for training, by dense retrieval."),
    "score": ("corom.runtime.cli_score", "Score sentences against one sentence."),
    "serve": ("corom.runtime.cli_serve", "Serve a bundle over HTTP."),
    "inspect": ("corom.runtime.cli_inspect", "Show what a bundle holds and what runs here."),
    "triton": ("corom.runtime.cli_triton", "Write a model repository for NVIDIA Triton."),
    "verify": ("corom.runtime.cli_verify", "Check a bundle's files and vectors on this machine."),
    "tune": ("corom.benchmarks.cli_tune", "Find what is fastest here, and have auto use it."),
    "bench": ("corom.benchmarks.cli", "Measure latency, throughput, retrieval and peers."),
}
"""Name → module that holds the click command of that name, and its line in `corom --help`."""


class Failure(click.ClickException):
    """An error shown as one message, with the exit code of its kind."""

    exit_code: int  # type: ignore[misc]  # click calls it a class variable, then reads it off self

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class GuardedCommand(click.Command):
    """A command outside the table whose failures end as those in it do."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; every failure ends as a message and an exit code."""
        with exit_codes():
            return super().invoke(ctx)


class LateGroup(click.Group):
    """Imports a command's module when it is used, so that `corom --help` loads none of them.

    ``table``: as ``COMMANDS``.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        table: Mapping[str, tuple[str, str]] = COMMANDS,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of this name, or None."""
        if cmd_name not in self._table:
            return None
        command = getattr(import_module(self._table[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._table.items()])

    def make_context(self, *args: Any, **options: Any) -> click.Context:  # noqa: ANN401
        """Read the command line; `corom --help` ends here."""
        with _quiet_pipe():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; every failure ends as a message and an exit code."""
        with exit_codes():
            return super().invoke(ctx)


@click.group(cls=LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("corom"), prog_name="corom")
def cli() -> None:
    """Run Chinese sentence encoders fast, proven equal to torch."""


def main(command: click.Command = cli) -> None:
    """Run a command line; ends the process with one of the exit codes above."""
    if isinstance(sys.stdout, TextIOWrapper):  # what a terminal cannot show is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _terminate)
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    warnings.setFormatter(logging.Formatter("Warning: %(message)s"))
    logging.getLogger("corom").addHandler(warnings)
    logging.getLogger("corom.cut").disabled = True  # commands say themselves how many were cut
    command()


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn every failure of the block into a message and one of the exit codes above."""
    try:
        with _quiet_pipe():
            yield
    except CoromError as error:
        raise Failure(str(error), error.exit_code) from error
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        raise click.exceptions.Exit(130) from None
    except OSError as error:
        raise Failure(_describe(error), 3) from error
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception:
        traceback.print_exc()
        click.echo("This is a bug in corom; please report it with the lines above.", err=True)
        raise click.exceptions.Exit(70) from None


@contextmanager
def _quiet_pipe() -> Iterator[None]:
    """End the process with 141 if the reader of its output has gone: it has what it wanted."""
    try:
        yield
    except (BrokenPipeError, SystemExit) as end:
        # rich makes a SystemExit(1) of a broken pipe; 1 means something else here, as in click.
        if not isinstance(end, BrokenPipeError) and not isinstance(
            end.__context__, BrokenPipeError
        ):
            raise
        # Flushing the rest at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _terminate(number: int, _frame: FrameType | None) -> None:
    # As an exception, so that temporary files are removed on the way out.
    raise SystemExit(128 + number)


def _describe(error: OSError) -> str:
    path = f"'{error.filename}': " if error.filename else ""
    return f"{path}{error.strerror or error}."
