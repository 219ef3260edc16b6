"""One request on its way through the server: what is noted of it for headers, metrics and log."""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from .request import Usage

ID_LENGTH = 128
"""Longer request ids are replaced: they go into headers and logs as they come."""


_PROCESS = os.urandom(8).hex()
_COUNT = itertools.count()


class Call:
    """A request, from its headers to the end of its answer."""

    __slots__ = (
        "began",
        "characters",
        "cut_off",
        "failure",
        "id",
        "in_hand",
        "method",
        "path",
        "single",
        "status",
        "traceparent",
        "usage",
        "vector_bytes",
        "when_gone",
    )

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.began = time.perf_counter()
        headers = dict(scope["headers"])
        self.id = request_id(headers.get(b"x-request-id", b""))
        self.traceparent: str = headers.get(b"traceparent", b"").decode("latin-1")
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.status = 0
        """0 until it is answered; 499 if the client went away."""
        self.failure: str | None = None
        self.cut_off = False
        """Given up because the server had to end."""
        self.single = True
        self.characters = 0
        self.usage = Usage()
        self.in_hand = False
        self.vector_bytes = 0
        """Of its vectors, from before they are computed until all of the answer is written."""
        self.when_gone: Callable[[], None] | None = None
        """To be called when the client closes the connection, while vectors are awaited."""

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.began

    def time_headers(self, device: str) -> dict[str, str]:
        """Return TEI's headers; times in whole milliseconds."""
        usage, total = self.usage, _ms(self.seconds)
        headers = {
            "x-compute-type": "gpu" if device == "cuda" else device,
            "x-compute-time": total,
            "x-compute-characters": str(self.characters),
            "x-compute-tokens": str(usage.tokens),
            "x-total-time": total,
            "x-tokenization-time": _ms(usage.tokenization_s),
            "x-queue-time": _ms(usage.queue_s),
            "x-inference-time": _ms(usage.inference_s),
        }
        if usage.truncated:
            headers["x-truncated-texts"] = str(usage.truncated)
        return headers


def request_id(header: bytes) -> str:
    """Return the id that the client gave in x-request-id, if it can be a header, or a new one."""
    given = header.decode("latin-1")
    if 0 < len(given) <= ID_LENGTH and given.isascii() and given.isprintable():
        return given
    return f"{_PROCESS}{next(_COUNT):08x}"


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
