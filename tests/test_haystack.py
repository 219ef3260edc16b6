"""Haystack's components: alone, through dictionaries and YAML, and in real pipelines."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from corom.runtime import Encoder, InputTypeError
from corom.runtime.haystack import CoromDocumentEmbedder, CoromTextEmbedder

TEXTS = ["头痛怎么办", "发烧吃什么药", "今天天气不错"]


def documents() -> list[Document]:
    return [Document(content=text, meta={"部门": "神经科", "n": None}) for text in TEXTS]


def test_a_query_has_the_vector_of_a_query(tiny_mean_bundle: Path) -> None:
    embedder = CoromTextEmbedder(tiny_mean_bundle, threads=1)
    embedder.warm_up()
    with Encoder(tiny_mean_bundle, threads=1) as encoder:
        query = encoder.encode_query(TEXTS[0])
    for result in (embedder.run(text=TEXTS[0]), asyncio.run(embedder.run_async(text=TEXTS[0]))):
        assert set(result) == {"embedding"}
        assert isinstance(result["embedding"][0], float)
        np.testing.assert_allclose(result["embedding"], query, atol=1e-5)


def test_documents_get_vectors_and_stay_as_they_were(tiny_mean_bundle: Path) -> None:
    embedder = CoromDocumentEmbedder(
        tiny_mean_bundle, meta_fields_to_embed=["部门", "n", "none"], embedding_separator="｜"
    )
    given = documents()
    with Encoder(tiny_mean_bundle) as encoder:
        expected = encoder.encode_document([f"神经科｜{text}" for text in TEXTS])
    for result in (embedder.run(given), asyncio.run(embedder.run_async(given))):
        found = result["documents"]
        np.testing.assert_allclose([d.embedding for d in found], expected, atol=1e-5)
        assert [d.content for d in found] == TEXTS
        assert [d.id for d in found] == [d.id for d in given]
    assert all(d.embedding is None for d in given)
    assert embedder.run([]) == {"documents": []}


@pytest.mark.parametrize("embedder", [CoromTextEmbedder, CoromDocumentEmbedder])
def test_components_go_to_dictionaries_and_back(embedder: Any, tiny_mean_bundle: Path) -> None:
    made = embedder(tiny_mean_bundle, threads=1, truncate_dim=8)
    stored = made.to_dict()
    assert stored["type"] == f"corom.runtime.haystack.{embedder.__name__}"
    assert stored["init_parameters"]["bundle"] == str(tiny_mean_bundle)
    again = embedder.from_dict(stored)
    assert again.to_dict() == stored
    if embedder is CoromTextEmbedder:
        assert len(again.run("头痛")["embedding"]) == 8


def test_pipelines_write_and_find_documents(tiny_mean_bundle: Path) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    writing = Pipeline()
    writing.add_component("embedder", CoromDocumentEmbedder(tiny_mean_bundle, threads=1))
    writing.add_component("writer", DocumentWriter(store))
    writing.connect("embedder.documents", "writer.documents")
    # Haystack opens components of others only by leave of who loads the YAML.
    loaded = Pipeline.loads(writing.dumps(), allowed_modules=["corom.runtime.haystack"])
    assert loaded.to_dict() == writing.to_dict()
    assert writing.run({"embedder": {"documents": documents()}}) == {
        "writer": {"documents_written": 3}
    }

    searching = Pipeline()
    searching.add_component("embedder", CoromTextEmbedder(tiny_mean_bundle, threads=1))
    searching.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    searching.connect("embedder.embedding", "retriever.query_embedding")
    for text in TEXTS:
        asked = {"embedder": {"text": text}}
        for result in (searching.run(asked), asyncio.run(searching.run_async(asked))):
            assert result["retriever"]["documents"][0].content == text


def test_what_cannot_be_embedded_is_refused(tiny_mean_bundle: Path) -> None:
    text, document = CoromTextEmbedder(tiny_mean_bundle), CoromDocumentEmbedder(tiny_mean_bundle)
    with pytest.raises(InputTypeError, match="use CoromDocumentEmbedder"):
        text.run(documents())
    for given in ("头痛", ["头痛"]):
        with pytest.raises(InputTypeError, match="use CoromTextEmbedder"):
            document.run(given)
    with pytest.raises(InputTypeError, match="has no text"):
        document.run([Document(content=None)])
