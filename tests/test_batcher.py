"""DynamicBatcher: each caller gets its own vector, or its own error, soon, whatever others do."""

import asyncio
import concurrent.futures
import ctypes
import gc
import logging
import queue
import random
import statistics
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.runtime import (
    CoromError,
    DeadlineExceeded,
    DynamicBatcher,
    Encoder,
    InputError,
    InputTypeError,
    Overloaded,
    ParityError,
    WorkerError,
)
from corom.runtime.admission import STRETCH
from corom.runtime.backend_onnxruntime import OnnxRuntimeBackend
from corom.runtime.batcher import TOGETHER_CHARACTERS
from corom.runtime.batching import Batch
from corom.runtime.counters import WAIT_BUCKETS
from corom.runtime.options import Wish
from corom.runtime.request import Usage
from corom.runtime.tokens import Tokens
from corom.runtime.waiting import POOL

INVARIANCE = 1e-5
SOON = 10.0
"""Seconds within which a caller must hear of an error."""
LONG = 30.0


@pytest.fixture(scope="module")
def shared(tiny_bundle: Path) -> Iterator[Encoder]:
    """An encoder that nobody closes or alters."""
    with Encoder(tiny_bundle) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def pool(shared: Encoder, parity_texts: list[str]) -> dict[str, np.ndarray]:
    """Texts, with the vector that each has alone."""
    return {text: shared.encode(text) for text in [*parity_texts[::4], "", "头" * 300]}


@pytest.fixture
def encoder(tiny_bundle: Path) -> Iterator[Encoder]:
    with Encoder(tiny_bundle) as encoder:
        yield encoder


class Gate:
    """Stands before a backend: holds batches back until it is opened, and notes them."""

    def __init__(self, backend: Any) -> None:
        self._run = backend.run
        backend.run = self.run
        self.is_open = threading.Event()
        self.reached = threading.Event()
        self.batches: list[list[list[int]]] = []

    def run(self, batch: Batch) -> Any:
        texts = [ids[:n].tolist() for ids, n in zip(batch.input_ids, batch.lengths, strict=True)]
        self.batches.append(texts)
        self.reached.set()
        assert self.is_open.wait(LONG)
        return self._run(batch)

    def executed(self) -> list[list[int]]:
        return [ids for batch in self.batches for ids in batch]


@pytest.fixture
def gate(encoder: Encoder) -> Iterator[Gate]:
    gate = Gate(encoder._backend)
    yield gate
    gate.is_open.set()


@pytest.fixture
def batcher(encoder: Encoder) -> Iterator[DynamicBatcher]:
    with DynamicBatcher(encoder) as batcher:
        yield batcher


@pytest.fixture
def held(gate: Gate, batcher: DynamicBatcher) -> Iterator[DynamicBatcher]:
    """A batcher whose worker is held back with one text in hand; the rest of the test waits."""
    first = batcher.submit("第一")
    assert gate.reached.wait(LONG)
    yield batcher
    gate.is_open.set()
    first.result(LONG)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max(initial=0) <= INVARIANCE)


# --- The right vector


def test_a_text_has_the_vector_that_encode_gives(
    shared: Encoder, pool: dict[str, np.ndarray]
) -> None:
    with DynamicBatcher(shared) as batcher:
        answers = {text: batcher.submit(text) for text in pool}
        for text, answer in answers.items():
            vector = answer.result(LONG)
            assert (vector.shape, vector.dtype) == ((48,), np.float32)
            assert vector.base is None  # it does not keep its batch alive
            assert close(vector, pool[text])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_embeddings": False},
        {"truncate_dim": 8},
        {"prompt_name": "query"},
        {"prompt": "问：", "truncate_dim": 5, "normalize_embeddings": False},
        {"truncate": False},
        {"truncate": "error"},
    ],
)
def test_options_are_those_of_encode_and_each_callers_own(
    tiny_mean_bundle: Path, options: dict[str, Any]
) -> None:
    texts = ["头痛怎么办", "", "CT 12 mg", "发烧"]
    with Encoder(tiny_mean_bundle) as encoder, DynamicBatcher(encoder) as batcher:
        gate = Gate(encoder._backend)
        first = batcher.submit("第一")
        mixed = [(batcher.submit(t, **options), batcher.submit(t, truncate_dim=3)) for t in texts]
        gate.is_open.set()
        for text, (one, other) in zip(texts, mixed, strict=True):
            assert close(one.result(LONG), encoder.encode(text, **options))
            assert close(other.result(LONG), encoder.encode(text, truncate_dim=3))
        assert first.result(LONG).shape == (48,)
        found = asyncio.run(batcher.aencode(texts, **options))
        assert close(found, encoder.encode(texts, **options))


@pytest.mark.parametrize("wrap", [list, tuple, iter, np.array], ids=["list", "tuple", "it", "arr"])
def test_aencode_returns_what_encode_does(shared: Encoder, wrap: Any) -> None:
    texts = ["头痛怎么办", "", "CT 12 mg", "发烧"]

    async def calls(batcher: DynamicBatcher) -> list[np.ndarray]:
        return [
            await batcher.aencode("头痛"),
            await batcher.aencode(wrap(texts)),
            await batcher.aencode([]),
            await batcher.aencode([], truncate_dim=7),
        ]

    with DynamicBatcher(shared) as batcher:
        one, several, none, none_short = asyncio.run(calls(batcher))
    assert close(one, shared.encode("头痛"))
    assert close(several, shared.encode(texts))
    assert (one.shape, several.shape, none.shape) == ((48,), (4, 48), (0, 48))
    assert none_short.shape == (0, 7)


def test_many_texts_of_one_call_keep_their_order(
    shared: Encoder, pool: dict[str, np.ndarray]
) -> None:
    texts = random.Random(3).choices(sorted(pool), k=3000)
    with DynamicBatcher(shared, max_queue_tokens=10_000) as batcher:
        found = asyncio.run(batcher.aencode(texts))
    assert close(found, np.stack([pool[text] for text in texts]))


STEP = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 10**6)),
    st.tuples(st.just("cancel"), st.integers(0, 10**6)),
    st.tuples(st.just("many"), st.lists(st.integers(0, 10**6), max_size=30)),
    st.tuples(st.just("leave"), st.integers(0, 10**6)),
    st.tuples(st.just("pause"), st.none()),
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(STEP, max_size=60), budget=st.sampled_from([1, 60, 512]))
def test_whatever_is_asked_and_cancelled_each_caller_gets_its_own(
    shared: Encoder, pool: dict[str, np.ndarray], steps: list[tuple[str, Any]], budget: int
) -> None:
    texts = sorted(pool)

    async def play(batcher: DynamicBatcher) -> None:
        single: list[tuple[str, Any]] = []
        many: list[tuple[list[str], asyncio.Task[np.ndarray]]] = []
        for verb, what in steps:
            if verb == "submit":
                text = texts[what % len(texts)]
                single.append((text, batcher.submit(text)))
            elif verb == "many":
                chosen = [texts[k % len(texts)] for k in what]
                many.append((chosen, asyncio.create_task(batcher.aencode(chosen))))
            elif verb == "cancel" and single:
                single[what % len(single)][1].cancel()
            elif verb == "leave" and many:
                many[what % len(many)][1].cancel()
            else:
                await asyncio.sleep(0)
        for text, answer in single:
            if answer.cancelled():
                continue
            assert close(await asyncio.wrap_future(answer), pool[text])
        for chosen, task in many:
            try:
                found = await task
            except asyncio.CancelledError:
                continue
            expected = np.array([pool[text] for text in chosen]).reshape(-1, 48)
            assert close(found, expected)

    with DynamicBatcher(shared, max_batch_tokens=budget) as batcher:
        asyncio.run(play(batcher))
        counters = batcher.counters()
    assert counters.waiting_texts == counters.waiting_tokens == 0


