"""Faults of clients and of the machine against the real server: it answers or closes properly.

After each it still gives right vectors, its memory is flat, and no client ever saw a traceback.
"""

import asyncio
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from corom.benchmarks.http_calls import Call, apart, call_rows, check, make_calls
from corom.benchmarks.http_client import LOST, Client, Reply, at_times, callers
from corom.benchmarks.http_server import Server, corom_command
from corom.benchmarks.texts import made_texts
from corom.runtime import Encoder

TIMEOUT_S = 2.0
"""What the server under test gives a client for its headers, and for its body."""
WORDS = ["--header-timeout", str(TIMEOUT_S), "--body-timeout", str(TIMEOUT_S)]
FLAT_BYTES = 40_000_000
JSON = b"content-type: application/json\r\n"
ROUTES = {b"/v1/embeddings": b"input", b"/embed": b"inputs"}


class Texts:
    """Texts, the calls that ask for them, and the vectors that must come."""

    def __init__(self, bundle: Path) -> None:
        with Encoder(bundle) as encoder:
            texts = made_texts("both", 200)
            vectors = encoder.encode(texts)
            rows = apart(vectors, 0.9999)
            self.texts = [texts[row] for row in rows]
            self.vectors = vectors[rows]
            self.model = encoder.manifest.name

    def calls(self, size: int | None = None) -> list[Call]:
        """Return a call for each text, or every tenth with eight; ``size``: each of so many."""
        count = len(self.texts)
        rows = call_rows(count, count, mixed=True)
        if size is not None:
            rows = [[(row + k) % count for k in range(size)] for row in range(count)]
        return make_calls(self.texts, rows, self.model)


@pytest.fixture(scope="module")
def texts(tiny_bundle: Path) -> Texts:
    return Texts(tiny_bundle)


@pytest.fixture(scope="module")
def impatient(tiny_bundle: Path) -> Iterator[Server]:
    """A server with short timeouts; all that is done to it must leave it well."""
    with Server(corom_command(tiny_bundle, WORDS), {}) as server:
        yield server
        words = server.said()
        assert server.close() == 0
    assert "Traceback" not in words, words


