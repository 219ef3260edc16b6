"""Connections: what uvicorn's HTTP/1.1 protocol leaves open against clients that never finish.

A connection has so many seconds from its first moment, or from the first byte of a further request,
to the end of its headers, and so many bytes; and so many in which part of an answer must be taken.
When there are too many, the one that has been quiet longest is closed for the new one.
"""

import asyncio
import fcntl
import re
import socket
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .server_errors import Refusal, body_of, not_ready

HEADER_BYTES = 65_536
SWEEP_S = 1.0
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
CONTINUE = b"HTTP/1.1 100 "
TAKE_RATE = 16_384
"""Bytes a second that a client has to take of an answer, on average of --body-timeout: others wait
for the room that its vectors have."""


class Connections:
    """The connections without a request in hand, longest quiet first.

    ``listener``: the socket they come by; it must not block.
    """

    def __init__(
        self, listener: socket.socket, most: int, header_timeout_s: float, take_timeout_s: float
    ) -> None:
        self.most = most
        self.header_timeout_s, self.take_timeout_s = header_timeout_s, take_timeout_s
        self._listener = listener
        self._accepts = True
        self._accepting: set[asyncio.Task[Any]] = set()
        self.unfinished: dict[Connection, float] = {}
        """Those that owe headers, and since when."""
        self.idle: dict[Connection, None] = {}
        """Those that were answered and may ask again."""
        self._untaken: dict[Connection, tuple[float, int]] = {}
        """Those whose answer waits to be taken: since when, and bytes that were taken by then."""

    def accept_the_rest(self, make: Callable[[], "Connection"], count: int) -> None:
        """Accept all connections that wait, while there is room for them.

        uvloop accepts one a turn of the event loop. While each turn answers many requests, those
        who come anew would wait for seconds, unseen by every limit. ``count``: connections there
        are; beyond the most, each that comes costs another its place, which is for uvloop's turns.
        """
        loop = asyncio.get_running_loop()
        while self._accepts and count + len(self._accepting) < self.most:
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # none waits, or this one has gone
                return
            accepted.setblocking(False)
            task = loop.create_task(loop.connect_accepted_socket(make, accepted))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def accept_no_more(self) -> None:
        """Leave the rest to uvloop from now on, and see that none is left between."""
        self._accepts = False
        if self._accepting:
            await asyncio.wait(self._accepting)

    def owes_headers(self, connection: "Connection", now: float) -> None:
        """Note that headers are awaited from now on."""
        self.idle.pop(connection, None)
        self.unfinished[connection] = now

    def forget(self, connection: "Connection") -> None:
        """Note that a connection is busy, or closed."""
        self.unfinished.pop(connection, None)
        self.idle.pop(connection, None)

    def must_take(self, connection: "Connection", now: float) -> None:
        """Note that a client has to take what was written to it, and what follows."""
        self._untaken.setdefault(connection, (now, connection.taken()[0]))

    def has_taken(self, connection: "Connection") -> None:
        """Note that it has taken all, or that it is gone."""
        self._untaken.pop(connection, None)

    def make_room(self) -> bool:
        """Close the connection that has been quiet longest; False if all are busy."""
        quiet = next(iter(self.unfinished), None) or next(iter(self.idle), None)
        if quiet is None:
            return False
        self.forget(quiet)
        quiet.transport.abort()
        return True

    async def sweep(self) -> None:
        """Close what takes too long, over its headers or an answer; runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for connection, since in list(self.unfinished.items()):
                if since > now - self.header_timeout_s:
                    break
                self.forget(connection)
                connection.transport.abort()
            for connection, (since, before) in list(self._untaken.items()):
                taken, left = connection.taken()
                if not left:
                    self.has_taken(connection)
                elif now - since >= self.take_timeout_s:
                    self.has_taken(connection)
                    if taken - before < TAKE_RATE * self.take_timeout_s:
                        connection.transport.abort()
                    else:
                        self.must_take(connection, now)


class WholeAnswers:
    """A transport that sends the head of an answer together with what follows: one packet, not two.

    The client would otherwise be woken for the head alone, which costs it and us a turn.
    """

    def __init__(self, transport: Any, closing: Callable[[], None]) -> None:  # noqa: ANN401
        self._transport, self._closing = transport, closing
        self._head = b""
        self.written = 0

    def write(self, data: bytes) -> None:
        """Send, or keep the head of an answer until the next piece."""
        if not self._head and data.startswith(b"HTTP/1.1 ") and not data.startswith(CONTINUE):
            self._head = data
            return
        whole = self._head + data if self._head else data
        self.written += len(whole)
        self._transport.write(whole)
        self._head = b""

    def flush(self) -> None:
        """Send what is kept: nothing follows the head of an answer to HEAD."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Send what is kept, and close."""
        self.flush()
        self._transport.close()
        self._closing()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """One connection. ``others`` is set by ``connection_class``."""

    others: Connections
    _reading = False
    """A request has begun, and its body has not ended."""
    _answering: Any = None
    """The request that is being answered; uvicorn's ``cycle`` is the last that was sent."""

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401
        """Take a connection, if there is room or can be made, and those that wait behind it."""
        together: Any = WholeAnswers(transport, self._closing)
        super().connection_made(together)
        self._header_bytes = 0
        if len(self.connections) > self.others.most and not self.others.make_room():
            self._answer_and_close(not_ready("too many connections (--max-connections)."), "/")
            return
        self.others.owes_headers(self, self.loop.time())
        self.others.accept_the_rest(self._another, len(self.connections))

    def _another(self) -> "Connection":
        return type(self)(self.config, self.server_state, self.app_state, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and tell the request that is being answered."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
            call = self._answering.scope.get("corom.call")
            if call is not None and call.when_gone is not None:
                call.when_gone()
        self.pipeline.clear()
        super().connection_lost(exc)  # which closes it, whatever was not taken
        self.others.forget(self)
        self.others.has_taken(self)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the headers have become too long."""
        if self.transport.is_closing():
            return
        if self in self.others.idle:
            self.others.owes_headers(self, self.loop.time())
        headers = not self._reading and self in self.others.unfinished
        if headers and b"pgrade" in data:
            data = without_upgrade(data)
        before = self._header_bytes
        self._header_bytes += len(data)
        if headers and before == 0 and data.find(b"\r\n\r\n") > HEADER_BYTES:
            self._refuse_headers()
            return
        super().data_received(data)
        # Headers that ended within this piece have set the count to 0.
        if self._header_bytes > HEADER_BYTES and self._header_bytes > before:
            self._refuse_headers()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._reading = True
        self.others.forget(self)
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle
        elif len(self.pipeline) == 1:
            self.flow.resume_reading()  # who goes without waiting is to be noticed all the same

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, which is not counted as headers."""
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request's body, which may have been refused already."""
        self._header_bytes = 0
        self._reading = False
        super().on_message_complete()
        if not self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()  # a long body has paused it, and a client that goes is read
        if self.cycle.response_complete and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            self._wait_for_another()

    def on_response_complete(self) -> None:
        """Wait for another request, or for the rest of this one's body."""
        together: Any = self.transport
        together.flush()
        if self.pipeline:
            self._answering, _ = self.pipeline[-1]
        super().on_response_complete()
        if self.transport.is_closing() or self.timeout_keep_alive_task is None:
            return
        if self._reading:  # was refused unread; what is left has as long as headers have
            self.others.owes_headers(self, self.loop.time())
        else:
            self._wait_for_another()

    def pause_writing(self) -> None:
        """Write no more until the client has taken what there is."""
        self.others.must_take(self, self.loop.time())
        super().pause_writing()

    def taken(self) -> tuple[int, int]:
        """Return how many of the bytes that were written the client has got, and has not."""
        together: Any = self.transport
        left = bytes_left(together)
        return together.written - left, left

    def _closing(self) -> None:
        """The connection ends once the client has taken what is left."""
        if self.transport.get_write_buffer_size():
            self.others.must_take(self, self.loop.time())

    def _wait_for_another(self) -> None:
        self.others.forget(self)
        self.others.idle[self] = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        refusal = Refusal(400, "Validation", msg, code="invalid_http")
        self._answer_and_close(refusal, self._path())

    def _refuse_headers(self) -> None:
        why = f"the headers are larger than {HEADER_BYTES} bytes."
        self._answer_and_close(Refusal(431, "Validation", why), self._path())

    def _path(self) -> str:
        """Return the path of the request that is being read, as far as it has come."""
        url: bytes = getattr(self, "url", b"")
        return url.decode("latin-1").partition("?")[0]

    def _answer_and_close(self, refusal: Refusal, path: str) -> None:
        body = body_of(refusal, path)
        phrases = {400: "Bad Request", 431: "Request Header Fields Too Large"}
        lines = [
            f"HTTP/1.1 {refusal.status} {phrases.get(refusal.status, 'Service Unavailable')}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode())
        self.transport.write(body)
        self.transport.close()


def bytes_left(transport: asyncio.Transport) -> int:
    """Return how many of the bytes that were written the other end has not got yet.

    The system's own buffer counts: it takes more from us only when a third of it is empty, which
    may be a megabyte.
    """
    in_system = bytearray(4)
    with suppress(OSError, ValueError):  # it was closed meanwhile, or the system does not tell
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_system)
    return transport.get_write_buffer_size() + int.from_bytes(in_system, sys.byteorder)


def without_upgrade(data: bytes) -> bytes:
    """Return the head of a request with its wish to speak another protocol taken out.

    Java's HttpClient offers HTTP/2 with every first request. A server may ignore that; the parser
    would stop reading there, and the body would be lost.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return UPGRADE.sub(b"\r\nx-upgrade:", head) + end + rest


def connection_class(connections: Connections) -> type[Connection]:
    """Return the protocol whose connections know of each other."""
    return type("Connection", (Connection,), {"others": connections})
