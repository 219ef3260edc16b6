"""What every route that makes vectors does: encode, and give up when nobody waits any more."""

import asyncio
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .errors import CoromError
from .options import TextOptions
from .server_call import Call
from .server_errors import Refusal
from .server_log import logger
from .server_patience import ClientGone, Patience
from .server_service import Service
from .server_texts import Texts
from .vectors import Vectors

VALUES_AT_ONCE = 65_536
"""Values that are turned into JSON before other requests get their turn: about 2 ms."""


async def encode(request: Request, service: Service, texts: Texts, options: TextOptions) -> Vectors:
    """Return the vectors (N, H) of the texts of a request.

    Raises ``Refusal``, ``ClientGone``, or what the runtime says of these texts.
    """
    call: Call = request.scope["corom.call"]
    call.characters = len(texts) if isinstance(texts, str) else sum(map(len, texts))
    asked = request.headers.get("x-request-timeout")
    timeout_s = deadline_s(asked, service.settings.request_timeout)
    service.have_room(call, 1 if isinstance(texts, str) else len(texts))
    try:
        with Patience(timeout_s) as patience:
            call.when_gone = patience.client_gone
            return await service.encode(texts, call.usage, options)
    except TimeoutError:
        raise Refusal(
            504,
            "Timeout",
            f"no answer within {timeout_s:g} s. Nothing more is computed for this request.",
            code="deadline_exceeded",
        ) from None
    except (CoromError, ClientGone):
        raise
    except Exception as error:
        logger.exception("inference failed")
        error.__traceback__ = None  # its frames hold the future that it came by, which holds it
        raise Refusal(
            424, "Backend", "inference failed; the server's log says why.", code="inference_failed"
        ) from error
    finally:
        call.when_gone = None  # which refers to this task, and that to it


def deadline_s(header: str | None, most_s: float) -> float:
    """Return the seconds that a request may take: x-request-timeout, at most the server's."""
    if header is None:
        return most_s
    try:
        seconds = float(header)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise Refusal(
            400,
            "Validation",
            f"the header x-request-timeout is {header!r}; send seconds, such as 2.5.",
            code="invalid_value",
        )
    return min(seconds, most_s)


def respond(
    request: Request, parts: Iterator[bytes], count: int, headers: dict[str, str]
) -> Response:
    """Return the response for ``count`` parts of JSON; several are sent one by one."""
    if count == 1:
        return Response(next(parts), headers=headers, media_type="application/json")
    if request.scope.get("http_version") == "1.0":  # which knows no parts
        return Response(b"".join(parts), headers=headers, media_type="application/json")

    async def one_by_one() -> Any:  # noqa: ANN401
        for part in parts:
            yield part
            await asyncio.sleep(0)

    return StreamingResponse(one_by_one(), headers=headers, media_type="application/json")


def rows_at_once(dimension: int) -> int:
    """Return how many vectors are turned into JSON at once."""
    return max(1, VALUES_AT_ONCE // dimension)
