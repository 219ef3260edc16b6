"""What keeps the server's event loop in time while more is asked of it than it can do."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
import uvicorn
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from occupied import ROOM, occupied
from uvicorn.server import ServerState

from corom.runtime.errors import Overloaded
from corom.runtime.request import Usage
from corom.runtime.server import build_app
from corom.runtime.server_lateness import Lateness
from corom.runtime.server_metrics import Metrics
from corom.runtime.server_protocol import Connections, connection_class
from corom.runtime.server_service import Service
from corom.runtime.server_settings import Settings

TAKE_S = 1.0
TEXTS = ["头痛", "发烧三天", "高血压吃什么药", "感冒了", "失眠", "胃疼"]


@given(st.lists(st.floats(0, 10), min_size=2))
def test_late_is_what_was_late_twice(late: list[float]) -> None:
    lateness = Lateness()
    for seconds in late:
        lateness.note(seconds)
    assert lateness.seconds == min(late[-2:])


def test_a_loop_that_is_held_up_is_late_and_then_in_time() -> None:
    async def main() -> None:
        lateness = Lateness()
        watch = asyncio.create_task(lateness.watch())
        async with asyncio.timeout(60):
            while lateness.seconds < 0.05:
                await asyncio.sleep(0)
                time.sleep(0.1)  # noqa: ASYNC251  # holds the loop up
            while lateness.seconds > 0.05:
                await asyncio.sleep(0.005)
        watch.cancel()

    uvloop.run(main())


def test_what_is_late_is_refused_while_others_wait_and_only_then(tiny_bundle: Path) -> None:
    service = Service(Settings(bundle=str(tiny_bundle), encoder={"threads": 1}, queue_timeout=1000))

    async def main() -> None:
        await asyncio.to_thread(service.open)
        execute, go_on = service.encoder._backend.run, threading.Event()

        def held_up(batch: Any, seconds: float) -> Any:
            go_on.wait(seconds)
            return execute(batch)

        service.encoder._backend.run = partial(held_up, seconds=0.1)  # type: ignore[method-assign]
        await service.encode(TEXTS[0], Usage(), {})  # from which its pace is known
        service.encoder._backend.run = partial(held_up, seconds=60)  # type: ignore[method-assign]
        calls = [asyncio.create_task(service.encode(TEXTS[0], Usage(), {}))]
        async with asyncio.timeout(60):
            while not service.batcher.counters().running_texts:
                await asyncio.sleep(0.01)
            calls += [asyncio.create_task(service.encode(text, Usage(), {})) for text in TEXTS]
            while not service.batcher.counters().waiting_texts:
                await asyncio.sleep(0.01)
        service.before_reading()  # only once it is late
        service.lateness.note(0.2)
        service.before_reading()  # once may be a passing stall
        service.lateness.note(0.3)
        with pytest.raises(Overloaded, match=r"200 ms late, and what waits takes \d\.\d s"):
            service.before_reading()
        go_on.set()
        await asyncio.gather(*calls)
        service.before_reading()  # nothing waits, so refusing would mend nothing
        await asyncio.to_thread(service.close)

    uvloop.run(main())


def test_requests_are_read_together_while_work_waits_and_only_then(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(Settings(bundle=str(tiny_bundle), encoder={"threads": 1}))
    pauses: list[float] = []

    async def paused_after(requests: int, wait_s: float) -> int:
        pauses.clear()
        service.batcher.wait_s = lambda: wait_s  # type: ignore[method-assign]
        for _ in range(requests):
            service.before_reading()
        await asyncio.sleep(0.001)
        return len(pauses)

    async def main() -> None:
        await asyncio.to_thread(service.open)
        monkeypatch.setattr("corom.runtime.server_turns.time", Mock(sleep=pauses.append))
        assert await paused_after(5, 0.1) == 1
        assert pauses == [0.002]
        assert await paused_after(1, 0.1) == 1  # again, in the next turn
        assert await paused_after(5, 0.01) == 0
        assert await paused_after(5, 0.5) == 0  # nothing to gain: there is more than can be done
        monkeypatch.undo()
        await asyncio.to_thread(service.close)

    uvloop.run(main())


@asynccontextmanager
async def listening(
    most: int, app: Any = None, **options: Any
) -> AsyncIterator[tuple[Connections, ServerState, Any]]:
    """Connections of a listening socket, the server's state and the socket's address."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so little waits there
        connections = Connections(listener, most, 10, TAKE_S)
        config = uvicorn.Config(app or (lambda: None), lifespan="off", log_config=None, **options)
        config.load()
        kind, state = connection_class(connections), ServerState()
        server = await loop.create_server(
            lambda: kind(config, state, {}, loop), sock=listener, backlog=512
        )
        try:
            yield connections, state, listener.getsockname()
        finally:
            server.close()


