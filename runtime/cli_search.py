"""`corom search`: the passages of a folder of vectors that are nearest to each query."""

from pathlib import Path
from typing import Any

import click
import msgspec

from .cli_options import encoder_options, json_option, say_cut
from .encoder import Encoder
from .errors import InputError
from .manifest import MANIFEST_NAME, manifest_sha256
from .shard_manifest import Job
from .vector_index import VectorIndex
from .vector_index import search as find


@click.command()
@click.argument("index")
@click.argument("queries", nargs=-1, required=True, metavar="QUERY...")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Hits a query.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="The bundle that INDEX was made with; default: where it lay then.",
)
@click.option(
    "--index",
    "method",
    default="exact",
    show_default=True,
    metavar="exact|faiss|faiss:FACTORY",
    help="How to search; faiss needs the extra corom[faiss], FACTORY is faiss's own name.",
)
@encoder_options
@json_option
def search(
    index: str,
    queries: tuple[str, ...],
    k: int,
    bundle: Path | None,
    method: str,
    as_json: bool,
    **encoder_options: Any,  # noqa: ANN401
) -> None:
    """Find the passages of INDEX, a folder that `corom embed` made, nearest to each QUERY."""
    opened = VectorIndex(index)
    job = opened.job
    with Encoder(bundle_of(job, bundle), **as_embedded(job, encoder_options)) as encoder:
        click.echo(f"{job.bundle}: {encoder.choice}", err=True)
        vectors = encoder.encode_query(
            list(queries), normalize_embeddings=job.normalize, truncate_dim=job.dimension
        )
        found = find(opened, vectors, k, method=method)
        say_cut(encoder.truncated_texts, encoder.max_length)
    if as_json:
        pairs = zip(queries, found, strict=True)
        records = [{"query": q, "hits": [hit._asdict() for hit in hits]} for q, hits in pairs]
        click.echo(msgspec.json.encode(records).decode())
        return
    for query, hits in zip(queries, found, strict=True):
        click.echo(query)
        for rank, hit in enumerate(hits, 1):
            click.echo(f"{rank:>4}  {hit.score:>10.4f}  {hit.id}")


def as_embedded(job: Job, encoder_options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the encoder with those of the index where none was chosen."""
    chosen = dict(encoder_options)
    if chosen["max_length"] is None:
        chosen["max_length"] = job.max_length
    if chosen["precision"] == "auto":
        chosen["precision"] = job.precision
    return chosen


def bundle_of(job: Job, bundle: Path | None) -> Path:
    """Return the bundle that vectors were made with; another one's do not compare with them."""
    found = bundle or Path(job.bundle_path)
    if bundle is None and not found.is_dir():
        raise InputError(f"the bundle is no longer at '{found}'. Say where it is: --bundle BUNDLE.")
    if not (found / MANIFEST_NAME).is_file() or manifest_sha256(found) != job.bundle_sha256:
        raise InputError(
            f"'{found}' is not the bundle that these vectors were made with ({job.bundle}): its "
            f"{MANIFEST_NAME} differs. Give that one with --bundle, or embed the corpus again."
        )
    return found
