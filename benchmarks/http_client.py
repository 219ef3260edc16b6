"""Requests over kept-alive HTTP connections, and what came back: as light as Python allows.

The client shares the CPUs with the server it measures. So requests are ready bytes, bodies are kept
as they came, and what they hold is looked at after the load. Knows nothing of vectors.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from .load import Seconds

ANSWER_SECONDS = 120.0
LOST = 0
"""The status of a request whose connection ended, or that was not answered in time."""


class Reply(NamedTuple):
    """One request and its answer. Times are of ``time.perf_counter``, in seconds.

    ``call``: which of the requests it was. ``due``: when it was to be sent; the latency counts from
    there, so that a stall of the client or the server is charged to all it kept waiting.
    """

    call: int
    due: float
    sent: float
    ended: float
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def latency(self) -> float:
        """Seconds from when it was due to its last byte."""
        return self.ended - self.due


class Connection(asyncio.Protocol):
    """One connection with at most one request on its way."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[bool] | None = None
        self._transport: asyncio.Transport
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    async def ask(self, request: bytes) -> int:
        """Return the answer's status, or ``LOST``; its ``headers`` and ``body`` stay here."""
        self._parser = httptools.HttpResponseParser(self)
        self.headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                complete = await self._answer
        except TimeoutError:
            complete = False
        if not complete:
            self.close()
            return LOST
        return int(self._parser.get_status_code())

    @property
    def body(self) -> bytes:
        """What the last answer held."""
        return b"".join(self._parts)

    def close(self) -> None:
        """Close the connection."""
        self.open = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._answer is None:  # nothing was asked, so this is no answer
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(complete=False)

    def connection_lost(self, _error: Exception | None) -> None:
        """An answer that is not complete will not come any more."""
        self.open = False
        self._end(complete=False)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; called by the parser."""
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body; called by the parser."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """The answer is complete; called by the parser, which knows only now if it may go on."""
        self.open = self.open and self._parser.should_keep_alive()
        self._end(complete=True)

    def _end(self, *, complete: bool) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(complete)
        self._answer = None


class Client:
    """Sends requests to one server, each on a connection that is free, or on a new one."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._idle: list[Connection] = []
        self.connections = 0
        """How many were opened."""

    async def send(self, call: int, request: bytes, due: float | None = None) -> Reply:
        """Send a request now and return what came of it."""
        due = time.perf_counter() if due is None else due
        try:
            connection = await self._connection()
        except OSError:
            now = time.perf_counter()
            return Reply(call, due, now, now, LOST, {}, b"")
        sent = time.perf_counter()
        status = await connection.ask(request)
        ended = time.perf_counter()
        reply = Reply(call, due, sent, ended, status, connection.headers, connection.body)
        if connection.open:
            self._idle.append(connection)
        return reply

    def close(self) -> None:
        """Close the connections that wait for a request."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).open:
                return connection
        self.connections += 1
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(ANSWER_SECONDS):
            return (await loop.create_connection(Connection, self._host, self._port))[1]


async def callers(
    client: Client, requests: Sequence[bytes], count: int, seconds: float
) -> list[Reply]:
    """Let ``count`` callers each send the next request when their last is answered."""
    until = time.perf_counter() + seconds
    replies: list[Reply] = []
    turn = 0

    async def call() -> None:
        nonlocal turn
        while time.perf_counter() < until:
            mine, turn = turn, turn + 1
            row = mine % len(requests)
            replies.append(await client.send(row, requests[row]))

    await asyncio.gather(*(call() for _ in range(count)))
    return replies


async def at_times(client: Client, requests: Sequence[bytes], arrivals: Seconds) -> list[Reply]:
    """Send a request at each time of ``arrivals``, in seconds from now, whatever is answered when.

    Returns the replies in the order of the arrivals.
    """
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Reply]] = []
    begun = loop.create_future()
    begin = time.perf_counter()

    def start(row: int, due: float) -> None:
        call = row % len(requests)
        tasks.append(loop.create_task(client.send(call, requests[call], due)))
        if len(tasks) == len(arrivals):
            begun.set_result(None)

    def keep_time() -> None:
        # A loop's own timers are good to a millisecond, which is much of what is measured here.
        for row, arrival in enumerate(arrivals.tolist()):
            due = begin + arrival
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            loop.call_soon_threadsafe(start, row, due)

    if not len(arrivals):
        return []
    threading.Thread(target=keep_time, daemon=True).start()
    await begun
    return list(await asyncio.gather(*tasks))
