"""Loads: when requests come, what waiting counts as, who is charged for a stall."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.benchmarks.load import (
    Clock,
    arrival_times,
    closed_loop,
    closed_loop_callers,
    finish_times,
    open_loop,
    open_loop_submitted,
)
from corom.runtime.errors import InputError, Overloaded

seconds = st.floats(0.001, 10)


class Simulated:
    """A clock that only moves when something sleeps or works."""

    def __init__(self) -> None:
        self.time = 0.0
        self.clock = Clock(now=lambda: self.time, sleep=self.advance)

    def advance(self, duration: float) -> None:
        self.time += duration


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30))
def test_open_loop_charges_a_stall_to_every_request_it_kept_waiting(
    gaps_and_services: list[tuple[float, float]],
) -> None:
    gaps, services = np.array(gaps_and_services).T
    arrivals = np.cumsum(gaps)
    world = Simulated()
    served = open_loop(world.advance, services.tolist(), arrivals, world.clock)
    expected = finish_times(arrivals, services) - arrivals
    np.testing.assert_allclose(served.latencies, expected, rtol=1e-9, atol=1e-9)
    assert served.elapsed == pytest.approx(finish_times(arrivals, services)[-1])


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30))
def test_finish_times_are_those_of_one_server(pairs: list[tuple[float, float]]) -> None:
    gaps, services = np.array(pairs).T
    arrivals = np.cumsum(gaps)
    ends = finish_times(arrivals, services)
    assert (ends >= arrivals + services - 1e-9).all()
    # Work is neither lost nor done twice: by the k-th end at least the first k are served.
    assert (np.diff(ends) >= services[1:] - 1e-9).all()
    # It never idles while someone waits: each starts when it comes, or when the last one ends.
    starts = ends - services
    idle = np.maximum(arrivals[1:], ends[:-1])
    np.testing.assert_allclose(starts[1:], idle, atol=1e-9)


def test_one_stall_raises_the_tail_of_the_open_loop_and_not_of_the_closed_one() -> None:
    """What coordinated omission hides: the closed loop sends nothing while the server stalls."""
    services = [0.001] * 1000
    services[100] = 1.0
    arrivals = arrival_times("fixed", 100, 1000)
    world, other = Simulated(), Simulated()
    opened = open_loop(world.advance, services, arrivals, world.clock)
    closed = closed_loop(other.advance, services, sum(services), other.clock)
    assert np.percentile(closed.latencies, 99) == pytest.approx(0.001)
    assert np.percentile(opened.latencies, 99) > 0.8


def test_arrivals_are_at_the_rate_and_always_the_same() -> None:
    fixed = arrival_times("fixed", 50, 100)
    np.testing.assert_allclose(np.diff(fixed), 0.02)
    poisson = arrival_times("poisson", 50, 20_000)
    assert (np.diff(poisson) > 0).all()
    gaps = np.diff(poisson)
    assert gaps.mean() == pytest.approx(0.02, rel=0.05)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)  # of the exponential: as large as its mean
    np.testing.assert_array_equal(poisson, arrival_times("poisson", 50, 20_000))


def test_closed_loop_ends_in_time_and_measures_at_least_once() -> None:
    world = Simulated()
    served = closed_loop(world.advance, [0.4, 0.6], 2.0, world.clock)
    assert served.latencies == pytest.approx([0.4, 0.6, 0.4, 0.6])
    assert closed_loop(world.advance, [5.0], 0.1, world.clock).latencies == pytest.approx([5.0])


def test_submitted_requests_overlap_and_each_has_its_own_latency() -> None:
    with ThreadPoolExecutor(8) as pool:
        all_at_once = threading.Barrier(8, timeout=30)  # one after another would never pass it

        def work(duration: float) -> None:
            all_at_once.wait()
            time.sleep(duration)

        def submit(duration: float) -> Future[None]:
            return pool.submit(work, duration)

        served = open_loop_submitted(submit, [0.05], np.zeros(8))
        assert min(served.latencies) >= 0.05

        def fail(_request: float) -> Future[None]:
            return pool.submit(lambda: 1 / 0)

        with pytest.raises(ZeroDivisionError):
            open_loop_submitted(fail, [0.0], np.zeros(2))


def test_what_is_refused_is_counted_and_has_no_latency() -> None:
    turn = iter(range(10))

    def submit(_request: str) -> Future[None]:
        if next(turn) % 2:
            raise Overloaded("full")
        done: Future[None] = Future()
        done.set_result(None)
        return done

    served = open_loop_submitted(submit, ["a"], np.zeros(10))
    assert (len(served.latencies), served.refused) == (5, 5)


def test_callers_wait_for_their_own_answers() -> None:
    most, now = 0, 0
    lock = threading.Lock()

    def work(_text: str) -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1

    with ThreadPoolExecutor(16) as pool:
        served = closed_loop_callers(lambda t: pool.submit(work, t), ["a", "b", "c"], 0.5, 4)
    assert 1 < most <= 4
    assert len(served.latencies) > 8
    assert min(served.latencies) >= 0.005

    def refuse(text: str) -> Future[None]:
        raise InputError(text)

    with pytest.raises(InputError):
        closed_loop_callers(refuse, ["a"], 0.1, 2)