# --- Many callers


def hammer(batcher: DynamicBatcher, pool: dict[str, np.ndarray], seconds: float) -> int:
    """Let 64 threads ask, each answer checked; return how many there were."""
    texts = sorted(pool)
    until = time.monotonic() + seconds

    def call(seed: int) -> int:
        chance = random.Random(seed)
        count = 0
        while time.monotonic() < until:
            text = chance.choice(texts)
            answer = batcher.submit(text)
            if chance.random() < 0.1 and answer.cancel():
                continue
            assert close(answer.result(LONG), pool[text]), text
            count += 1
        return count

    with ThreadPoolExecutor(64) as threads:
        return sum(threads.map(call, range(64)))


def test_64_threads_get_only_right_answers(shared: Encoder, pool: dict[str, np.ndarray]) -> None:
    with DynamicBatcher(shared) as batcher:
        answered = hammer(batcher, pool, 2)
    counters = batcher.counters()
    assert answered > 640
    assert counters.texts == answered
    assert counters.batches < answered  # they did share batches
    assert counters.waiting_texts == counters.running_texts == counters.failed == 0


def hammer_with_tasks(batcher: DynamicBatcher, pool: dict[str, np.ndarray], seconds: float) -> int:
    """Let 64 tasks of one loop ask, each answer checked; return how many there were."""
    texts = sorted(pool)
    until = time.monotonic() + seconds

    async def call(seed: int) -> int:
        chance = random.Random(seed)
        count = 0
        while time.monotonic() < until:
            chosen = chance.choices(texts, k=chance.choice([1, 1, 1, 2, 20]))
            timeout = chance.choice([None, LONG])
            asked = asyncio.ensure_future(batcher.aencode(chosen, timeout=timeout))
            if chance.random() < 0.1:
                await asyncio.sleep(0)
                asked.cancel()
                with suppress(asyncio.CancelledError):
                    await asked
                continue
            assert close(await asked, np.stack([pool[text] for text in chosen])), chosen
            count += len(chosen)
        return count

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*map(call, range(64))))

    return asyncio.run(all_of_them())


def test_64_tasks_get_only_right_answers(shared: Encoder, pool: dict[str, np.ndarray]) -> None:
    with DynamicBatcher(shared) as batcher:
        assert hammer_with_tasks(batcher, pool, 2) > 640
    counters = batcher.counters()
    assert counters.waiting_texts == counters.running_texts == counters.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", [hammer, hammer_with_tasks])
def test_64_callers_for_a_minute_get_only_right_answers_in_flat_memory(
    shared: Encoder, pool: dict[str, np.ndarray], way: Any
) -> None:
    process = psutil.Process()
    with DynamicBatcher(shared) as batcher:
        way(batcher, pool, 10)
        before = process.memory_info().rss
        answered = way(batcher, pool, 60)
        grown = process.memory_info().rss - before
    assert answered > 10_000
    assert grown < 16 * 2**20


def test_tasks_of_several_loops_are_served_together(
    shared: Encoder, pool: dict[str, np.ndarray]
) -> None:
    texts = sorted(pool)

    async def ask(seed: int) -> None:
        chance = random.Random(seed)

        async def one() -> None:
            chosen = chance.choices(texts, k=chance.randint(1, 5))
            found = await batcher.aencode(chosen)
            assert close(found, np.stack([pool[text] for text in chosen]))

        await asyncio.gather(*(one() for _ in range(150)))

    with DynamicBatcher(shared) as batcher, ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda seed: asyncio.run(ask(seed)), range(3)))


def test_single_texts_do_not_wait_for_all_of_a_long_call(
    encoder: Encoder, pool: dict[str, np.ndarray]
) -> None:
    """Beside 10,000 texts of another caller, a text is in one of the next few batches."""
    texts = random.Random(5).choices(sorted(pool), k=10_000)
    executed: list[int] = []
    run = encoder._backend.run

    def count(batch: Batch) -> Any:
        executed.append(len(batch.lengths))
        return run(batch)

    encoder._backend.run = count  # type: ignore[method-assign]

    async def both(batcher: DynamicBatcher) -> list[int]:
        long = asyncio.create_task(batcher.aencode(texts))
        passed = []
        while not executed:
            await asyncio.sleep(0.001)
        for _ in range(20):
            before = len(executed)
            answer = batcher.submit("头痛")
            answer.add_done_callback(lambda _, before=before: passed.append(len(executed) - before))
            await asyncio.wrap_future(answer)
            assert not long.done()
        found = await long
        assert close(found, np.stack([pool[text] for text in texts]))
        return passed

    with DynamicBatcher(encoder) as batcher:
        passed = asyncio.run(both(batcher))
    assert statistics.median(passed) <= 4
    assert len(executed) > 200


def test_what_waits_is_due_by_the_pace_that_was_measured(shared: Encoder) -> None:
    """Not by a guess: where it is too low, a long call's legs are overdue and go before all."""
    with DynamicBatcher(shared) as batcher:
        waiting = batcher._exchange._waiting
        guess = waiting.token_s
        for text in ("头痛", "发烧" * 60, "头痛怎么办" * 20):
            batcher.submit(text).result(LONG)
            until = time.monotonic() + LONG
            while not (pace := batcher.counters().tokens_per_s):
                assert time.monotonic() < until
            assert waiting.token_s == pytest.approx(STRETCH / pace)
            assert waiting.token_s != guess


def test_the_event_loop_goes_on_while_many_texts_are_tokenized(
    shared: Encoder, pool: dict[str, np.ndarray]
) -> None:
    texts = [text * 20 for text in sorted(pool) if text] * 10

    async def pauses(batcher: DynamicBatcher) -> float:
        long = asyncio.create_task(batcher.aencode(texts))
        worst = 0.0
        while not long.done():
            start = time.perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, time.perf_counter() - start)
        await long
        return worst

    with DynamicBatcher(shared) as batcher:
        alone = time.perf_counter()
        shared.token_ids(texts)
        alone = time.perf_counter() - alone
        assert alone > 0.2, "too few texts to tell"
        assert asyncio.run(pauses(batcher)) < max(0.5 * alone, 0.1)


def test_what_a_prompt_adds_is_not_tokenized_in_the_event_loop(encoder: Encoder) -> None:
    tokenize, threads = encoder.tokenize, []

    def noted(*arguments: Any) -> Tokens:
        threads.append(threading.current_thread())
        return tokenize(*arguments)

    encoder.tokenize = noted  # type: ignore[method-assign]
    with DynamicBatcher(encoder) as batcher:
        asyncio.run(batcher.aencode(["头痛"] * 200))
        asyncio.run(batcher.aencode(["头痛"] * 200, prompt="提" * 90))
    main = threading.main_thread()
    assert [thread is main for thread in threads] == [True, False]


# --- Batches


def test_an_idle_worker_takes_what_is_there_at_once(encoder: Encoder) -> None:
    with DynamicBatcher(encoder, max_wait_us=LONG * 1e6) as batcher:
        for _ in range(3):
            start = time.monotonic()
            batcher.submit("头痛").result(LONG)
            assert time.monotonic() - start < SOON


def test_a_busy_worker_waits_for_a_batch_to_fill_up(encoder: Encoder, gate: Gate) -> None:
    with DynamicBatcher(encoder, max_wait_us=1e6, max_batch_tokens=64) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        second = batcher.submit("头痛头痛头痛头痛")  # 10 tokens
        gate.is_open.set()
        first.result(LONG)
        more = [batcher.submit("发烧发烧发烧发烧") for _ in range(2)]
        for answer in [second, *more]:
            answer.result(LONG)
        assert [len(batch) for batch in gate.batches] == [1, 3]
        assert batcher.counters().wait_seconds > 0.7


