"""Requests sent one after another, or at given times, and how long each took.

Closed loop: the next request is sent when the last is answered. Open loop: requests come when they
come, whatever the server does. A latency of the open loop counts from when the request was to
be sent, so that a stall is charged to every request that it kept waiting (coordinated omission).
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from corom.runtime.errors import Overloaded

Seconds = npt.NDArray[np.float64]
Arrivals = Literal["poisson", "fixed"]
Request = TypeVar("Request")


class Clock(NamedTuple):
    """What time is asked of; tests put another one in its place."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


class Served(NamedTuple):
    """What became of a load: the latency of each request, and how long all took, in seconds.

    ``refused``: requests that found the queue full; they have no latency.
    """

    latencies: list[float]
    elapsed: float
    refused: int = 0


def arrival_times(arrivals: Arrivals, rate: float, count: int, seed: int = 0) -> Seconds:
    """Return when ``count`` requests come, in seconds from the start, at ``rate`` a second.

    "poisson": independent callers; "fixed": one every 1/rate seconds.
    """
    if arrivals == "fixed":
        return np.arange(count) / rate
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def finish_times(arrivals: Seconds, services: Seconds) -> Seconds:
    """Return when each request ends that a single server takes in order of arrival."""
    ends = np.empty(len(arrivals))
    free = 0.0
    for row, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        free = ends[row] = max(free, arrival) + service
    return ends


def closed_loop(
    send: Callable[[Request], object],
    requests: Sequence[Request],
    seconds: float,
    clock: Clock = Clock(),  # noqa: B008
) -> Served:
    """Send the requests in turns, each when the last is answered, for about ``seconds``."""
    latencies: list[float] = []
    begin = now = clock.now()
    while now - begin < seconds or not latencies:
        start = now
        send(requests[len(latencies) % len(requests)])
        now = clock.now()
        latencies.append(now - start)
    return Served(latencies, now - begin)


def open_loop(
    send: Callable[[Request], object],
    requests: Sequence[Request],
    arrivals: Seconds,
    clock: Clock = Clock(),  # noqa: B008
) -> Served:
    """Send a request at each time of ``arrivals``, or as soon after it as the last is answered."""
    latencies: list[float] = []
    begin = now = clock.now()
    for row, arrival in enumerate(arrivals.tolist()):
        while (wait := begin + arrival - now) > 0:
            clock.sleep(wait)
            now = clock.now()
        send(requests[row % len(requests)])
        now = clock.now()
        latencies.append(now - begin - arrival)
    return Served(latencies, now - begin)


def open_loop_submitted(
    submit: Callable[[Request], "Future[Any]"], requests: Sequence[Request], arrivals: Seconds
) -> Served:
    """Submit a request at each time of ``arrivals`` without waiting for answers.

    Raises what a request failed with; one that is refused because the queue is full is counted.
    """
    # A future's result can be had before its callbacks have run, so these are waited for.
    ended: SimpleQueue[tuple[int, float]] = SimpleQueue()

    def note(row: int) -> Callable[[object], None]:
        return lambda _future: ended.put((row, time.perf_counter() - begin))

    futures = {}
    begin = time.perf_counter()
    for row, arrival in enumerate(arrivals.tolist()):
        if (wait := begin + arrival - time.perf_counter()) > 0:
            time.sleep(wait)
        try:
            future = submit(requests[row % len(requests)])
        except Overloaded:
            continue
        future.add_done_callback(note(row))
        futures[row] = future
    for future in futures.values():
        future.result()
    ends = dict(ended.get() for _ in futures)
    latencies = [ends[row] - arrivals[row] for row in futures]
    elapsed = max(ends.values(), default=0.0)
    return Served([float(seconds) for seconds in latencies], elapsed, len(arrivals) - len(futures))


def closed_loop_callers(
    submit: Callable[[Request], "Future[Any]"],
    requests: Sequence[Request],
    seconds: float,
    callers: int,
) -> Served:
    """Let ``callers`` threads each send a request and wait for its answer, for about ``seconds``.

    Raises what a request failed with.
    """
    found: list[Served | BaseException] = []

    def call(first: int) -> None:
        # Each caller starts at another request, so that no two send the same one at once.
        mine = [*requests[first % len(requests) :], *requests[: first % len(requests)]]
        try:
            found.append(closed_loop(lambda text: submit(text).result(), mine, seconds))
        except BaseException as error:
            found.append(error)

    step = max(1, len(requests) // callers)
    threads = [threading.Thread(target=call, args=(k * step,)) for k in range(callers)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begin
    latencies: list[float] = []
    for result in found:
        if isinstance(result, BaseException):
            raise result
        latencies += result.latencies
    return Served(latencies, elapsed)
