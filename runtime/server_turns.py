"""Turns of the event loop: while work waits anyway, requests are read several at a time."""

import asyncio
import time

PAUSE_S = 0.002


class Turns:
    """Lets an event loop pause between two turns.

    A loop that wakes for each request takes a CPU, and what its caches hold, from a thread that
    computes, each time. Requests that came during a pause are read in one go.
    """

    def __init__(self) -> None:
        self._will_pause = False

    def pause(self) -> None:
        """Have the loop pause for ``PAUSE_S`` once, however often it is asked in this turn."""
        if not self._will_pause:
            self._will_pause = True
            asyncio.get_running_loop().call_soon(self._pause)

    def _pause(self) -> None:
        self._will_pause = False
        time.sleep(PAUSE_S)
