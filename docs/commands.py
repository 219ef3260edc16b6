"""Writes `commands.md` beside this file: every command and option, read from the command line.

Run `make docs` after a change of an option. Knows click and the tree of commands, nothing else.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from corom.runtime.cli import cli

HERE = Path(__file__).parent
START = """\
# Commands

Every command and option of `corom`, written by `make docs` from the command line itself: change
the options there, not here. `corom COMMAND --help` shows the same. All end with one of these
[exit codes](errors.md#exit-codes).
"""


def main() -> None:
    """Write the file."""
    (HERE / "commands.md").write_text(reference(), "utf-8")


def reference() -> str:
    """Return the whole document."""
    contexts = list(commands(click.Context(cli, info_name="corom")))
    names = [context.command_path for context in contexts]
    listed = [f"- [`{name}`](#{name.replace(' ', '-')})" for name in names]
    sections = ["\n".join(section(context)) for context in contexts]
    return "\n".join([START, *listed, "", *sections])


def commands(context: click.Context) -> Iterator[click.Context]:
    """Yield the context of every command below a group, groups themselves left out."""
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        below = click.Context(command, info_name=name, parent=context, **command.context_settings)
        if isinstance(command, click.Group):
            yield from commands(below)
        else:
            yield below


def section(context: click.Context) -> Iterator[str]:
    """Yield the lines of one command: how it is called, what it does, its options."""
    command = context.command
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"## {context.command_path}\n"
    yield f"```text\n{context.command_path} {pieces}\n```\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield f"{escape(' '.join(paragraph.split()))}\n"
    options = [option for option in command.params if isinstance(option, click.Option)]
    with_variables = any(variable(option, context) for option in options)
    columns = ["option", *(["variable"] if with_variables else []), "default", "meaning"]
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for option in options:
        named = [code(variable(option, context))] if with_variables else []
        cells = [spelling(option, context), *named, default(option, context), meaning(option)]
        yield f"| {' | '.join(cells)} |"
    yield ""


def spelling(option: click.Option, context: click.Context) -> str:
    """Return how an option is written, with what it takes."""
    flags = ", ".join(option.opts)
    if option.secondary_opts:
        flags += " / " + ", ".join(option.secondary_opts)
    taken = "" if option.is_flag or option.count else f" {option.make_metavar(ctx=context)}"
    return code(flags + taken.replace(" RANGE", ""))


def variable(option: click.Option, context: click.Context) -> str:
    """Return the environment variable that sets an option, or "" if none does."""
    if isinstance(option.envvar, str):
        return option.envvar
    if option.envvar:
        return ", ".join(option.envvar)
    if context.auto_envvar_prefix and option.allow_from_autoenv and option.name:
        return f"{context.auto_envvar_prefix}_{option.name.upper()}"
    return ""


def default(option: click.Option, context: click.Context) -> str:
    """Return default and range of an option; no default where the meaning says it."""
    if option.required:
        return "required"
    told = "efault:" in (option.help or "")
    chosen_by_flag = option.is_flag and not option.is_bool_flag
    option.show_default = option.show_default or not (told or chosen_by_flag)
    extra = option.get_help_extra(context)
    span = extra.get("range", "").replace("x>=", "≥ ").replace("<=x<=", " to ")
    return ", ".join(part for part in (code(extra.get("default", "")), escape(span)) if part)


def meaning(option: click.Option) -> str:
    """Return the help of an option on one line."""
    return escape(" ".join((option.help or "").split()))


def code(text: str) -> str:
    """Return the text as code that a cell of a table can hold."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def escape(text: str) -> str:
    """Return prose as Markdown that shows it as it is; what is in backquotes stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([|*_<>\[\]])", r"\\\1", part) for part in parts[::2]]
    parts[::2] = plain
    return "".join(parts)


if __name__ == "__main__":
    main()
