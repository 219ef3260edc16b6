"""Milvus's embedding function: what milvus-model's own dense functions have."""

from pathlib import Path

import numpy as np

from corom.runtime import Encoder
from corom.runtime.milvus import CoromEmbeddingFunction

TEXTS = ["头痛怎么办", "发烧吃什么药"]


def test_it_has_the_methods_of_milvus_models_dense_functions(tiny_mean_bundle: Path) -> None:
    function = CoromEmbeddingFunction(tiny_mean_bundle, threads=1)
    with Encoder(tiny_mean_bundle, threads=1) as encoder:
        documents, queries = encoder.encode_document(TEXTS), encoder.encode_query(TEXTS)
    assert function.dim == documents.shape[1]
    np.testing.assert_allclose(function.encode_documents(TEXTS), documents, atol=1e-5)
    np.testing.assert_allclose(function(TEXTS), documents, atol=1e-5)
    np.testing.assert_allclose(function.encode_queries(TEXTS), queries, atol=1e-5)
    assert isinstance(function(TEXTS), list)
    assert function.encode_queries([]) == []
