"""Chroma's EmbeddingFunction on a bundle."""

from pathlib import Path
from typing import Any

from .errors import BundleError, InputError, missing_extra
from .retrieval_encoder import RetrievalEncoder

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function
except ModuleNotFoundError as error:
    raise missing_extra("chromadb", "chroma", "corom.runtime.chroma") from error


@register_embedding_function
class CoromEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents and queries with the bundle's prompts, in the space of its similarity.

    ``options`` and errors are those of ``RetrievalEncoder``. A collection stores them and, once
    this module is imported, opens the bundle again from them.
    """

    def __init__(self, bundle: str | Path, **options: Any) -> None:  # noqa: ANN401
        self.bundle, self.options = str(bundle), options
        self._encoder = RetrievalEncoder(bundle, **options)

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002  # Chroma's name
        """Return the vector (H,) of each document."""
        return list(self._encoder.documents(input))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002  # Chroma's name
        """Return the vector (H,) of each query."""
        return list(self._encoder.queries(input))

    def default_space(self) -> Space:
        """Return the space in which nearness is the bundle's similarity."""
        return "ip" if self._encoder.manifest.similarity == "dot" else "cosine"

    @staticmethod
    def name() -> str:
        """Return the name that stored collections know this class by."""
        return "corom"

    def get_config(self) -> dict[str, Any]:
        """Return what a collection stores."""
        return {
            "bundle": self.bundle,
            "options": self.options,
            "vectors": self._encoder.meaning(),
        }

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "CoromEmbeddingFunction":
        """Return the function of what a collection stored.

        Raises ``BundleError`` if the bundle at that path gives other vectors now.
        """
        function = CoromEmbeddingFunction(config["bundle"], **config["options"])
        if config.get("vectors") not in (None, function._encoder.meaning()):
            raise BundleError(
                f"the collection's vectors are not those that '{config['bundle']}' gives now. Put "
                "the bundle back that they were made with, or make another collection."
            )
        return function

    def validate_config_update(
        self, old_config: dict[str, Any], new_config: dict[str, Any]
    ) -> None:
        """Raise ``InputError`` for other vectors: they mean something else.

        Where the bundle lies and how it is executed may change.
        """
        known = "vectors" in old_config and "vectors" in new_config
        old, new = (
            config.get("vectors" if known else "bundle") for config in (old_config, new_config)
        )
        if old != new:
            raise InputError(
                f"the collection holds vectors of the bundle '{old_config.get('bundle')}' ({old}), "
                f"not of '{new_config.get('bundle')}' ({new}). For these make another collection."
            )
