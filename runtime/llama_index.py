"""LlamaIndex's BaseEmbedding on a bundle."""

from pathlib import Path
from typing import Any

from .errors import missing_extra
from .retrieval_encoder import RetrievalEncoder

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
except ModuleNotFoundError as error:
    raise missing_extra("llama-index-core", "llama-index", "corom.runtime.llama_index") from error


class CoromEmbedding(BaseEmbedding):
    """Embeds queries and texts with the bundle's prompts; a text is a document.

    ``options`` and errors are those of ``RetrievalEncoder``; they may be given by name, beside the
    fields of ``BaseEmbedding``. Awaited methods of many tasks meet in batches. It pickles, goes to
    JSON and back, and opens the bundle at the first text.
    """

    bundle: str = Field(description="The folder of the bundle.")
    options: dict[str, Any] = Field(default_factory=dict, description="How it is opened.")
    embed_batch_size: int = Field(
        default=512, gt=0, le=2048, description="The texts handed to the encoder at once."
    )
    _encoder: RetrievalEncoder = PrivateAttr()

    def __init__(
        self,
        bundle: str | Path,
        *,
        options: dict[str, Any] | None = None,
        **fields_and_options: Any,  # noqa: ANN401
    ) -> None:
        fields_and_options.pop("class_name", None)  # model_dump writes it beside the fields
        fields = {k: v for k, v in fields_and_options.items() if k in type(self).model_fields}
        named = {k: v for k, v in fields_and_options.items() if k not in fields}
        fields |= {"bundle": str(bundle), "options": (options or {}) | named}
        encoder = RetrievalEncoder(bundle, **fields["options"])
        super().__init__(**({"model_name": encoder.manifest.name} | fields))
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        """Return the name that stored settings know this class by."""
        return "CoromEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        vector: Embedding = self._encoder.queries([query])[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors: list[Embedding] = self._encoder.documents(texts).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> Embedding:
        vector: Embedding = (await self._encoder.aqueries([query]))[0].tolist()
        return vector

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors: list[Embedding] = (await self._encoder.adocuments(texts)).tolist()
        return vectors
