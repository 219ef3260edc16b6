"""`corom bench retrieval`: does every variant of a bundle still find what torch finds?"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import msgspec

from corom.runtime.cli_options import (
    bundle_argument,
    id_column_option,
    json_option,
    text_column_option,
)
from corom.runtime.errors import InputError, ParityError, UnavailableError, missing_extra
from corom.runtime.manifest import Manifest, load_manifest
from corom.runtime.row import Columns
from corom.runtime.vectors import Vectors
from corom.runtime.whole_file import whole_file

from .contestants import rungs
from .figures import text_table
from .ranking import MEASURES
from .report import output_option, show
from .retrieval import (
    Collection,
    Row,
    bm25_row,
    compared,
    read_collection,
    reference_row,
    rung_row,
)
from .retrieval_chart import write_charts

MULTI_CPR_MEDICAL = 959_526
"""Passages of Multi-CPR's medical part; the figures of CoROM's model card are about it alone."""
CARD = (
    {"name": "model card: BM25", "RR@10": 0.1869, "R@1000": 0.4820},
    {"name": "model card: CoROM-base", "RR@10": 0.3391, "R@1000": 0.7330},
    {"name": "model card: CoROM-tiny", "RR@10": 0.2278, "R@1000": 0.6454},
)

_file = click.Path(path_type=Path, dir_okay=False)


@click.command()
@bundle_argument
@click.option("--corpus", type=_file, required=True, help="Passages: id and text.")
@click.option("--queries", type=_file, required=True, help="Queries: id and text.")
@click.option("--qrels", type=_file, required=True, help="Lines of: query 0 passage relevance.")
@click.option("--reference", metavar="SOURCE", help="What the bundle was made of, run by torch.")
@click.option("--bm25/--no-bm25", default=True, show_default=True, help="A row of BM25 as well.")
@click.option("--max-length", type=click.IntRange(1), help="Tokens a text is cut to.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@id_column_option
@text_column_option
@click.option("--per-query", type=_file, metavar="FILE.jsonl", help="Every query's measures.")
@output_option
@json_option
def retrieval(
    bundle: Path,
    corpus: Path,
    queries: Path,
    qrels: Path,
    reference: str | None,
    bm25: bool,
    max_length: int | None,
    threads: int | None,
    id_column: str,
    text_column: str,
    per_query: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure retrieval with every variant of BUNDLE that can run here.

    One row for each, one for BM25, and with --reference one for torch, from which every row's
    difference is shown with its 95 % interval over the queries (paired bootstrap). Files as those
    of Multi-CPR: .tsv without a header; others as `corom embed` reads.
    """
    for path in (output, per_query):  # before the work, not after it
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"there is no folder '{path.parent}' to write '{path.name}' into.")
    if output is not None and output.suffix != ".json":
        raise InputError(f"output '{output}' must end in .json; its chart is written beside it.")
    if output is not None and find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "bench", "The chart")
    if find_spec("ir_measures") is None or (bm25 and find_spec("bm25s") is None):
        raise missing_extra("ir-measures, bm25s", "bench", "Measuring retrieval")
    manifest = load_manifest(bundle)
    collection = read_collection(corpus, queries, qrels, Columns(text_column, id_column))
    options = {"max_length": max_length, "threads": threads}
    rows, cut, left_out = _of_rungs(bundle, collection, options)
    expected = None
    if reference is not None:
        click.echo("torch", err=True)
        length = max_length or manifest.max_length
        expected = reference_row(manifest, _by_torch(reference, manifest, length), collection)
        rows.insert(0, expected)
    if bm25:
        rows.append(bm25_row(collection))
    report = {
        "benchmark": "retrieval",
        "bundle": manifest.name,
        "pooling": manifest.pooling,
        "similarity": manifest.similarity,
        "max_length": max_length or manifest.max_length,
        "collection": f"{corpus.name}, {queries.name}",
        "passages": len(collection.corpus),
        "queries": len(collection.queries),
        "queries_without_answer": collection.unjudged,
        "texts_cut": cut,
        "left_out": left_out,
        "rows": compared(rows, expected),
        "model_card": CARD if len(collection.corpus) == MULTI_CPR_MEDICAL else [],
    }
    if per_query is not None:
        _write_per_query(per_query, rows)
    report = show(report, _table(report), output, as_json=as_json)
    if output is not None:
        written = write_charts(report, output)
        click.echo(f"written: {', '.join(map(str, written))}", err=True)
    if left_out:
        raise ParityError(f"left out, for the reasons above: {', '.join(left_out)}.")


def _of_rungs(
    bundle: Path, collection: Collection, options: dict[str, Any]
) -> tuple[list[Row], int, list[str]]:
    """Return the rows of the rungs that run here, how many texts were cut, and what was left out.

    Raises ``UnavailableError`` if nothing runs.
    """
    rows: list[Row] = []
    cut, left_out = 0, []
    for rung in rungs(bundle):
        click.echo(rung.name, err=True)
        try:
            row, cut = rung_row(bundle, rung, collection, options)
            rows.append(row)
        except (ParityError, UnavailableError) as error:
            click.echo(f"left out: {rung.name}: {error}", err=True)
            left_out.append(rung.name)
    if not rows:
        raise UnavailableError("nothing executes this bundle here. See why: corom inspect")
    return rows, cut, left_out


def _by_torch(source: str, manifest: Manifest, max_length: int) -> Any:  # noqa: ANN401
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise missing_extra(package, "export", "The reference")
    from .peer_source import peer_checkpoint, reference_vectors, require_weights

    checkpoint = peer_checkpoint(source, manifest.pooling)
    require_weights(manifest, checkpoint)

    def vectors_of(texts: list[str]) -> Vectors:
        return reference_vectors(checkpoint, texts, max_length)

    return vectors_of


def _write_per_query(path: Path, rows: list[Row]) -> None:
    with whole_file(path) as file:
        for query in rows[0].found[MEASURES[0]]:
            measures = {
                row.name: {name: values[query] for name, values in row.found.items()}
                for row in rows
            }
            file.write(msgspec.json.encode({"query": query, **measures}) + b"\n")


def _table(report: dict[str, Any]) -> str:
    header = ["", "MRR@10", *MEASURES[1:], "MRR@10, from torch (95 %)", "R@1000, from torch"]
    rows: list[list[object]] = []
    for row in report["rows"]:
        cells: list[object] = [row["name"], *(f"{row['means'][name]:.4f}" for name in MEASURES)]
        for name in ("RR@10", "R@1000"):
            d = row.get("differences", {}).get(name)
            words = d and f"{d['difference']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"
            cells.append(words or "")
        rows.append(cells)
    for card in report["model_card"]:
        known = (f"{card[name]:.4f}" if name in card else "" for name in MEASURES)
        rows.append([card["name"], *known, "", ""])
    words = (
        f"{report['bundle']}: {report['queries']} queries, {report['passages']} passages, at most "
        f"{report['max_length']} tokens; {report['queries_without_answer']} queries have no "
        f"answer and take no part; {report['texts_cut']} texts were cut."
    )
    return f"{words}\n\n{text_table(header, rows)}"
