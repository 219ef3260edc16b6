"""CoromEmbeddings: LangChain's standard tests, and a vector store on it."""

import asyncio
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from corom.runtime import Encoder, InputTypeError
from corom.runtime.langchain import CoromEmbeddings

TEXTS = ["头痛怎么办", "发烧吃什么药", "今天天气不错"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """What runs the standard tests that are coroutines."""
    return "asyncio"


class OnTheTinyBundle:
    """Where the standard tests find the bundle: they take no fixtures but their own."""

    bundle: Path

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return CoromEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "threads": 1}


@pytest.fixture(scope="module", autouse=True)
def note_bundle(tiny_mean_bundle: Path) -> None:
    OnTheTinyBundle.bundle = tiny_mean_bundle


class TestUnit(OnTheTinyBundle, EmbeddingsUnitTests):
    pass


@pytest.mark.anyio
class TestIntegration(OnTheTinyBundle, EmbeddingsIntegrationTests):
    pass


@pytest.fixture(scope="module")
def embeddings(tiny_mean_bundle: Path) -> CoromEmbeddings:
    return CoromEmbeddings(tiny_mean_bundle, threads=1)


def test_queries_and_documents_have_the_encoders_vectors(
    embeddings: CoromEmbeddings, tiny_mean_bundle: Path
) -> None:
    with Encoder(tiny_mean_bundle, threads=1) as encoder:
        query, documents = encoder.encode_query(TEXTS[0]), encoder.encode_document(TEXTS)
    for vector in (
        embeddings.embed_query(TEXTS[0]),
        asyncio.run(embeddings.aembed_query(TEXTS[0])),
    ):
        np.testing.assert_allclose(vector, query, atol=1e-5)
    for vectors in (
        embeddings.embed_documents(TEXTS),
        asyncio.run(embeddings.aembed_documents(TEXTS)),
    ):
        np.testing.assert_allclose(vectors, documents, atol=1e-5)
    assert np.abs(np.subtract(documents[0], query)).max() > 1e-2


def test_no_documents_have_no_vectors(embeddings: CoromEmbeddings) -> None:
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents([])) == []


def test_a_vector_store_finds_what_is_like_the_query(embeddings: CoromEmbeddings) -> None:
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    (found,) = store.similarity_search(TEXTS[1], k=1)
    assert found.page_content == TEXTS[1]
    (found,) = asyncio.run(store.asimilarity_search(TEXTS[2], k=1))
    assert found.page_content == TEXTS[2]


def test_it_pickles(embeddings: CoromEmbeddings) -> None:
    again = pickle.loads(pickle.dumps(embeddings))
    assert again.embed_query(TEXTS[0]) == embeddings.embed_query(TEXTS[0])


def test_what_is_no_text_is_refused(embeddings: CoromEmbeddings) -> None:
    with pytest.raises(InputTypeError, match="text 1 is NoneType"):
        embeddings.embed_documents(["头痛", None])  # type: ignore[list-item]
    with pytest.raises(InputTypeError, match="text 0 is int"):
        asyncio.run(embeddings.aembed_query(3))  # type: ignore[arg-type]
