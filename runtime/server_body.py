"""The body of a request, read within limits and decoded into a struct. Knows no routes."""

import re
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from .server_errors import Refusal, overloaded
from .server_patience import ClientGone, Patience

Asked = TypeVar("Asked")
RETRY_AFTER_S = 1
LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


class Bodies:
    """Reads bodies of Starlette requests: of each so many bytes, within so long, all in so much.

    ``memory``: bytes of the bodies that are being read at the same time.
    """

    def __init__(self, limit: int, timeout_s: float, memory: int) -> None:
        self._limit, self._timeout_s, self._memory = limit, timeout_s, memory
        self._held = 0

    async def read(self, request: Any) -> bytes:  # noqa: ANN401
        """Return the body of a request.

        Raises ``Refusal``: 413 as soon as it is known to be too long, 408 if it has not come in
        time, 429 if others that have not come whole leave it no room.
        """
        declared = request.headers.get("content-length")
        if declared is not None and int(declared) > self._limit:
            raise too_large(self._limit)
        parts: list[bytes] = []
        try:
            with Patience(self._timeout_s):
                await self._read(request, parts)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            late = f"the body did not arrive within {self._timeout_s:g} s."
            raise Refusal(408, "Timeout", late, close=True) from None
        finally:
            self._held -= sum(map(len, parts))
            parts.clear()  # a refusal refers to this frame, and lives until the client has it

    async def _read(self, request: Any, parts: list[bytes]) -> None:  # noqa: ANN401
        size, more = 0, True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            self._held += len(part)
            more = message.get("more_body", False)
            if size > self._limit:
                raise too_large(self._limit, read=not more)
            others = self._held - size
            if more and others > self._memory:
                why = f"{others} bytes of bodies are being read already (--body-memory)."
                refusal = overloaded(why, RETRY_AFTER_S)
                refusal.close = True
                raise refusal


def explained(message: str, kind: Any) -> tuple[str, str | None]:  # noqa: ANN401
    """Return msgspec's message with what is allowed instead, and the field that it is about.

    ``kind``: the struct that was asked for.
    """
    what, _, path = message.partition(" - at `$")
    inner = path.strip("`.")
    named = re.search(r"field `(\w+)`", what)
    field = ".".join(filter(None, [inner, named[1] if named else ""])) or None
    if "unknown field" in what and not inner:
        return f"{message}. Known: {', '.join(kind.__struct_encode_fields__)}.", field
    if "enum value" in what and inner in kind.__struct_encode_fields__:
        values = _values(get_type_hints(kind)[inner])
        return f"{message}. Allowed: {', '.join(values)}.", field
    return f"{message}.", field


def _values(hint: Any) -> list[str]:  # noqa: ANN401
    """Return the words of a ``Literal``, or of one in a union."""
    parts = get_args(hint)
    return [word for part in parts for word in ([part] if isinstance(part, str) else _values(part))]


def too_large(limit: int, *, read: bool = False) -> Refusal:
    """Return the refusal of a body beyond the limit; ``read``: nothing of it comes any more."""
    return Refusal(
        413,
        "Validation",
        f"the body is larger than {limit} bytes (--payload-limit). Send fewer texts at once.",
        code="payload_too_large",
        close=not read,
    )


def check_encoding(value: str | None) -> None:
    """Raise ``Refusal`` 415 for a body that its client has compressed."""
    if value is not None and value.strip().lower() != "identity":
        raise Refusal(
            415,
            "Validation",
            f"the header content-encoding is {value!r}; send the body as it is.",
            code="unsupported_media_type",
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
        why, field = explained(str(error), decoder.type)
        raise Refusal(422, "Validation", why, param=field, code="invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = f"the body is not valid JSON: {error}."
        if not body.strip():
            why = "the body is empty; send JSON."
        elif LONE_SURROGATE.search(body):
            why = "the body has half of a surrogate pair, such as \\ud83d alone, which is no text."
        raise Refusal(400, "Validation", why, code="invalid_json") from None
    except RecursionError:
        raise Refusal(
            400, "Validation", "the body is nested too deeply.", code="invalid_json"
        ) from None
