"""The body of a request, read within limits and decoded into a struct. Knows no routes."""

import asyncio
from typing import Any, TypeVar

import msgspec

from .server_errors import Refusal

Asked = TypeVar("Asked")


async def read_body(request: Any, limit: int, timeout_s: float) -> bytes:  # noqa: ANN401
    """Return the body of a Starlette request.

    Raises ``Refusal``: 413 as soon as it is known to be longer than ``limit`` bytes, 408 if it has
    not come within ``timeout_s``.
    """
    headers = request.headers
    declared = headers.get("content-length")
    if declared is not None and int(declared) > limit:
        raise too_large(limit)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, limit)
    except TimeoutError:
        raise Refusal(
            408, "Timeout", f"the body did not arrive within {timeout_s:g} s.", close=True
        ) from None


async def _read(request: Any, limit: int) -> bytes:  # noqa: ANN401
    message = await request.receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body"):
        if len(body) > limit:
            raise too_large(limit)
        return body
    parts, size = [body], len(body)
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        if size > limit:
            raise too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await request.receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])


class ClientGone(Exception):  # noqa: N818  # nobody is left to be told
    """The client closed the connection before it was answered."""


def too_large(limit: int) -> Refusal:
    """Return the refusal of a body beyond the limit."""
    return Refusal(
        413,
        "Validation",
        f"the body is larger than {limit} bytes (--payload-limit). Send fewer texts at once.",
        code="payload_too_large",
        close=True,
    )


def check_content_type(value: str | None) -> None:
    """Raise ``Refusal`` 415 unless a content type is JSON in UTF-8."""
    kind, _, parameters = (value or "").partition(";")
    kind = kind.strip().lower()
    charset = parameters.strip().lower().replace('"', "").replace(" ", "")
    json = kind == "application/json" or (kind.startswith("application/") and kind[-5:] == "+json")
    if not json or charset not in {"", "charset=utf-8", "charset=utf8"}:
        given = f"is {value!r}" if value else "is missing"
        raise Refusal(
            415,
            "Validation",
            f"the header content-type {given}; send JSON in UTF-8 with: "
            "content-type: application/json",
            code="unsupported_media_type",
        )


def decode(body: bytes, decoder: msgspec.json.Decoder[Asked]) -> Asked:
    """Return the struct that a body stands for.

    Raises ``Refusal``: 400 for what is no JSON, 422 for JSON that is not what was asked for.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("`$.")[2].strip("`") if "`$." in str(error) else None
        raise Refusal(422, "Validation", f"{error}.", param=field, code="invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(
            400, "Validation", f"the body is not valid JSON: {error}.", code="invalid_json"
        ) from None
    except RecursionError:
        raise Refusal(
            400, "Validation", "the body is nested too deeply.", code="invalid_json"
        ) from None
