"""Requests to /v1/embeddings as ready bytes, and whether each reply holds the right vectors."""

import base64
import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from corom.runtime.parity import row_cosines
from corom.runtime.vectors import Vectors, normalize

from .http_client import LOST, Reply

BATCH_EVERY = 10
BATCH_TEXTS = 8
"""Every tenth request holds eight texts, so half of all texts come in a client's batch."""


class Call(NamedTuple):
    """A request: its bytes, and which texts it asks for, by their rows."""

    request: bytes
    rows: list[int]


class Checked(NamedTuple):
    """What a load's replies came to: how many of each kind, and the worst cosine of a vector."""

    right: int
    wrong: int
    lost: int
    statuses: dict[int, int]
    cosine_min: float | None


class _Vector(msgspec.Struct):
    index: int
    embedding: str


class _Body(msgspec.Struct):
    data: list[_Vector]


_decode = msgspec.json.Decoder(_Body).decode


def call_rows(texts: int, count: int, *, mixed: bool) -> list[list[int]]:
    """Return the rows of the texts that each of ``count`` calls asks for, all texts in turns.

    ``mixed``: every ``BATCH_EVERY``-th call asks for ``BATCH_TEXTS`` of them, the others for one.
    """
    rows: list[list[int]] = []
    row = 0
    for call in range(count):
        size = BATCH_TEXTS if mixed and call % BATCH_EVERY == BATCH_EVERY - 1 else 1
        rows.append([(row + k) % texts for k in range(size)])
        row += size
    return rows


def make_calls(texts: Sequence[str], rows: Sequence[list[int]], model: str) -> list[Call]:
    """Return the calls for these rows of the texts; vectors come back as base64."""
    calls = []
    for some in rows:
        wanted = [texts[row] for row in some]
        body = {"model": model, "input": wanted if len(wanted) > 1 else wanted[0]}
        content = json.dumps(body | {"encoding_format": "base64"}, ensure_ascii=False).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        calls.append(Call(head.encode() + content, some))
    return calls


def vectors_of(body: bytes, count: int) -> Vectors:
    """Return the vectors (count, H) of a body; raises ``ValueError`` if it is no such answer."""
    try:
        data = _decode(body).data
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    if [item.index for item in data] != list(range(count)):
        raise ValueError(f"{count} vectors in their order are expected, {len(data)} came")
    return np.stack([np.frombuffer(base64.b64decode(d.embedding), "<f4") for d in data])


def check(
    replies: Sequence[Reply], calls: Sequence[Call], expected: Vectors, cosine_min: float
) -> Checked:
    """Compare the vectors of every answered call with those expected of its texts, (N, H).

    A vector is right if its cosine to the expected one is at least ``cosine_min``. One that was
    swapped with another text's is wrong, if the texts were chosen by ``apart``.
    """
    worst: float | None = None
    right = wrong = 0
    for reply in replies:
        if reply.status != 200:
            continue
        rows = calls[reply.call].rows
        try:
            found = vectors_of(reply.body, len(rows))
            with np.errstate(all="ignore"):  # NaN is one of the things that are wrong
                cosine = float(row_cosines(expected[rows], found).min())
        except ValueError:
            cosine = 0.0
        worst = cosine if worst is None else float(np.minimum(worst, cosine))  # NaN too
        right, wrong = right + (cosine >= cosine_min), wrong + (not cosine >= cosine_min)
    statuses = Counter(reply.status for reply in replies)
    return Checked(right, wrong, statuses[LOST], dict(statuses), worst)


def apart(vectors: Vectors, cosine_min: float) -> list[int]:
    """Return rows of the vectors (N, H) of which no two have a cosine of ``cosine_min`` or more.

    So that no text's vector can pass for another's.
    """
    unit = normalize(vectors)
    near = unit @ unit.T >= cosine_min
    kept: list[int] = []
    for row in range(len(vectors)):
        if not near[row, kept].any():
            kept.append(row)
    return kept
