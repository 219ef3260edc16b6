"""Preemption: whoever asks for little while much is executed is answered in the middle of it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corom.runtime import CoromError, DynamicBatcher, Encoder, WorkerError
from corom.runtime.batching import Batch
from corom.runtime.native_library import native_executes
from corom.runtime.preemption import Preemption

from .conftest import ExportOnce

pytestmark = pytest.mark.skipif(
    not native_executes("fp32"),
    reason="run it on Linux on x86-64 with AVX2, and with a C++20 compiler to install with",
)
LONG = 30.0
BATCH_TOKENS = 256
BULK = ["头痛怎么办" * 2] * 250
"""More than five batches."""


@pytest.fixture(scope="module")
def bundle(export_once: ExportOnce, make_checkpoint: Callable[..., Path]) -> Path:
    heads_of_64 = make_checkpoint(hidden_size=128, intermediate_size=256, num_attention_heads=2)
    return export_once("preemption", str(heads_of_64), pooling="cls")


@pytest.fixture
def encoder(bundle: Path) -> Iterator[Encoder]:
    with Encoder(bundle, backend="native", threads=2, adaptive=True) as encoder:
        assert (encoder.preemptible, encoder.workers) == (True, 2)
        yield encoder


class Gate:
    """Stands before the kernels: holds batches back until it is opened, and notes what happens.

    One that is to be put aside goes on, unless ``holds_all``.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.is_open, self.reached = threading.Event(), threading.Semaphore(0)
        self.holds_all = False
        self.preemptions: list[Preemption] = []
        self.events: list[str] = []
        self._within = threading.local()
        self._run: Any = encoder._backend.run
        self.aside: Any = self._run
        """What executes in the middle of a batch."""
        encoder._backend.run = self.run  # type: ignore[method-assign]

    def run(self, batch: Batch, preemption: Preemption | None = None) -> Any:
        if getattr(self._within, "a_batch", False):
            self.events.append("aside")
            return self.aside(batch)
        if preemption is not None:
            self.preemptions.append(preemption)
        self.reached.release()
        until = time.monotonic() + LONG
        while not self.is_open.wait(0.001):
            assert time.monotonic() < until
            if preemption is not None and preemption.wanted and not self.holds_all:
                break
        self._within.a_batch = True
        try:
            return self._run(batch, preemption)
        finally:
            self._within.a_batch = False
            self.events.append("batch")


@pytest.fixture
def gate(encoder: Encoder) -> Iterator[Gate]:
    gate = Gate(encoder)
    yield gate
    gate.is_open.set()


@pytest.fixture
def batcher(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[DynamicBatcher]:
    # Until a pace is known bulk is due late enough, however long this host pauses.
    monkeypatch.setattr("corom.runtime.admission.TOKEN_S", 1)
    with DynamicBatcher(encoder, max_batch_tokens=BATCH_TOKENS) as batcher:
        yield batcher


@pytest.fixture
def others(gate: Gate) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as others:
        yield others
        gate.is_open.set()


@pytest.fixture
def bulk(gate: Gate, batcher: DynamicBatcher, others: ThreadPoolExecutor) -> Future[np.ndarray]:
    """Much that is asked for, of which each worker has a batch that is held back."""
    asked = others.submit(lambda: asyncio.run(batcher.aencode(BULK)))
    for _ in range(2):
        assert gate.reached.acquire(timeout=LONG)
    return asked


def wait_for(batcher: DynamicBatcher, texts: int) -> None:
    """Wait until so many texts wait beside what there is of the bulk."""
    until = time.monotonic() + LONG
    while batcher.counters().waiting_texts < texts:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_text_is_answered_in_the_middle_of_bulk(
    bulk: Future[np.ndarray], gate: Gate, batcher: DynamicBatcher, encoder: Encoder
) -> None:
    gate.holds_all = True
    answer = batcher.submit("发烧")
    answer.add_done_callback(lambda _: gate.events.append("answer"))
    gate.holds_all = False
    found = answer.result(LONG)
    gate.is_open.set()
    vectors = bulk.result(LONG)
    np.testing.assert_array_equal(found, encoder.encode("发烧"))
    np.testing.assert_array_equal(vectors, encoder.encode(BULK))
    assert gate.events[:3] == ["aside", "answer", "batch"]
    assert gate.events.count("aside") == 1
    counters = batcher.counters()
    assert counters.put_aside == 1
    assert (counters.texts, counters.running_texts, counters.waiting_texts) == (251, 0, 0)


def test_several_texts_are_answered_together(
    bulk: Future[np.ndarray],
    gate: Gate,
    batcher: DynamicBatcher,
    encoder: Encoder,
    others: ThreadPoolExecutor,
) -> None:
    """Those of a task of an event loop, which are tokenized by it, and one that is not yet."""
    texts = ["发烧", "感冒吃什么药", "发烧三天"]
    gate.holds_all = True
    waiting = batcher.counters().waiting_texts
    few = others.submit(lambda: asyncio.run(batcher.aencode(texts)))
    wait_for(batcher, waiting + len(texts))
    one = batcher.submit("头痛")
    gate.holds_all = False
    found = few.result(LONG), one.result(LONG)
    gate.is_open.set()
    np.testing.assert_array_equal(found[0], encoder.encode(texts))
    np.testing.assert_array_equal(found[1], encoder.encode("头痛"))
    np.testing.assert_array_equal(bulk.result(LONG), encoder.encode(BULK))
    assert 1 <= batcher.counters().put_aside <= 2  # both workers may have come to it


def test_bulk_is_not_put_aside_for_bulk_nor_for_what_is_longer_than_its_batch(
    bulk: Future[np.ndarray],
    gate: Gate,
    batcher: DynamicBatcher,
    encoder: Encoder,
    others: ThreadPoolExecutor,
) -> None:
    long = ["感冒" * 30] * 6  # 372 tokens
    waiting = batcher.counters().waiting_texts
    asked = [others.submit(lambda t=t: asyncio.run(batcher.aencode(t))) for t in (BULK, long)]
    wait_for(batcher, waiting + len(BULK) + len(long))
    assert len(gate.preemptions) == 2
    assert not any(preemption.wanted for preemption in gate.preemptions)
    gate.is_open.set()
    for texts, found in zip((BULK, BULK, long), (bulk, *asked), strict=True):
        np.testing.assert_array_equal(found.result(LONG), encoder.encode(texts))


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (MemoryError("none left"), MemoryError, "none left"),
        (SystemExit("of this"), WorkerError, "SystemExit"),
    ],
)
def test_whatever_ends_a_text_in_the_middle_ends_it_alone(
    bulk: Future[np.ndarray],
    gate: Gate,
    batcher: DynamicBatcher,
    encoder: Encoder,
    raised: BaseException,
    expected: type[Exception],
    message: str,
) -> None:
    def fail(_: Batch) -> Any:
        raise raised

    aside, gate.aside = gate.aside, fail
    unlucky = batcher.submit("发烧")
    with pytest.raises(expected, match=message):
        unlucky.result(LONG)
    gate.is_open.set()
    np.testing.assert_array_equal(bulk.result(LONG), encoder.encode(BULK))
    gate.aside = aside
    for _ in range(3):
        assert batcher.submit("发烧").result(LONG).shape == (128,)


