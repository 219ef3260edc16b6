"""`corom embed -o FOLDER`: a corpus to a folder of shards, computed here or by Ray's workers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import click

from .as_begun import as_begun
from .cli_options import say_cut
from .corpus import Corpus
from .embedder import Embedder, LocalEmbedder
from .embedding_job import SHARD_ROWS, embed_corpus, job_of
from .encoder import Encoder
from .errors import InputError
from .job_source import refuse_bad_rows
from .late_encoder import LateEncoder
from .manifest import load_manifest
from .options import EncodeOptions, with_document_prompt
from .progress import progress_bar
from .rows import KINDS
from .shards import ShardFolder
from .writers import SUFFIXES


class FolderOptions(NamedTuple):
    """What is chosen for a folder of shards, and means nothing elsewhere; None: not chosen."""

    dtype: str | None
    shard_rows: int | None
    bad_rows: Path | None
    engine: Literal["local", "ray"] | None
    num_workers: int | None

    def refuse_elsewhere(self) -> None:
        """Raise if one is given although no folder is written."""
        given = [f"--{name.replace('_', '-')}" for name, value in self._asdict().items() if value]
        if given:
            raise click.UsageError(f"{', '.join(given)} is for a folder: -o FOLDER.")


def to_folder(
    bundle: Path,
    encoder_options: dict[str, Any],
    corpus: Corpus,
    output: Path | str,
    chosen: FolderOptions,
    options: EncodeOptions,
) -> None:
    """Write the vectors of a corpus to a folder, or go on where an earlier run stopped.

    ``output``: a string is a URL.
    """
    if chosen.num_workers and chosen.engine != "ray":
        raise click.UsageError("--num-workers is for --engine ray.")
    _refuse_other_files(output)
    if isinstance(output, Path):
        corpus.refuse_as_output(output)
    if chosen.bad_rows is not None:
        _refuse_bad_rows_there(chosen.bad_rows, output, corpus)
    folder = ShardFolder(output)
    manifest = load_manifest(bundle)
    # The rows of a corpus are what encode_document is for.
    options = with_document_prompt(manifest.prompts, options)
    budget = None
    if (begun := folder.job()) is not None:
        local = chosen.engine != "ray"
        encoder_options, budget = as_begun(bundle, encoder_options, begun, local=local)
    with _opened(bundle, encoder_options, budget, chosen, options) as embedder:
        described = embedder.described
        click.echo(f"{manifest.name}: {embedder.choice}", err=True)
        normalize = options["normalize_embeddings"]
        job = job_of(
            described,
            bundle,
            corpus,
            dtype=chosen.dtype or "float32",
            normalize=manifest.normalize if normalize is None else normalize,
            prompt_name=options["prompt_name"],
            truncate=options["truncate"],
            shard_rows=chosen.shard_rows or SHARD_ROWS,
        )
        rows = None
        if corpus.can_be_read_twice:
            with bar("reading", None) as advance:
                survey = corpus.survey(advance)
            if survey.first_bad is not None and chosen.bad_rows is None:
                raise refuse_bad_rows(survey.first_bad, survey.bad_rows, survey.rows)
            rows = survey.rows
        with bar("rows", rows) as advance:
            done = embed_corpus(
                embedder,
                corpus,
                folder,
                job,
                bad_rows=chosen.bad_rows,
                say=_say,
                advance=advance,
            )
    left_out = f", {done.bad_rows:,} rows left out" * bool(done.bad_rows)
    if done.bad_rows and chosen.bad_rows is not None and chosen.bad_rows.exists():
        left_out += f" → {chosen.bad_rows}"
    _say(
        f"{done.rows:,} vectors of {described.dimension} in {len(done.shards)} shards → {output}"
        f"{left_out}"
    )
    say_cut(done.truncated_texts, described.max_length)


@contextmanager
def _opened(
    bundle: Path,
    encoder_options: dict[str, Any],
    budget: int | None,
    chosen: FolderOptions,
    options: EncodeOptions,
) -> Iterator[Embedder]:
    """Yield what computes; ``budget``: tokens of a batch, None: as the encoder chooses."""
    if chosen.engine == "ray":
        from .embedder_ray import ray_embedder

        late = LateEncoder.of(bundle, **encoder_options)
        with ray_embedder(late, options, chosen.num_workers, budget, _say) as workers:
            yield workers
    else:
        with Encoder(bundle, **encoder_options) as encoder:
            encoder.batch_tokens = budget or encoder.batch_tokens
            yield LocalEmbedder(encoder, options)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _refuse_other_files(output: Path | str) -> None:
    if isinstance(output, str):
        if PurePath(output).suffix in {*KINDS, ".gz"}:
            raise InputError(f"output '{output}' must be a folder.")
        return
    known = f"a folder, or must end in one of: {', '.join(SUFFIXES)}"
    if output.is_file() or (output.suffix and not output.is_dir()):
        raise InputError(f"output '{output}' must be {known}.")
    if not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder '{output.parent}' to make '{output.name}' in.")


def _refuse_bad_rows_there(path: Path, output: Path | str, corpus: Corpus) -> None:
    """Raise ``InputError`` for a file of bad rows that would be in the way, before the work."""
    corpus.refuse_as_output(path)
    if not path.absolute().parent.is_dir():
        raise InputError(f"there is no folder '{path.parent}' to write '{path.name}' into.")
    if isinstance(output, Path) and path.resolve().is_relative_to(output.resolve()):
        raise InputError(f"--bad-rows '{path}' lies in the output folder. Write it elsewhere.")


def bar(label: str, total: int | None, *, show: bool = True) -> Any:  # noqa: ANN401
    """Return a progress bar, shown where stderr is a terminal."""
    shown = show and sys.stderr is not None and sys.stderr.isatty()
    return progress_bar(label, total, show=shown)
