"""What stands before every route: the request's id, the key, the count of requests, the record."""

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

from .server_call import Call
from .server_errors import Refusal, body_of, not_ready, status_of
from .server_log import log_request, logger

App = Callable[..., Any]
PROBES = frozenset({"/", "/health", "/ping", "/health/live", "/health/ready"})
"""What is asked here by GET or HEAD comes without a key."""
LINGER_S = 5.0


class Record:
    """Outermost: gives every request its id, answers what was refused or failed, and records it."""

    def __init__(
        self, app: App, sent: Callable[[Call], None], observe: Callable[[Call], None]
    ) -> None:
        self._app, self._sent, self._observe = app, sent, observe

    async def __call__(self, scope: Any, receive: App, send: App) -> None:  # noqa: ANN401
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = scope["corom.call"] = Call(scope)
        complete = False

        async def send_with_id(message: Any) -> None:  # noqa: ANN401
            nonlocal complete
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message["headers"].append((b"x-request-id", call.id.encode()))
            else:
                complete = not message.get("more_body", False)
            await send(message)
            if complete:  # the client may ask again before those who made the answer have returned
                self._sent(call)

        try:
            await self._app(scope, receive, send_with_id)
            if call.status and not complete:
                call.status = 499  # it went away in the middle of the answer
                call.failure = "ClientGone"
        except Exception:
            # No traceback ever leaves the house.
            call.failure = "Internal"
            logger.exception("request %s failed: a bug in corom", call.id)
            if not complete:
                raise  # half an answer: the connection is closed
        except asyncio.CancelledError:  # --shutdown-timeout has passed
            call.cut_off = True
            if call.status:
                call.failure = "Unhealthy"
            else:
                ending = not_ready("the server is ending and could not wait for this.")
                await refuse(ending, scope, receive, send_with_id)
        finally:
            self._observe(call)
            log_request(call)


class Key:
    """Lets only requests with a key pass."""

    def __init__(self, app: App, keys: tuple[str, ...]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Any, receive: App, send: App) -> None:  # noqa: ANN401
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and not is_probe(scope["method"], scope["path"]):
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            kind, _, key = given.partition(b" ")
            # All are compared, so that time does not tell which.
            matches = [hmac.compare_digest(key.strip(), own) for own in self._keys]
            if kind.lower() != b"bearer" or not any(matches):
                what = "is wrong" if given else "is missing"
                refusal = Refusal(
                    401,
                    "Unauthorized",
                    f"the key {what}. Send the header: authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                    close=True,
                )
                await refuse(refusal, scope, receive, send)
                return
        await self._app(scope, receive, send)


def is_probe(method: str, path: str) -> bool:
    """Say whether this only asks whether the server is well."""
    return method in {"GET", "HEAD"} and path in PROBES


async def refuse(refusal: Refusal, scope: Any, receive: App, send: App) -> None:  # noqa: ANN401
    """Send a refusal. If the request's body is left unread, what still comes is thrown away.

    Closing at once would reset the connection, and the client would never see the answer.
    """
    path = scope["path"]
    call: Call = scope["corom.call"]
    call.failure = refusal.kind
    status, body = status_of(refusal, path), body_of(refusal, path)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((k.encode(), v.encode()) for k, v in refusal.headers.items()),
    ]
    if refusal.close:
        headers.append((b"connection", b"close"))
    head = scope["method"] == "HEAD"
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body, "more_body": True})
    if refusal.close and status != 408:  # of which nothing more comes
        await _throw_away(receive)
    await send({"type": "http.response.body", "body": b""})


async def _throw_away(receive: App) -> None:
    try:
        async with asyncio.timeout(LINGER_S):
            message = {"more_body": True}
            while message.get("more_body"):
                message = await receive()
    except TimeoutError:
        pass
