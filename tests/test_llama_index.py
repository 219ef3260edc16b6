"""CoromEmbedding: every method of LlamaIndex's base class, stored and sent, and an index on it."""

import asyncio
import pickle
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import TextNode

from corom.runtime import Encoder, InputTypeError
from corom.runtime.llama_index import CoromEmbedding

TEXTS = ["头痛怎么办", "发烧吃什么药", "今天天气不错", "", "CT 12 mg"]


@pytest.fixture(scope="module")
def embedding(tiny_mean_bundle: Path) -> CoromEmbedding:
    return CoromEmbedding(tiny_mean_bundle, threads=1, embed_batch_size=2)


@pytest.fixture(scope="module")
def query(tiny_mean_bundle: Path) -> np.ndarray:
    with Encoder(tiny_mean_bundle, threads=1) as encoder:
        return encoder.encode_query(TEXTS[0])


@pytest.fixture(scope="module")
def documents(tiny_mean_bundle: Path) -> np.ndarray:
    with Encoder(tiny_mean_bundle, threads=1) as encoder:
        return encoder.encode_document(TEXTS)


def test_every_method_gives_the_encoders_vectors(
    embedding: CoromEmbedding, query: np.ndarray, documents: np.ndarray
) -> None:
    for found in (
        embedding.get_query_embedding(TEXTS[0]),
        asyncio.run(embedding.aget_query_embedding(TEXTS[0])),
    ):
        np.testing.assert_allclose(found, query, atol=1e-5)
    for found in (
        embedding.get_text_embedding(TEXTS[0]),
        asyncio.run(embedding.aget_text_embedding(TEXTS[0])),
    ):
        np.testing.assert_allclose(found, documents[0], atol=1e-5)
    for rows in (
        embedding.get_text_embedding_batch(TEXTS),
        asyncio.run(embedding.aget_text_embedding_batch(TEXTS)),
        asyncio.run(embedding.aget_text_embedding_batch(TEXTS, show_progress=False)),
    ):
        np.testing.assert_allclose(rows, documents, atol=1e-5)
    assert embedding.get_text_embedding_batch([]) == []


def test_its_fields_are_the_base_classs_and_its_own(
    embedding: CoromEmbedding, tiny_mean_bundle: Path
) -> None:
    assert isinstance(embedding, BaseEmbedding)
    assert (embedding.embed_batch_size, embedding.options) == (2, {"threads": 1})
    assert CoromEmbedding(tiny_mean_bundle).embed_batch_size == 512
    assert embedding.to_payload()["class_name"] == CoromEmbedding.class_name() == "CoromEmbedding"
    assert set(MockEmbedding(embed_dim=8).to_dict()) - {"embed_dim"} <= set(embedding.to_dict())


def test_it_goes_to_json_and_back_and_pickles(
    embedding: CoromEmbedding, documents: np.ndarray
) -> None:
    for again in (
        CoromEmbedding.from_dict(embedding.to_dict()),
        CoromEmbedding.from_json(embedding.to_json()),
        CoromEmbedding(**embedding.model_dump()),
        pickle.loads(pickle.dumps(embedding)),
        embedding.model_copy(deep=True),
    ):
        assert again.to_dict() == embedding.to_dict()
        np.testing.assert_allclose(again.get_text_embedding(TEXTS[0]), documents[0], atol=1e-5)


def test_an_index_finds_what_is_like_the_query(embedding: CoromEmbedding) -> None:
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS[:3]], embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=1)
    assert retriever.retrieve(TEXTS[1])[0].text == TEXTS[1]
    assert asyncio.run(retriever.aretrieve(TEXTS[2]))[0].text == TEXTS[2]


def test_what_cannot_be_is_refused(embedding: CoromEmbedding, tiny_mean_bundle: Path) -> None:
    with pytest.raises(InputTypeError, match="there is no option 'batch_size'"):
        CoromEmbedding(tiny_mean_bundle, batch_size=3)
    with pytest.raises(InputTypeError, match="text 0 is int"):
        embedding._get_text_embeddings([3])  # type: ignore[list-item]
