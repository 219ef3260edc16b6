"""`corom embed`: rows of text in, vectors out, in bounded memory."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click

from .cli_options import bundle_argument, encoder_options, say_cut
from .corpus import Corpus
from .embedding_job import SHARD_ROWS, embed_corpus, job_of, refuse_bad_rows
from .encoder import Encoder
from .errors import InputError
from .options import EncodeOptions
from .progress import progress_bar
from .rows import KINDS, STDIN, Columns
from .shards import ShardFolder
from .windows import windows
from .writers import SUFFIXES, open_writer


class FolderOptions(NamedTuple):
    """What is chosen for a folder of shards, and means nothing elsewhere; None: not chosen."""

    dtype: str | None
    shard_rows: int | None
    bad_rows: Path | None

    def refuse_elsewhere(self) -> None:
        """Raise if one is given although no folder is written."""
        given = [f"--{name.replace('_', '-')}" for name, value in self._asdict().items() if value]
        if given:
            raise click.UsageError(f"{', '.join(given)} is for a folder: -o FOLDER.")


@click.command()
@bundle_argument
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-i",
    "--input",
    "sources",
    multiple=True,
    metavar="FILE|-",
    help=f"Read rows of text ({', '.join(KINDS)}, .gz of each; a glob pattern; - for standard "
    "input), may be repeated.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar=f"FILE({'|'.join(SUFFIXES)})|FOLDER",
    help="Write there; a folder gets Parquet shards and can be resumed. Default: JSON lines on "
    "stdout.",
)
@click.option(
    "--text-column",
    metavar="NAME|NUMBER",
    help="Column with the text; a number, from 1, where there is no header line. Default: text.",
)
@click.option("--id-column", metavar="NAME|NUMBER", help="Column with the id. Default: none.")
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
    sources: tuple[str, ...],
    output: Path | None,
    text_column: str | None,
    id_column: str | None,
    input_format: str | None,
    bad_rows: Path | None,
    dtype: str | None,
    shard_rows: int | None,
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
    chosen = FolderOptions(dtype, shard_rows, bad_rows)
    kind = input_format and f".{input_format}"
    corpus = Corpus(sources or (STDIN,), Columns(text_column, id_column), kind)
    if texts and corpus.columns != Columns():
        raise click.UsageError("--text-column and --id-column are for --input.")
    is_folder = output is not None and output.suffix not in SUFFIXES and not texts
    with ExitStack() as stack:
        encoder = stack.enter_context(Encoder(bundle, **encoder_options))
        click.echo(f"{encoder.manifest.name}: {encoder.choice}", err=True)
        if is_folder:
            assert output is not None
            _to_folder(encoder, bundle, corpus, output, chosen, options)
        else:
            chosen.refuse_elsewhere()
            _to_file(encoder, texts, corpus, output, options)
    say_cut(encoder)


def _to_folder(
    encoder: Encoder,
    bundle: Path,
    corpus: Corpus,
    output: Path,
    chosen: FolderOptions,
    options: EncodeOptions,
) -> None:
    _refuse_other_files(output)
    folder = ShardFolder(output)
    dimension = encoder.encode([], **options).shape[1]  # refuses options that cannot be, first
    normalize = options["normalize_embeddings"]
    job = job_of(
        encoder,
        bundle,
        corpus,
        dimension=dimension,
        dtype=chosen.dtype or "float32",
        normalize=encoder.manifest.normalize if normalize is None else normalize,
        prompt_name=options["prompt_name"],
        truncate=options["truncate"],
        shard_rows=chosen.shard_rows or SHARD_ROWS,
    )
    rows = None
    if corpus.can_be_read_twice:
        with _bar("reading", None) as advance:
            survey = corpus.survey(advance)
        if survey.first_bad is not None and chosen.bad_rows is None:
            raise refuse_bad_rows(survey.first_bad, survey.bad_rows, survey.rows)
        rows = survey.rows
    with _bar("rows", rows) as advance:
        manifest = embed_corpus(
            encoder,
            corpus,
            folder,
            job,
            bad_rows=chosen.bad_rows,
            say=lambda line: click.echo(line, err=True),
            advance=advance,
        )
    left_out = f", {manifest.bad_rows:,} rows left out → {chosen.bad_rows}" * bool(
        manifest.bad_rows
    )
    click.echo(
        f"{manifest.rows:,} vectors of {dimension} in {len(manifest.shards)} shards → {output}"
        f"{left_out}",
        err=True,
    )


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
    ids: list[str] = []
    source = texts or _usable(corpus, ids)
    with ExitStack() as stack:
        dimension = encoder.encode([], **options).shape[1]
        writer = stack.enter_context(open_writer(output, dimension))
        advance = stack.enter_context(_bar("texts", len(texts) or None, show=output is not None))
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


def _refuse_other_files(output: Path) -> None:
    known = f"a folder, or must end in one of: {', '.join(SUFFIXES)}"
    if output.is_file() or (output.suffix and not output.is_dir()):
        raise InputError(f"output '{output}' must be {known}.")
    if not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder '{output.parent}' to make '{output.name}' in.")


def _bar(label: str, total: int | None, *, show: bool = True) -> Any:  # noqa: ANN401
    shown = show and sys.stderr is not None and sys.stderr.isatty()
    return progress_bar(label, total, show=shown)
