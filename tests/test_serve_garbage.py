"""What the server looks for garbage so seldom for: requests, however they end, leave no cycles."""

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from corom.runtime.errors import CudaError, Overloaded
from corom.runtime.garbage import uncollected
from corom.runtime.server import build_app
from corom.runtime.server_metrics import Metrics
from corom.runtime.server_service import Service
from corom.runtime.server_settings import Settings

REQUESTS = 20
ONE = b'{"inputs": "\xe5\xa4\xb4\xe7\x97\x9b"}'


@pytest.fixture(scope="module", autouse=True)
def what_is_there_already() -> Iterator[None]:
    """Leave the test process's own objects alone: to look through them takes half a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def fails(_batch: Any) -> Any:
    raise RuntimeError("the backend failed")


def is_lost(_batch: Any) -> Any:
    raise CudaError("the device is lost", fatal=True)


def failing(service: Service) -> None:
    service.encoder._backend.run = fails  # type: ignore[method-assign]


def losing(service: Service) -> None:
    service.encoder._backend.run = is_lost  # type: ignore[method-assign]


def full(service: Service) -> None:
    def refuse(_tokens: int | None) -> None:
        raise Overloaded("full")

    service.batcher._exchange._refuse_if_full = refuse  # type: ignore[method-assign]


def late(service: Service) -> None:
    def refuse() -> None:
        raise Overloaded("late")

    service.before_reading = refuse  # type: ignore[method-assign]


def given_up(service: Service) -> None:
    async def encode(*_: Any, **__: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(Overloaded("waited"))
        return await future

    service.encode = encode  # type: ignore[method-assign]


def starting(service: Service) -> None:
    service.state = "starting"


@pytest.mark.parametrize(
    ("status", "body", "headers", "path", "change"),
    [
        (200, ONE, {}, "/embed", None),
        (200, ONE.replace(b"inputs", b"input"), {}, "/v1/embeddings", None),
        (400, b"{", {}, "/embed", None),
        (400, ONE, {"x-request-timeout": "x"}, "/embed", None),
        (404, ONE, {}, "/nothing", None),
        (405, ONE, {}, "/health", None),
        (413, json.dumps({"inputs": "a" * 5000}).encode(), {}, "/embed", None),
        (415, ONE, {"content-type": "text/plain"}, "/embed", None),
        (422, b'{"inputs": 1}', {}, "/embed", None),
        (424, ONE, {}, "/embed", failing),
        (424, ONE, {}, "/embed", losing),
        (500, ONE.replace(b"inputs", b"input"), {}, "/v1/embeddings", losing),
        (429, ONE, {}, "/embed", full),
        (429, ONE, {}, "/embed", given_up),
        (429, ONE, {}, "/embed", late),
        (503, ONE, {}, "/embed", starting),
        (504, ONE, {"x-request-timeout": "0.000001"}, "/embed", None),
    ],
)
def test_requests_leave_nothing_to_be_collected(
    status: int,
    body: bytes,
    headers: dict[str, str],
    path: str,
    change: Callable[[Service], None] | None,
    tiny_bundle: Path,
) -> None:
    bundle, one = str(tiny_bundle), {"threads": 1}
    service = Service(Settings(bundle=bundle, encoder=one, warmup="none", payload_limit=4000))
    service.open()
    service.state = "ready"
    if change is not None:
        change(service)
    app = build_app(service, Metrics(service))
    sent = {"content-type": "application/json"} | headers
    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }  # fmt: skip

    async def ask() -> list[int]:
        statuses: list[int] = []
        pieces = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if not pieces:
                await asyncio.Event().wait()
            return pieces.pop()

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        await app(dict(scope), receive, send)
        return statuses[:1]

    async def main() -> int:
        await ask()
        gc.collect()
        for _ in range(REQUESTS):
            assert await ask() == [status]
        await asyncio.sleep(0.05)  # the batcher's threads let go of what they answered
        return gc.collect()

    try:
        with uncollected():
            found = uvloop.run(main())
    finally:
        service.close()
    assert found < REQUESTS
