"""How fast batches were executed of late: what waits, in seconds."""

import math


class Pace:
    """How fast batches were executed of late."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._tokens = self._seconds = 0.0

    def note(self, tokens: int, seconds: float) -> None:
        """Note what one worker did. Half of the measure is what the last seven batches were."""
        self._tokens = 0.9 * self._tokens + tokens
        self._seconds = 0.9 * self._seconds + seconds

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second of all workers; None until a batch was executed."""
        return self._workers * self._tokens / self._seconds if self._seconds > 0 else None

    def tokens_within(self, seconds: float) -> float:
        """Return how many tokens one worker executes in that time; infinity if not known yet."""
        return seconds * self._tokens / self._seconds if self._seconds > 0 else math.inf

    def seconds(self, tokens: int) -> float | None:
        """Return how long so many tokens will take; None if it is not known yet."""
        pace = self.tokens_per_s
        return None if pace is None else tokens / pace
