"""Where callers leave requests and workers take batches: limits, deadlines, the way back.

One lock guards it all and is held for microseconds. Outside it answers are given, because they
call what callers attached to them, and texts are tokenized, because callers come meanwhile.
"""

import math
import threading
import time
from collections.abc import Iterable

from .admission import Admission
from .counters import Counters, Tally
from .errors import CoromError, DeadlineExceeded, WorkerError
from .pace import Pace
from .preemption import Preemption
from .request import Outcome, Request, deliver
from .running import Running
from .tokenizing import TokenizeEach, tokenize_together
from .tokens import Tokens
from .vectors import Vectors
from .waiting import Chosen, Waiting

SWEEP_SECONDS = 0.01
"""How often, at most, all that waits is searched for what expired or was dropped."""


class Exchange:
    """Requests that wait, those that are being computed, and their counters."""

    def __init__(
        self,
        batch_tokens: int,
        max_wait_s: float,
        max_queue_tokens: int,
        max_queue_s: float | None = None,
        workers: int = 1,
        *,
        adaptive: bool = False,
    ) -> None:
        self._max_wait_s, self._workers, self._adaptive = max_wait_s, workers, adaptive
        self._pace = Pace(workers)
        self._admission = Admission(max_queue_tokens, max_queue_s, self._pace)
        self._most_tokens = batch_tokens
        self._waiting = Waiting(self._pace.batch_tokens(batch_tokens), self._admission.token_s())
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._deadline_came = threading.Condition(lock)
        """Notified when a deadline comes that is earlier than ``_earliest``."""
        self._earliest = math.inf
        self._running: dict[threading.Thread, Running] = {}
        self._closed: str | None = None
        self._ended = False
        self._tally = Tally()
        self._swept = self._forgot = 0.0
        self._answered = 0.0
        """When the last batch was."""

    def put(self, request: Request, *, even_if_full: bool = False) -> None:
        """Let a request wait; raises ``Overloaded`` if too much waits, ``CoromError`` once closed.

        What is larger than the queue is taken if nothing else waits.
        """
        tally = self._tally
        with self._changed:
            if self._closed is not None:
                raise CoromError(self._closed)
            admission, tokens = self._admission, request.waiting_tokens
            if not even_if_full:
                self._refuse_if_full(tokens)
            tally.waiting_tokens += tokens
            tally.waiting_texts += request.waiting_texts
            self._waiting.add(request)
            request.patience_s = admission.patience_s(tokens * request.times_later)
            self._changed.notify()
            self._preempt()
            if request.deadline is not None and request.deadline < self._earliest:
                self._earliest = request.deadline
                self._deadline_came.notify()

    def refuse_if_full(self) -> None:
        """Raise ``Overloaded`` if any call would be refused now: before it is tokenized."""
        with self._changed:
            self._refuse_if_full(None)

    def has_room(self, about_tokens: int = 0) -> bool:
        """Say whether a text may be put without knowing exactly how many tokens it has."""
        return self._admission.has_room(self._tally.waiting_tokens, about_tokens)

    def wait_s(self) -> float:
        """Return how long all that waits will take at the pace measured; 0 before it is."""
        return self._pace.seconds(self._tally.waiting_tokens) or 0.0

    def drop(self, request: Request) -> bool:
        """Forget a request whose caller has gone; False if it is too late to spare the work."""
        with self._changed:
            if request.dropped or not request.waiting_texts:
                return False
            self._tally.cancelled += 1
            self._give_up(request)
            return True

    def take(
        self, tokenize_each: TokenizeEach, preemption: Preemption | None = None
    ) -> Chosen | None:
        """Wait for texts, tokenize those that are not and return the next batch.

        None once closed and empty. Others may put, take and drop while this tokenizes. While a
        batch is executed alone, by the threads of all, the others wait for its end.
        ``preemption``: how this thread can be told to put the batch aside.
        """
        while True:
            expired: list[Outcome] = []
            with self._changed:
                # If it was alone, the others still sleep: this thread takes what waits now, and
                # wakes another if that leaves something.
                self._running.pop(threading.current_thread(), None)
                idle = not self._waiting
                while self._has_nothing_to_take():
                    if self._closed is not None and not self._waiting:
                        if not self._running and not self._waiting.all():
                            self._end()
                        self._changed.notify_all()  # they may have waited for this one's end
                        return None
                    self._changed.wait()
                if not idle and self._max_wait_s:
                    self._wait_for_more()
                    if self._has_nothing_to_take():
                        continue
                untokenized = self._waiting.take_untokenized()
                if not untokenized:
                    chosen = self._claim_batch(expired, preemption)
                elif self._waiting:
                    self._changed.notify()
            if untokenized:
                self._tokenize(untokenized, tokenize_each)
                with self._changed:
                    if self._has_nothing_to_take():
                        continue
                    chosen = self._claim_batch(expired, preemption)
            deliver(expired)
            if chosen.texts:
                return chosen

    def take_aside(self, tokenize_each: TokenizeEach) -> Chosen | None:
        """Return what this thread's batch is to be put aside for; None to go on with it."""
        expired: list[Outcome] = []
        with self._changed:
            running = self._running[threading.current_thread()]
            running.go_on()
            untokenized = self._waiting.take_untokenized()
            if not untokenized:
                chosen = self._claim_aside(running, expired)
        if untokenized:
            try:
                self._tokenize(untokenized, tokenize_each)
            except BaseException as error:
                with self._changed:
                    why = f"what tokenized this ended with {error!r}. Ask again."
                    outcomes = self._lose(untokenized, why)
                deliver(outcomes)
                raise
            with self._changed:
                chosen = self._claim_aside(running, expired)
        deliver(expired)
        return chosen

    def expire(self) -> bool:
        """Wait for the next deadline and answer those it was for; False once there are none more.

        Workers leave out of a batch what has expired, but may be in a long one meanwhile.
        """
        with self._deadline_came:
            while True:
                now = time.monotonic()
                wait_s = max(self._earliest, self._swept + SWEEP_SECONDS) - now
                if self._ended or wait_s <= 0:
                    break
                self._deadline_came.wait(min(wait_s, threading.TIMEOUT_MAX))
            if self._ended:
                return False
            expired = self._sweep(now)
        deliver(expired)
        return True

    def give(self, chosen: Chosen, vectors: Vectors, seconds: float) -> None:
        """Take the un-normalized vectors (B, H) of a batch and answer those who have all theirs.

        ``seconds``: how long they took.
        """
        finished = _finish(chosen, vectors)
        outcomes: list[Outcome] = []
        usages = {request.usage for request, _ in chosen.texts}
        ended = time.monotonic()
        with self._changed:
            self._answered = ended
            self._tally.run_seconds += seconds * self._workers if chosen.alone else seconds
            self._pace.note(chosen.tokens, seconds, alone=chosen.alone)
            self._waiting.batch_tokens = self._pace.batch_tokens(self._most_tokens)
            self._waiting.token_s = self._admission.token_s()
            for usage in usages:
                if usage is not None:
                    usage.executed(ended - seconds, ended)
            for (request, row), vector in zip(chosen.texts, finished, strict=True):
                if request.dropped:
                    continue
                request.missing -= 1
                if request.vectors is None:
                    outcomes.append((request, vector.copy()))  # not a view that keeps them all
                    continue
                request.vectors[row] = vector
                if not request.missing:
                    outcomes.append((request, None))
        deliver(outcomes)

    def fail(self, request: Request, error: Exception) -> None:
        """Answer a request with an error."""
        with self._changed:
            outcomes = self._fail([(request, error)])
        deliver(outcomes)

    def bury(self, worker: threading.Thread, why: str) -> None:
        """Answer those whose texts a dead worker had in hand; if it had none, all that wait."""
        with self._changed:
            running = self._running.pop(worker, None)
            self._changed.notify_all()  # it may have been alone
            outcomes = self._lose(running.requests() if running else self._waiting.all(), why)
        deliver(outcomes)

    def bury_aside(self, why: str) -> None:
        """Answer those for whom this thread's batch was put aside, and let it go on."""
        with self._changed:
            running = self._running[threading.current_thread()]
            aside, running.aside = running.aside, None
            outcomes = self._lose([r for r, _ in aside.texts] if aside else [], why)
            self._preempt()
        deliver(outcomes)

    def close(self, reason: str, *, drain: bool) -> None:
        """Refuse further requests; without ``drain`` refuse those that wait too."""
        outcomes: list[Outcome] = []
        with self._changed:
            self._closed = self._closed or reason
            if not drain:
                outcomes = self._fail((r, CoromError(reason)) for r in self._waiting.all())
                self._end()
            self._changed.notify_all()
        deliver(outcomes)

    def counters(self) -> Counters:
        """Return what was counted so far."""
        with self._changed:
            running = sum(running.texts for running in self._running.values())
            return self._tally.snapshot(running, self._pace.tokens_per_s)

    def _refuse_if_full(self, tokens: int | None) -> None:
        tally = self._tally
        if tally.waiting_texts:
            refusal = self._admission.why_not(tally.waiting_tokens, tokens)
            if refusal is not None:
                tally.overloaded += 1
                raise refusal

    def _tokenize(self, requests: list[Request], tokenize_each: TokenizeEach) -> None:
        """Make tokens of the texts of these requests, and let them wait to be executed."""
        start = time.perf_counter()
        found = tokenize_together(requests, tokenize_each)
        seconds = time.perf_counter() - start
        with self._changed:
            for request, tokens in found:
                if isinstance(tokens, Tokens) and not request.dropped:
                    self._tally.waiting_tokens -= request.waiting_tokens
                    request.note_tokens(tokens, seconds)
                    self._tally.waiting_tokens += request.waiting_tokens
            self._waiting.add_tokenized(requests)
            outcomes = self._fail((r, what) for r, what in found if isinstance(what, Exception))
        deliver(outcomes)

    def _wait_for_more(self) -> None:
        until = self._waiting.asked() + self._max_wait_s
        while self._closed is None and not self._waiting.fill_a_batch():
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _claim_batch(self, expired: list[Outcome], preemption: Preemption | None) -> Chosen:
        """Take the next batch of this thread out of what waits."""
        chosen = self._claim(expired)
        # What was asked for before the last answer came shows that one caller is not all there is:
        # the next text comes soon, and would find all threads taken.
        if (
            self._adaptive
            and not self._running
            and not self._waiting.all()
            and all(request.asked >= self._answered for request, _ in chosen.texts)
        ):
            chosen = chosen._replace(alone=True)
        if preemption is not None:
            preemption.want(False)
        if chosen.texts:
            self._running[threading.current_thread()] = Running(
                chosen, preemption if chosen.bulk and not chosen.alone else None
            )
        if self._waiting:
            self._changed.notify()  # who put it there woke only this worker
            self._preempt()
        return chosen

    def _claim_aside(self, running: Running, expired: list[Outcome]) -> Chosen | None:
        """Take what a batch is put aside for out of what waits; None if it is for nothing more."""
        first = self._waiting.first_short()
        if first is not None and running.gives_way(first):
            running.aside = self._claim(expired, running.batch)
            self._tally.put_aside += bool(running.aside.texts)
        if self._waiting:  # what this thread alone knew until it was tokenized
            self._changed.notify()
            self._preempt()
        return running.aside

    def _preempt(self) -> None:
        """Have a batch of bulk put aside for what is due first, unless a worker is free for it."""
        ready = [running for running in self._running.values() if running.can_be_put_aside]
        if not ready or len(self._running) < self._workers:
            return
        for request in (self._waiting.first_untokenized(), self._waiting.first_short()):
            found = [r for r in ready if request is not None and r.gives_way(request)]
            if found:
                max(found, key=lambda running: running.batch.due).put_aside()
                return

    def _claim(self, expired: list[Outcome], within: Chosen | None = None) -> Chosen:
        """Take the texts of a batch out of what waits; see ``Waiting.next_batch``."""
        now = time.monotonic()
        if now >= self._forgot + SWEEP_SECONDS:
            self._forgot = now
            self._waiting.forget_dropped()
        chosen = self._waiting.next_batch(within)
        self._expire(now, [request for request, _ in chosen.texts], expired)
        if any(request.dropped for request, _ in chosen.texts):
            kept = [k for k, (request, _) in enumerate(chosen.texts) if not request.dropped]
            chosen = chosen._replace(
                texts=[chosen.texts[k] for k in kept], ids=[chosen.ids[k] for k in kept]
            )
        tally = self._tally
        tokens = 0
        for (request, _), ids in zip(chosen.texts, chosen.ids, strict=True):
            waited_s = now - request.asked
            request.waiting_texts -= 1
            request.waiting_tokens -= len(ids)
            tokens += len(ids)
            tally.execute(len(ids), waited_s)
            if request.usage is not None:
                request.usage.queue_s = max(request.usage.queue_s, waited_s)
        if chosen.texts:
            tally.batch(len(chosen.ids), tokens, max(map(len, chosen.ids)))
        return chosen

    def _has_nothing_to_take(self) -> bool:
        """Say whether nothing waits, or what is executed must be left alone."""
        return not self._waiting or any(running.batch.alone for running in self._running.values())

    def _sweep(self, now: float) -> list[Outcome]:
        """Give up all that has expired, waiting or being computed, and note the next deadline."""
        running = (r for running in self._running.values() for r in running.requests())
        requests = dict.fromkeys([*self._waiting.all(), *running])
        expired: list[Outcome] = []
        self._expire(now, requests, expired)
        self._waiting.forget_dropped()
        self._swept = now
        left = (r.deadline for r in requests if r.deadline is not None and r.deadline > now)
        self._earliest = min(left, default=math.inf)
        return expired

    def _end(self) -> None:
        """Have nobody wait for deadlines any more."""
        self._ended = True
        self._deadline_came.notify()

    def _expire(self, now: float, requests: Iterable[Request], expired: list[Outcome]) -> None:
        for request in requests:
            late = request.deadline is not None and request.deadline <= now
            waited_s = now - request.asked
            impatient = request.waiting_texts > 0 and waited_s >= request.patience_s
            if request.dropped or not request.missing or not (late or impatient):
                continue
            self._tally.expired += 1
            self._give_up(request)
            error: Exception
            if late:
                error = DeadlineExceeded(f"the deadline passed after {waited_s:.3f} s of waiting.")
            else:
                error = self._admission.waited(waited_s)
            expired.append((request, error))

    def _fail(self, failures: Iterable[tuple[Request, Exception]]) -> list[Outcome]:
        """Give up requests; each needs an error of its own, because raising changes an error."""
        outcomes: list[Outcome] = []
        for request, error in failures:
            if request.missing and not request.dropped:
                self._tally.failed += 1
                self._give_up(request)
                outcomes.append((request, error))
        return outcomes

    def _lose(self, requests: Iterable[Request], why: str) -> list[Outcome]:
        """Give up requests with whatever computed them."""
        outcomes = self._fail((request, WorkerError(why)) for request in requests)
        self._waiting.forget_dropped()
        return outcomes

    def _give_up(self, request: Request) -> None:
        """Release what a request occupies; it is skipped wherever it turns up."""
        request.dropped = True
        self._tally.waiting_texts -= request.waiting_texts
        self._tally.waiting_tokens -= request.waiting_tokens
        request.waiting_texts = request.waiting_tokens = 0


def _finish(chosen: Chosen, vectors: Vectors) -> list[Vectors]:
    """Return each vector as its request asked for it."""
    wishes = {request.wish for request, _ in chosen.texts}
    if len(wishes) == 1:
        return list(wishes.pop().finish(vectors))
    finished: list[Vectors] = []
    for k, (request, _) in enumerate(chosen.texts):
        finished += list(request.wish.finish(vectors[k : k + 1]))
    return finished
