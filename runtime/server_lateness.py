"""How late the event loop is, and stays: whether what is refused is refused in time."""

import asyncio
import time

BEAT_S = 0.01


class Lateness:
    """How late an event loop comes to what is due.

    Beside workers that compute, the loop does not get a CPU whenever it wants one. If requests come
    faster than it reads them, the next ones wait where nobody counts them: in the system.
    """

    def __init__(self) -> None:
        self._last = self._before = 0.0
        self._due = float("inf")

    @property
    def seconds(self) -> float:
        """How late it was two of the last three times, now included: once is a passing stall."""
        return max(0.0, sorted((self._before, self._last, time.monotonic() - self._due))[1])

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            self._due = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self.note(time.monotonic() - self._due)

    def note(self, late_s: float) -> None:
        """Note how late the loop was once more."""
        self._before, self._last = self._last, late_s
