"""Refusals: why a request is not answered as asked, and the body that each family of clients reads.

TEI's clients read {"error", "error_type"}; OpenAI's read {"error": {"message", "type", "param",
"code"}}. Knows no sockets.
"""

from typing import Literal

import msgspec

from .errors import CoromError, DeadlineExceeded, InputError, Overloaded, TextTooLong

Kind = Literal[
    "Empty", "Validation", "Tokenizer", "Backend", "Overloaded", "Timeout", "Unhealthy",
    "Unauthorized", "NotFound", "Internal",
]  # fmt: skip


class Refusal(Exception):  # noqa: N818  # not always an error of ours
    """A request that is refused: status, kind, and a message for the person who sent it."""

    def __init__(
        self,
        status: int,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.param, self.code, self.headers = param, code, headers or {}
        self.close = close
        """The rest of the request is not read, so the connection cannot be used again."""


class TeiError(msgspec.Struct, frozen=True):
    """The body of an error on TEI's routes."""

    error: str
    error_type: Kind


class OpenAIErrorDetail(msgspec.Struct, frozen=True):
    """What OpenAI's clients show of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(msgspec.Struct, frozen=True):
    """The body of an error on OpenAI's routes."""

    error: OpenAIErrorDetail


OPENAI_TYPES: dict[Kind, str] = {
    "Unauthorized": "authentication_error",
    "Overloaded": "rate_limit_error",
    "Timeout": "timeout_error",
    "Unhealthy": "service_unavailable_error",
    "Backend": "server_error",
    "Internal": "server_error",
}
"""Everything else is an invalid_request_error."""

OPENAI_STATUS = {422: 400, 424: 500}
"""OpenAI's route answers with these where TEI has codes of its own."""
TOO_LONG = "context_length_exceeded"


def is_openai(path: str) -> bool:
    """Say whether a path belongs to OpenAI's routes."""
    return path.startswith("/v1/") or path in {"/v1", "/embeddings"}


def status_of(refusal: Refusal, path: str) -> int:
    """Return the status that a refusal has on this path."""
    status = refusal.status
    if not is_openai(path):
        return status
    return 400 if refusal.code == TOO_LONG else OPENAI_STATUS.get(status, status)


def body_of(refusal: Refusal, path: str) -> bytes:
    """Return the body of a refusal, in the form of the path's family."""
    body: TeiError | OpenAIError = TeiError(refusal.message, refusal.kind)
    if is_openai(path):
        kind = OPENAI_TYPES.get(refusal.kind, "invalid_request_error")
        detail = OpenAIErrorDetail(refusal.message, kind, refusal.param, refusal.code)
        body = OpenAIError(detail)
    return msgspec.json.encode(body)


def refusal_of(error: CoromError, retry_after_s: int) -> Refusal:
    """Return what is answered for an error of the runtime."""
    if isinstance(error, Overloaded):
        return overloaded(str(error), retry_after_s)
    if isinstance(error, DeadlineExceeded):
        return Refusal(504, "Timeout", str(error), code="deadline_exceeded")
    if isinstance(error, TextTooLong):
        advice = 'Shorten it, or have it cut: "truncate": true on /embed, --auto-truncate for all.'
        long = f"{error.args[0]} {advice}"
        return Refusal(413, "Validation", long, param="input", code=TOO_LONG)
    if isinstance(error, InputError):  # all else that can be wrong has been looked at before
        return Refusal(422, "Validation", str(error), param="input", code="invalid_value")
    return Refusal(424, "Backend", str(error), code="inference_failed")


def overloaded(message: str, retry_after_s: int) -> Refusal:
    """Return the refusal of a request that found no room."""
    headers = {"retry-after": str(retry_after_s)}
    return Refusal(429, "Overloaded", message, code="overloaded", headers=headers)


def not_ready(why: str) -> Refusal:
    """Return the refusal of a server that is starting or ending."""
    return Refusal(503, "Unhealthy", why, code="not_ready", headers={"retry-after": "1"})
