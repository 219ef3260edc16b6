"""What the best server there could be would keep its callers waiting: a limit for any real one.

It has no overhead and no noise, executes one request at a time by all its CPUs, and takes for it as
long as the tokens say. Pure functions of service times.
"""

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
"""Seconds (N,), of N requests in the order in which they come."""


def first_come(service: Times, gap: float) -> Times:
    """Return how long each request takes, waiting included, if they are served as they come.

    ``service``: how long each takes alone. ``gap``: seconds from one to the next.
    """
    took, free = np.empty_like(service), 0.0
    for number, seconds in enumerate(service):
        came = number * gap
        free = max(free, came) + seconds
        took[number] = free - came
    return took


def shortest_first(service: Times, gap: float) -> Times:
    """Return the same if whatever has the least left to do is served, others put aside meanwhile.

    No other order makes the mean as small.
    """
    took = np.empty_like(service)
    waiting: list[tuple[float, int]] = []
    now, come = 0.0, 0
    while waiting or come < len(service):
        if not waiting:
            now = max(now, come * gap)
        ahead = now + waiting[0][0] if waiting else now
        if come < len(service) and come * gap <= ahead:
            if waiting:
                left, number = waiting[0]
                heapq.heapreplace(waiting, (left - max(0.0, come * gap - now), number))
            now = max(now, come * gap)
            heapq.heappush(waiting, (float(service[come]), come))
            come += 1
        else:
            _, number = heapq.heappop(waiting)
            now = ahead
            took[number] = now - number * gap
    return took


ORDERS: dict[str, Callable[[Times, float], Times]] = {
    "as they come": first_come,
    "shortest first": shortest_first,
}


def tails(
    tokens: Sequence[int], groups: Sequence[Sequence[int]], load: float, texts: int
) -> dict[str, float]:
    """Return p99 by the p50 that a request has alone, of those with so many ``texts``, by order.

    ``tokens``: of each text. ``groups``: the texts of each request, in the order in which they
    come, evenly. ``load``: share of its capacity that is asked for.
    """
    service = np.array([sum(tokens[row] for row in rows) for rows in groups], np.float64)
    chosen = np.array([len(rows) == texts for rows in groups])
    alone = float(np.median(service[chosen]))
    gap = float(service.mean()) / load
    return {
        name: float(np.percentile(order(service, gap)[chosen], 99)) / alone
        for name, order in ORDERS.items()
    }
