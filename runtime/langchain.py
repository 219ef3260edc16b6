"""LangChain's Embeddings on a bundle."""

from pathlib import Path
from typing import Any

from .errors import missing_extra
from .retrieval_encoder import RetrievalEncoder

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    raise missing_extra("langchain-core", "langchain", "corom.runtime.langchain") from error


class CoromEmbeddings(Embeddings):
    """Embeds queries and documents with the bundle's prompts.

    ``options`` and errors are those of ``RetrievalEncoder``. ``aembed_query`` and
    ``aembed_documents`` of many tasks meet in batches. It pickles, and opens the bundle at the
    first text.
    """

    def __init__(self, bundle: str | Path, **options: Any) -> None:  # noqa: ANN401
        self._encoder = RetrievalEncoder(bundle, **options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vector of each document."""
        vectors: list[list[float]] = self._encoder.documents(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        vector: list[float] = self._encoder.queries([text])[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vector of each document, without blocking the event loop."""
        vectors: list[list[float]] = (await self._encoder.adocuments(texts)).tolist()
        return vectors

    async def aembed_query(self, text: str) -> list[float]:
        """Return the vector of a query, without blocking the event loop."""
        vector: list[float] = (await self._encoder.aqueries([text]))[0].tolist()
        return vector