def test_a_full_batch_is_not_waited_for(encoder: Encoder, gate: Gate) -> None:
    with DynamicBatcher(encoder, max_wait_us=LONG * 1e6, max_batch_tokens=64) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        rest = [batcher.submit("头痛头痛头痛头痛") for _ in range(12)]
        gate.is_open.set()
        start = time.monotonic()
        for answer in [first, *rest[:6]]:
            answer.result(LONG)
        assert time.monotonic() - start < SOON


def test_what_waits_makes_batches_within_the_budget(held: DynamicBatcher, gate: Gate) -> None:
    answers = [held.submit("头" * n) for n in range(1, 60)]
    gate.is_open.set()
    concurrent.futures.wait(answers, LONG)
    assert all(len(b) * max(map(len, b)) <= 512 for b in gate.batches)
    assert len(gate.batches) < 50  # fewer the faster the machine; one a text would be 60


# --- Several workers


class Executions:
    """Notes of each execution of an encoder whether it was by all threads, and what it overlaps."""

    def __init__(self, encoder: Encoder) -> None:
        self._lock = threading.Lock()
        self._now = {"wide": 0, "narrow": 0}
        self.together: set[tuple[int, int]] = set()
        """How many wide and how many narrow ones were executed at a time."""
        assert encoder._wide is not None
        for kind, backend in (("wide", encoder._wide), ("narrow", encoder._backend)):
            backend.run = self._noting(kind, backend.run)  # type: ignore[method-assign]

    def _noting(self, kind: str, run: Any) -> Any:
        def noting(batch: Batch) -> Any:
            self._count(kind, 1)
            time.sleep(0.001)
            try:
                return run(batch)
            finally:
                self._count(kind, -1)

        return noting

    def _count(self, kind: str, change: int) -> None:
        with self._lock:
            self._now[kind] += change
            self.together.add((self._now["wide"], self._now["narrow"]))


@pytest.fixture
def adaptive(tiny_bundle: Path) -> Iterator[Encoder]:
    with Encoder(tiny_bundle, adaptive=True, threads=2) as encoder:
        assert (encoder.workers, encoder.adaptive) == (2, True)
        yield encoder


def test_a_text_that_is_alone_gets_all_threads(adaptive: Encoder) -> None:
    executions = Executions(adaptive)
    with DynamicBatcher(adaptive) as batcher:
        for text in ("头痛", "发烧怎么办", "头痛"):
            batcher.submit(text).result(LONG)
    assert executions.together == {(0, 0), (1, 0)}


def test_whoever_asks_again_when_answered_gets_all_threads_again(adaptive: Encoder) -> None:
    """Before the worker that answered is back to look for more."""
    executions, left, done = Executions(adaptive), list(range(20)), threading.Event()
    with DynamicBatcher(adaptive) as batcher:

        def ask(_: object = None) -> None:
            if left:
                left.pop()
                batcher.submit("头痛").add_done_callback(ask)
            else:
                done.set()

        ask()
        assert done.wait(LONG)
    assert executions.together == {(0, 0), (1, 0)}


def test_a_text_that_had_to_wait_leaves_a_thread_for_the_next(adaptive: Encoder) -> None:
    """Two callers in turns would otherwise each wait for the other's text by all threads."""
    gate = Gate(adaptive._wide)
    executions = Executions(adaptive)
    with DynamicBatcher(adaptive) as batcher:
        first = batcher.submit("头痛")
        assert gate.reached.wait(LONG)
        second = batcher.submit("发烧")
        gate.is_open.set()
        assert first.result(LONG).shape == second.result(LONG).shape == (48,)
        assert executions.together == {(1, 0), (0, 0), (0, 1)}
        # Nothing waits any more, so the next has all threads again.
        executions.together.clear()
        batcher.submit("头痛").result(LONG)
    assert executions.together == {(1, 0), (0, 0)}


def test_many_texts_of_an_idle_batcher_are_executed_by_all_workers(
    adaptive: Encoder, pool: dict[str, np.ndarray]
) -> None:
    executions = Executions(adaptive)
    texts = [text for text in pool if text] * 3
    with DynamicBatcher(adaptive, max_batch_tokens=32) as batcher:
        found = asyncio.run(batcher.aencode(texts))
    assert close(found, np.stack([pool[text] for text in texts]))
    assert (0, 2) in executions.together


@pytest.mark.parametrize("max_wait_us", [0, 500])
def test_what_is_executed_by_all_threads_is_executed_alone(
    adaptive: Encoder, pool: dict[str, np.ndarray], max_wait_us: int
) -> None:
    """Whatever comes when, answers are right, and threads are never asked for twice."""
    executions = Executions(adaptive)

    def call(seed: int) -> bool:
        chance = random.Random(seed)
        right = True
        for _ in range(40):
            text = chance.choice(sorted(pool))
            right &= close(batcher.submit(text).result(LONG), pool[text])
            time.sleep(chance.choice([0, 0, 0.01]))
        return right

    budget = {"max_batch_tokens": 32, "max_wait_us": max_wait_us}
    with DynamicBatcher(adaptive, **budget) as batcher, ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(4)))
    assert executions.together >= {(0, 0), (1, 0), (0, 1), (0, 2)}
    assert not {pair for pair in executions.together if pair[0] and sum(pair) > 1}


