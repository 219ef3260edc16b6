"""Requests over kept-alive HTTP connections, and what came back: as light as Python allows.

The client shares the CPUs with the server it measures. So requests are ready bytes, written by the
thread that keeps time, bodies are kept as they came, and what they hold is looked at after the
load. Knows nothing of vectors.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

from .load import Seconds

ANSWER_SECONDS = 120.0
LOST = 0
"""The status of a request whose connection ended, or that was not answered in time."""
CHUNK = 1 << 18


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


Deliver = Callable[[Reply], None]
"""What is called with a reply, in the event loop's thread."""


class Connection:
    """One connection with at most one request on its way.

    ``idle``: where it is while it is free for the next request; ``there``: while it is open.
    """

    def __init__(
        self, raw: socket.socket, idle: "list[Connection]", there: "set[Connection]"
    ) -> None:
        self._socket, self._idle, self._there = raw, idle, there
        there.add(self)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(raw, self._read)
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._deliver: Deliver | None = None
        self._all_sent = True

    def ask(self, call: int, request: bytes, due: float, deliver: Deliver) -> None:
        """Send a request; from any thread, but one at a time."""
        self._call, self._due = call, due
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self.sent = time.perf_counter()
        self._deliver = deliver
        try:
            written = self._socket.send(request)
        except BlockingIOError:
            written = 0
        except OSError:
            self._loop.call_soon_threadsafe(self.close)
            return
        if written < len(request):
            self._all_sent = False
            self._loop.call_soon_threadsafe(self._send_rest, request[written:])

    def close(self) -> None:
        """Close the connection; what was asked is lost."""
        if self in self._there:
            self._there.remove(self)
            self._parser = None  # which refers to this
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            with suppress(ValueError):
                self._idle.remove(self)
            # Its number stays taken until nobody refers to it: another thread may write to it now.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._end(LOST)

    def __del__(self) -> None:
        self._socket.close()

    @property
    def waits(self) -> bool:
        """Whether an answer is to come."""
        return self._deliver is not None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; called by the parser."""
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body; called by the parser."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """The answer is complete; called by the parser, which knows only now if it may go on."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if self._parser.should_keep_alive() and self._all_sent:
            self._end(status, free=True)
        else:
            self._end(status)
            self.close()

    def _end(self, status: int, *, free: bool = False) -> None:
        """Deliver what came of the request, if there is one, and be free for the next."""
        if (deliver := self._deliver) is None:
            return
        ended = time.perf_counter()
        body = b"".join(self._parts)
        reply = Reply(self._call, self._due, self.sent, ended, status, self._headers, body)
        self._deliver = None
        if free:
            self._idle.append(self)  # whoever takes it asks at once, so this is the last thing done
        deliver(reply)

    def _read(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        # It ended, or sent what was not asked for.
        if not data or self._deliver is None or self._parser is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def _send_rest(self, rest: bytes) -> None:
        """Go on with a request that the system did not take at once."""
        if self not in self._there:
            return
        try:
            rest = rest[self._socket.send(rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._socket)
        if rest:
            self._loop.add_writer(self._socket, self._send_rest, rest)
        else:
            self._all_sent = True


class Client:
    """Sends requests to one server, each on a connection that is free, or on a new one."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._idle: list[Connection] = []
        self._there: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self.connections = 0
        """How many were opened."""

    async def send(self, call: int, request: bytes, due: float | None = None) -> Reply:
        """Send a request now and return what came of it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply] = loop.create_future()

        def deliver(reply: Reply) -> None:
            if not answer.done():
                answer.set_result(reply)

        self.start(loop, call, request, time.perf_counter() if due is None else due, deliver)
        return await answer

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        call: int,
        request: bytes,
        due: float,
        deliver: Deliver,
    ) -> None:
        """Send a request now; from any thread."""
        try:
            connection = self._idle.pop()  # in one step: another thread may take one as well
        except IndexError:
            loop.call_soon_threadsafe(self._open, call, request, due, deliver)
        else:
            connection.ask(call, request, due, deliver)

    def close(self) -> None:
        """Close all connections."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None  # the next connection starts it again
        for task in self._opening:
            task.cancel()
        for connection in list(self._there):
            connection.close()

    def _open(self, call: int, request: bytes, due: float, deliver: Deliver) -> None:
        task = asyncio.create_task(self._connect_and_ask(call, request, due, deliver))
        self._opening.add(task)  # the loop itself refers to it weakly
        task.add_done_callback(self._opening.discard)

    async def _connect_and_ask(
        self, call: int, request: bytes, due: float, deliver: Deliver
    ) -> None:
        loop = asyncio.get_running_loop()
        self.connections += 1
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                raw = await connected(*self._address)
        except OSError:  # which TimeoutError is as well
            now = time.perf_counter()
            deliver(Reply(call, due, now, now, LOST, {}, b""))
            return
        connection = Connection(raw, self._idle, self._there)
        if self._sweep is None:
            self._sweep = loop.call_later(ANSWER_SECONDS / 4, self._give_up, loop)
        connection.ask(call, request, due, deliver)

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections whose answer is overdue: one timer for all requests."""
        since = time.perf_counter() - ANSWER_SECONDS
        for connection in list(self._there):
            if connection.waits and connection.sent < since:
                connection.close()
        self._sweep = loop.call_later(ANSWER_SECONDS / 4, self._give_up, loop)


async def connected(host: str, port: int) -> socket.socket:
    """Return a socket that is connected and does not block."""
    raw = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(raw, (host, port))
    except BaseException:
        raw.close()
        raise
    return raw


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
    if not len(arrivals):
        return []
    loop = asyncio.get_running_loop()
    all_here = loop.create_future()
    replies: dict[int, Reply] = {}
    begin = time.perf_counter()

    def keep(row: int, reply: Reply) -> None:
        replies[row] = reply
        if len(replies) == len(arrivals) and not all_here.done():
            all_here.set_result(None)

    def fail(error: BaseException) -> None:
        if not all_here.done():
            all_here.set_exception(error)

    def send_all() -> None:
        try:
            keep_time()
        except BaseException as error:  # or who waits for the answers would wait for ever
            loop.call_soon_threadsafe(fail, error)

    def keep_time() -> None:
        # A loop's own timers are good to a millisecond, which is much of what is measured here; and
        # to wake the loop for each request, that it may send it, costs as much as its answer.
        for row, arrival in enumerate(arrivals.tolist()):
            due = begin + arrival
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            if all_here.done():  # nobody waits for it any more
                return
            call = row % len(requests)
            client.start(loop, call, requests[call], due, partial(keep, row))

    threading.Thread(target=send_all, daemon=True).start()
    await all_here
    return [replies[row] for row in range(len(arrivals))]
