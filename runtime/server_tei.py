"""The routes of Hugging Face's text-embeddings-inference (TEI): requests and replies, pure.

Field names and defaults are TEI's, so its clients work unchanged.
"""

from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Literal

import msgspec
import numpy as np
import orjson

from .server_service import Service
from .server_texts import AsGiven, Direction, TokenId
from .tokens import Piece
from .vectors import Vectors, normalize


class EmbedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /embed. ``truncate``: null takes the server's --auto-truncate."""

    inputs: AsGiven
    truncate: bool | None = None
    truncation_direction: Direction = "right"
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    encoding_format: Literal["float"] | None = None
    """Of Hugging Face's own client; the vectors are numbers in any case."""


class SimilarityInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sentence and those to compare it with."""

    source_sentence: str
    sentences: Annotated[list[str], msgspec.Meta(min_length=1)]


class SimilarityParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the sentences are encoded."""

    truncate: bool | None = None
    truncation_direction: Direction = "right"
    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /similarity; answered with the cosine of each sentence to the source."""

    inputs: SimilarityInput
    parameters: SimilarityParameters | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /tokenize."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Token(msgspec.Struct, frozen=True):
    """One token, and the characters it stands for; special tokens stand for none.

    ``text``: those characters, whatever the vocabulary calls them; of a special token its name.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /decode."""

    ids: list[TokenId | list[TokenId]]
    skip_special_tokens: bool = True


class EmbeddingKind(msgspec.Struct, frozen=True):
    """How token vectors become one."""

    pooling: str


class ModelType(msgspec.Struct, frozen=True):
    """What the model is for."""

    embedding: EmbeddingKind


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """GET /info: TEI's fields, then corom's own."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int | None
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    dimension: int
    similarity: str
    backend: str
    device: str
    prompts: list[str]
    max_queue_tokens: int


def describe(service: Service) -> Info:
    """Return what GET /info says of the model and of the limits."""
    encoder, manifest, settings = service.encoder, service.encoder.manifest, service.settings
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    return Info(
        model_id=manifest.source.uri,
        model_sha=manifest.source.revision,
        model_dtype=names.get(encoder.precision, encoder.precision),
        served_model_name=service.model_names[0],
        model_type=ModelType(EmbeddingKind(manifest.pooling)),
        max_concurrent_requests=settings.max_concurrent_requests,
        max_input_length=encoder.max_length,
        max_batch_tokens=encoder.batch_tokens,
        max_batch_requests=None,
        max_client_batch_size=settings.max_client_batch_size,
        auto_truncate=settings.auto_truncate,
        tokenization_workers=1,
        version=metadata.version("corom"),
        sha=None,
        docker_label=None,
        dimension=encoder.dimension,
        similarity=manifest.similarity,
        backend=encoder.backend_name,
        device=encoder.device,
        prompts=list(manifest.prompts),
        max_queue_tokens=settings.max_queue_tokens,
    )


def tokens_of(text: str, pieces: list[Piece]) -> list[Token]:
    """Return the tokens of a text, which are these pieces."""
    return [
        Token(p.id, p.text if p.special else text[p.start : p.stop], p.special, p.start, p.stop)
        for p in pieces
    ]


def embed_reply(vectors: Vectors, rows_at_once: int) -> Iterator[bytes]:
    """Yield the JSON of vectors (N, H), a list of lists, in parts of that many rows."""
    for first in range(0, len(vectors), rows_at_once):
        rows = np.ascontiguousarray(vectors[first : first + rows_at_once])
        part = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        last = first + len(rows) == len(vectors)
        yield (b"," if first else b"[") + part + (b"]" if last else b"")


def cosines(vectors: Vectors) -> list[float]:
    """Return the cosine of each of the rows 1 to N (N + 1, H) to row 0."""
    unit = normalize(vectors)
    scores: list[float] = (unit[1:] @ unit[0]).tolist()
    return scores
