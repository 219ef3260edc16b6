"""Haystack's text and document embedders on a bundle."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from .errors import InputTypeError, missing_extra
from .retrieval_encoder import RetrievalEncoder
from .vectors import Vectors

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ModuleNotFoundError as error:
    raise missing_extra("haystack-ai", "haystack", "corom.runtime.haystack") from error


@component
class CoromTextEmbedder:
    """Embeds a query, with the bundle's prompt for queries.

    ``options`` and errors are those of ``RetrievalEncoder``. ``warm_up`` opens the bundle; so does
    the first text. ``run_async`` of many pipelines meet in batches.
    """

    def __init__(self, bundle: str | Path, **options: Any) -> None:  # noqa: ANN401
        self.bundle, self.options = str(bundle), options
        self._encoder = RetrievalEncoder(bundle, **options)

    def warm_up(self) -> None:
        """Open the bundle."""
        self._encoder.open()

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Return the vector of ``text`` as "embedding"."""
        return {"embedding": self._encoder.queries([_query(text)])[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Return what ``run`` does, without blocking the event loop."""
        return {"embedding": (await self._encoder.aqueries([_query(text)]))[0].tolist()}

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a dictionary."""
        return default_to_dict(self, bundle=self.bundle, **self.options)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the component of a dictionary that ``to_dict`` made."""
        return default_from_dict(cls, data)


@component
class CoromDocumentEmbedder:
    """Embeds documents, with the bundle's prompt for documents.

    ``meta_fields_to_embed``: fields of a document's metadata put before its content, with
    ``embedding_separator`` between. ``progress_bar``: show one. ``options`` and errors are those of
    ``RetrievalEncoder``. ``warm_up`` opens the bundle; so do the first documents.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.bundle, self.options = str(bundle), options
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator, self.progress_bar = embedding_separator, progress_bar
        self._encoder = RetrievalEncoder(bundle, **options)

    def warm_up(self) -> None:
        """Open the bundle."""
        self._encoder.open()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return the documents with their vectors, as new ones; those given stay as they are."""
        texts = self._texts(documents)
        vectors = self._encoder.documents(texts, show_progress_bar=self.progress_bar)
        return {"documents": _with_vectors(documents, vectors)}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Return what ``run`` does, without blocking the event loop, and without progress."""
        vectors = await self._encoder.adocuments(self._texts(documents))
        return {"documents": _with_vectors(documents, vectors)}

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a dictionary."""
        return default_to_dict(
            self,
            bundle=self.bundle,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            progress_bar=self.progress_bar,
            **self.options,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the component of a dictionary that ``to_dict`` made."""
        return default_from_dict(cls, data)

    def _texts(self, documents: list[Document]) -> list[str]:
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise InputTypeError(
                "documents must be a list of haystack's Document. For one text use "
                "CoromTextEmbedder."
            )
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        if document.content is None:
            raise InputTypeError(
                f"document {document.id} has no text. Embed documents with content only."
            )
        fields = (document.meta.get(name) for name in self.meta_fields_to_embed)
        parts = [str(value) for value in fields if value is not None]
        return self.embedding_separator.join([*parts, document.content])


def _query(text: object) -> str:
    if not isinstance(text, str):
        raise InputTypeError(
            f"text is {type(text).__name__}; pass str. For documents use CoromDocumentEmbedder."
        )
    return text


def _with_vectors(documents: list[Document], vectors: Vectors) -> list[Document]:
    rows = vectors.tolist()
    return [replace(d, embedding=row) for d, row in zip(documents, rows, strict=True)]
