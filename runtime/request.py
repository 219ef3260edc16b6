"""Requests: texts of one caller on their way through a batcher, and the way back for the answer.

Knows no queue and no encoder.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .options import Wish
from .tokens import Tokens
from .vectors import Vectors

if TYPE_CHECKING:
    import asyncio  # loaded by whoever has an event loop; to import it takes 40 ms


MANY = 32
"""Texts of a call from which on it is taken for one that indexes."""
PATIENT = 10
"""Bulk is due so many times later: whoever indexes has others' queries done first."""


class Answer(Future[Vectors]):
    """The future of one text. It can be cancelled until its batch is executed."""

    def __init__(self, drop: Callable[[], bool]) -> None:
        super().__init__()
        self._drop = drop

    def cancel(self) -> bool:
        """Give up the text; False if it is too late for that."""
        if self.done() or not self._drop():
            return self.cancelled()
        super().cancel()
        # Without this concurrent.futures.wait and as_completed would not see it end.
        self.set_running_or_notify_cancel()
        return True


class Usage:
    """What one call took, added up while it is answered; times in seconds.

    ``queue_s``: the longest that one of its texts waited. ``inference_s``: while batches with its
    texts were executed; those that were at the same time count once.
    """

    __slots__ = (
        "_blocks",
        "inference_s",
        "queue_s",
        "texts",
        "tokenization_s",
        "tokens",
        "truncated",
    )

    def __init__(self) -> None:
        self.texts = self.tokens = self.truncated = 0
        self.tokenization_s = self.queue_s = self.inference_s = 0.0
        self._blocks: list[tuple[float, float]] = []
        """When at least one batch was executed, in order."""

    def add_tokens(self, tokens: Tokens, seconds: float) -> None:
        """Count tokens that took this long to make."""
        self.texts += len(tokens.ids)
        self.tokens += int(tokens.lengths.sum())
        self.truncated += tokens.truncated
        self.tokenization_s += seconds

    def executed(self, began: float, ended: float) -> None:
        """Note a batch with texts of this call, as batches end; times of one clock."""
        while self._blocks and self._blocks[-1][1] > began:
            first, last = self._blocks.pop()
            self.inference_s -= last - first
            began, ended = min(began, first), max(ended, last)
        self._blocks.append((began, ended))
        self.inference_s += ended - began


class Untokenized(NamedTuple):
    """One text that is tokenized later, in one go with those of other requests."""

    text: str
    about_tokens: int
    """How many tokens it is taken to have until then."""


_NO_TOKENS = Tokens([], np.zeros(0, np.int64), 0)


class Request:
    """Texts that wait together, as tokens or one to be tokenized, and their vectors so far.

    ``of_more``: a piece of a call that has others.
    ``vectors``: (N, dimension) to write them into, or None for a single text, whose future gets
    its vector. What changes while it waits is changed under the exchange's lock.
    """

    __slots__ = (
        "all_tokens",
        "asked",
        "bulk",
        "deadline",
        "dropped",
        "due",
        "future",
        "loop",
        "many",
        "missing",
        "patience_s",
        "rows",
        "tokens",
        "untokenized",
        "usage",
        "vectors",
        "waiting_texts",
        "waiting_tokens",
        "wish",
    )

    def __init__(
        self,
        content: Tokens | Untokenized,
        wish: Wish,
        deadline: float | None = None,
        vectors: Vectors | None = None,
        loop: "asyncio.AbstractEventLoop | None" = None,
        usage: Usage | None = None,
        *,
        of_more: bool = False,
    ) -> None:
        self.wish, self.vectors, self.loop, self.usage = wish, vectors, loop, usage
        self.future: Future[Vectors] | asyncio.Future[None] | None
        self.future = None if loop is None else loop.create_future()
        self.asked = time.monotonic()
        self.deadline = deadline
        """On ``time.monotonic``, as ``asked`` is."""
        self.due = self.asked
        """When its next texts should be done; only their order depends on it."""
        self.patience_s = float("inf")
        """How long it waits before it is given up."""
        self.dropped = False
        """Nobody wants the answer any more."""
        self.untokenized: Untokenized | None = None
        self.rows = [0]
        """Texts not yet put into a batch, shortest first."""
        count = 1
        if isinstance(content, Untokenized):
            self.untokenized, self.tokens = content, _NO_TOKENS
            self.all_tokens = content.about_tokens
        else:
            self.tokens = content
            count = len(content.ids)
            self.all_tokens = sum(map(len, content.ids))
            if count > 1:
                self.rows = content.lengths.argsort(kind="stable").tolist()
        self.waiting_texts, self.waiting_tokens = count, self.all_tokens
        self.many = of_more or count >= MANY
        """The call is of one who indexes."""
        self.bulk = False
        """So it is, or so long; known once it waits."""
        self.missing = count
        """Texts without a vector."""

    @property
    def times_later(self) -> int:
        """How many times later than others it is due."""
        return PATIENT if self.bulk else 1

    def note_tokens(self, tokens: Tokens, seconds: float) -> None:
        """Take the tokens of its text, and how long they took, which counts as no waiting."""
        self.untokenized, self.tokens = None, tokens
        self.all_tokens = self.waiting_tokens = len(tokens.ids[0])
        self.asked += seconds

    def leave(self) -> None:
        """Stop waiting, in the event loop, for an answer that may come yet."""
        if self.future is not None and not self.future.cancel() and not self.future.cancelled():
            self.future.exception()  # asked for, or the loop reports it as an error nobody saw


Outcome = tuple[Request, Vectors | BaseException | None]
"""A request that is done: its vector, its error, or None if its vectors are in place."""


def deliver(outcomes: Iterable[Outcome]) -> None:
    """Give callers their answers. A loop is woken once, however many of its callers are served."""
    rest = iter(outcomes)
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    try:
        for request, outcome in rest:
            if request.loop is not None:
                by_loop.setdefault(request.loop, []).append((request, outcome))
            else:
                future, request.future = request.future, None  # they refer to each other
                _settle(future, outcome)
    except BaseException:
        deliver(rest)  # what a caller's callback raised costs nobody else the answer
        raise
    finally:
        for loop, answered in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed, so nobody waits there
                loop.call_soon_threadsafe(_settle_all, answered)


def _settle_all(outcomes: list[Outcome]) -> None:
    for request, outcome in outcomes:
        _settle(request.future, outcome)


def _settle(future: Any, outcome: Vectors | BaseException | None) -> None:  # noqa: ANN401  # either kind
    if future is None or future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
