"""What waits, in the order in which it is due, and what of it makes the next batch.

A request is due when it would be done on a machine that is some times slower and all its own. So a
short one passes a long one, a long one is never put off for ever, and where more is asked than can
be done all are late by as much. Of a very long one each leg is due in its turn; one of a call that
is bulk is due later still, and is never in one batch with others. The request due
first leads a batch, and texts of like length go with it. Knows no threads.
"""

import math
from bisect import insort
from itertools import chain
from operator import attrgetter
from typing import NamedTuple, Self

import numpy as np

from .batching import Batch, cuts, pad
from .request import Request
from .tokens import Tokens

POOL = 4
"""Batches' worth of texts that are looked at to make one batch of like lengths."""
LEG = 5
"""Batches' worth of texts of one request that are due together; one of several texts with more is
bulk, as is one with many texts."""


class Chosen(NamedTuple):
    """The texts of one batch: the row of which request, and its ids."""

    texts: list[tuple[Request, int]]
    ids: list[list[int]]
    due: float = 0.0
    """When the first of its requests is."""
    bulk: bool = False
    """Whether they are."""
    alone: bool = False
    """Nothing else is executed or waits to be, and it did not have to wait for others."""

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(map(len, self.ids))

    def batch(self) -> Batch:
        """Return the texts padded to the longest."""
        lengths = np.array([len(row) for row in self.ids], np.int64)
        return pad(Tokens(self.ids, lengths, 0), np.arange(len(self.ids)))

    def halves(self) -> tuple[Self, Self]:
        """Return the texts in two batches."""
        middle = len(self.texts) // 2
        first, second = slice(0, middle), slice(middle, None)
        return (
            self._replace(texts=self.texts[first], ids=self.ids[first]),
            self._replace(texts=self.texts[second], ids=self.ids[second]),
        )


class Waiting:
    """Requests in the order in which they are served, and those whose text is to be tokenized.

    ``batch_tokens``: upper bound of rows × padded length of a batch. ``token_s``: how much later a
    request is due for each of its tokens. Both may change: each leg is due at the pace known then.
    """

    def __init__(self, batch_tokens: int, token_s: float) -> None:
        self.batch_tokens, self.token_s = batch_tokens, token_s
        self._requests: list[Request] = []
        self._untokenized: list[Request] = []
        """In the order in which they came."""
        self._in_hand: set[Request] = set()
        """Those that are being tokenized."""

    def __bool__(self) -> bool:
        return bool(self._requests or self._untokenized)

    def add(self, request: Request) -> None:
        """Put a request where the leg is due that its next texts belong to, or to be tokenized."""
        if request.untokenized is not None:
            self._untokenized.append(request)
            return
        served = request.all_tokens - sum(len(request.tokens.ids[row]) for row in request.rows)
        leg = LEG * self.batch_tokens
        due_tokens = min(request.all_tokens, (served // leg + 1) * leg)
        if served == 0:  # whatever the pace is later: so long it may wait
            several = len(request.tokens.ids) > 1
            request.bulk = request.many or (several and request.all_tokens > leg)
        request.due = request.asked + request.times_later * self.token_s * due_tokens
        insort(self._requests, request, key=attrgetter("due"))

    def take_untokenized(self) -> list[Request]:
        """Return requests to be tokenized; more than one batch is made of wait for the next."""
        count, room = 0, POOL * self.batch_tokens
        for request in self._untokenized:
            if room <= 0:
                break
            room -= request.waiting_tokens
            count += 1
        taken, self._untokenized = self._untokenized[:count], self._untokenized[count:]
        self._in_hand.update(taken)
        return taken

    def add_tokenized(self, requests: list[Request]) -> None:
        """Take back what was taken to be tokenized, but for those that could not be."""
        self._in_hand.difference_update(requests)
        for request in requests:
            if not request.dropped and request.untokenized is None:
                self.add(request)

    def all(self) -> list[Request]:
        """Return every request."""
        return [*self._requests, *self._untokenized, *self._in_hand]

    def forget_dropped(self) -> None:
        """Take out the requests that nobody wants any more."""
        self._requests = [request for request in self._requests if not request.dropped]
        self._untokenized = [request for request in self._untokenized if not request.dropped]
        self._in_hand = {request for request in self._in_hand if not request.dropped}

    def asked(self) -> float:
        """Return when the request that is served next was made."""
        return (self._requests or self._untokenized)[0].asked

    def fill_a_batch(self) -> bool:
        """Say whether the next batch would be no larger if more texts waited."""
        tokens = 0
        for request in chain(self._requests, self._untokenized):
            tokens += request.waiting_tokens
            if tokens >= self.batch_tokens:
                return True
        return False

    def first_short(self) -> Request | None:
        """Return the request that is due first and no bulk; None if none with tokens is."""
        short = (r for r in self._requests if not r.dropped and not r.bulk)
        return next(short, None)

    def first_untokenized(self) -> Request | None:
        """Return the request that is tokenized next; None if all are."""
        return self._untokenized[0] if self._untokenized else None

    def next_batch(self, within: Chosen | None = None) -> Chosen:
        """Take out the texts of the next batch; none if all requests were dropped.

        ``within``: what it is to be executed in the middle of. It is no larger then, has no bulk
        and nothing that is due later.
        """
        most = self.batch_tokens if within is None else min(within.tokens, self.batch_tokens)
        due, of_bulk = math.inf, False
        pool: list[tuple[Request, int]] = []
        ids: list[list[int]] = []
        seen, room = 0, POOL * most
        for request in self._requests:
            if room <= 0 or (within is not None and request.due >= within.due):
                break
            seen += 1
            if request.dropped:
                continue
            share = min(most, room)
            if within is None and not pool:
                of_bulk = request.bulk
            if request.bulk != of_bulk:
                if within is None:  # otherwise what is looked for may be far behind
                    room -= min(share, request.waiting_tokens)
                continue
            due = min(due, request.due)
            for row in reversed(request.rows):
                if share <= 0:
                    break
                pool.append((request, row))
                ids.append(request.tokens.ids[row])
                share -= len(ids[-1])
                room -= len(ids[-1])
        # Sorted by Python: NumPy lets other threads on meanwhile, who then queue for the lock that
        # whoever calls this holds.
        lengths = [len(row) for row in ids]
        order = sorted(range(len(ids)), key=lengths.__getitem__, reverse=True)
        parts = cuts([lengths[k] for k in order], most)
        led_by_first = next((order[part] for part in parts if 0 in order[part]), [])
        texts = [pool[k] for k in led_by_first]
        chosen = Chosen(texts, [ids[k] for k in led_by_first], due, of_bulk)
        self._take(chosen, seen)
        return chosen

    def _take(self, chosen: Chosen, seen: int) -> None:
        """Take texts out of the first ``seen`` requests."""
        served: dict[Request, set[int]] = {}
        for request, row in chosen.texts:
            served.setdefault(request, set()).add(row)
        passed = self._requests[:seen]
        self._requests[:seen] = [r for r in passed if r not in served and not r.dropped]
        for request, rows in served.items():
            request.rows = [row for row in request.rows if row not in rows]
            if request.rows:
                self.add(request)
