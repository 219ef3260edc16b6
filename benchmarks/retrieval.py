"""Rankings of a collection by every variant of a bundle, by torch, and by BM25, measured alike."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from corom.runtime import Encoder
from corom.runtime.corpus import Corpus
from corom.runtime.errors import InputError
from corom.runtime.manifest import Manifest
from corom.runtime.options import check_options, with_document_prompt, with_prompt
from corom.runtime.qrels import Qrels, read_qrels, refuse_unknown
from corom.runtime.row import Columns
from corom.runtime.vector_index import top_k
from corom.runtime.vectors import Vectors, normalize

from .contestants import Contestant
from .ranking import DEPTH, Scores, means, paired_interval, query_measures


class Collection(NamedTuple):
    """Passages and queries by id, and which answer which."""

    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels

    @property
    def unjudged(self) -> int:
        """Number of queries without a relevant passage; they take no part."""
        return sum(not self.qrels.get(query) for query in self.queries)


class Row(NamedTuple):
    """One way to rank: its name, and for each measure the value of every query."""

    name: str
    found: dict[str, dict[str, float]]


def read_collection(corpus: Path, queries: Path, qrels: Path, columns: Columns) -> Collection:
    """Read a collection, such as one in Multi-CPR's format.

    Raises ``InputError`` for ids that are there twice, and judgements of ids that are not there.
    """
    collection = Collection(_texts(corpus, columns), _texts(queries, columns), read_qrels(qrels))
    refuse_unknown(collection.qrels, collection.queries, "queries", f"'{queries}'")
    named = (passage for passages in collection.qrels.values() for passage in passages)
    refuse_unknown(named, collection.corpus, "passages", f"'{corpus}'")
    if not any(collection.qrels.values()):
        raise InputError(f"'{qrels}' has no relevant passage.")
    return collection


def rung_row(
    bundle: Path, rung: Contestant, collection: Collection, options: dict[str, Any]
) -> tuple[Row, int]:
    """Return the measures of one rung, and how many of the texts were cut."""
    with Encoder(bundle, device="cpu", **rung.job, **options) as encoder:
        queries = encoder.encode_query(collection.queries.values())
        passages = encoder.encode_document(collection.corpus.values())
        row = Row(rung.name, _measured(queries, passages, encoder.manifest, collection))
        return row, encoder.truncated_texts


def reference_row(
    manifest: Manifest,
    vectors_of: Callable[[list[str]], Vectors],
    collection: Collection,
) -> Row:
    """Return the measures of the torch reference; prompts as `Encoder` puts them."""
    prompts = manifest.prompts
    query = with_prompt("query", prompts, {}).get("prompt_name")
    passage = with_document_prompt(prompts, {}).get("prompt_name")
    before_query = check_options(manifest, prompt_name=query).prefix
    before_passage = check_options(manifest, prompt_name=passage).prefix
    queries = vectors_of([before_query + text for text in collection.queries.values()])
    passages = vectors_of([before_passage + text for text in collection.corpus.values()])
    if manifest.normalize:
        queries, passages = normalize(queries), normalize(passages)
    return Row("torch", _measured(queries, passages, manifest, collection))


def bm25_row(collection: Collection) -> Row:
    """Return the measures of BM25."""
    from .lexical import bm25_scores

    scores = bm25_scores(collection.corpus, collection.queries)
    return Row("BM25", query_measures(scores, collection.qrels))


def compared(rows: Iterable[Row], reference: Row | None) -> list[dict[str, Any]]:
    """Return the means of each row, and its differences from the reference, ready for JSON."""
    report = []
    for row in rows:
        described: dict[str, Any] = {"name": row.name, "means": means(row.found)}
        if reference is not None and row is not reference:
            described["differences"] = {
                measure: paired_interval(
                    list(values.values()), [reference.found[measure][query] for query in values]
                )._asdict()
                for measure, values in row.found.items()
            }
        report.append(described)
    return report


def _measured(
    queries: Vectors, passages: Vectors, manifest: Manifest, collection: Collection
) -> dict[str, dict[str, float]]:
    if manifest.similarity == "cosine":
        queries, passages = normalize(queries), normalize(passages)
    values, places = top_k(queries, passages, DEPTH)
    keys = list(collection.corpus)
    scores: Scores = {
        query: {keys[place]: float(value) for place, value in zip(*pair, strict=True)}
        for query, pair in zip(
            collection.queries, zip(places.tolist(), values.tolist(), strict=True), strict=True
        )
    }
    return query_measures(scores, collection.qrels)


def _texts(file: Path, columns: Columns) -> dict[str, str]:
    texts: dict[str, str] = {}
    for passage in Corpus([str(file)], columns).passages():
        if passage.text is None:
            raise InputError(f"{passage.place}: {passage.reason}.")
        texts[str(passage.key)] = passage.text
    return texts