def test_a_worker_that_dies_alone_holds_nobody_up(
    adaptive: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adaptive._wide is not None
    run = adaptive._wide.run
    monkeypatch.setattr(adaptive._wide, "run", Mock(side_effect=SystemExit))
    gate = Gate(adaptive._wide)
    with DynamicBatcher(adaptive) as batcher:
        unlucky = batcher.submit("头痛")
        assert gate.reached.wait(LONG)
        waiting = batcher.submit("发烧")
        monkeypatch.setattr(adaptive._wide, "run", run)
        gate.is_open.set()
        with pytest.raises(WorkerError):
            unlucky.result(SOON)
        assert waiting.result(SOON).shape == (48,)


def test_closing_ends_workers_that_wait_for_one_that_is_alone(adaptive: Encoder) -> None:
    """Also when what they would have executed has expired meanwhile."""
    gate = Gate(adaptive._wide)
    batcher = DynamicBatcher(adaptive)
    first = batcher.submit("头痛")
    assert gate.reached.wait(LONG)
    late = batcher.submit("发烧", timeout=0.2)
    closing = threading.Thread(target=batcher.close, daemon=True)
    closing.start()
    with pytest.raises(DeadlineExceeded):
        late.result(SOON)
    gate.is_open.set()
    assert first.result(SOON).shape == (48,)
    closing.join(SOON)
    assert not closing.is_alive()


def test_a_model_that_cannot_be_opened_twice_is_not_left_open(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def once(*_: Any, **__: Any) -> Any:
        if opened:
            raise MemoryError
        opened.append(Mock(spec=OnnxRuntimeBackend))  # not one that shares its model
        return opened[0]

    monkeypatch.setattr("corom.runtime.encoder.open_backend", once)
    with pytest.raises(MemoryError):
        Encoder(tiny_bundle, adaptive=True, threads=2)
    opened[0].close.assert_called_once_with()


def test_adaptive_is_for_workers_that_are_left_open(tiny_bundle: Path) -> None:
    for options in ({"workers": 2}, {"threads": 1}):
        with Encoder(tiny_bundle, adaptive=True, **options) as encoder:  # type: ignore[arg-type]
            assert not encoder.adaptive
            vector = encoder.run_alone(Batch(np.array([[2, 3]]), np.array([2])))
            assert vector.shape == (1, 48)


# --- Limits


def test_a_full_queue_refuses_at_once_and_computes_what_waits(encoder: Encoder, gate: Gate) -> None:
    async def late() -> None:
        with pytest.raises(Overloaded, match="max_queue_tokens is 20"):
            await batcher.aencode(["头痛", "发烧"])

    with DynamicBatcher(encoder, max_queue_tokens=20) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        waiting = [batcher.submit("头痛" * 3) for _ in range(2)]  # 8 tokens each
        with pytest.raises(Overloaded, match="16 tokens wait already and this call has 8") as error:
            batcher.submit("头痛" * 3)
        assert error.value.exit_code == 3
        asyncio.run(late())
        assert batcher.submit("痛痛")  # 4 tokens fit
        assert batcher.counters().overloaded == 2
        gate.is_open.set()
        for answer in [first, *waiting]:
            answer.result(LONG)
        batcher.submit("头痛" * 3).result(LONG)


def test_texts_that_cannot_be_tokenized_are_answered_even_if_the_first_ones_callback_raises(
    encoder: Encoder, gate: Gate
) -> None:
    """That ends the worker, and nobody else knows of the second."""
    each = encoder.tokenize_each

    def poisoned(texts: list[str], wish: Wish) -> list[Tokens]:
        if any("毒" in text for text in texts):
            raise ValueError("poisoned")
        return each(texts, wish)

    def leave(_: object) -> None:
        raise SystemExit

    encoder.tokenize_each = poisoned  # type: ignore[method-assign]
    with DynamicBatcher(encoder) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        poison = [batcher.submit("毒一"), batcher.submit("毒二")]
        poison[0].add_done_callback(leave)
        gate.is_open.set()
        first.result(LONG)
        for answer in poison:
            with pytest.raises(ValueError, match="poisoned"):
                answer.result(LONG)
        assert batcher.counters().waiting_texts == batcher.counters().waiting_tokens == 0


def test_no_text_is_refused_for_what_it_was_only_guessed_to_have(
    encoder: Encoder, gate: Gate
) -> None:
    word = "a" * 400  # 135 tokens by its bytes; one unknown word
    with DynamicBatcher(encoder, max_queue_tokens=100) as batcher:
        answers = [batcher.submit("第一")]
        assert gate.reached.wait(LONG)
        answers += [batcher.submit("头痛" * 10), batcher.submit(word)]
        assert batcher.counters().waiting_tokens == 22 + 3
        gate.is_open.set()
        for answer in answers:
            answer.result(LONG)


def test_a_call_that_a_full_queue_refuses_is_not_tokenized(encoder: Encoder, gate: Gate) -> None:
    async def late() -> None:
        with pytest.raises(Overloaded, match="20 tokens wait already; max_queue_tokens is 20"):
            await batcher.aencode(["头痛", "发烧"])
        assert (await batcher.aencode([])).shape == (0, 48)

    with DynamicBatcher(encoder, max_queue_tokens=20) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        waiting = batcher.submit("头痛" * 9)
        encoder.tokenize = Mock(side_effect=AssertionError)  # type: ignore[method-assign]
        asyncio.run(late())
        with pytest.raises(Overloaded, match="20 tokens wait already; max_queue_tokens is 20"):
            batcher.submit("发烧")
        assert batcher.counters().overloaded == 2
        gate.is_open.set()
        for answer in (first, waiting):
            answer.result(LONG)


def test_what_is_larger_than_the_queue_is_taken_when_nothing_waits(shared: Encoder) -> None:
    with DynamicBatcher(shared, max_queue_tokens=1) as batcher:
        assert batcher.submit("头" * 90).result(LONG).shape == (48,)
        found = asyncio.run(batcher.aencode(["头痛"] * 1000))
        assert found.shape == (1000, 48)


def test_a_text_whose_deadline_passes_is_not_computed(held: DynamicBatcher, gate: Gate) -> None:
    late = held.submit("迟到", timeout=0.02)
    in_time = held.submit("头痛", timeout=LONG)
    time.sleep(0.05)
    gate.is_open.set()
    with pytest.raises(DeadlineExceeded, match=r"passed after \d\.\d+ s of waiting"):
        late.result(SOON)
    assert in_time.result(LONG).shape == (48,)
    assert len(gate.executed()) == 2
    counters = held.counters()
    assert (counters.expired, counters.texts, counters.waiting_tokens) == (1, 2, 0)


def test_a_deadline_counts_for_all_texts_of_a_call(held: DynamicBatcher, gate: Gate) -> None:
    async def call() -> None:
        with pytest.raises(DeadlineExceeded):
            await held.aencode(["头痛"] * 2000, timeout=0.05)

    asyncio.run(call())
    gate.is_open.set()
    held.submit("发烧").result(LONG)
    assert len(gate.executed()) == 2  # the first, and this one


def test_a_deadline_that_passes_far_behind_is_told_soon(held: DynamicBatcher, gate: Gate) -> None:
    """Not when its turn would have come."""
    ahead = [held.submit("头痛") for _ in range(2000)]
    late = held.submit("迟到" * 60, timeout=0.01)  # long, so due after all of them
    with pytest.raises(DeadlineExceeded):
        late.result(SOON)
    assert len(gate.batches) == 1
    gate.is_open.set()
    concurrent.futures.wait(ahead, LONG)
    assert len(gate.batches) > 15


@pytest.mark.parametrize("in_hand", [False, True], ids=["waits", "is executed"])
def test_a_deadline_is_kept_while_the_worker_is_in_a_long_batch(
    batcher: DynamicBatcher, gate: Gate, in_hand: bool
) -> None:
    first = batcher.submit("第一", timeout=0.2 if in_hand else None)
    assert gate.reached.wait(LONG)
    start = time.monotonic()
    late = first if in_hand else batcher.submit("迟到", timeout=0.1)
    far = batcher.submit("头痛", timeout=LONG)
    with pytest.raises(DeadlineExceeded, match=r"passed after \d\.\d+ s of waiting"):
        late.result(SOON)
    assert time.monotonic() - start < SOON
    assert not gate.is_open.is_set()  # told although no worker came back
    counters = batcher.counters()
    assert (counters.expired, counters.waiting_texts) == (1, 1)
    gate.is_open.set()
    assert far.result(LONG).shape == (48,)
    assert len(gate.executed()) == 2


@given(waits=st.lists(st.floats(0.001, 0.3), min_size=1, max_size=30))
@settings(deadline=None, max_examples=5)
def test_deadlines_are_told_in_time_in_whatever_order_they_come(
    tiny_bundle: Path, waits: list[float]
) -> None:
    told: dict[int, float] = {}
    with Encoder(tiny_bundle, threads=1) as encoder, DynamicBatcher(encoder) as batcher:
        gate = Gate(encoder._backend)
        try:
            batcher.submit("第一")
            assert gate.reached.wait(LONG)
            answers = []
            for k, seconds in enumerate(waits):
                due = time.monotonic() + seconds
                answers.append(batcher.submit("头痛", timeout=seconds))
                answers[k].add_done_callback(
                    lambda _, k=k, due=due: told.setdefault(k, time.monotonic() - due)
                )
            assert concurrent.futures.wait(answers, LONG).not_done == set()
            assert all(isinstance(a.exception(), DeadlineExceeded) for a in answers)
        finally:
            gate.is_open.set()
    assert all(-1e-3 < late < SOON for late in told.values())


def test_a_deadline_of_a_task_is_kept_and_nothing_is_left_unseen(
    held: DynamicBatcher, gate: Gate
) -> None:
    complaints: list[dict[str, Any]] = []

    async def call() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await held.aencode(["头痛"] * 2000, timeout=0.1)  # two pieces of it wait
        assert time.monotonic() - start < SOON
        gc.collect()

    asyncio.run(call())
    assert not gate.is_open.is_set()
    assert complaints == []
    assert held.counters().waiting_tokens == 0


@pytest.mark.parametrize("closes", [False, True])
def test_what_is_done_with_an_expired_answer_harms_no_other(
    batcher: DynamicBatcher, gate: Gate, caplog: pytest.LogCaptureFixture, closes: bool
) -> None:
    acts = threading.Event()

    def act(_: object) -> None:
        acts.set()
        if closes:
            batcher.close()
        raise SystemExit("a caller's own")

    first = batcher.submit("第一")
    assert gate.reached.wait(LONG)
    batcher.submit("头痛", timeout=0.5).add_done_callback(act)
    other = batcher.submit("发烧", timeout=0.6)
    with caplog.at_level(logging.CRITICAL, logger="corom"):
        if closes:
            assert acts.wait(LONG)
            gate.is_open.set()  # closing waits for the worker
            assert not concurrent.futures.wait([other], LONG).not_done
        else:
            with pytest.raises(DeadlineExceeded):
                other.result(SOON)
        gate.is_open.set()
        assert first.result(LONG).shape == (48,)
        batcher.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("corom-")]


def test_a_deadline_error_is_a_timeout_too() -> None:
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert DeadlineExceeded.exit_code == 3


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(0, DeadlineExceeded), (-1, DeadlineExceeded), ("1", InputTypeError), (True, InputTypeError)],
)
def test_a_timeout_that_cannot_be_kept_is_refused(
    shared: Encoder, timeout: Any, error: type[Exception]
) -> None:
    with DynamicBatcher(shared) as batcher, pytest.raises(error, match="timeout is"):
        batcher.submit("头痛", timeout=timeout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0"),
        ({"max_batch_tokens": "9"}, "max_batch_tokens is '9'"),
        ({"max_wait_us": -1}, "max_wait_us is -1; it must be at least 0"),
        ({"max_wait_us": float("nan")}, "max_wait_us is nan"),
        ({"max_wait_us": None}, "max_wait_us is None"),
        ({"max_queue_tokens": 0}, "max_queue_tokens is 0"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(
    shared: Encoder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        DynamicBatcher(shared, **options)


# --- Cancelling


def test_a_cancelled_text_is_not_computed_and_makes_room(encoder: Encoder, gate: Gate) -> None:
    with DynamicBatcher(encoder, max_queue_tokens=20) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        assert not first.cancel()  # too late
        gone = [batcher.submit("头痛" * 3) for _ in range(2)]
        assert all(answer.cancel() for answer in gone)
        assert all(answer.cancel() for answer in gone)
        assert concurrent.futures.wait(gone, SOON).not_done == set()
        with pytest.raises(CancelledError):
            gone[0].result(SOON)
        kept = batcher.submit("头" * 9)
        gate.is_open.set()
        assert kept.result(LONG).shape == (48,)
        assert len(gate.executed()) == 2
        assert batcher.counters().cancelled == 2
        assert not kept.cancel()


def test_a_task_that_is_cancelled_drops_what_waits(held: DynamicBatcher, gate: Gate) -> None:
    async def leave() -> None:
        task = asyncio.create_task(held.aencode(["头痛"] * 1000))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.1)

    asyncio.run(leave())
    assert held.counters().waiting_tokens == 0
    gate.is_open.set()
    held.submit("发烧").result(LONG)
    assert len(gate.executed()) == 2


def test_a_loop_that_is_gone_harms_nobody(
    encoder: Encoder, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    with DynamicBatcher(encoder) as batcher:

        async def ask() -> None:
            task = asyncio.create_task(batcher.aencode("头痛"))
            while not gate.reached.is_set():
                await asyncio.sleep(0.001)
            task.cancel()

        asyncio.run(ask())  # the loop is closed while its text is executed
        gate.is_open.set()
        assert batcher.submit("发烧").result(LONG).shape == (48,)
    assert "died" not in caplog.text


# --- What fails, fails alone

LONE = "\ud83d"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, InputTypeError, "NoneType, not str"),
        (b"abc", InputTypeError, "bytes, not str"),
        (["a", "b"], InputTypeError, "list, not str"),
        (f"坏{LONE}", InputError, "lone surrogate"),
        ("头" * 200, InputError, "202 tokens"),
    ],
)
def test_a_poisoned_text_fails_alone(
    held: DynamicBatcher, gate: Gate, text: Any, error: type[Exception], message: str
) -> None:
    good = [held.submit("头痛", truncate="error")]
    with pytest.raises(error, match=message):
        held.submit(text, truncate="error")
    good.append(held.submit("发烧", truncate="error"))
    gate.is_open.set()
    for answer in good:
        assert answer.result(LONG).shape == (48,)