def test_closing_answers_what_waits_to_be_executed_in_the_middle(
    bulk: Future[np.ndarray], gate: Gate, batcher: DynamicBatcher, encoder: Encoder
) -> None:
    gate.holds_all = True
    answer = batcher.submit("发烧")
    closing = threading.Thread(target=batcher.close, daemon=True)
    closing.start()
    gate.holds_all = False
    found = answer.result(LONG)
    gate.is_open.set()
    closing.join(LONG)
    assert not closing.is_alive()
    np.testing.assert_array_equal(found, encoder.encode("发烧"))
    np.testing.assert_array_equal(bulk.result(LONG), encoder.encode(BULK))


def test_what_ends_tokenizing_in_the_middle_ends_those_texts_alone(
    bulk: Future[np.ndarray],
    gate: Gate,
    batcher: DynamicBatcher,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each = batcher._workers._tokenize_each

    def die(*_: object) -> Any:
        raise SystemExit("of this")  # as the panic of a library is no Exception

    monkeypatch.setattr(batcher._workers, "_tokenize_each", die)
    unlucky = batcher.submit("发烧")
    with pytest.raises(WorkerError, match="tokenized this ended with SystemExit"):
        unlucky.result(LONG)
    monkeypatch.setattr(batcher._workers, "_tokenize_each", each)
    gate.is_open.set()
    np.testing.assert_array_equal(bulk.result(LONG), encoder.encode(BULK))
    assert batcher.submit("发烧").result(LONG).shape == (128,)
    counters = batcher.counters()
    assert (counters.failed, counters.waiting_texts, counters.waiting_tokens) == (1, 0, 0)


def test_bulk_is_not_executed_in_the_middle_of_bulk_when_a_text_is_cancelled(
    bulk: Future[np.ndarray], gate: Gate, batcher: DynamicBatcher, encoder: Encoder
) -> None:
    gate.holds_all = True
    assert batcher.submit("发烧").cancel()
    gate.holds_all = False
    gate.is_open.set()
    np.testing.assert_array_equal(bulk.result(LONG), encoder.encode(BULK))
    assert "aside" not in gate.events
    assert batcher.counters().put_aside == 0


def test_a_long_call_of_short_texts_is_bulk_too(
    gate: Gate, batcher: DynamicBatcher, encoder: Encoder, others: ThreadPoolExecutor
) -> None:
    """Its pieces are too small for that, each by itself."""
    texts = ["头痛"] * 600  # 256 at a time, of 4 tokens
    bulk = others.submit(lambda: asyncio.run(batcher.aencode(texts)))
    for _ in range(2):
        assert gate.reached.acquire(timeout=LONG)
    found = batcher.submit("发烧").result(LONG)
    gate.is_open.set()
    np.testing.assert_array_equal(found, encoder.encode("发烧"))
    np.testing.assert_array_equal(bulk.result(LONG), encoder.encode(texts))
    assert gate.events[0] == "aside"


@pytest.mark.parametrize("drain", [True, False])
def test_who_is_answered_in_the_middle_may_close_the_batcher(
    bulk: Future[np.ndarray], gate: Gate, batcher: DynamicBatcher, encoder: Encoder, drain: bool
) -> None:
    def close(_: object) -> None:
        batcher.close(drain=drain)
        gate.is_open.set()

    gate.holds_all = True
    answer = batcher.submit("发烧")
    answer.add_done_callback(close)
    gate.holds_all = False
    found = answer.result(LONG)
    if drain:
        np.testing.assert_array_equal(bulk.result(LONG), encoder.encode(BULK))
    else:
        with pytest.raises(CoromError, match="this batcher is closed"):
            bulk.result(LONG)
    np.testing.assert_array_equal(found, encoder.encode("发烧"))


def test_who_is_answered_in_the_middle_may_encode(bundle: Path) -> None:
    """By the thread whose batch has the only runner."""
    found: list[np.ndarray] = []
    with (
        Encoder(bundle, backend="native", threads=1) as encoder,
        DynamicBatcher(encoder, max_batch_tokens=BATCH_TOKENS) as batcher,
    ):
        gate = Gate(encoder)
        with ThreadPoolExecutor(1) as others:
            bulk = others.submit(lambda: asyncio.run(batcher.aencode(BULK)))
            assert gate.reached.acquire(timeout=LONG)
            gate.holds_all = True
            answer = batcher.submit("发烧")
            answer.add_done_callback(lambda _: found.append(encoder.encode("头痛")))
            gate.holds_all = False
            answer.result(LONG)
            gate.is_open.set()
            bulk.result(LONG)
        assert gate.events[:2] == ["aside", "aside"]
        np.testing.assert_array_equal(found[0], encoder.encode("头痛"))


@pytest.mark.parametrize("options", [{"threads": 1}, {"workers": 2, "threads": 1}])
def test_an_encoder_of_one_thread_a_batch_puts_bulk_aside_too(
    bundle: Path, options: dict[str, int]
) -> None:
    with Encoder(bundle, backend="native", threads=2) as encoder:
        assert not encoder.preemptible
    with Encoder(bundle, backend="native", **options) as encoder:  # type: ignore[arg-type]
        with DynamicBatcher(encoder, max_batch_tokens=BATCH_TOKENS) as batcher:

            async def both() -> tuple[np.ndarray, np.ndarray]:
                indexing = asyncio.create_task(batcher.aencode(BULK * 8))
                while batcher.counters().running_texts == 0:
                    await asyncio.sleep(0)
                asked = [await batcher.aencode("发烧") for _ in range(20)]
                return await indexing, np.stack(asked)

            until = time.monotonic() + LONG
            while batcher.counters().put_aside == 0:  # batches of this model are short
                assert time.monotonic() < until
                found, asked = asyncio.run(both())
        np.testing.assert_array_equal(found, encoder.encode(BULK * 8))
        np.testing.assert_array_equal(asked, np.stack([encoder.encode("发烧")] * 20))


def test_the_pace_does_not_count_the_time_that_a_batch_was_put_aside(
    bulk: Future[np.ndarray], gate: Gate, batcher: DynamicBatcher
) -> None:
    aside = gate.aside
    began = time.perf_counter()

    def slow(batch: Batch) -> Any:
        time.sleep(1)
        return aside(batch)

    gate.aside = slow
    batcher.submit("发烧").result(LONG)
    gate.is_open.set()
    bulk.result(LONG)
    # The other worker's batch was held back meanwhile; this one's and the text's second is once.
    elapsed = time.perf_counter() - began
    assert 2 <= batcher.counters().run_seconds < 2 * elapsed + 0.5


def test_many_callers_get_their_own_vectors(encoder: Encoder, parity_texts: list[str]) -> None:
    texts = parity_texts[:40]
    expected = encoder.encode(texts)
    many = texts * 24
    stop = threading.Event()
    wrong: list[str] = []

    async def index(batcher: DynamicBatcher) -> None:
        while not stop.is_set():
            found = await batcher.aencode(many)
            if not np.array_equal(found, np.concatenate([expected] * 24)):
                wrong.append("bulk")

    def ask(batcher: DynamicBatcher, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, len(texts), 150).tolist()
        wrong.extend(
            texts[row]
            for row in rows
            if not np.array_equal(batcher.submit(texts[row]).result(LONG), expected[row])
        )

    with (
        DynamicBatcher(encoder, max_batch_tokens=BATCH_TOKENS) as batcher,
        ThreadPoolExecutor(6) as threads,
    ):
        indexing = [threads.submit(lambda: asyncio.run(index(batcher))) for _ in range(2)]
        asking = [threads.submit(ask, batcher, seed) for seed in range(4)]
        try:
            for one in asking:
                one.result(LONG * 2)
            until = time.monotonic() + LONG
            while batcher.counters().put_aside == 0:  # batches of this model are short
                assert time.monotonic() < until
                batcher.submit(texts[0]).result(LONG)
        finally:
            stop.set()
        for one in indexing:
            one.result(LONG)
    assert wrong == []
