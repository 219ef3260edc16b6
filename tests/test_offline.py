"""Many texts of one caller: every window and every row once, errors through, no thread left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.runtime import Encoder, InputError, InputTypeError
from corom.runtime.batching import Batch, plan_batches
from corom.runtime.offline import distinct, execute, one_ahead
from corom.runtime.tokens import Tokens
from corom.runtime.windows import WINDOW_TEXTS

INVARIANCE = 1e-5


def ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("corom-")]


def as_tokens(ids: list[list[int]]) -> Tokens:
    return Tokens(ids, np.array([len(row) for row in ids], np.int64), 0)


# --- One window ahead


@pytest.mark.parametrize("count", range(6))
def test_each_item_is_worked_on_once_and_in_order(count: int) -> None:
    assert list(one_ahead(range(count), lambda k: k * k)) == [k * k for k in range(count)]
    assert not ours()


def test_a_single_item_needs_no_thread() -> None:
    assert list(one_ahead([1], lambda _: threading.current_thread())) == [threading.main_thread()]


def test_the_next_item_is_worked_on_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def work(k: int) -> int:
        begun[k].set()
        return k

    with closing(one_ahead(range(4), work)) as made:
        for k in made:
            assert k == 3 or begun[k + 1].wait(10)
            assert k >= 2 or not begun[k + 2].is_set()  # and no more than one


def test_the_items_are_taken_in_the_callers_thread() -> None:
    def items() -> Iterator[int]:
        for k in range(5):
            assert threading.current_thread() is threading.main_thread()
            yield k

    assert list(one_ahead(items(), abs)) == list(range(5))


@pytest.mark.parametrize("bad", range(4))
def test_an_error_comes_at_its_place_and_leaves_no_thread(bad: int) -> None:
    done: list[int] = []
    made = one_ahead(range(4), lambda k: 1 // (k - bad))
    with closing(made), pytest.raises(ZeroDivisionError):
        done.extend(made)
    assert len(done) == bad
    assert not ours()


def test_leaving_early_leaves_no_thread() -> None:
    with closing(one_ahead(range(100), abs)) as made:
        next(made)
        assert ours()
    assert not ours()


# --- Equal texts once


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), max_size=40))
def test_every_text_finds_its_tokens_among_the_distinct_ones(ids: list[list[int]]) -> None:
    once, rows = distinct(as_tokens(ids))
    assert len({tuple(row) for row in once.ids}) == len(once.ids)
    assert once.lengths.tolist() == [len(row) for row in once.ids]
    places = range(len(ids)) if rows is None else rows.tolist()
    assert [once.ids[place] for place in places] == ids


@pytest.mark.parametrize("workers", [1, 2])
def test_equal_texts_are_executed_once(tiny_bundle: Path, workers: int) -> None:
    texts = ["头痛", "发烧", "头痛", " 头痛 ", "天气" * 20] * 30
    with Encoder(tiny_bundle, workers=workers) as encoder:
        expected = [encoder.encode(text) for text in texts[:5]] * 30
        rows: list[int] = []
        run = encoder._backend.run
        encoder._backend.run = lambda batch: (rows.append(len(batch.lengths)), run(batch))[1]  # type: ignore[method-assign]
        vectors = encoder.encode(texts)
        assert sum(rows) == 3
    assert np.abs(vectors - expected).max() <= INVARIANCE
    np.testing.assert_array_equal(vectors[:75], vectors[75:])
    vectors[0] = 0
    assert vectors[2].any()


# --- Workers


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), max_size=30),
    st.integers(1, 40),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_every_row_is_written_once_by_any_number_of_workers(
    ids: list[list[int]], budget: int, workers: int
) -> None:
    tokens = as_tokens(ids)
    out = np.zeros((len(ids), 1), np.float32)

    def run(batch: Batch) -> np.ndarray:
        return batch.input_ids.sum(1, keepdims=True).astype(np.float32)

    execute(run, tokens, list(plan_batches(tokens.lengths, budget)), out, workers)
    assert out[:, 0].tolist() == [sum(row) for row in ids]
    assert not ours()


def test_workers_execute_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def run(batch: Batch) -> np.ndarray:
        both.wait(10)
        return np.zeros((len(batch.lengths), 1), np.float32)

    tokens = as_tokens([[1]] * 2)
    execute(run, tokens, list(plan_batches(tokens.lengths, 1)), np.empty((2, 1), np.float32), 2)


@pytest.mark.parametrize("where", ["corom-worker", "MainThread"])
def test_an_error_of_one_worker_stops_the_others(where: str) -> None:
    executed: list[int] = []

    def run(batch: Batch) -> np.ndarray:
        if threading.current_thread().name.startswith(where):
            raise MemoryError("no room")
        executed.append(1)
        time.sleep(0.01)
        return np.zeros((len(batch.lengths), 1), np.float32)

    tokens = as_tokens([[1]] * 1000)
    plan = list(plan_batches(tokens.lengths, 1))
    with pytest.raises(MemoryError, match="no room"):
        execute(run, tokens, plan, np.empty((1000, 1), np.float32), 3)
    assert len(executed) < 500
    assert not ours()


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_give_the_same_vectors(
    tiny_bundle: Path, parity_texts: list[str], workers: int
) -> None:
    with Encoder(tiny_bundle) as one, Encoder(tiny_bundle, workers=workers) as several:
        assert (one.workers, several.workers) == (1, workers)
        expected = one.encode(parity_texts)
        for texts in (parity_texts, iter(parity_texts)):
            assert np.abs(several.encode(texts) - expected).max() <= INVARIANCE
        assert several.encode([]).shape == (0, 48)
        assert np.abs(several.encode(parity_texts[0]) - expected[0]).max() <= INVARIANCE


@pytest.mark.parametrize(("workers", "error"), [(0, InputError), ("2", InputTypeError)])
def test_a_number_of_workers_that_cannot_be_is_refused(
    tiny_bundle: Path, workers: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="workers is"):
        Encoder(tiny_bundle, workers=workers)


# --- Errors and Ctrl-C in the middle


@pytest.mark.parametrize("wrap", [list, iter])
@pytest.mark.parametrize("place", [0, WINDOW_TEXTS, 2 * WINDOW_TEXTS + 5, 3 * WINDOW_TEXTS - 1])
def test_a_bad_text_is_named_by_its_place_in_any_window(
    tiny_bundle: Path, wrap: Callable[[list[Any]], Any], place: int
) -> None:
    texts: list[Any] = ["好"] * (3 * WINDOW_TEXTS)
    texts[place] = None
    with Encoder(tiny_bundle, workers=2) as encoder:
        with pytest.raises(InputTypeError, match=f"text {place} is NoneType"):
            encoder.encode(wrap(texts))
        assert not ours()
        texts[place] = "头" * 200
        with pytest.raises(InputError, match=f"text {place} has 202 tokens"):
            encoder.encode(wrap(texts), truncate="error")
        assert not ours()


def test_an_error_of_the_callers_generator_comes_through_from_any_window(
    tiny_bundle: Path,
) -> None:
    def texts() -> Iterator[str]:
        yield from ["好"] * (2 * WINDOW_TEXTS + 3)
        raise LookupError("the caller's own")

    with Encoder(tiny_bundle) as encoder, pytest.raises(LookupError, match="the caller's own"):
        encoder.encode(texts())
    assert not ours()


def test_a_generator_is_read_at_most_one_window_ahead(tiny_bundle: Path) -> None:
    with Encoder(tiny_bundle) as encoder:
        read, executed, ahead = 0, 0, 0
        run = encoder._backend.run

        def count(batch: Batch) -> Any:
            nonlocal executed, ahead
            ahead = max(ahead, read - executed)
            executed += len(batch.lengths)
            return run(batch)

        def texts() -> Iterator[str]:
            nonlocal read
            for read in range(1, 5 * WINDOW_TEXTS + 1):
                yield f"{read} 毫克"

        encoder._backend.run = count  # type: ignore[method-assign]
        assert len(encoder.encode(texts())) == executed == 5 * WINDOW_TEXTS
    assert WINDOW_TEXTS < ahead <= 3 * WINDOW_TEXTS


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_soon_and_leaves_no_thread(tiny_bundle: Path, workers: int) -> None:
    program = f"""
import sys, threading, time
from itertools import count
from corom.runtime import Encoder
with Encoder({str(tiny_bundle)!r}, workers={workers}) as encoder:
    encoder.encode(["好"] * 100)
    before = threading.active_count()
    print("ready", flush=True)
    try:
        encoder.encode(f"{{k}} 毫克" * 9 for k in count())
    except KeyboardInterrupt:
        print(threading.active_count() - before)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "0\n"
    assert process.returncode == 0
