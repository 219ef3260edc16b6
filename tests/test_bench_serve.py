"""`corom bench serve`: the client against servers that behave badly, the checking, the limits."""

import asyncio
import base64
import json
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.benchmarks.http_calls import (
    BATCH_EVERY,
    BATCH_TEXTS,
    Call,
    apart,
    call_rows,
    check,
    make_calls,
    vectors_of,
)
from corom.benchmarks.http_client import LOST, Client, Reply, at_times, callers
from corom.benchmarks.http_server import Sample
from corom.benchmarks.load import arrival_times
from corom.benchmarks.serve_indexing import indexing_rows
from corom.benchmarks.serve_load import PROBES, growth, seconds_to_return
from corom.benchmarks.serve_report import floors, tables

pytest.importorskip("httptools", reason="pip install 'corom[serve]'")
Corom = Callable[..., subprocess.CompletedProcess[str]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Return the body of the next request; raises IncompleteReadError if there is none."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Le")
    )
    return await reader.readexactly(length)


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def against(handler: Handler, ask: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    """Run ``ask`` with a client of a server in which ``handler`` has each connection."""

    async def main() -> Any:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            client = Client(f"http://127.0.0.1:{port}")
            try:
                return await ask(client)
            finally:
                client.close()
                await asyncio.sleep(0)

    return asyncio.run(main())


# --- the client


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        body = await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Who: Me\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 7):  # in pieces, as a network may deliver them
            writer.write(body[at : at + 7])
            await writer.drain()


def test_each_caller_gets_its_own_answer_and_connections_are_kept() -> None:
    requests = [post(b"%d" % k * 50) for k in range(20)]

    async def ask(client: Client) -> tuple[list[Reply], int]:
        return await callers(client, requests, 4, 0.3), client.connections

    replies, connections = against(echo, ask)
    assert connections == 4
    assert len(replies) > 20
    for reply in replies:
        assert (reply.status, reply.body) == (200, b"%d" % reply.call * 50)
        assert reply.headers[b"x-who"] == b"Me"
        assert reply.due <= reply.sent <= reply.ended


