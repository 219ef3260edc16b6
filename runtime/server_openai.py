"""OpenAI's embeddings API: the request, and the replies. Pure functions.

https://platform.openai.com/docs/api-reference/embeddings
"""

import base64
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import orjson

from .request import Usage
from .server_texts import AsGiven
from .vectors import Vectors

Format = Literal["float", "base64"]


class EmbeddingsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What OpenAI's clients send. ``user`` is allowed and not kept."""

    input: AsGiven
    model: str | None = None
    encoding_format: Format | None = "float"
    """Null is "float" too."""
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None


class Embedding(msgspec.Struct, frozen=True):
    """One vector: its values, or the base64 of their little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens executed, special tokens included, what was cut excluded."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(msgspec.Struct, frozen=True):
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage


class Model(msgspec.Struct, frozen=True):
    """A name that requests may call the model by."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(msgspec.Struct, frozen=True):
    """What GET /v1/models answers."""

    object: Literal["list"]
    data: list[Model]


def embeddings_reply(
    vectors: Vectors, encoding_format: Format, model: str, usage: Usage, rows_at_once: int
) -> Iterator[bytes]:
    """Yield the reply for vectors (N, H) in parts of that many rows."""
    counted = {"prompt_tokens": usage.tokens, "total_tokens": usage.tokens}
    tail = b"," + orjson.dumps({"model": model, "usage": counted})[1:]
    for first in range(0, len(vectors), rows_at_once):
        rows = vectors[first : first + rows_at_once]
        items = [
            {"object": "embedding", "index": first + k, "embedding": _value(row, encoding_format)}
            for k, row in enumerate(rows)
        ]
        part = orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        opening = b'{"object":"list","data":[' if first == 0 else b","
        closing = b"]" + tail if first + len(rows) == len(vectors) else b""
        yield opening + part + closing


def _value(row: Vectors, encoding_format: Format) -> Any:  # noqa: ANN401
    if encoding_format == "float":
        return row
    return base64.b64encode(row.astype(np.dtype("<f4"), copy=False).tobytes()).decode()


def models_reply(names: tuple[str, ...], created: int) -> Models:
    """Return the list of models."""
    return Models("list", [Model(name, "model", created, "corom") for name in names])