def test_a_poisoned_text_of_many_is_named_by_its_place(shared: Encoder) -> None:
    texts: list[Any] = ["好"] * 3000
    texts[2500] = 7

    async def both() -> list[Any]:
        calls = [batcher.aencode(texts), batcher.aencode(texts[:2000])]
        return await asyncio.gather(*calls, return_exceptions=True)

    with DynamicBatcher(shared) as batcher:
        bad, good = asyncio.run(both())
        assert isinstance(bad, InputTypeError)
        assert "text 2500 is int" in str(bad)
        assert good.shape == (2000, 48)
        with pytest.raises(InputTypeError, match="the input is dict"):
            asyncio.run(batcher.aencode({"text": "好"}))


def test_a_text_that_the_backend_cannot_run_fails_alone(encoder: Encoder) -> None:
    (poison,) = encoder.token_ids(["毒"])
    run = encoder._backend.run

    def fail(batch: Batch) -> Any:
        if any(ids[: len(poison)].tolist() == poison for ids in batch.input_ids):
            raise MemoryError("too much for the backend")
        return run(batch)

    encoder._backend.run = fail  # type: ignore[method-assign]
    texts = ["头", "痛", "毒", "发", "烧", "毒", "好"]
    with DynamicBatcher(encoder) as batcher:
        gate = Gate(encoder._backend)
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        answers = [batcher.submit(text) for text in texts]
        gate.is_open.set()
        for text, answer in zip(texts, answers, strict=True):
            if text == "毒":
                with pytest.raises(MemoryError, match="too much"):
                    answer.result(LONG)
            else:
                assert answer.result(LONG).shape == (48,)
        first.result(LONG)
        assert batcher.counters().failed == 2
        with pytest.raises(MemoryError):
            asyncio.run(batcher.aencode(texts))


def test_a_vector_that_holds_nan_fails_alone(encoder: Encoder) -> None:
    (poison,) = encoder.token_ids(["毒"])
    run = encoder._backend.run

    def overflow(batch: Batch) -> Any:
        vectors = run(batch)
        for row, ids in enumerate(batch.input_ids):
            if ids[: len(poison)].tolist() == poison:
                vectors[row, 3] = np.nan
        return vectors

    encoder._backend.run = overflow  # type: ignore[method-assign]
    with DynamicBatcher(encoder) as batcher:
        gate = Gate(encoder._backend)
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        answers = {text: batcher.submit(text) for text in ("头", "毒", "发")}
        gate.is_open.set()
        for good in (first, answers["头"], answers["发"]):
            assert np.isfinite(good.result(LONG)).all()
        with pytest.raises(ParityError, match="NaN or infinite values, by fp32 by onnxruntime"):
            answers["毒"].result(LONG)
    with pytest.raises(ParityError, match="1 of 1 texts holds NaN"):
        encoder.encode("毒")
    with pytest.raises(ParityError, match="text 2 holds NaN"):
        encoder.encode(["头", "发", "毒", "毒"], normalize_embeddings=True)


