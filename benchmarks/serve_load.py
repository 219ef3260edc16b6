"""The loads that a server is put under, and what came of each: figures, ready for JSON.

Every reply is checked for the right vectors, after its load, so that checking costs it nothing.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from corom.runtime.cpus import available_cpus
from corom.runtime.errors import ParityError
from corom.runtime.garbage import uncollected
from corom.runtime.vectors import Vectors

from . import figures
from .http_calls import Call, check
from .http_client import Client, Reply, at_times, callers
from .http_server import Sample, Server, watch
from .load import Arrivals, arrival_times

CALLERS = 32
"""Callers of the closed loop whose rate is taken for the capacity."""
BLOCK = 200
"""Texts in a row over HTTP, then the same by `encode`: in turns, but seldom, since each waits for
the other's threads to fall asleep, and two virtual CPUs that were idle share one core for a tenth
of a second when both wake."""
BACK_TO_NORMAL = 2.0
PROBES = 10
"""Latency has returned once the median of ten requests in a row is at most twice what it was."""
RECOVERY_SECONDS = 30.0


@dataclass
class Subject:
    """A server with what it is asked for and the vectors (N, H) that must come."""

    server: Server
    client: Client
    calls: list[Call]
    expected: Vectors
    cosine_min: float
    memory: list[Sample] = field(default_factory=list)

    @property
    def requests(self) -> list[bytes]:
        """The calls' bytes."""
        return [call.request for call in self.calls]


