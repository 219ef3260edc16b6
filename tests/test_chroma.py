"""Chroma's embedding function: collections in memory, and one stored and opened again."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corom.runtime import Encoder
from corom.runtime.errors import BundleError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("chromadb") is None,
        reason="not installed; run: pip install -c constraints.txt 'corom[chroma]'",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Chroma's own, at import
]

TEXTS = ["头痛怎么办", "发烧吃什么药", "今天天气不错"]


@pytest.fixture
def settings() -> Any:
    from chromadb.config import Settings

    return Settings(anonymized_telemetry=False)


def test_documents_and_queries_get_their_prompts(tiny_mean_bundle: Path, settings: Any) -> None:
    import chromadb

    from corom.runtime.chroma import CoromEmbeddingFunction

    client = chromadb.EphemeralClient(settings)
    function = CoromEmbeddingFunction(tiny_mean_bundle, threads=1)
    collection = client.create_collection("prompts", embedding_function=function)
    collection.add(ids=list("abc"), documents=TEXTS)
    with Encoder(tiny_mean_bundle, threads=1) as encoder:
        documents, query = encoder.encode_document(TEXTS), encoder.encode_query(TEXTS[1])
    stored = collection.get(include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(stored, documents, atol=1e-5)
    found = collection.query(query_texts=[TEXTS[1]], n_results=3)
    assert found["ids"][0][0] == "b"
    cosines = sorted(documents @ query / np.linalg.norm(documents, axis=1) / np.linalg.norm(query))
    np.testing.assert_allclose(found["distances"][0], 1 - np.array(cosines[::-1]), atol=1e-4)


@pytest.mark.parametrize(
    ("bundle", "space"), [("tiny_bundle", "ip"), ("tiny_mean_bundle", "cosine")]
)
def test_a_stored_collection_is_opened_again_with_its_bundle(
    bundle: str, space: str, request: pytest.FixtureRequest, settings: Any, tmp_path: Path
) -> None:
    import chromadb

    from corom.runtime.chroma import CoromEmbeddingFunction

    folder = request.getfixturevalue(bundle)
    function = CoromEmbeddingFunction(folder, threads=1)
    assert function.default_space() == space
    client = chromadb.PersistentClient(tmp_path, settings)
    made = client.create_collection("stored", embedding_function=function)
    made.add(ids=list("abc"), documents=TEXTS)
    again = chromadb.PersistentClient(tmp_path, settings).get_collection("stored")
    assert made.configuration["hnsw"]["space"] == space
    assert again.query(query_texts=TEXTS[2], n_results=3) == made.query(
        query_texts=TEXTS[2], n_results=3
    )
    rebuilt = CoromEmbeddingFunction.build_from_config(function.get_config())
    np.testing.assert_allclose(rebuilt(TEXTS), function(TEXTS), atol=1e-6)
    stored = function.get_config()
    more: dict[str, Any] = {"threads": 2, "truncate_dim": function._encoder.dimension}
    same = CoromEmbeddingFunction(folder, **more).get_config()
    function.validate_config_update(stored, same | {"bundle": "elsewhere"})
    others: list[dict[str, Any]] = [
        {"bundle": "other", "options": {}},
        CoromEmbeddingFunction(folder, truncate_dim=8).get_config(),
        CoromEmbeddingFunction(folder, max_length=9).get_config(),
    ]
    for other in others:
        with pytest.raises(ValueError, match="make another collection"):
            function.validate_config_update(stored, other)
    stored["vectors"]["weights_sha256"] = "0" * 64
    with pytest.raises(BundleError, match="are not those that .* gives now"):
        function.build_from_config(stored)
