"""Milvus's embedding function on a bundle; vectors to hand to pymilvus."""

from pathlib import Path
from typing import Any

from .retrieval_encoder import RetrievalEncoder
from .vectors import Vectors


class CoromEmbeddingFunction:
    """Has the methods of milvus-model's dense embedding functions, and does not need that package.

    ``options`` and errors are those of ``RetrievalEncoder``.
    """

    def __init__(self, bundle: str | Path, **options: Any) -> None:  # noqa: ANN401
        self._encoder = RetrievalEncoder(bundle, **options)

    @property
    def dim(self) -> int:
        """Number of values of a vector."""
        return self._encoder.dimension

    def __call__(self, texts: list[str]) -> list[Vectors]:
        """Return the vector (H,) of each document."""
        return self.encode_documents(texts)

    def encode_documents(self, documents: list[str]) -> list[Vectors]:
        """Return the vector (H,) of each document."""
        return list(self._encoder.documents(documents))

    def encode_queries(self, queries: list[str]) -> list[Vectors]:
        """Return the vector (H,) of each query."""
        return list(self._encoder.queries(queries))
