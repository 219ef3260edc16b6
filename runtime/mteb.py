"""MTEB's encoder protocol on a bundle: `mteb.evaluate(CoromModel(bundle), tasks)`.

Loads neither mteb nor torch by itself; whoever calls it has both.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, InputTypeError, missing_extra
from .retrieval_encoder import RetrievalEncoder
from .vectors import Vectors, similarity, similarity_pairwise


class CoromModel:
    """Encodes MTEB's batches; queries and documents of retrieval get the bundle's prompts.

    ``options`` and errors are those of ``RetrievalEncoder``.
    """

    def __init__(
        self,
        bundle: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if revision is not None:
            raise InputError(
                f"revision is '{revision}', and a bundle is of one revision: leave it out."
            )
        self._encoder = RetrievalEncoder(bundle, device=device or "auto", **options)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: object = None,  # noqa: ARG002  # MTEB names the task
        hf_split: str | None = None,  # noqa: ARG002
        hf_subset: str | None = None,  # noqa: ARG002
        prompt_type: str | None = None,
        batch_size: int | None = None,  # noqa: ARG002  # the encoder makes better batches
        show_progress_bar: bool = False,
    ) -> Vectors:
        """Return the vectors (N, H) of the "text" of MTEB's batches.

        ``prompt_type``: "query", "document" or None.
        """
        texts = [text for batch in inputs for text in _texts(batch)]
        kind = getattr(prompt_type, "value", prompt_type)
        kinds = {"query": self._encoder.queries, "document": self._encoder.documents}
        encode = kinds.get(kind, self._encoder.texts) if kind else self._encoder.texts
        return encode(texts, show_progress_bar=show_progress_bar)

    def similarity(self, embeddings1: object, embeddings2: object) -> Vectors:
        """Return the scores (N, M) of (N, H) against (M, H), as the manifest says."""
        kind = self._encoder.manifest.similarity
        return similarity(_array(embeddings1), _array(embeddings2), kind)

    def similarity_pairwise(self, embeddings1: object, embeddings2: object) -> Vectors:
        """Return the score (N,) of each row of (N, H) with that of the other, likewise."""
        kind = self._encoder.manifest.similarity
        return similarity_pairwise(_array(embeddings1), _array(embeddings2), kind)

    @cached_property
    def mteb_model_meta(self) -> Any:  # noqa: ANN401
        """What MTEB writes beside the results."""
        try:
            from mteb.models import ModelMeta
        except ModuleNotFoundError as error:
            raise missing_extra("mteb", "mteb", "corom.runtime.mteb") from error
        manifest = self._encoder.manifest
        return ModelMeta.create_empty(
            {
                "name": f"corom/{manifest.name}",
                "revision": manifest.source.revision or manifest.source.weights_sha256[:12],
                "max_tokens": manifest.max_length,
                "embed_dim": self._encoder.dimension,
                "similarity_fn_name": manifest.similarity,
                "framework": ["ONNX"],
                "use_instructions": any(manifest.prompts.values()),
            }
        )


def _texts(batch: Mapping[str, Any]) -> list[str]:
    if "text" not in batch:
        raise InputTypeError(
            f"the batch has {', '.join(map(str, batch)) or 'nothing'} and no text. "
            "corom encodes text: choose tasks of text."
        )
    return list(batch["text"])


def _array(vectors: object) -> Vectors:
    return np.asarray(vectors, np.float32)
