"""The threads of a batcher: those that execute batches, what happens when one fails or dies, and
one that tells callers in time that their deadline has passed."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from .batching import Batch
from .exchange import Exchange
from .preemption import Preemption
from .tokenizing import TokenizeEach
from .vectors import Vectors
from .waiting import Chosen

logger = logging.getLogger("corom")


class Run(Protocol):
    """Runs a batch."""

    def __call__(self, batch: Batch, preemption: Preemption | None = None) -> Vectors:
        """Return its vectors; ``preemption`` may put it aside."""
        ...


class Workers:
    """``count`` threads that take batches from an exchange, run them and give the vectors back.

    ``run_alone``: runs a batch by the threads of all of them. ``preemptible``: whether ``run`` can
    put a batch aside, and run another in its middle. ``tokenize_each``: makes tokens of texts that
    wait.
    """

    def __init__(
        self,
        exchange: Exchange,
        run: Run,
        run_alone: Callable[[Batch], Vectors],
        tokenize_each: TokenizeEach,
        count: int,
        *,
        preemptible: bool = False,
    ) -> None:
        self._exchange, self._run, self._run_alone, self._count = exchange, run, run_alone, count
        self._preemptible, self._tokenize_each = preemptible, tokenize_each
        self._threads: set[threading.Thread] = set()
        self._watch: threading.Thread | None = None
        self._starting = threading.Lock()
        self.start()

    def start(self) -> None:
        """Start the threads that are missing: all of them at first, later those that died."""
        if len(self._threads) < self._count:
            with self._starting:
                self._start()

    def watch_deadlines(self) -> None:
        """Start the thread that does, unless it runs: most batchers need none."""
        if self._watch is None:
            with self._starting:
                if self._watch is None:
                    watch = threading.Thread(
                        target=self._tell_expired, name="corom-deadlines", daemon=True
                    )
                    watch.start()  # or there is none, and the next deadline tries again
                    self._watch = watch

    def has(self, thread: threading.Thread) -> bool:
        """Say whether this is one of those that execute."""
        return thread in self._threads

    def join(self) -> None:
        """Wait until all that execute have ended."""
        while True:
            with self._starting:
                alive = [thread for thread in self._threads if thread.is_alive()]
            if not alive:
                return
            alive[0].join()

    def join_watch(self) -> None:
        """Wait until nobody watches deadlines any more."""
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join()

    def _start(self) -> None:
        while len(self._threads) < self._count:
            # Daemons: a process that ends without closing must not wait for them.
            thread = threading.Thread(target=self._work, name="corom-batcher", daemon=True)
            thread.start()
            self._threads.add(thread)

    def _work(self) -> None:
        preemption = Preemption(self._execute_aside) if self._preemptible else None
        run = self._run if preemption is None else partial(self._run, preemption=preemption)
        try:
            while (chosen := self._exchange.take(self._tokenize_each, preemption)) is not None:
                self._execute(chosen, self._run_alone if chosen.alone else run, preemption)
        except BaseException as error:  # whatever ends it, callers must hear of it
            logger.error("a worker of the batcher died", exc_info=error)
            self._bury(error)

    def _tell_expired(self) -> None:
        going_on = True
        while going_on:
            try:
                going_on = self._exchange.expire()
            except BaseException as error:  # of what a caller attached to its answer
                logger.error("a caller's callback failed", exc_info=error)

    def _execute_aside(self) -> None:
        """Run what the batch that this thread is in the middle of is put aside for.

        The batch goes on whatever happens here.
        """
        try:
            while (chosen := self._exchange.take_aside(self._tokenize_each)) is not None:
                if chosen.texts:
                    self._execute(chosen, self._run)
        except BaseException as error:  # whatever it is, callers must hear of it
            logger.error("what a batch was put aside for ended badly", exc_info=error)
            self._exchange.bury_aside(f"what computed this ended with {error!r}. Ask again.")

    def _execute(
        self,
        chosen: Chosen,
        run: Callable[[Batch], Vectors],
        preemption: Preemption | None = None,
    ) -> None:
        """Run a batch; if it fails, in halves, so that a text that cannot be run fails alone."""
        start, aside = time.perf_counter(), 0.0 if preemption is None else preemption.seconds
        try:
            vectors = run(chosen.batch())
        except Exception as error:
            if len(chosen.texts) == 1:
                self._exchange.fail(chosen.texts[0][0], error)
                return
        else:
            if preemption is not None:
                start += preemption.seconds - aside
            self._exchange.give(chosen, vectors, time.perf_counter() - start)
            return
        for half in chosen.halves():
            self._execute(half, run, preemption)

    def _bury(self, error: BaseException) -> None:
        """Answer those whose texts this thread had in hand, and let another take its place."""
        thread = threading.current_thread()
        why = f"the thread that computed this died of {error!r}. Ask again."
        try:
            self._exchange.bury(thread, why)
        finally:  # whatever a caller attached to its answer
            if not self._replace(thread):
                self._exchange.bury(thread, why)

    def _replace(self, thread: threading.Thread) -> bool:
        """Start another thread; False if there can be no more: the next caller tries again."""
        with self._starting:
            self._threads.discard(thread)
            try:
                self._start()
            except RuntimeError:
                return False
        return True
