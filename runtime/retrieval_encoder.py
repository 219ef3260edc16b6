"""Queries and documents to vectors, for the frameworks: what their adapters share.

Knows bundles and options, and no framework.
"""

import asyncio
import os
from pathlib import Path
from typing import Any, cast

from .batcher import DynamicBatcher
from .encoder import Encoder
from .errors import InputTypeError
from .late_encoder import LateEncoder
from .manifest import load_manifest
from .options import EncodeOptions, TextOptions, check_options, with_document_prompt, with_prompt
from .vectors import Vectors

_ASKED_OF_A_VECTOR = ("normalize_embeddings", "truncate_dim", "truncate")


class RetrievalEncoder:
    """Gives queries and documents the manifest's prompts, and opens the bundle when first needed.

    ``options``: those of ``Encoder``, and ``normalize_embeddings``, ``truncate_dim`` and
    ``truncate`` of ``Encoder.encode``. All who name the same bundle and options share one encoder a
    process; it stays open until the process ends. Pickles as a path and options.

    The methods that are awaited go through one ``DynamicBatcher``: tasks that ask at the same time
    meet in its batches, and none blocks the event loop.

    Raises ``BundleError`` if there is no bundle, and ``InputError`` for an option that cannot be,
    before anything is opened.
    """

    def __init__(self, bundle: str | Path, **options: Any) -> None:  # noqa: ANN401
        asked = {name: options.pop(name) for name in _ASKED_OF_A_VECTOR if name in options}
        self._late = LateEncoder.of(bundle, **options)
        self.manifest = load_manifest(Path(bundle))
        self._plain = cast("TextOptions", asked)
        self.dimension = check_options(self.manifest, **self._plain).dimension
        prompts = self.manifest.prompts
        query = with_prompt("query", prompts, cast("EncodeOptions", dict(asked)))
        document = with_document_prompt(prompts, cast("EncodeOptions", dict(asked)))
        self._query, self._document = cast("TextOptions", query), cast("TextOptions", document)
        self._batcher: tuple[int, DynamicBatcher] | None = None

    def meaning(self) -> dict[str, Any]:
        """Return, for JSON, all that a vector depends on but for the precision it is computed in.

        Where two are equal, vectors may be compared.
        """
        manifest = self.manifest
        query, document = (check_options(manifest, **o) for o in (self._query, self._document))
        length = dict(self._late.options).get("max_length")
        return {
            "weights_sha256": manifest.source.weights_sha256,
            "tokenizer_sha256": manifest.entry("tokenizer.json").sha256,
            "pooling": manifest.pooling,
            "max_length": manifest.max_length if length is None else length,
            "truncate": document.truncate,
            "dimension": document.dimension,
            "normalize": document.scale,
            "query_prompt": query.prefix,
            "document_prompt": document.prefix,
        }

    def open(self) -> Encoder:
        """Return this process's encoder, opened."""
        return self._late.encoder()

    def texts(self, texts: list[str], **options: Any) -> Vectors:  # noqa: ANN401
        """Return the vectors (N, H) of texts that are neither queries nor documents."""
        return self.open().encode(texts, **self._plain, **options)

    def queries(self, texts: list[str], **options: Any) -> Vectors:  # noqa: ANN401
        """Return the vectors (N, H) of queries."""
        return self.open().encode(_series(texts), **self._query, **options)

    def documents(self, texts: list[str], **options: Any) -> Vectors:  # noqa: ANN401
        """Return the vectors (N, H) of documents."""
        return self.open().encode(_series(texts), **self._document, **options)

    async def aqueries(self, texts: list[str]) -> Vectors:
        """Return the vectors (N, H) of queries."""
        return await (await self._open_batcher()).aencode(_series(texts), **self._query)

    async def adocuments(self, texts: list[str]) -> Vectors:
        """Return the vectors (N, H) of documents."""
        return await (await self._open_batcher()).aencode(_series(texts), **self._document)

    async def _open_batcher(self) -> DynamicBatcher:
        if self._batcher is None or self._batcher[0] != os.getpid():
            self._batcher = os.getpid(), await asyncio.to_thread(self._late.batcher)
        return self._batcher[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batcher": None}

    def __repr__(self) -> str:
        return f"RetrievalEncoder({self._late.bundle!r})"


def _series(texts: list[str]) -> list[str]:
    """Refuse one text alone, whose vector would pass for a list of numbers or of vectors."""
    if isinstance(texts, str):
        raise InputTypeError("the input is one str; pass a list of them.")
    return texts