def test_connections_that_wait_are_accepted_together() -> None:
    """uvloop alone accepts one a turn."""

    async def main() -> None:
        async with listening(1000) as (connections, state, address):
            clients = [socket.create_connection(address) for _ in range(200)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(state.connections) == len(connections.unfinished) == len(clients)
            for connection in state.connections:
                transport: Any = connection.transport
                accepted = transport.get_extra_info("socket")
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for client in clients:
                client.close()
            async with asyncio.timeout(60):
                while state.connections:
                    await asyncio.sleep(0.01)

    uvloop.run(main())


def test_no_more_are_accepted_together_than_there_is_room_for() -> None:
    async def main() -> None:
        async with listening(50) as (_, state, address):
            clients = [socket.create_connection(address) for _ in range(200)]
            async with asyncio.timeout(60):
                while len(state.connections) < 50:
                    await asyncio.sleep(0)
            assert len(state.connections) < 60  # uvloop's own, one a turn: the oldest is to go
            for client in clients:
                client.close()

    uvloop.run(main())


def answers(size: int, parts: int) -> Any:
    """An application that answers with so many bytes, in so many parts."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        length = (b"content-length", str(size).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        for part in range(parts):
            body = bytes(size // parts)
            more = part + 1 < parts
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


def asking(address: Any, room: int, keep: bool) -> socket.socket:
    """A client that has asked, and whose system takes little before it does."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    client.connect(address)
    end = "keep-alive" if keep else "close"
    client.sendall(f"GET / HTTP/1.1\r\nhost: x\r\nconnection: {end}\r\n\r\n".encode())
    return client


@pytest.mark.parametrize("parts", [50, pytest.param(1, marks=pytest.mark.slow)])
def test_who_takes_nothing_of_an_answer_is_closed_and_who_is_slow_gets_all(parts: int) -> None:
    size = 8_000_000

    def slowly(client: socket.socket) -> int:
        taken = 0
        while (piece := client.recv(2**18)) and (taken := taken + len(piece)) < size:
            time.sleep(0.1)  # seconds in all, several times as long as nothing may be taken
        return taken

    async def main() -> None:
        # An idle connection is closed sooner than one of which nothing is taken is given up.
        app = answers(size, parts)
        async with listening(100, app, timeout_keep_alive=0.3) as (connections, state, address):
            sweep = asyncio.create_task(connections.sweep())
            clients = [asking(address, 2**16, keep=True) for _ in range(5)]
            async with asyncio.timeout(60):
                while len(state.connections) < 5:
                    await asyncio.sleep(0)
            slow = asyncio.create_task(asyncio.to_thread(slowly, clients[0]))
            async with asyncio.timeout(60):
                while len(state.connections) > 1:
                    await asyncio.sleep(0.05)
            assert not slow.done()
            assert await slow >= size
            async with asyncio.timeout(60):
                while state.connections:
                    await asyncio.sleep(0.05)
            assert not connections._untaken
            sweep.cancel()
            for client in clients:
                client.close()

    uvloop.run(main())


def test_who_takes_a_little_now_and_then_is_closed() -> None:
    """Or it would hold the room that its vectors have for as long as it likes."""

    async def main() -> None:
        app = answers(8_000_000, 50)
        async with listening(100, app) as (connections, state, address):
            sweep = asyncio.create_task(connections.sweep())
            client = asking(address, 2048, keep=True)
            client.setblocking(False)
            async with asyncio.timeout(60):
                while not state.connections:
                    await asyncio.sleep(0)
                while state.connections:
                    with suppress(BlockingIOError):
                        client.recv(400)
                    await asyncio.sleep(0.1)
            assert not connections._untaken
            sweep.cancel()
            client.close()

    uvloop.run(main())


@pytest.mark.parametrize("keep", [True, False])
def test_little_that_is_not_taken_keeps_no_connection_either(keep: bool) -> None:
    """What uvloop holds back without a word: 64 KiB."""

    async def main() -> None:
        app = answers(60_000, 1)
        async with listening(100, app, timeout_keep_alive=0.3) as (connections, state, address):
            sweep = asyncio.create_task(connections.sweep())
            client = asking(address, 2048, keep)
            async with asyncio.timeout(60):
                while not state.connections:
                    await asyncio.sleep(0)
                while state.connections:
                    await asyncio.sleep(0.05)
            assert not connections._untaken
            sweep.cancel()
            client.close()

    uvloop.run(main())


def test_before_a_server_ends_none_is_between_accepted_and_told_to_end() -> None:
    async def main() -> None:
        async with listening(1000) as (connections, state, address):
            clients = [socket.create_connection(address) for _ in range(200)]
            while not state.connections:
                await asyncio.sleep(0)
            await connections.accept_no_more()
            known = len(state.connections)
            more = socket.create_connection(address)
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(clients) <= known <= len(state.connections) <= known + 5
            for client in [*clients, more]:
                client.close()

    uvloop.run(main())


def test_a_late_server_refuses_before_it_reads_the_body(tiny_bundle: Path) -> None:
    service = Service(Settings(bundle=str(tiny_bundle), warmup="none"))
    service.open()
    service.state = "ready"
    late = "requests come faster than they are read"
    service.before_reading = Mock(side_effect=Overloaded(late))  # type: ignore[method-assign]
    app = build_app(service, Metrics(service))
    scope = {
        "type": "http", "method": "POST", "path": "/embed", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body was read")

    try:
        asyncio.run(app(scope, receive, send))
    finally:
        service.close()
    assert sent[0]["status"] == 429
    assert dict(sent[0]["headers"])[b"retry-after"] == b"1"
    assert late.encode() in sent[1]["body"]


def test_the_rest_of_a_refused_body_is_not_taken_for_headers(
    serve: Callable[..., AbstractContextManager[str]], tiny_bundle: Path
) -> None:
    """It may be long, and the next request may come in the same packet as its end."""
    body = b'{"inputs": "' + b"a" * 700_000 + b'"}'
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    post = head + b"content-length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with serve(tiny_bundle, "--max-concurrent-requests", "1", *ROOM) as url, occupied(url):
        split = urlsplit(url)
        with socket.create_connection((split.hostname, split.port), 60) as connection:
            for _ in range(10):
                connection.sendall(post)
            connection.sendall(last)
            answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"429"] * 10 + [b"200"]
