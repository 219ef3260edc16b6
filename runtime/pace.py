"""How fast batches were executed of late: what waits, in seconds, and how large a batch may be."""

BATCH_S = 0.02
"""A batch is to take no longer than this, because who comes next waits for its end."""
STALL = 10
LEAST_TOKENS = 64
"""A batch may be as large as this, however long it takes."""
FIRST_TOKENS = 4096
"""None is larger before one was executed and its time is known."""


class Pace:
    """How fast batches were executed of late, by so many workers."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._tokens = self._seconds = 0.0

    def note(self, tokens: int, seconds: float, *, alone: bool = False) -> None:
        """Note a batch; ``alone``: the threads of all workers executed it.

        Half of the measure is what the last seven batches were. One that was held up (a machine
        that was paused, memory that was fetched) counts as one that took ``STALL`` times as long.
        """
        worker_s = seconds * self._workers if alone else seconds
        if self._tokens:
            worker_s = min(worker_s, STALL * tokens * self._seconds / self._tokens)
        self._tokens = 0.9 * self._tokens + tokens
        self._seconds = 0.9 * self._seconds + worker_s

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second of all workers; None until a batch was executed."""
        return self._workers * self._tokens / self._seconds if self._seconds > 0 else None

    def seconds(self, tokens: int) -> float | None:
        """Return how long so many tokens will take; None if it is not known yet."""
        pace = self.tokens_per_s
        return None if pace is None else tokens / pace

    def batch_tokens(self, most: int) -> int:
        """Return how many tokens one worker executes within ``BATCH_S``, at most ``most``."""
        if not self._seconds:
            return min(most, FIRST_TOKENS)
        return min(most, max(LEAST_TOKENS, int(BATCH_S * self._tokens / self._seconds)))
