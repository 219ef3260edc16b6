"""Single texts beside a caller who asks for very many at a time, as one who indexes does."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from .http_calls import Call
from .http_client import Reply
from .serve_load import Subject, opened, require_right

TEXTS = 256
"""What the caller who indexes asks for at a time, again as soon as it is answered."""
CALLS = 8
"""How many such calls there are, in turns."""
RATE = 10.0
"""Single texts a second, at random times."""


def indexing_rows(texts: int) -> list[list[int]]:
    """Return the rows of the texts that each call asks for, all in turns."""
    return [[(call * TEXTS + k) % texts for k in range(TEXTS)] for call in range(CALLS)]


async def beside_indexing(subject: Subject, calls: list[Call], seconds: float) -> dict[str, Any]:
    """Measure the subject's calls, of single texts, while one caller makes ``calls``, of many.

    Returns the figures of the single texts, and how many texts a second the other one got.
    """
    many = replace(subject, calls=calls)
    replies: list[Reply] = []
    stopping = False

    async def index() -> None:
        while not stopping:
            row = len(replies) % len(calls)
            replies.append(await many.client.send(row, calls[row].request))
            if replies[-1].status != 200:
                await asyncio.sleep(0.01)  # who is refused asks again a little later

    begin = time.perf_counter()
    indexing = asyncio.create_task(index())
    try:
        singles = await opened(subject, RATE, "poisson", seconds)
    finally:
        stopping = True
        await indexing
    elapsed = time.perf_counter() - begin
    require_right(replies, many)
    indexed = sum(len(calls[reply.call].rows) for reply in replies if reply.status == 200)
    return singles | {"indexed_texts_per_second": indexed / elapsed}
