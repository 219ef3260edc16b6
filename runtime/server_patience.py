"""How long a request's task goes on: until it is late, or until nobody waits for it any more."""

import asyncio
from types import TracebackType
from typing import Self


class ClientGone(Exception):  # noqa: N818  # nobody is left to be told
    """The client closed the connection before it was answered."""


class Patience:
    """Cancels the task in its block after so many seconds, or when it is told of a client's end.

    The block raises ``TimeoutError`` or ``ClientGone`` then. ``asyncio.timeout`` does the first at
    three times the cost, and would need a task beside it for the other.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._why: type[Exception] | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._seconds, self._end, TimeoutError)
        return self

    def client_gone(self) -> None:
        """End the block: the client has closed the connection."""
        self._end(ClientGone)

    def _end(self, why: type[Exception]) -> None:
        if self._why is None:
            self._why = why
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._why is None:
            return
        # Whoever else cancels the task, as a server that ends does, goes before.
        others = self._task.uncancel() > self._cancelling
        if kind is asyncio.CancelledError and not others:
            raise self._why from None