def test_an_open_loop_keeps_its_times_whatever_the_server_does() -> None:
    """Twenty requests due within 0.2 s at a server that takes 0.3 s each: all are sent in time."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = await read_request(reader)
            await asyncio.sleep(0.3)
            writer.write(OK[:-2].replace(b": 2", b": %d" % len(body)) + body)

    requests = [post(b"request %d" % k) for k in range(20)]
    arrivals = arrival_times("fixed", 100, 20)
    began = time.perf_counter()
    replies = against(slow, lambda client: at_times(client, requests, arrivals))
    assert time.perf_counter() - began < 2  # one after the other would take 6 s
    assert [reply.body for reply in replies] == [b"request %d" % k for k in range(20)]
    assert all(0.3 <= reply.latency < 1 for reply in replies)
    dues = np.array([reply.due for reply in replies])
    np.testing.assert_allclose(dues - dues[0], arrivals, atol=1e-9)
    assert against(slow, lambda client: at_times(client, requests, np.zeros(0))) == []


def test_a_late_start_counts_as_latency() -> None:
    async def ask(client: Client) -> Reply:
        return await client.send(0, post(b"x"), due=time.perf_counter() - 5)

    assert 5 < against(echo, ask).latency < 6


async def ended_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(OK[:-1])


async def ended_at_once(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await read_request(reader)


async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"hello there\r\n\r\n")
    await asyncio.sleep(1)


async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await asyncio.sleep(5)


@pytest.mark.parametrize("handler", [ended_early, ended_at_once, no_http])
def test_an_answer_that_never_comes_is_lost(handler: Handler) -> None:
    async def ask(client: Client) -> list[Reply]:
        return [await client.send(0, post(b"x")) for _ in range(3)]

    assert [reply.status for reply in against(handler, ask)] == [LOST] * 3


def test_an_answer_that_takes_too_long_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corom.benchmarks.http_client.ANSWER_SECONDS", 0.2)

    replies = against(never, lambda client: at_times(client, [post(b"x")] * 3, np.zeros(3)))
    assert [reply.status for reply in replies] == [LOST] * 3
    assert all(0.2 <= reply.latency < 2 for reply in replies)


def test_a_request_larger_than_the_system_takes_at_once_arrives() -> None:
    bodies = [bytes([65 + k]) * 9_000_000 for k in range(3)]
    requests = [post(body) for body in bodies]

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        while True:
            body = await read_request(reader)
            writer.write(OK[:-2].replace(b": 2", b": %d" % len(body)) + body)

    replies = against(slow, lambda client: at_times(client, requests, np.zeros(3)))
    assert [reply.body for reply in replies] == bodies


def test_an_early_answer_does_not_free_a_connection_that_is_still_written_to() -> None:
    large = post(b"A" * 12_000_000)

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await writer.drain()
            await asyncio.sleep(0.1)  # what is large fills the system's buffers meanwhile
            await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r")[0]))

    async def ask(client: Client) -> list[int]:
        async with asyncio.timeout(20):
            return [(await client.send(0, one)).status for one in (large, post(b"x"), post(b"x"))]

    assert against(early, ask) == [200] * 3


def test_an_open_loop_that_is_given_up_sends_no_more() -> None:
    async def ask(client: Client) -> tuple[int, int]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(at_times(client, [post(b"x")], np.linspace(0, 1, 50)), 0.2)
        await asyncio.sleep(0.05)
        before = client.connections
        await asyncio.sleep(0.2)
        return before, client.connections

    before, after = against(never, ask)
    assert before == after > 0


def test_what_fails_while_an_open_loop_is_sent_ends_it() -> None:
    nothing: list[bytes] = []
    with pytest.raises(ZeroDivisionError):
        against(echo, lambda client: asyncio.wait_for(at_times(client, nothing, np.zeros(3)), 5))


def test_nobody_listening_is_lost() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # bound, so nobody else's; it does not listen
        reply = asyncio.run(Client(f"http://127.0.0.1:{port}").send(0, post(b"x")))
    assert reply.status == LOST


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await writer.drain()

    async def ask(client: Client) -> tuple[list[int], int]:
        return [(await client.send(0, post(b"x"))).status for _ in range(3)], client.connections

    assert against(once, ask) == ([200] * 3, 3)


def test_what_is_closed_takes_no_descriptor() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await writer.drain()  # and closes it once it is idle

    async def ask(client: Client) -> int:
        process = psutil.Process()
        before = process.num_fds()
        for _ in range(30):
            await client.send(0, post(b"x"))
            await asyncio.sleep(0.005)
        return process.num_fds() - before

    assert against(once, ask) < 5


# --- calls and their checking


@given(st.integers(1, 50), st.integers(0, 200), st.booleans())
def test_calls_ask_for_all_texts_in_turns(texts: int, count: int, mixed: bool) -> None:
    rows = call_rows(texts, count, mixed=mixed)
    assert len(rows) == count
    flat = [row for some in rows for row in some]
    assert flat == [k % texts for k in range(len(flat))]
    for call, some in enumerate(rows):
        many = mixed and call % BATCH_EVERY == BATCH_EVERY - 1
        assert len(some) == (BATCH_TEXTS if many else 1)


def body_of(vectors: np.ndarray) -> bytes:
    data = [
        {"index": row, "embedding": base64.b64encode(v.astype("<f4").tobytes()).decode()}
        for row, v in enumerate(vectors)
    ]
    return json.dumps({"data": data, "model": "m"}).encode()


def reply_of(call: int, body: bytes, status: int = 200) -> Reply:
    return Reply(call, 0, 0, 1, status, {}, body)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    texts = [f"第{k}句" for k in range(30)]
    return make_calls(texts, call_rows(30, 12, mixed=True), "名")


def test_who_indexes_asks_for_all_texts_in_turns() -> None:
    rows = indexing_rows(500)
    assert [len(some) for some in rows] == [256] * 8
    assert [row for some in rows for row in some] == [k % 500 for k in range(8 * 256)]


def test_a_call_is_a_request_that_any_server_can_read(calls: list[Call]) -> None:
    head, _, content = calls[9].request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(content)}".encode() in head.split(b"\r\n")
    asked = json.loads(content)
    assert asked["input"] == [f"第{k}句" for k in range(9, 17)]
    assert (asked["model"], asked["encoding_format"]) == ("名", "base64")
    assert json.loads(calls[0].request.partition(b"\r\n\r\n")[2])["input"] == "第0句"


def test_right_vectors_pass_whatever_their_length(expected: np.ndarray, calls: list[Call]) -> None:
    replies = [reply_of(k, body_of(expected[c.rows] * (k + 1))) for k, c in enumerate(calls)]
    found = check([*replies, reply_of(3, b"", 429)], calls, expected, 0.9995)
    assert (found.right, found.wrong, found.lost) == (len(calls), 0, 0)
    assert found.statuses == {200: len(calls), 429: 1}


@given(st.data())
def test_anything_else_is_noticed(data: st.DataObject) -> None:
    expected = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32)
    calls = make_calls([f"第{k}句" for k in range(30)], call_rows(30, 12, mixed=True), "m")
    call = data.draw(st.sampled_from(range(len(calls))))
    rows = calls[call].rows
    vectors = expected[rows].copy()
    other = data.draw(st.sampled_from([k for k in range(30) if k not in rows]))
    row = data.draw(st.sampled_from(range(len(rows))))
    damage = data.draw(
        st.sampled_from(["swapped", "nan", "zero", "short", "missing", "cut", "html", "noise"])
    )
    if damage == "swapped":
        vectors[row] = expected[other]
    elif damage == "nan":
        vectors[row, 3] = np.nan
    elif damage == "zero":
        vectors[row] = 0
    elif damage == "noise":
        vectors[row] += np.abs(expected[row]).max()
    elif damage == "short":
        vectors = vectors[:, :-1]
    elif damage == "missing":
        vectors = vectors[:-1]
    body = body_of(vectors)
    if damage == "cut":
        body = body[: data.draw(st.integers(0, len(body) - 1))]
    elif damage == "html":
        body = b"<html>"
    found = check([reply_of(call, body)], calls, expected, 0.9995)
    assert (found.right, found.wrong) == (0, 1)


def test_a_batch_in_another_order_is_wrong(expected: np.ndarray, calls: list[Call]) -> None:
    rows = calls[9].rows
    for order in (rows[::-1], [*rows[1:], rows[0]]):
        assert check([reply_of(9, body_of(expected[order]))], calls, expected, 0.9995).wrong == 1
    told = json.loads(body_of(expected[rows]))
    told["data"].reverse()  # the vectors are right, their numbers are not in order
    with pytest.raises(ValueError, match="in their order"):
        vectors_of(json.dumps(told).encode(), len(rows))


def test_texts_whose_vectors_cannot_be_told_apart_are_left_out(expected: np.ndarray) -> None:
    twice = np.concatenate([expected, expected[4:6] * 2, expected[:1] + 1e-4])
    assert apart(twice, 0.9995) == list(range(30))


# --- what the loads came to


@given(st.lists(st.floats(0.001, 1), max_size=60), st.floats(0.001, 1))
def test_latency_has_returned_at_the_first_ten_requests_that_are_quick(
    durations: list[float], limit: float
) -> None:
    ends = np.cumsum(durations).tolist()
    found = seconds_to_return(list(zip(ends, durations, strict=True)), limit)
    medians = [np.median(durations[k : k + PROBES]) for k in range(len(durations) - PROBES + 1)]
    quick = [k for k, median in enumerate(medians) if max(durations[k], median) <= limit]
    if not quick:
        assert found is None
    else:
        assert found == pytest.approx(ends[quick[0]] - durations[quick[0]], abs=1e-9)


def test_what_waited_for_a_burst_is_not_where_latency_has_returned() -> None:
    durations = [2.0, *[0.01] * 20]
    ends = np.cumsum(durations).tolist()
    found = seconds_to_return(list(zip(ends, durations, strict=True)), 0.02)
    assert found == pytest.approx(2.0)


def test_memory_that_grows_is_seen() -> None:
    loads = [Sample(k, 100_000_000 + k * 1_000_000) for k in range(50)]
    after, again, more = ([Sample(0, size * 1_000_000)] * 10 for size in (120, 120, 150))
    assert growth(loads, after, again) == {
        "first_mb": 104.5, "peak_mb": 149, "after_mb": 120, "again_mb": 120, "grown_again": 0,
    }  # fmt: skip
    assert growth(loads, after, more)["grown_again"] == 0.25
    one_off = [*after[:5], Sample(0, 10**9), *after[:5]]
    assert growth(loads, after, one_off)["grown_again"] == 0


def load(p50_us: float, p99_us: float, **more: Any) -> dict[str, Any]:
    latency = {"p50_us": p50_us, "p99_us": p99_us}
    return {
        "requests_per_second": 10.0, "texts_per_second": 20.0, "client_cpu_share": 0.1,
        "statuses": {"200": 100}, "latency": latency, "latency, 1 text": latency,
        "slowest_ms": 90.0,
    } | more  # fmt: skip


@pytest.fixture
def report() -> dict[str, Any]:
    refused = {"statuses": {"200": 100, "429": 50}, "refused": {"p99_us": 20_000.0}}
    return {
        "model": "m", "choice": "fp32", "texts": 5, "source": "made", "batch_texts": 8,
        "capacity": 10.0, "overhead": {"p50_overhead_ms": 0.5}, "recovery": {"seconds": 1.0},
        "memory": {
            "first_mb": 100, "peak_mb": 120, "after_mb": 110, "again_mb": 111, "grown_again": 0.01,
        },
        "indexing": load(5_000, 9_000, rate=10.0, indexed_texts_per_second=300.0),
        "ideal": {1: {"as they come": 16.1, "least left first": 5.9}},
        "loads": {
            "one caller": load(10_000, 12_000),
            "open loop, 50 %": load(11_000, 20_000),
            "open loop, 90 %": load(20_000, 40_000),
            "open loop, 200 %": load(500_000, 900_000, refused_with_retry_after=50, **refused),
        },
    }  # fmt: skip


def unmet(report: dict[str, Any]) -> list[str]:
    return [floor.name for floor in floors(report, 5.0) if not floor.met]


def test_every_limit_is_met_or_said_not_to_be(report: dict[str, Any]) -> None:
    assert unmet(report) == []
    report["floors"] = [floor._asdict() for floor in floors(report, 5.0)]
    assert "| open loop, 90 % |" in tables(report)
    assert "1 text: 16.1 (as they come), 5.9 (least left first)" in tables(report)
    assert "10 a second, beside a caller who asks for many at a time and gets 300" in tables(report)


@pytest.mark.parametrize(("path", "value", "name"), [
    ("overhead.p50_overhead_ms", 1.1, "HTTP over encode"),
    ("loads.open loop, 90 %.latency, 1 text.p99_us", 50_001, "90 %"),
    ("loads.open loop, 200 %.refused.p99_us", 100_001, "429 after"),
    ("loads.open loop, 200 %.refused_with_retry_after", 49, "without Retry-After"),
    ("loads.open loop, 200 %.slowest_ms", 5001, "slowest accepted"),
    ("loads.open loop, 50 %.statuses", {"200": 1, "503": 1}, "neither 200 nor 429"),
    ("recovery.seconds", 5.1, "latency back"),
    ("recovery.seconds", None, "latency back"),
    ("memory.grown_again", 0.06, "memory grown"),
])  # fmt: skip
def test_a_figure_beyond_its_limit_is_not_met(
    report: dict[str, Any], path: str, value: Any, name: str
) -> None:
    *places, last = path.split(".")
    place = report
    for key in places:
        place = place[key]
    place[last] = value
    assert [name in found for found in unmet(report)].count(True) >= 1
    shown = [floor for floor in floors(report, 5.0) if name in floor.name]
    assert any(floor.met is False for floor in shown)


def test_a_server_that_accepts_nothing_has_no_slowest_accepted(report: dict[str, Any]) -> None:
    del report["loads"]["open loop, 200 %"]["slowest_ms"]
    (found,) = (floor for floor in floors(report, 5.0) if "slowest accepted" in floor.name)
    assert (found.value, found.met) == (None, None)


def test_queries_that_are_all_refused_beside_indexing_are_said_to_be(
    report: dict[str, Any],
) -> None:
    del report["indexing"]["latency"]
    report["floors"] = []
    assert "gets 300 a second: all were refused" in tables(report)


def test_the_peer_is_held_to_its_ratios(report: dict[str, Any]) -> None:
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    found = {
        who: {"requests_per_second": spread, "p50_ms": spread} for who in ("corom", "infinity")
    } | {"times the requests/s": spread, "p50 by infinity's": spread | {"median": 0.29}}
    indexing = {
        who: {"indexed_texts_per_second": spread, "p50_ms": spread} for who in ("corom", "infinity")
    }
    report["peer"] = {
        "rounds": 3,
        "callers": {"1": found, "8": found, "64": found},
        "beside indexing": indexing,
    }
    assert unmet(report) == []
    report["floors"] = [floor._asdict() for floor in floors(report, 5.0)]
    assert "infinity's server, 3 rounds" in tables(report)
    report["peer"]["callers"]["8"] = found | {"times the requests/s": spread | {"median": 1.9}}
    assert unmet(report) == ["8 callers: times infinity's requests/s"]


# --- the command


def test_the_real_server_under_load(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "serve.json"
    done = corom("bench", "serve", tiny_bundle, "--seconds", "1", "--json", "-o", file)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_bytes())
    assert json.loads(done.stdout) == report
    assert list(report["loads"]) == [
        "one caller", "32 callers", "open loop, 50 %", "open loop, 90 %", "open loop, 200 %",
    ]  # fmt: skip
    for load in report["loads"].values():
        assert sum(load["statuses"].values()) == load["requests"] > 0
        assert 0 < load["client_cpu_share"] < 1
    assert report["memory"]["peak_mb"] > 20
    assert set(report["ideal"]) == {"1", "8"}
    assert report["indexing"]["indexed_texts_per_second"] > 0
    assert {floor["limit"] for floor in report["floors"]} >= {"≤ 1", "≤ 5", "≤ 100"}


def test_a_peer_needs_to_know_what_the_bundle_was_made_of(corom: Corom, tiny_bundle: Path) -> None:
    done = corom("bench", "serve", tiny_bundle, "--peer", "infinity")
    assert (done.returncode, "--source" in done.stderr) == (2, True)