@pytest.fixture(autouse=True)
def well_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test with the shared server it answers, right, and has kept no memory."""
    if "impatient" not in request.fixturenames:
        yield
        return
    server: Server = request.getfixturevalue("impatient")
    texts: Texts = request.getfixturevalue("texts")
    require_right(server.url, texts, 0.2)  # what the first requests need is not a leak
    before = server.usage().rss_bytes
    yield
    require_right(server.url, texts, 0.2)
    assert server.usage().rss_bytes - before < FLAT_BYTES


def require_right(url: str, texts: Texts, seconds: float) -> None:
    """Ask for a while, and require right vectors only."""
    calls = texts.calls()

    async def ask() -> list[Reply]:
        client = Client(url)
        try:
            return await callers(client, [call.request for call in calls], 4, seconds)
        finally:
            client.close()

    found = check(asyncio.run(ask()), calls, texts.vectors, 0.9999)
    assert found.statuses == {200: found.right}, found


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=30)


def post(path: bytes, body: bytes, headers: bytes = JSON) -> bytes:
    length = b"content-length: %d\r\n" % len(body)
    return b"POST %s HTTP/1.1\r\nhost: x\r\n%s%s\r\n%s" % (path, headers, length, body)


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the server closes; it must do so within the socket's timeout."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def answered(connection: socket.socket) -> tuple[int, bytes]:
    """Return status and body of the next answer."""
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        part = connection.recv(65536)
        assert part, f"closed after {buffer!r}"
        buffer += part
    head, _, body = buffer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), body


def ask(url: str, request: bytes) -> tuple[int, bytes]:
    with connect(url) as connection:
        connection.sendall(request)
        return answered(connection)


def require_error(path: bytes, body: bytes) -> None:
    """Require the form that the clients of a path read, with a message for people."""
    told = json.loads(body)
    if path.startswith(b"/v1/"):
        assert set(told["error"]) == {"message", "type", "param", "code"}
        message = told["error"]["message"]
    else:
        assert set(told) == {"error", "error_type"}
        message = told["error"]
    assert len(message) > 8
    for word in ("Traceback", 'File "', "site-packages", " at 0x"):
        assert word not in message


# --- Bodies that are none


DEEP = 100_000
BODIES = {
    "empty": b"",
    "no JSON": b"{input: 1}",
    "cut JSON": b'{"%s": "abc',
    "two documents": b'{"%s": "a"} {"%s": "b"}',
    "invalid UTF-8": b'{"%s": "\xff\xfe\xc3\x28"}',
    "UTF-16": '{"%s": "a"}'.encode("utf-16"),
    "a lone surrogate": b'{"%s": "\\ud800"}',
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "no input": b"{}",
    "input null": b'{"%s": null}',
    "input of numbers and texts": b'{"%s": ["a", 1]}',
    "input of an object": b'{"%s": {"a": "b"}}',
    "no texts": b'{"%s": []}',
    "a text that is null": b'{"%s": ["a", null]}',
    "deep lists": b'{"%s": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep lists never closed": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep objects in a field that is not known": b'{"%s": "a", "x": '
    + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "NaN": b'{"%s": "a", "dimensions": NaN}',
    "infinity": b'{"%s": "a", "dimensions": Infinity}',
    "NaN among token ids": b'{"%s": [1, NaN]}',
    "a number beyond any": b'{"%s": "a", "dimensions": 1e999}',
    "an integer beyond any": b'{"%s": "a", "dimensions": ' + b"9" * 5000 + b"}",
    "half a dimension": b'{"%s": "a", "dimensions": 1.5}',
    "no dimension": b'{"%s": "a", "dimensions": 0}',
    "fewer than none": b'{"%s": "a", "dimensions": -1}',
    "more dimensions than there are": b'{"%s": "a", "dimensions": 4096}',
    "a token id beyond the vocabulary": b'{"%s": [99999999]}',
    "a token id below it": b'{"%s": [-1]}',
    "a token id beyond 64 bits": b'{"%s": [99999999999999999999999]}',
    "a token id that is a fraction": b'{"%s": [1.5]}',
}  # fmt: skip


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_cannot_be_used_is_refused(server: str, path: bytes, body: bytes) -> None:
    field = ROUTES[path]
    status, told = ask(server, post(path, body.replace(b"%s", field)))
    assert status in {400, 413, 422}, told
    require_error(path, told)
    assert ask(server, post(path, b'{"%s": "a"}' % field))[0] == 200


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("kind", [
    b"", b"content-type: text/plain\r\n", b"content-type: application/x-www-form-urlencoded\r\n",
    b"content-type: multipart/form-data; boundary=x\r\n", b"content-type: \xff\xfe\r\n",
    b"content-type: application/json; charset=gbk\r\n",
])  # fmt: skip
def test_a_wrong_content_type_is_refused(server: str, path: bytes, kind: bytes) -> None:
    status, told = ask(server, post(path, b'{"%s": "a"}' % ROUTES[path], kind))
    assert status == 415
    require_error(path, told)


@pytest.mark.parametrize("request_", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"\x00" * 1000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 1e9\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-a: " + b"a" * 200_000 + b"\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-a: a\r\n" * 20_000 + b"\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
], ids=lambda request: repr(request[:40]))  # fmt: skip
def test_what_is_no_http_is_refused_and_closed(impatient: Server, request_: bytes) -> None:
    with connect(impatient.url) as connection:
        connection.settimeout(TIMEOUT_S + 5)
        try:
            connection.sendall(request_)
        except (ConnectionResetError, BrokenPipeError):
            return
        said = read_all(connection)
    assert said == b"" or said.split()[1][:1] == b"4", said[:200]
    assert b"Traceback" not in said


# --- Bodies that are too large


def test_a_body_of_100_mb_is_refused_before_it_is_read(impatient: Server) -> None:
    head = post(b"/embed", b"").replace(b"content-length: 0", b"content-length: 100000000")
    with connect(impatient.url) as connection:
        connection.sendall(head)
        began = time.perf_counter()
        status, told = answered(connection)
        assert time.perf_counter() - began < 10  # its bytes never come
    assert status == 413
    require_error(b"/embed", told)


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_who_sends_100_mb_all_the_same_gets_the_answer(impatient: Server, chunked: bool) -> None:
    part = b'"' + b"a" * 999_998 + b'"'
    head = post(b"/v1/embeddings", b"")
    if chunked:
        head = head.replace(b"content-length: 0", b"transfer-encoding: chunked")
        part = b"%x\r\n%s\r\n" % (len(part), part)
    else:
        head = head.replace(b"content-length: 0", b"content-length: 100000000")

    def send() -> None:
        try:
            connection.sendall(head)
            for _ in range(100):
                connection.sendall(part)
        except (ConnectionResetError, BrokenPipeError):
            pass

    peak = impatient.usage().rss_bytes
    with connect(impatient.url) as connection, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        status, told = answered(connection)
        sending.result()
    assert status == 413
    require_error(b"/v1/embeddings", told)
    assert impatient.usage().rss_bytes - peak < FLAT_BYTES


@pytest.mark.parametrize("asked", [
    pytest.param(("头痛" * 500_000), id="text", marks=pytest.mark.slow),
    pytest.param([5] * 1_000_000, id="ids"),
])  # fmt: skip
def test_a_million_tokens_in_one_text_are_cut_or_refused(
    tiny_bundle: Path, texts: Texts, asked: str | list[int]
) -> None:
    words = [*WORDS, "--payload-limit", "20000000"]
    request = post(b"/embed", json.dumps({"inputs": asked}).encode())
    with Server(corom_command(tiny_bundle, words), {}) as server:
        memory = []
        for _ in range(4):
            status, told = ask(server.url, request)
            assert status == 200, told
            vector = np.array(json.loads(told), np.float32)
            assert vector.shape == (1, texts.vectors.shape[1])
            memory.append(server.usage().rss_bytes)
        # The first makes room for a million tokens, which is kept; the others find it.
        assert memory[-1] - memory[1] < FLAT_BYTES
        body = json.dumps({"inputs": asked, "truncate": False}).encode()
        status, told = ask(server.url, post(b"/embed", body))
        assert status in {413, 422}
        require_error(b"/embed", told)
        require_right(server.url, texts, 0.2)


@pytest.mark.slow
def test_a_million_tokens_in_one_request_of_many_texts(tiny_bundle: Path, texts: Texts) -> None:
    """Split inside: others are served in between, and memory stays flat."""
    words = ["--payload-limit", "20000000", "--queue-timeout", "120"]
    many = [texts.texts[k % len(texts.texts)] for k in range(15_000)]
    with Server(corom_command(tiny_bundle, words), {}) as server, ThreadPoolExecutor(1) as pool:
        require_right(server.url, texts, 0.5)
        before = server.usage().rss_bytes
        body = json.dumps({"input": many, "encoding_format": "base64"}).encode()
        request = post(b"/v1/embeddings", body)

        async def ask_all() -> Reply:
            client = Client(server.url)
            try:
                return await client.send(0, request)
            finally:
                client.close()

        asking = pool.submit(asyncio.run, ask_all())
        while not asking.done():
            require_right(server.url, texts, 0.5)
        reply = asking.result()
        assert reply.status == 200, reply.body[:300]
        call = Call(request, [k % len(texts.texts) for k in range(len(many))])
        assert check([reply], [call], texts.vectors, 0.9999).right == 1
        assert server.usage().rss_bytes - before < 5 * FLAT_BYTES


# --- Clients that do not finish


@pytest.mark.parametrize("sent", [0, 20, 100], ids=["nothing", "half a header", "half a body"])
def test_who_stops_half_way_is_answered_or_closed_in_time(impatient: Server, sent: int) -> None:
    whole = post(b"/embed", b'{"inputs": "a"}')
    part = whole[:sent] if sent < 100 else whole[:-5]
    with connect(impatient.url) as connection:
        connection.settimeout(TIMEOUT_S + 8)
        connection.sendall(part)
        began = time.perf_counter()
        said = read_all(connection)
        took = time.perf_counter() - began
    assert TIMEOUT_S * 0.5 < took < TIMEOUT_S + 7
    if sent == 100:
        assert said.split()[1] == b"408"
        require_error(b"/embed", said.partition(b"\r\n\r\n")[2])
    else:
        assert said == b"" or said.split()[1] == b"408"


def test_half_bodies_of_many_clients_take_bounded_memory(tiny_bundle: Path, texts: Texts) -> None:
    words = ["--payload-limit", "1000000", "--body-memory", "2000000", "--body-timeout", "20"]
    whole = post(b"/embed", b'{"inputs": "%s"}' % (b"a" * 900_000))
    with Server(corom_command(tiny_bundle, words), {}) as server, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server.url)).sendall(whole[:-100_000])
        require_right(server.url, texts, 0.2)  # a body that comes whole at once needs no room
        refused = stack.enter_context(connect(server.url))
        refused.settimeout(10)
        refused.sendall(whole[:-1])
        said = read_all(refused)
        assert said.split()[1] == b"429", said
        assert b"retry-after: 1" in said.lower()
        require_error(b"/embed", said.partition(b"\r\n\r\n")[2])
        assert b"--body-memory" in said
        stack.close()
        assert ask(server.url, whole)[0] == 200


@pytest.mark.parametrize("linger", [False, True], ids=["closed", "reset"])
def test_who_leaves_half_way_costs_nothing(impatient: Server, linger: bool) -> None:
    whole = post(b"/v1/embeddings", json.dumps({"input": ["头痛" * 60] * 64}).encode())
    for sent in (1, 30, len(whole) // 2, len(whole) - 1, len(whole)):
        for _ in range(10):
            with connect(impatient.url) as connection:
                if linger:
                    off = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, off)
                connection.sendall(whole[:sent])


def test_slow_loris_holds_up_nobody_and_is_closed(impatient: Server, texts: Texts) -> None:
    """Two hundred clients that send a byte of their headers every 50 ms."""
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\n" + b"x-slow: yes\r\n" * 20
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(impatient.url)) for _ in range(200)]
        closed: set[int] = set()
        began = time.perf_counter()
        for byte in head:
            for row, connection in enumerate(slow):
                if row not in closed:
                    try:
                        connection.send(bytes([byte]))
                    except (ConnectionResetError, BrokenPipeError):
                        closed.add(row)
            if byte % 8 == 0:
                require_right(impatient.url, texts, 0.05)
            time.sleep(0.05)
            if len(closed) == len(slow):
                break
        assert len(closed) == len(slow)
        assert time.perf_counter() - began < TIMEOUT_S + 8


@pytest.mark.slow
def test_10_000_connections_that_send_nothing(tiny_bundle: Path, texts: Texts) -> None:
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 500:
        pytest.skip(f"this machine lets a process open {hard} files; 10,500 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 500), hard))
    words = ["--header-timeout", "20"]
    try:
        with Server(corom_command(tiny_bundle, words), {}) as server, ExitStack() as stack:
            require_right(server.url, texts, 1)
            before = server.usage().rss_bytes
            silent = [stack.enter_context(connect(server.url)) for _ in range(count)]
            require_right(server.url, texts, 3)
            assert server.usage().rss_bytes - before < count * 20_000
            until = time.monotonic() + 60
            while (open_ := server_connections(server)) > 50 and time.monotonic() < until:
                time.sleep(1)
            assert open_ <= 50
            silent[0].settimeout(1)
            assert read_all(silent[0])[:9] in {b"", b"HTTP/1.1 "}
            require_right(server.url, texts, 1)
            assert "Traceback" not in server.said()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def worker_of(server: Server) -> psutil.Process:
    (worker,) = psutil.Process(server.pid).children()
    return worker


def server_connections(server: Server) -> int:
    return sum(c.status == psutil.CONN_ESTABLISHED for c in worker_of(server).net_connections())


# --- Keys


def test_a_wrong_key_is_refused_on_all_routes_but_probes(tiny_bundle: Path) -> None:
    key = "geheim-7"
    environment = {"COROM_API_KEY": key}
    good = b"authorization: Bearer %s\r\n" % key.encode()
    with Server(corom_command(tiny_bundle, []), environment) as server:
        for wrong in (
            b"", b"authorization: Bearer x\r\n", b"authorization: Basic Og==\r\n",
            b"authorization: Bearer\r\n", b"authorization: \xff\xff\r\n", good[:-3] + b"\r\n",
            b"authorization: Bearer " + b"k" * 30_000 + b"\r\n",
        ):  # fmt: skip
            for path, field in ROUTES.items():
                status, told = ask(server.url, post(path, b'{"%s": "a"}' % field, JSON + wrong))
                assert status == 401, told
                require_error(path, told)
                assert key.encode() not in told
            status, _ = ask(server.url, b"GET /metrics HTTP/1.1\r\nhost: x\r\n%s\r\n" % wrong)
            assert status == 401
        assert ask(server.url, post(b"/embed", b'{"inputs": "a"}', JSON + good))[0] == 200
        assert ask(server.url, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")[0] == 200
        assert key not in server.said()


# --- Deaths


def under_load(
    server: Server, calls: list[Call], seconds: float, act: Callable[[], None], after: float
) -> list[Reply]:
    """Return the replies of eight callers, among whom ``act`` is done ``after`` so many seconds.

    Each ends when it was answered for a second after that, or when so many seconds have passed.
    """
    begin = time.perf_counter()

    def answered_again(replies: list[Reply]) -> bool:
        later = [reply for reply in replies if reply.sent > begin + after and reply.status == 200]
        return bool(later) and later[-1].ended - later[0].ended > 1

    async def main() -> list[Reply]:
        client = Client(server.url)
        asyncio.get_running_loop().call_later(begin + after - time.perf_counter(), act)

        async def patient() -> list[Reply]:
            # Who found nobody asks again a little later, as clients do.
            replies: list[Reply] = []
            until = time.perf_counter() + seconds
            while time.perf_counter() < until and not answered_again(replies):
                replies += await callers(client, requests, 1, 0.05)
                if not replies or replies[-1].status != 200:
                    await asyncio.sleep(0.05)
            return replies

        requests = [call.request for call in calls]
        found = await asyncio.gather(*(patient() for _ in range(8)))
        client.close()
        return [reply for replies in found for reply in replies]

    return asyncio.run(main())


def test_a_worker_killed_under_load_is_replaced(tiny_bundle: Path, texts: Texts) -> None:
    calls = texts.calls()
    with Server(corom_command(tiny_bundle, []), {}) as server:
        first = worker_of(server).pid
        killed_at = 0.0

        def kill() -> None:
            nonlocal killed_at
            killed_at = time.perf_counter()
            os.kill(first, signal.SIGKILL)

        replies = under_load(server, calls, 12, kill, 1)
        found = check(replies, calls, texts.vectors, 0.9999)
        assert found.wrong == 0
        assert set(found.statuses) <= {200, 503, LOST}, found
        back = [r.ended - killed_at for r in replies if r.status == 200 and r.sent > killed_at]
        assert back
        assert min(back) < 10
        lost = [r for r in replies if r.status != 200]
        assert lost, "nobody noticed: the worker was not under load"
        assert all(reply.sent <= killed_at + min(back) for reply in lost)
        assert worker_of(server).pid != first
        assert "Listening again on" in server.said()
        assert server.close() == 0


def test_all_that_was_admitted_is_answered_after_sigterm(tiny_bundle: Path, texts: Texts) -> None:
    calls = texts.calls(size=8)
    requests = [call.request for call in calls][:150]
    with Server(corom_command(tiny_bundle, ["--queue-timeout", "60"]), {}) as server:

        async def main() -> list[Reply]:
            client = Client(server.url)
            loop = asyncio.get_running_loop()
            load = loop.create_task(at_times(client, requests, np.zeros(len(requests))))
            waiting = 0.0
            while waiting < len(requests):  # until each was read; the answered ones count too
                await asyncio.sleep(0.02)
                waiting = await asyncio.to_thread(requests_seen, server.url)
            os.kill(server.pid, signal.SIGTERM)
            await asyncio.sleep(0.5)
            if not load.done():
                late = await client.send(0, requests[0])
                assert late.status in {LOST, 503}
            replies = await load
            client.close()
            return replies

        found = check(asyncio.run(main()), calls, texts.vectors, 0.9999)
        assert found.statuses == {200: len(requests)}
        assert found.right == len(requests)
        assert server.wait(60) == 0  # a second SIGTERM might meet Python's own end


def requests_seen(url: str) -> float:
    """Return how many requests for vectors the server has answered or has in hand."""
    _, exposition = ask(url, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    wanted = ("corom_requests_in_hand ", 'corom_requests_total{route="/v1/embeddings"')
    lines = [line for line in exposition.decode().splitlines() if line.startswith(wanted)]
    return sum(float(line.split()[-1]) for line in lines)


def test_without_its_supervisor_a_worker_ends(tiny_bundle: Path) -> None:
    server = Server(corom_command(tiny_bundle, []), {})
    worker = worker_of(server)
    os.kill(server.pid, signal.SIGKILL)
    worker.wait(20)
    server.close()