async def overhead(
    subject: Subject, encode: Callable[[str], object], texts: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Measure one keep-alive caller over HTTP beside `encode` of the same single texts, in turns.

    ``texts``: by the rows that the subject's calls, of one text each, ask for.
    """
    requests = subject.requests
    replies: list[Reply] = []
    alone: list[list[float]] = []
    over_http: list[list[float]] = []
    until = time.perf_counter() + seconds
    at = 0
    while time.perf_counter() < until or len(alone) < 2:
        block = [(at + k) % len(requests) for k in range(BLOCK)]
        at += BLOCK
        found = [await subject.client.send(row, requests[row]) for row in block]
        await asyncio.sleep(0.02)
        took = []
        for row in block:
            text = texts[subject.calls[row].rows[0]]
            start = time.perf_counter()
            encode(text)
            took.append(time.perf_counter() - start)
        await asyncio.sleep(0.02)
        replies += found
        over_http.append([reply.ended - reply.sent for reply in found])
        alone.append(took)
    require_right(replies, subject)
    # The first block warms both.
    http, direct = (
        figures.latency(list(chain.from_iterable(blocks[1:]))) for blocks in (over_http, alone)
    )
    rounds = [
        (float(np.median(a)) - float(np.median(b))) * 1e3
        for a, b in zip(over_http[1:], alone[1:], strict=True)
    ]
    return {
        "http": http._asdict(),
        "encode": direct._asdict(),
        "p50_overhead_ms": (http.p50_us - direct.p50_us) / 1e3,
        "p99_overhead_ms": (http.p99_us - direct.p99_us) / 1e3,
        "p50_overhead_ms_by_block": figures.spread(rounds)._asdict(),
    }


async def closed(subject: Subject, count: int, seconds: float) -> dict[str, Any]:
    """Let ``count`` callers ask for about ``seconds``."""
    measure = Measure(subject)
    replies = await measure.replies(callers(subject.client, subject.requests, count, seconds))
    require_right(replies, subject)
    return measure.described(replies)


async def opened(
    subject: Subject, rate: float, arrivals: Arrivals, seconds: float
) -> dict[str, Any]:
    """Send ``rate`` requests a second, whatever comes back."""
    times = arrival_times(arrivals, rate, max(1, round(rate * seconds)))
    measure = Measure(subject)
    replies = await measure.replies(at_times(subject.client, subject.requests, times))
    require_right(replies, subject)
    return {"rate": rate, "arrivals": arrivals} | measure.described(replies)


async def burst(
    subject: Subject, rate: float, arrivals: Arrivals, seconds: float, p50_s: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """As ``opened``, and how long after its last request single texts take what they did before.

    The server still has work waiting then. ``p50_s``: what one caller's requests took at the median
    when nothing else was asked.
    """
    loading = asyncio.create_task(opened(subject, rate, arrivals, seconds))
    await asyncio.sleep(seconds)
    replies, found = await recovery(subject, p50_s)
    load = await loading
    require_right(replies, subject)
    return load, {"seconds": found, "requests": len(replies)}


async def recovery(subject: Subject, p50_s: float) -> tuple[list[Reply], float | None]:
    """Ask for single texts until they take what they took before; return when that was."""
    singles = [row for row, call in enumerate(subject.calls) if len(call.rows) == 1]
    begin = time.perf_counter()
    replies: list[Reply] = []
    while time.perf_counter() < begin + RECOVERY_SECONDS:
        row = singles[len(replies) % len(singles)]
        replies.append(await subject.client.send(row, subject.calls[row].request))
        found = seconds_to_return(
            [(reply.ended - begin, reply.latency) for reply in replies if reply.status == 200],
            BACK_TO_NORMAL * p50_s,
        )
        if found is not None:
            return replies, found
        if replies[-1].status != 200:
            await asyncio.sleep(0.01)  # who is refused asks again a little later
    return replies, None


def seconds_to_return(ended: Sequence[tuple[float, float]], limit_s: float) -> float | None:
    """Return when the first ``PROBES`` requests in a row began whose median is within the limit.

    The first of them is within it, too: it may have waited for all that was there before.

    ``ended``: for each request when it ended and how long it took. None if there are none yet.
    """
    for at in range(len(ended) - PROBES + 1):
        some = ended[at : at + PROBES]
        first = some[0][1]
        if max(first, float(np.median([took for _, took in some]))) <= limit_s:
            return max(0.0, some[0][0] - some[0][1])
    return None


def require_right(replies: Sequence[Reply], subject: Subject) -> None:
    """Raise ``ParityError`` if a vector is not the one of its text, or an answer never came."""
    found = check(replies, subject.calls, subject.expected, subject.cosine_min)
    if found.wrong or found.lost:
        raise ParityError(
            f"of {len(replies)} requests {found.wrong} got wrong vectors (cosine "
            f"{found.cosine_min}, at least {subject.cosine_min} is expected) and {found.lost} "
            f"no answer. Statuses: {found.statuses}."
        )


class Measure:
    """What a load took: wall time, and CPU time of the client and of the server."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    async def replies(self, load: Any) -> list[Reply]:  # noqa: ANN401  # a coroutine of replies
        """Await the load while the server's memory is read."""
        server = self._subject.server
        watching = asyncio.create_task(watch(server, self._subject.memory))
        cpu, theirs, begin = time.process_time(), server.usage().cpu_seconds, time.perf_counter()
        try:
            # To look through all replies so far would hold up the client, and what it sends or
            # reads late would be held against the server.
            with uncollected():
                found: list[Reply] = await load
        finally:
            self._elapsed = time.perf_counter() - begin
            self._client = time.process_time() - cpu
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        self._server = server.usage().cpu_seconds - theirs
        return found

    def described(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """Return the figures: of all that were answered, by size, and of those refused."""
        calls = self._subject.calls
        by_status: dict[int, list[Reply]] = {}
        for reply in replies:
            by_status.setdefault(reply.status, []).append(reply)
        right = by_status.get(200, [])
        texts = sum(len(calls[reply.call].rows) for reply in right)
        sizes = sorted({len(calls[reply.call].rows) for reply in right})
        available = self._elapsed * available_cpus()
        found: dict[str, Any] = {
            "requests": len(replies),
            "seconds": self._elapsed,
            "statuses": {str(status): len(some) for status, some in sorted(by_status.items())},
            "requests_per_second": len(right) / self._elapsed,
            "texts_per_second": texts / self._elapsed,
            "client_cpu_share": self._client / available,
            "server_cpu_share": self._server / available,
            "sent_late_p99_ms": _p99([reply.sent - reply.due for reply in replies]),
            "connections": self._subject.client.connections,
        }
        for size in sizes:
            some = [reply.latency for reply in right if len(calls[reply.call].rows) == size]
            found[f"latency, {size} text{'s'[: size != 1]}"] = figures.latency(some)._asdict()
        if right:
            found["latency"] = figures.latency([reply.latency for reply in right])._asdict()
            found["slowest_ms"] = max(reply.latency for reply in right) * 1e3
        if refused := by_status.get(429):
            found["refused"] = figures.latency([reply.latency for reply in refused])._asdict()
            found["refused_slowest_ms"] = max(reply.latency for reply in refused) * 1e3
            found["refused_with_retry_after"] = sum(
                reply.headers.get(b"retry-after", b"").isdigit() for reply in refused
            )
        return found


async def settled(server: Server, seconds: float) -> list[Sample]:
    """Return the server's memory while nothing is asked of it."""
    samples: list[Sample] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await watch(server, samples, seconds / 10)
    return samples


def growth(
    loaded: Sequence[Sample], after: Sequence[Sample], again: Sequence[Sample]
) -> dict[str, Any]:
    """Return the server's memory in MB: as the loads began, at its peak, after them, and once more.

    All that it may have in hand it has had by the end of the loads; what the same load adds to that
    when it is put on once more would be added each time.
    """
    first, rest, last = (
        float(np.median([sample.rss_bytes for sample in some])) / 1e6
        for some in (loaded[: max(1, len(loaded) // 5)], after, again)
    )
    return {
        "first_mb": first,
        "peak_mb": max(sample.rss_bytes for sample in loaded) / 1e6,
        "after_mb": rest,
        "again_mb": last,
        "grown_again": last / rest - 1,
    }


def _p99(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 99)) * 1e3 if seconds else 0.0
