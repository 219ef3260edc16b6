"""`corom embed`: rows of text in, vectors out, in bounded memory."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import Any, Literal

import click

from .cli_embed_folder import FolderOptions, bar, to_folder
from .cli_options import bundle_argument, encoder_options, say_cut
from .corpus import Corpus
from .embedding_job import SHARD_ROWS
from .encoder import Encoder
from .errors import InputError
from .options import EncodeOptions
from .row import Columns
from .rows import KINDS, STDIN
from .stores import place_of
from .windows import windows
from .writers import SUFFIXES, open_writer


@click.command()
@bundle_argument
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-i",
    "--input",
    "sources",
    multiple=True,
    metavar="FILE|-",
    help=f"Read rows of text ({', '.join(KINDS)}, .gz of each; a glob pattern; a URL; - for "
    "standard input), may be repeated.",
)
@click.option(
    "-o",
    "--output",
    metavar=f"FILE({'|'.join(SUFFIXES)})|FOLDER",
    help="Write there, in place of a file that exists; a folder, or a URL for one, gets Parquet "
    "shards and can be resumed. Default: JSON lines on stdout.",
)
@click.option(
    "--text-column",
    metavar="NAME|NUMBER",
    help="Column with the text; a number, from 1, where there is no header line. Default: text.",
)
@click.option(
    "--id-column",
    metavar="NAME|NUMBER",
    help="Column with the id. Default: none; in a folder ids are the numbers of the rows, from 0.",
)
@click.option(
    "--input-format",
    type=click.Choice([kind.removeprefix(".") for kind in KINDS]),
    help="What the input is, whatever its name. Default: by its suffix; standard input: txt.",
)
@click.option(
    "--bad-rows",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write rows that cannot be used there, with place and reason, and go on without them.",
)
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Of shards: float32.")
@click.option("--shard-rows", type=click.IntRange(1), help=f"Rows of a shard: {SHARD_ROWS:,}.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    help="Who computes a folder: this process, or the workers of Ray on a cluster or, where there "
    "is none, on this machine. Default: local.",
)
@click.option(
    "--num-workers",
    type=click.IntRange(1),
    help="Workers of Ray: one on each machine, or on each GPU where there are any.",
)
@encoder_options
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(1),
    default=16384,
    show_default=True,
    help="Most tokens of one execution, padding included.",
)
@click.option(
    "--normalize/--no-normalize",
    "normalize_embeddings",
    default=None,
    help="Scale vectors to length 1; default: as the manifest says.",
)
@click.option("--truncate-dim", type=click.IntRange(1), help="Keep only the first values.")
@click.option(
    "--prompt-name",
    help="Put this prompt of the manifest before each text; default: none, for a folder that of "
    "passages.",
)
@click.option(
    "--truncate/--error-on-truncate",
    default=True,
    show_default=True,
    help="Cut texts that are too long, or refuse them.",
)
def embed(
    bundle: Path,
    texts: tuple[str, ...],
    sources: tuple[str, ...],
    output: str | None,
    text_column: str | None,
    id_column: str | None,
    input_format: str | None,
    bad_rows: Path | None,
    dtype: str | None,
    shard_rows: int | None,
    engine: Literal["local", "ray"] | None,
    num_workers: int | None,
    normalize_embeddings: bool | None,
    truncate_dim: int | None,
    prompt_name: str | None,
    truncate: bool,
    **encoder_options: Any,  # noqa: ANN401
) -> None:
    """Turn texts into vectors: the TEXTs given, or the rows of files or of standard input.

    Row k of the input is row k of the output; an empty line is a text too. Rows stream: input
    larger than memory works.

    With -o FOLDER the output is Parquet shards of id and embedding. Interrupted, even killed, the
    same command goes on where it stopped, and the folder is the same as without interruption.
    """
    if texts and sources:
        raise click.UsageError("Give TEXT arguments or --input, not both.")
    if not texts and not sources and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Nothing to embed: give TEXT arguments, or --input FILE, or a pipe.")
    options: EncodeOptions = {
        "normalize_embeddings": normalize_embeddings,
        "truncate_dim": truncate_dim,
        "prompt_name": prompt_name,
        "truncate": True if truncate else "error",
    }
    place = None if output is None else place_of(output)
    chosen = FolderOptions(dtype, shard_rows, bad_rows, engine, num_workers)
    kind = input_format and f".{input_format}"
    corpus = Corpus(sources or (STDIN,), Columns(text_column, id_column), kind)
    if texts and corpus.columns != Columns():
        raise click.UsageError("--text-column and --id-column are for --input.")
    if place is not None and PurePath(place).suffix not in SUFFIXES and not texts:
        to_folder(bundle, encoder_options, corpus, place, chosen, options)
        return
    if isinstance(place, str):
        raise InputError(
            f"output '{place}' is a URL: only an --input can be written there, to a folder."
        )
    with Encoder(bundle, **encoder_options) as encoder:
        click.echo(f"{encoder.manifest.name}: {encoder.choice}", err=True)
        chosen.refuse_elsewhere()
        _to_file(encoder, texts, corpus, place, options)
        say_cut(encoder.truncated_texts, encoder.max_length)


def _to_file(
    encoder: Encoder,
    texts: Sequence[str],
    corpus: Corpus,
    output: Path | None,
    options: EncodeOptions,
) -> None:
    with_ids = corpus.columns.id is not None
    if with_ids and output is not None and output.suffix != ".jsonl":
        raise click.UsageError(f"'{output}' holds no ids: leave out --id-column, or -o FOLDER.")
    if output is not None and not texts:
        corpus.refuse_as_output(output)
    ids: list[str] = []
    source = texts or _usable(corpus, ids)
    with ExitStack() as stack:
        dimension = encoder.encode([], **options).shape[1]
        writer = stack.enter_context(open_writer(output, dimension))
        advance = stack.enter_context(bar("texts", len(texts) or None, show=output is not None))
        for window in windows(source):
            try:
                vectors = encoder.encode(window, **options)
            except InputError as error:
                raise InputError(f"{error} (Text 0 is row {writer.rows + 1}.)") from None
            keys, ids[:] = ids[: len(window)], ids[len(window) :]
            writer.write(window, vectors, keys if with_ids else None)
            advance(len(window))
    if output is not None:
        click.echo(f"{writer.rows} vectors of {dimension} → {output}", err=True)


def _usable(corpus: Corpus, ids: list[str]) -> Iterator[str]:
    """Yield the texts of a corpus and note their ids; a row that cannot be used is an error."""
    for passage in corpus.passages():
        if passage.text is None:
            raise InputError(f"{passage.place}: {passage.reason}.")
        ids.append(str(passage.key))
        yield passage.text
