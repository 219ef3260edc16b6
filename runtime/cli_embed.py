"""`corom embed`: lines of text in, vectors out, in bounded memory."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import click

from .cli_options import bundle_argument, encoder_options, say_cut
from .encoder import Encoder
from .errors import InputError
from .options import EncodeOptions
from .progress import progress_bar
from .windows import windows
from .writers import SUFFIXES, open_writer


@click.command()
@bundle_argument
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-i", "--input", "source", metavar="FILE|-", help="Read one text a line.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar=f"FILE({'|'.join(SUFFIXES)})",
    help="Write there; default: JSON lines on stdout.",
)
@encoder_options
@click.option("--max-batch-tokens", type=click.IntRange(1), default=16384, show_default=True)
@click.option(
    "--normalize/--no-normalize",
    "normalize_embeddings",
    default=None,
    help="Scale vectors to length 1; default: as the manifest says.",
)
@click.option("--truncate-dim", type=click.IntRange(1), help="Keep only the first values.")
@click.option("--prompt-name", help="Put this prompt of the manifest before each text.")
@click.option(
    "--truncate/--error-on-truncate",
    default=True,
    show_default=True,
    help="Cut texts that are too long, or refuse them.",
)
def embed(
    bundle: Path,
    texts: tuple[str, ...],
    source: str | None,
    output: Path | None,
    normalize_embeddings: bool | None,
    truncate_dim: int | None,
    prompt_name: str | None,
    truncate: bool,
    **encoder_options: Any,  # noqa: ANN401
) -> None:
    """Turn texts into vectors: the TEXTs given, or the lines of FILE or of standard input.

    Line k of the input is row k of the output; an empty line is a text too. Lines stream: a file
    larger than memory works.
    """
    if texts and source is not None:
        raise click.UsageError("Give TEXT arguments or --input, not both.")
    if not texts and source is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Nothing to embed: give TEXT arguments, or --input FILE, or a pipe.")
    with ExitStack() as stack:
        encoder = stack.enter_context(Encoder(bundle, **encoder_options))
        click.echo(f"{encoder.manifest.name}: {encoder.choice}", err=True)
        lines = texts or read_lines(stack.enter_context(open_lines(source)), source or "-")
        options: EncodeOptions = {
            "normalize_embeddings": normalize_embeddings,
            "truncate_dim": truncate_dim,
            "prompt_name": prompt_name,
            "truncate": True if truncate else "error",
        }
        dimension = encoder.encode([], **options).shape[1]
        writer = stack.enter_context(open_writer(output, dimension))
        show = output is not None and sys.stderr is not None and sys.stderr.isatty()
        advance = stack.enter_context(progress_bar("texts", len(texts) or None, show=show))
        for window in windows(lines):
            try:
                vectors = encoder.encode(window, **options)
            except InputError as error:
                raise InputError(f"{error} (Text 0 is line {writer.rows + 1}.)") from None
            writer.write(window, vectors)
            advance(len(window))
    if output is not None:
        click.echo(f"{writer.rows} vectors of {dimension} → {output}", err=True)
    say_cut(encoder)


def open_lines(source: str | None) -> AbstractContextManager[BinaryIO]:
    """Open the file ``source``, or standard input for None and "-"."""
    if source is None or source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed.")
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise InputError(f"'{source}' cannot be read: {error.strerror}.") from None


def read_lines(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without their ends (\\n or \\r\\n) and without a BOM.

    Raises ``InputError`` naming the line that is not UTF-8.
    """
    for number, line in enumerate(file, 1):
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number} of '{name}' is not UTF-8 (byte {error.start} of the line). "
                "Convert the file first, for example: iconv -f GB18030 -t UTF-8"
            ) from None
        yield text.removeprefix("\ufeff") if number == 1 else text
