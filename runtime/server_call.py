"""One request on its way through the server: what is noted of it for headers, metrics and log."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from .request import Usage

ID_LENGTH = 128
"""Longer request ids are replaced: they go into headers and logs as they come."""


class Call:
    """A request, from its headers to the end of its answer."""

    __slots__ = ("began", "failure", "id", "method", "path", "single", "status", "usage")

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.began = time.perf_counter()
        self.id = request_id(scope["headers"])
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.status = 0
        """0 until it is answered; 499 if the client went away."""
        self.failure: str | None = None
        self.single = True
        self.usage = Usage()

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
            "x-compute-tokens": str(usage.tokens),
            "x-total-time": total,
            "x-tokenization-time": _ms(usage.tokenization_s),
            "x-queue-time": _ms(usage.queue_s),
            "x-inference-time": _ms(usage.inference_s),
        }
        if usage.truncated:
            headers["x-truncated-texts"] = str(usage.truncated)
        return headers


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the id that the client gave in x-request-id, if it can be a header, or a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            if 0 < len(given) <= ID_LENGTH and given.isascii() and given.isprintable():
                return given
    return uuid.uuid4().hex


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