class Tokenizing:
    """Stands before an encoder's tokenizer for texts of many callers, and notes them."""

    def __init__(self, encoder: Encoder) -> None:
        self._each = encoder.tokenize_each
        encoder.tokenize_each = self.each  # type: ignore[method-assign]
        self.calls: list[list[str]] = []
        self.meanwhile: list[Callable[[], object]] = []
        """What happens while the next texts are tokenized."""

    def each(self, texts: list[str], wish: Wish) -> list[Tokens]:
        self.calls.append(texts)
        for happen in self.meanwhile:
            happen()
        if "毒" in texts:
            raise MemoryError("too much for the tokenizer")
        return self._each(texts, wish)


def test_what_many_callers_ask_for_is_tokenized_in_one_go(encoder: Encoder, gate: Gate) -> None:
    tokenizing = Tokenizing(encoder)
    texts = ["头痛", "", "CT 12 mg" * 20, "发烧" * 90]
    with DynamicBatcher(encoder) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        answers = [batcher.submit(text) for text in texts]
        long = batcher.submit("头" * (TOGETHER_CHARACTERS + 1))
        asked = batcher.submit("头痛", truncate="error")  # must know now
        other = batcher.submit("头痛", truncate_dim=3)
        assert batcher.counters().waiting_texts == 7
        gate.is_open.set()
        for text, answer in zip(texts, answers, strict=True):
            assert close(answer.result(LONG), encoder.encode(text))
        assert close(long.result(LONG), encoder.encode("头" * 1000))
        assert close(asked.result(LONG), encoder.encode("头痛"))
        assert close(other.result(LONG), encoder.encode("头痛", truncate_dim=3))
        first.result(LONG)
    assert tokenizing.calls == [["第一"], texts, ["头痛"]]
    assert encoder.truncated_texts == 4


def test_no_more_is_tokenized_at_once_than_a_few_batches_hold(encoder: Encoder, gate: Gate) -> None:
    tokenizing = Tokenizing(encoder)
    with DynamicBatcher(encoder, max_batch_tokens=40) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        answers = [batcher.submit("头痛" * 4) for _ in range(100)]
        gate.is_open.set()
        for answer in [first, *answers]:
            answer.result(LONG)
    assert sum(map(len, tokenizing.calls)) == 101
    assert max(map(len, tokenizing.calls)) == POOL * 40 // 10


def test_a_text_that_cannot_be_tokenized_fails_alone(encoder: Encoder, gate: Gate) -> None:
    Tokenizing(encoder)
    with DynamicBatcher(encoder) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        answers = {text: batcher.submit(text) for text in ["头", "毒", "痛", "发", "烧"]}
        gate.is_open.set()
        with pytest.raises(MemoryError, match="too much for the tokenizer"):
            answers.pop("毒").result(LONG)
        for text, answer in answers.items():
            assert close(answer.result(LONG), encoder.encode(text))
        first.result(LONG)
        counters = batcher.counters()
        assert (counters.failed, counters.texts) == (1, 5)
        assert counters.waiting_texts == counters.waiting_tokens == 0


def test_a_text_that_is_dropped_while_it_is_tokenized_is_not_computed(
    encoder: Encoder, gate: Gate
) -> None:
    tokenizing = Tokenizing(encoder)
    with DynamicBatcher(encoder) as batcher:
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        gone, kept = batcher.submit("头痛"), batcher.submit("发烧")
        tokenizing.meanwhile = [gone.cancel]
        gate.is_open.set()
        assert kept.result(LONG).shape == (48,)
        first.result(LONG)
        assert gone.cancelled()
        assert len(gate.executed()) == 2
        counters = batcher.counters()
        assert (counters.cancelled, counters.waiting_texts, counters.waiting_tokens) == (1, 0, 0)


def test_a_deadline_is_kept_while_a_text_is_tokenized(encoder: Encoder) -> None:
    tokenizing = Tokenizing(encoder)
    tokenizing.meanwhile = [lambda: time.sleep(1)]
    with DynamicBatcher(encoder) as batcher:
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            batcher.submit("迟到", timeout=0.05).result(SOON)
        assert time.monotonic() - start < 0.9
        assert batcher.counters().waiting_tokens == 0


