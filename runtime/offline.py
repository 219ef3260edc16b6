"""Many texts of one caller: windows tokenized ahead, equal texts once, batches by several workers.

Knows no text and no backend: it is given what tokenizes and what executes.
"""

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from .batching import Batch, Rows, pad
from .tokens import Tokens
from .vectors import Vectors

Given = TypeVar("Given")
Made = TypeVar("Made")


def one_ahead(items: Iterable[Given], work: Callable[[Given], Made]) -> Generator[Made]:
    """Yield ``work(item)`` of each item; a thread does the next one's while the caller uses one.

    The items are taken in the caller's thread, and a single one is worked on there too. Close the
    iterator to be sure that the thread has ended.
    """
    ready: Callable[[], Made] | None = None
    with ThreadPoolExecutor(1, "corom-ahead") as thread:
        for item in items:
            if ready is None:
                ready = partial(work, item)
                continue
            made = ready()
            ready = thread.submit(work, item).result
            yield made
        if ready is not None:
            yield ready()


def distinct(tokens: Tokens) -> tuple[Tokens, Rows | None]:
    """Return each text's tokens once, and for each text the row it is now in; None if the same."""
    places: dict[tuple[int, ...], int] = {}
    place_of = [places.setdefault(tuple(ids), len(places)) for ids in tokens.ids]
    if len(places) == len(place_of):
        return tokens, None
    rows = np.array(place_of, np.intp)
    first = np.unique(rows, return_index=True)[1]
    kept = Tokens([tokens.ids[row] for row in first.tolist()], tokens.lengths[first], 0)
    return kept, rows


def execute(
    run: Callable[[Batch], Vectors], tokens: Tokens, plan: list[Rows], out: Vectors, workers: int
) -> None:
    """Run every batch of the plan and write its vectors into ``out`` (N, H), by several threads.

    The caller's thread is one of them. An error in one stops the others after their batch.
    """
    rest = iter(plan)
    taking = threading.Lock()

    def take() -> Rows | None:
        with taking:
            return next(rest, None)

    def stop() -> None:
        with taking:
            for _ in rest:
                pass

    def work() -> None:
        try:
            while (rows := take()) is not None:
                out[rows] = run(pad(tokens, rows))
        except BaseException:
            stop()
            raise

    helpers = min(workers, len(plan)) - 1
    if helpers < 1:
        work()
        return
    with ThreadPoolExecutor(helpers, "corom-worker") as threads:
        try:
            others = [threads.submit(work) for _ in range(helpers)]
            work()
            for other in others:
                other.result()
        except BaseException:
            stop()
            raise
