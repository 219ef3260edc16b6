"""How long a server without overhead or noise would keep its callers waiting, by its order.

It executes one request at a time by all its CPUs, and takes for it as long as its tokens say; to
put one aside for another costs nothing. A real one may gain by batches. Pure functions of times.
"""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from .load import Seconds, finish_times

Rank = Callable[[int, float], float]
"""A request's number and what it has left to do, to its place: the lowest is served."""


def served(came: Seconds, service: Seconds, rank: Rank) -> Seconds:
    """Return how long each request takes, waiting included.

    ``came``: when each comes. ``service``: how long each takes alone.
    """
    took, left = np.empty_like(service), service.tolist()
    waiting: list[tuple[float, int]] = []
    now, come = 0.0, 0
    while waiting or come < len(service):
        first = waiting[0][1] if waiting else None
        ends = now + left[first] if first is not None else float("inf")
        if come < len(service) and came[come] < ends:
            moment = max(now, float(came[come]))
            if first is not None:
                left[first] -= moment - now
                heapq.heapreplace(waiting, (rank(first, left[first]), first))
            heapq.heappush(waiting, (rank(come, left[come]), come))
            now, come = moment, come + 1
        else:
            assert first is not None
            heapq.heappop(waiting)
            took[first], now = ends - came[first], ends
    return took


def tails(
    tokens: Sequence[int], groups: Sequence[Sequence[int]], came: Seconds, texts: int
) -> dict[str, float]:
    """Return p99 by the p50 that a request has alone, of those with so many ``texts``, by order.

    ``tokens``: of each text. ``groups``: the texts of each request. ``came``: when each comes, in
    units of what one takes on average.
    """
    service = np.array([sum(tokens[row] for row in rows) for rows in groups], np.float64)
    service /= service.mean()
    sizes = [len(rows) for rows in groups]
    chosen = np.array(sizes) == texts
    alone = float(np.median(service[chosen]))
    took = {
        "as they come": finish_times(came, service) - came,
        "least left first": served(came, service, lambda _, left: left),
        "fewest texts first": served(came, service, lambda number, _: sizes[number]),
    }
    return {
        order: float(np.percentile(seconds[chosen], 99)) / alone for order, seconds in took.items()
    }