def test_what_is_being_tokenized_is_answered_when_the_batcher_closes(encoder: Encoder) -> None:
    for drain in (True, False):
        tokenizing, reached, go_on = Tokenizing(encoder), threading.Event(), threading.Event()
        tokenizing.meanwhile = [reached.set, lambda go_on=go_on: go_on.wait(LONG)]
        batcher = DynamicBatcher(encoder)
        answer = batcher.submit("头痛")
        assert reached.wait(LONG)
        closing = threading.Thread(target=batcher.close, kwargs={"drain": drain})
        closing.start()
        await_closed(batcher)
        go_on.set()
        closing.join(LONG)
        if drain:
            assert answer.result(SOON).shape == (48,)
        else:
            with pytest.raises(CoromError, match="closed"):
                answer.result(SOON)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_callers_hear_of_a_worker_that_dies_tokenizing(
    encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    def die() -> None:
        tokenizing.meanwhile = []
        raise SystemExit

    tokenizing = Tokenizing(encoder)
    tokenizing.meanwhile = [die]
    with caplog.at_level(logging.CRITICAL, logger="corom"), DynamicBatcher(encoder) as batcher:
        with pytest.raises(WorkerError, match="Ask again"):
            batcher.submit("头痛").result(SOON)
        assert batcher.submit("发烧").result(SOON).shape == (48,)


def test_what_a_callback_raises_costs_nobody_else_the_answer(
    held: DynamicBatcher, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def fall(_: object) -> None:
        raise SystemExit("a caller's own")

    answers = [held.submit("头痛") for _ in range(4)]
    answers[1].add_done_callback(fall)
    with caplog.at_level(logging.CRITICAL, logger="corom"):
        gate.is_open.set()
        for answer in answers:
            assert answer.result(SOON).shape == (48,)
        assert held.submit("发烧").result(SOON).shape == (48,)


# --- A worker that dies


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_callers_hear_of_a_dead_worker_and_the_next_is_served(
    encoder: Encoder, gate: Gate, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    run = encoder._backend.run

    def die(batch: Batch) -> Any:
        run(batch)
        encoder._backend.run = run  # type: ignore[method-assign]
        raise error

    encoder._backend.run = die  # type: ignore[method-assign]
    with (
        caplog.at_level(logging.ERROR, logger="corom"),
        DynamicBatcher(encoder) as batcher,
    ):
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        waiting = batcher.submit("头痛")
        gate.is_open.set()
        with pytest.raises(WorkerError, match=f"died of {type(error).__name__}.*Ask again"):
            first.result(SOON)
        assert waiting.result(SOON).shape == (48,)
        assert batcher.submit("发烧").result(SOON).shape == (48,)
        assert batcher.counters().failed == 1
    assert "worker of the batcher died" in caplog.text


def dies(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the worker die of the next batch."""
    run = encoder._backend.run

    def die(_: Batch) -> Any:
        monkeypatch.setattr(encoder._backend, "run", run)
        raise SystemExit

    monkeypatch.setattr(encoder._backend, "run", die)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_is_replaced_whatever_a_caller_does_when_told(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fall(_: object) -> None:
        raise SystemExit("a caller's own")

    dies(encoder, monkeypatch)
    with caplog.at_level(logging.CRITICAL, logger="corom"), DynamicBatcher(encoder) as batcher:
        answer = batcher.submit("头痛")
        answer.add_done_callback(fall)
        with pytest.raises(WorkerError):
            answer.result(SOON)
        assert batcher.submit("发烧").result(SOON).shape == (48,)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_asks_again_when_no_thread_can_be_started_is_answered_later(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    allowed = [True, False]
    retried: list[Any] = []

    def start_one(thread: threading.Thread) -> None:
        if thread.name == "corom-batcher" and not (allowed.pop(0) if allowed else True):
            raise RuntimeError("can't start new thread")
        start(thread)

    def ask_again(_: object) -> None:
        retried.append(batcher.submit("发烧"))

    monkeypatch.setattr(threading.Thread, "start", start_one)
    dies(encoder, monkeypatch)
    with caplog.at_level(logging.CRITICAL, logger="corom"), DynamicBatcher(encoder) as batcher:
        answer = batcher.submit("头痛")
        answer.add_done_callback(ask_again)
        with pytest.raises(WorkerError):
            answer.result(SOON)
        until = time.monotonic() + SOON
        while not retried:
            assert time.monotonic() < until
            time.sleep(0.001)
        with suppress(WorkerError):  # it may have been there when no thread was
            retried[0].result(SOON)
        assert batcher.submit("发烧").result(SOON).shape == (48,)


def test_deadlines_are_watched_once_a_thread_can_be_started(
    encoder: Encoder, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "corom-deadlines":
            raise RuntimeError("can't start new thread")
        start(thread)

    with DynamicBatcher(encoder) as batcher:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start"):
                batcher.submit("头痛", timeout=0.1)
        answer = batcher.submit("发烧", timeout=0.1)
        with pytest.raises(DeadlineExceeded):
            answer.result(SOON)
        gate.is_open.set()


def test_a_worker_that_is_killed_while_idle_is_replaced(
    batcher: DynamicBatcher, caplog: pytest.LogCaptureFixture
) -> None:
    batcher.submit("头痛").result(LONG)
    (worker,) = [t for t in threading.enumerate() if t.name == "corom-batcher"]
    with caplog.at_level(logging.CRITICAL, logger="corom"):
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit)
        )
        answer = batcher.submit("头痛")
        with suppress(WorkerError):  # if it had been taken in hand
            assert answer.result(SOON).shape == (48,)
        assert batcher.submit("发烧").result(SOON).shape == (48,)
    assert worker not in threading.enumerate()


# --- The end


def await_closed(batcher: DynamicBatcher) -> None:
    """Wait until it takes nothing more, whether or not it has ended."""
    until = time.monotonic() + LONG
    while batcher._exchange._closed is None:
        assert time.monotonic() < until
        time.sleep(0.001)


def open_when_closed(gate: Gate, batcher: DynamicBatcher) -> None:
    def wait_and_open() -> None:
        await_closed(batcher)
        gate.is_open.set()

    threading.Thread(target=wait_and_open).start()


def test_closing_drains(held: DynamicBatcher, gate: Gate) -> None:
    answers = [held.submit("头痛" * n) for n in range(1, 40)]
    closing = threading.Thread(target=held.close)
    closing.start()
    await_closed(held)
    assert not any(answer.done() for answer in answers)
    with pytest.raises(CoromError, match="this batcher is closed"):
        held.submit("发烧")
    gate.is_open.set()
    closing.join(LONG)
    assert all(answer.result(0).shape == (48,) for answer in answers)


def test_closing_without_draining_refuses_what_waits(held: DynamicBatcher, gate: Gate) -> None:
    answers = [held.submit("头痛") for _ in range(4)]
    open_when_closed(gate, held)
    held.close(drain=False)
    for answer in answers:
        with pytest.raises(CoromError, match="this batcher is closed"):
            answer.result(0)


def test_a_closed_encoder_is_refused(tiny_bundle: Path) -> None:
    encoder = Encoder(tiny_bundle)
    encoder.close()
    with pytest.raises(CoromError, match="this encoder is closed"):
        DynamicBatcher(encoder)


@pytest.mark.parametrize("waits", [False, True])
def test_an_encoder_that_is_closed_closes_its_batchers(
    encoder: Encoder, gate: Gate, waits: bool
) -> None:
    batcher = DynamicBatcher(encoder)
    first = batcher.submit("第一")
    assert gate.reached.wait(LONG)
    second = batcher.submit("头痛") if waits else None
    open_when_closed(gate, batcher)
    encoder.close()
    assert first.result(0).shape == (48,)  # what was executed is answered
    if second is not None:
        with pytest.raises(CoromError, match="the encoder was closed"):
            second.result(0)
    with pytest.raises(CoromError, match="the encoder was closed"):
        batcher.submit("发烧")
    batcher.close()


def test_a_tasks_texts_are_refused_when_the_encoder_is_closed(encoder: Encoder, gate: Gate) -> None:
    async def call() -> None:
        task = asyncio.create_task(batcher.aencode(["头痛" * 30] * 300))
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)
        open_when_closed(gate, batcher)
        await asyncio.to_thread(encoder.close)
        with pytest.raises(CoromError, match="the encoder was closed"):
            await task

    batcher = DynamicBatcher(encoder)
    asyncio.run(call())


def test_a_callback_may_close_the_batcher(encoder: Encoder) -> None:
    batcher = DynamicBatcher(encoder)
    batcher.submit("头痛").add_done_callback(lambda _: batcher.close())
    deadline = time.monotonic() + LONG
    while any(t.name == "corom-batcher" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    batcher.close()


def test_callbacks_of_several_workers_may_close_the_batcher(tiny_bundle: Path) -> None:
    both_there, closed = threading.Barrier(2), queue.SimpleQueue[bool]()
    with Encoder(tiny_bundle, threads=2, workers=2) as encoder:
        gate = Gate(encoder._backend)
        batcher = DynamicBatcher(encoder)

        def close_it(_: object) -> None:
            both_there.wait(LONG)
            batcher.close()
            closed.put(True)

        answers = []
        for number, text in enumerate(["头痛", "发烧"], 1):  # each worker has one in hand
            answers.append(batcher.submit(text))
            answers[-1].add_done_callback(close_it)
            until = time.monotonic() + LONG
            while len(gate.batches) < number:
                assert time.monotonic() < until
                time.sleep(0.001)
        answers += [batcher.submit(text) for text in ("咳嗽", "腹泻")]
        gate.is_open.set()
        for answer in answers:  # what waits when a callback closes is answered after it
            assert answer.result(SOON).shape == (48,)
        for _ in range(2):
            assert closed.get(timeout=SOON)


def test_a_batcher_that_is_let_go_answers_and_leaves_nothing(tiny_bundle: Path) -> None:
    encoder = Encoder(tiny_bundle, threads=1)
    gate = Gate(encoder._backend)
    batcher = DynamicBatcher(encoder)
    answers = [batcher.submit("头痛", timeout=timeout) for timeout in (None, LONG)]
    assert gate.reached.wait(LONG)
    gone, encoder_gone = weakref.ref(batcher), weakref.ref(encoder)
    del batcher
    assert gone() is None  # at once: nothing but its user held it
    assert not encoder._before_close
    gate.is_open.set()
    for answer in answers:
        assert answer.result(LONG).shape == (48,)
    until = time.monotonic() + LONG
    while [t for t in threading.enumerate() if t.name.startswith("corom-")]:
        assert time.monotonic() < until
        time.sleep(0.01)
    del encoder, gate
    gc.collect()  # the gate and the backend refer to each other
    assert encoder_gone() is None


def test_a_batcher_may_be_let_go_by_the_collector_at_any_moment(tiny_bundle: Path) -> None:
    """Also by a thread that holds the lock of its exchange."""
    with Encoder(tiny_bundle, threads=1) as encoder:
        ring: list[Any] = [DynamicBatcher(encoder)]
        ring.append(ring)
        answer = ring[0].submit("头痛")
        answer.result(LONG)
        changed, gone = ring[0]._exchange._changed, weakref.ref(ring[0])
        with changed:
            del ring
            gc.collect()
            assert gone() is None
        until = time.monotonic() + LONG
        while [t for t in threading.enumerate() if t.name == "corom-batcher"]:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_closing_leaves_no_threads_and_no_memory(encoder: Encoder) -> None:
    process = psutil.Process()
    for round_ in range(40):
        with DynamicBatcher(encoder) as batcher:
            batcher.submit("头痛", timeout=LONG).result(LONG)
        batcher.close()
        if round_ == 20:
            threads, memory = process.num_threads(), process.memory_info().rss
    until = time.monotonic() + LONG  # a thread that was joined is there for a moment more
    while process.num_threads() > threads:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert process.memory_info().rss - memory < 4 * 2**20
    assert not encoder._before_close


def test_a_child_that_was_forked_is_told_so(tiny_bundle: Path) -> None:
    program = f"""
import os, warnings
from corom.runtime import CoromError, DynamicBatcher, Encoder
warnings.simplefilter("ignore")
encoder = Encoder({str(tiny_bundle)!r}, threads=1)
with DynamicBatcher(encoder) as batcher:
    batcher.submit("头痛").result()
    batcher._exchange._changed.acquire()  # as if another thread held it at that moment
    child = os.fork()
    if child == 0:
        try:
            batcher.submit("头痛")
        except CoromError as error:
            assert "forked" in str(error)
            batcher.close()
            os._exit(7)
        os._exit(1)
    batcher._exchange._changed.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    print(batcher.submit("头痛").result().shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "(48,)"), done.stderr


def test_a_process_that_ends_without_closing_ends(tiny_bundle: Path) -> None:
    program = f"""
from corom.runtime import DynamicBatcher, Encoder
batcher = DynamicBatcher(Encoder({str(tiny_bundle)!r}))
answers = [batcher.submit("头痛" * 60) for _ in range(1000)]
answers[0].result()
"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 20


# --- Counters


def test_counters_add_up(held: DynamicBatcher, gate: Gate) -> None:
    answers = [held.submit("头" * n) for n in (1, 2, 3)]
    counters = held.counters()
    assert (counters.waiting_texts, counters.waiting_tokens) == (3, 12)
    assert (counters.running_texts, counters.texts, counters.batches) == (1, 1, 1)
    time.sleep(0.01)
    gate.is_open.set()
    concurrent.futures.wait(answers, LONG)
    held.close()
    counters = held.counters()
    assert counters[:3] == (0, 0, 0)
    assert (counters.texts, counters.batches) == (4, 2)
    assert (counters.batch_tokens, counters.padded_tokens) == (4 + 12, 4 + 15)
    assert (counters.overloaded, counters.expired, counters.cancelled, counters.failed) == (0,) * 4
    assert len(counters.waits) == WAIT_BUCKETS
    assert sum(counters.waits) == 4
    assert sum(counters.waits[14:]) >= 3  # at least 8192 µs; the first waits for its thread only
    assert 0.03 < counters.wait_seconds < LONG


# --- Token ids, what a call took, and the time that may be waited


def test_texts_may_be_given_as_token_ids(shared: Encoder, parity_texts: list[str]) -> None:
    ids = shared.token_ids(parity_texts)

    async def call() -> None:
        vectors = await batcher.aencode(ids)
        assert close(vectors, shared.encode(parity_texts))
        with pytest.raises(InputError, match="text 300 holds the token id 2000"):
            await batcher.aencode([ids[0]] * 300 + [[2000]])
        mixed: list[Any] = [ids[0], "a"]
        with pytest.raises(InputTypeError, match="text 1 holds 'a' among its ids"):
            await batcher.aencode(mixed)
        with pytest.raises(InputTypeError, match="text 1 is list, not str"):
            await batcher.aencode(mixed[::-1])
        with pytest.raises(InputError, match="a prompt cannot be put before token ids"):
            await batcher.aencode(ids, prompt="q: ")

    with DynamicBatcher(shared) as batcher:
        asyncio.run(call())


def test_a_call_is_told_what_it_took(shared: Encoder, parity_texts: list[str]) -> None:
    texts = [*parity_texts, "头" * 200]

    async def call(texts: list[str]) -> Usage:
        usage = Usage()
        await batcher.aencode(texts, usage=usage)
        return usage

    async def calls() -> list[Usage]:
        return await asyncio.gather(call(texts * 3), call(texts), call([]))

    with DynamicBatcher(shared) as batcher:
        start = time.perf_counter()
        usages = asyncio.run(calls())
        seconds = time.perf_counter() - start
        counters = batcher.counters()
    tokens = sum(map(len, shared.token_ids(texts)))
    cut = shared.tokenize(texts, batcher._plain).truncated
    assert cut >= 1
    assert [usage.texts for usage in usages] == [3 * len(texts), len(texts), 0]
    assert [usage.tokens for usage in usages] == [3 * tokens, tokens, 0]
    assert [usage.truncated for usage in usages] == [3 * cut, cut, 0]
    for usage in usages[:2]:
        assert 0 < usage.tokenization_s < seconds
        assert 0 < usage.queue_s < seconds
        assert 0 < usage.inference_s < seconds
    assert counters.run_seconds < seconds
    assert counters.tokens_per_s is not None
    assert sum(counters.sizes) == sum(counters.token_sizes) == counters.batches


def test_what_would_wait_too_long_is_refused_at_once(encoder: Encoder, gate: Gate) -> None:
    with DynamicBatcher(encoder, max_queue_s=1) as batcher:
        gate.is_open.set()
        batcher.submit("头" * 100).result(LONG)
        gate.is_open.clear()
        gate.reached.clear()
        batcher._exchange._pace._tokens, batcher._exchange._pace._seconds = 100, 1
        futures = [batcher.submit("头" * 48)]
        assert gate.reached.wait(LONG)
        futures += [batcher.submit("头" * 48) for _ in range(3)]  # 0.5 s each
        start = time.monotonic()
        with pytest.raises(Overloaded, match=r"they take 1\.5 s, and max_queue_s is 1\."):
            batcher.submit("头痛")
        assert time.monotonic() - start < SOON
        assert batcher.counters().overloaded == 1
        gate.is_open.set()
        concurrent.futures.wait(futures, LONG)


def test_a_text_that_waited_too_long_for_others_is_given_up(encoder: Encoder, gate: Gate) -> None:
    with DynamicBatcher(encoder, max_queue_s=0.05) as batcher:
        gate.is_open.set()
        batcher.submit("头痛").result(LONG)
        gate.is_open.clear()
        gate.reached.clear()
        batcher._exchange._pace._tokens, batcher._exchange._pace._seconds = 1e6, 1
        first = batcher.submit("第一")
        assert gate.reached.wait(LONG)
        late = batcher.submit("发烧")
        time.sleep(0.2)
        gate.is_open.set()
        assert first.result(LONG).shape == (48,)
        with pytest.raises(Overloaded, match="for others; max_queue_s is 0.05"):
            late.result(LONG)
        assert batcher.counters().expired == 1
        assert batcher.counters().waiting_tokens == 0


def test_a_call_is_not_given_up_for_what_it_waits_for_itself(encoder: Encoder) -> None:
    """On an idle machine, however slow, a batch of many texts is answered."""
    run = encoder._backend.run

    def slow(batch: Batch) -> Any:
        time.sleep(0.05)
        return run(batch)

    encoder._backend.run = slow  # type: ignore[method-assign]
    with DynamicBatcher(encoder, max_batch_tokens=256, max_queue_s=0.01) as batcher:
        batcher.submit("头痛" * 60).result(LONG)
        vectors = asyncio.run(batcher.aencode(["头痛" * 60] * 40))
        assert close(vectors, np.tile(encoder.encode("头痛" * 60), (40, 1)))
