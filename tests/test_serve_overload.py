"""What keeps the server's event loop in time while more is asked of it than it can do."""

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from corom.runtime.errors import Overloaded
from corom.runtime.request import Usage
from corom.runtime.server_lateness import Lateness
from corom.runtime.server_protocol import Connections, connection_class
from corom.runtime.server_service import Service
from corom.runtime.server_settings import Settings

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
        while lateness.seconds < 0.05:
            await asyncio.sleep(0)
            time.sleep(0.1)  # noqa: ASYNC251  # holds the loop up
        until = time.monotonic() + 10
        while lateness.seconds > 0.05 and time.monotonic() < until:
            await asyncio.sleep(0.005)
        assert lateness.seconds < 0.05
        watch.cancel()

    uvloop.run(main())


def test_what_is_late_is_refused_while_others_wait_and_only_then(tiny_bundle: Path) -> None:
    service = Service(Settings(bundle=str(tiny_bundle), encoder={"threads": 1}, queue_timeout=1000))

    async def main() -> None:
        await asyncio.to_thread(service.open)
        execute = service.encoder._backend.run

        def slowly(batch: Any) -> Any:
            time.sleep(0.1)
            return execute(batch)

        service.encoder._backend.run = slowly  # type: ignore[method-assign]
        await service.encode(TEXTS[0], Usage(), {})  # from which its pace is known
        calls = [asyncio.create_task(service.encode(text, Usage(), {})) for text in TEXTS]
        await asyncio.sleep(0.02)
        service.refuse_if_late()
        service.lateness.note(0.2)
        service.refuse_if_late()  # once may be a passing stall
        service.lateness.note(0.3)
        with pytest.raises(Overloaded, match=r"200 ms late, and what waits takes \d\.\d s"):
            service.refuse_if_late()
        await asyncio.gather(*calls)
        service.refuse_if_late()  # nothing waits, so refusing would mend nothing
        await asyncio.to_thread(service.close)

    uvloop.run(main())


def test_connections_that_wait_are_accepted_many_a_turn() -> None:
    """uvloop alone accepts one a turn."""
    turn, accepted = 0, []

    async def main() -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            listener.setblocking(False)
            connections = Connections(listener, 1000, 10)

            class Accepted(connection_class(connections)):  # type: ignore[misc]
                def connection_made(self, transport: Any) -> None:
                    accepted.append(turn)
                    nodelay = transport.get_extra_info("socket").getsockopt(
                        socket.IPPROTO_TCP, socket.TCP_NODELAY
                    )
                    assert nodelay
                    super().connection_made(transport)

            config = uvicorn.Config(lambda: None, lifespan="off", log_config=None)
            config.load()
            state = ServerState()
            server = await loop.create_server(
                lambda: Accepted(config, state, {}, loop), sock=listener, backlog=512
            )
            clients = [socket.create_connection(listener.getsockname()) for _ in range(200)]
            while len(accepted) < len(clients):
                turn += 1
                await asyncio.sleep(0)
            assert len(state.connections) == len(connections.unfinished) == len(clients)
            server.close()
            for client in clients:
                client.close()
            while state.connections:
                await asyncio.sleep(0.01)

    uvloop.run(asyncio.wait_for(main(), 60))
    assert max(accepted) <= 10
