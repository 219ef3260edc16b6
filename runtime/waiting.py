"""What waits, in the order in which it is served, and what of it makes the next batch.

The oldest request leads, and texts of like length go with it. A request of many batches is served
one at a time and then stands behind the others: nobody waits for all of it. Knows no threads.
"""

from collections import deque
from typing import NamedTuple, Self

import numpy as np

from .batching import Batch, pad, plan_batches
from .request import Request
from .tokens import Tokens

POOL = 4
"""Batches' worth of texts that are looked at to make one batch of like lengths."""


class Chosen(NamedTuple):
    """The texts of one batch: the row of which request, and its ids."""

    texts: list[tuple[Request, int]]
    ids: list[list[int]]

    def batch(self) -> Batch:
        """Return the texts padded to the longest."""
        lengths = np.array([len(row) for row in self.ids], np.int64)
        return pad(Tokens(self.ids, lengths, 0), np.arange(len(self.ids)))

    def halves(self) -> tuple[Self, Self]:
        """Return the texts in two batches."""
        middle = len(self.texts) // 2
        first, second = slice(0, middle), slice(middle, None)
        kind = type(self)
        return (
            kind(self.texts[first], self.ids[first]),
            kind(self.texts[second], self.ids[second]),
        )


class Waiting:
    """Requests in the order in which they are served."""

    def __init__(self, batch_tokens: int) -> None:
        self._batch_tokens = batch_tokens
        self._requests: deque[Request] = deque()

    def __bool__(self) -> bool:
        return bool(self._requests)

    def add(self, request: Request) -> None:
        """Put a request behind all others."""
        self._requests.append(request)

    def all(self) -> list[Request]:
        """Return every request."""
        return list(self._requests)

    def forget_dropped(self) -> None:
        """Take out the requests that nobody wants any more."""
        self._requests = deque(r for r in self._requests if not r.dropped)

    def asked(self) -> float:
        """Return when the request that is served next was made."""
        return self._requests[0].asked

    def fill_a_batch(self) -> bool:
        """Say whether the next batch would be no larger if more texts waited."""
        tokens = 0
        for request in self._requests:
            tokens += request.waiting_tokens
            if tokens >= self._batch_tokens:
                return True
        return False

    def next_batch(self) -> Chosen:
        """Take out the texts of the next batch; none if all requests were dropped."""
        pool: list[tuple[Request, int]] = []
        ids: list[list[int]] = []
        seen, room = 0, POOL * self._batch_tokens
        for request in self._requests:
            if room <= 0:
                break
            seen += 1
            if request.dropped:
                continue
            share = min(self._batch_tokens, room)
            for row in reversed(request.rows):
                if share <= 0:
                    break
                pool.append((request, row))
                ids.append(request.tokens.ids[row])
                share -= len(ids[-1])
                room -= len(ids[-1])
        lengths = np.array([len(row) for row in ids], np.int64)
        plan = plan_batches(lengths, self._batch_tokens)
        led_by_oldest: list[int] = next((rows.tolist() for rows in plan if 0 in rows), [])
        chosen = Chosen([pool[k] for k in led_by_oldest], [ids[k] for k in led_by_oldest])
        self._take(chosen, seen)
        return chosen

    def _take(self, chosen: Chosen, seen: int) -> None:
        """Take texts out of the first ``seen`` requests.

        One that was served and has more than a batch left goes to the end. What is left of less
        goes behind the next, or few texts of unlike length would stand in line once for each.
        """
        served: dict[Request, set[int]] = {}
        for request, row in chosen.texts:
            served.setdefault(request, set()).add(row)
        for request, rows in served.items():
            request.rows = [row for row in request.rows if row not in rows]
        passed = [self._requests.popleft() for _ in range(seen)]
        left = [request for request in passed if request.rows and not request.dropped]
        others: list[Request] = []
        short: list[Request] = []
        long: list[Request] = []
        for request in left:
            kind = others if request not in served else long if self._is_long(request) else short
            kind.append(request)
        self._requests.extendleft(reversed([*others[:1], *short, *others[1:]]))
        self._requests.extend(long)

    def _is_long(self, request: Request) -> bool:
        return sum(len(request.tokens.ids[row]) for row in request.rows) > self._batch_tokens
