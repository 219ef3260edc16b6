"""`corom mine`: training data with hard negatives, as sentence-transformers and ModelScope read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from .cli_options import Number, encoder_options, id_column_option, text_column_option
from .cli_search import as_embedded, bundle_of
from .corpus import Corpus
from .encoder import Encoder
from .errors import InputError
from .mining import Mined, MiningOptions
from .mining import mine as find
from .qrels import read_qrels, refuse_unknown
from .row import Columns
from .rows import KINDS
from .vector_index import VectorIndex
from .whole_file import whole_file


@click.command()
@click.argument("index")
@click.option("--corpus", required=True, metavar="FILE", help="Ids and texts of the passages.")
@click.option("--queries", required=True, metavar="FILE", help="Ids and texts of the queries.")
@click.option(
    "--qrels",
    required=True,
    type=click.Path(path_type=Path),
    help="Judgements: query, 0, passage, relevance.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="JSON lines of query, positive_passages and negative_passages.",
)
@click.option(
    "--negatives", type=click.IntRange(1), default=8, show_default=True, help="For each query."
)
@click.option(
    "--ranks",
    nargs=2,
    type=click.IntRange(1),
    default=(1, 100),
    show_default=True,
    help="First and last rank, among passages not judged relevant, to choose from.",
)
@click.option(
    "--margin",
    type=Number(),
    help="A negative scores at most the best positive minus this; default: not looked at.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice.")
@id_column_option
@text_column_option
@click.option(
    "--input-format",
    type=click.Choice([kind.removeprefix(".") for kind in KINDS]),
    help="What corpus and queries are, whatever their names. Default: by their suffixes.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="The bundle that INDEX was made with; default: where it lay then.",
)
@encoder_options
def mine(
    index: str,
    corpus: str,
    queries: str,
    qrels: Path,
    output: Path,
    negatives: int,
    ranks: tuple[int, int],
    margin: float | None,
    seed: int,
    id_column: str,
    text_column: str,
    input_format: str | None,
    bundle: Path | None,
    **encoder_options: Any,  # noqa: ANN401
) -> None:
    """Find hard negatives in INDEX, a folder that `corom embed` made of the corpus.

    For each query with a relevant passage: its positives, and passages that score high without
    having been judged relevant.
    """
    columns, kind = Columns(text_column, id_column), input_format and f".{input_format}"
    asked, passages_of = Corpus([queries], columns, kind), Corpus([corpus], columns, kind)
    options = MiningOptions(negatives, ranks, margin, seed)
    options.check()
    if not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder '{output.parent}' to write '{output.name}' into.")
    for inputs in (asked, passages_of):
        inputs.refuse_as_output(output)
    if output.exists() and qrels.exists() and output.samefile(qrels):
        raise InputError(f"'{output}' would overwrite the judgements. Write elsewhere.")
    opened, judged = VectorIndex(index), read_qrels(qrels)
    job = opened.job
    if {file.sha256 for file in passages_of.files()} - {file.sha256 for file in job.inputs}:
        click.echo(
            f"'{corpus}' is not the file that the index was made from; ids decide.", err=True
        )
    texts = dict(_pairs(asked))
    with Encoder(bundle_of(job, bundle), **as_embedded(job, encoder_options)) as encoder:
        click.echo(f"{job.bundle}: {encoder.choice}", err=True)
        vectors = encoder.encode_query(
            texts.values(), normalize_embeddings=job.normalize, truncate_dim=job.dimension
        )
    found = find(opened, list(texts), vectors, judged, options)
    mined = [one for one in found if one.negatives]
    wanted = {key for one in mined for key in (*one.positives, *(n for n, _ in one.negatives))}
    # Rows that cannot be used are none of the index either.
    rows = ((str(row.key), row.text) for row in passages_of.passages() if row.text is not None)
    passages = {key: text for key, text in rows if key in wanted}
    refuse_unknown(wanted, passages, "passages", f"'{corpus}'")
    with whole_file(output) as file:
        for one in mined:
            file.write(msgspec.json.encode(_record(one, texts, passages)) + b"\n")
    short = sum(len(one.negatives) < negatives for one in mined)
    click.echo(
        f"{len(mined):,} queries with {sum(len(one.negatives) for one in mined):,} negatives → "
        f"{output}. {len(texts) - len(found):,} queries have no relevant passage and "
        f"{len(found) - len(mined):,} no negative: left out. {short:,} have fewer than {negatives} "
        "negatives.",
        err=True,
    )


def _pairs(corpus: Corpus) -> Iterable[tuple[str, str]]:
    for passage in corpus.passages():
        if passage.text is None:
            raise InputError(f"{passage.place}: {passage.reason}.")
        yield str(passage.key), passage.text


def _record(mined: Mined, queries: dict[str, str], passages: dict[str, str]) -> dict[str, Any]:
    """Return a line of the file: ModelScope's fields, whose texts sentence-transformers takes."""
    return {
        "query_id": mined.query,
        "query": queries[mined.query],
        "positive_passages": [{"docid": key, "text": passages[key]} for key in mined.positives],
        "negative_passages": [
            {"docid": key, "text": passages[key], "score": score} for key, score in mined.negatives
        ],
    }
