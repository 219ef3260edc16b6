"""Who is let into the queue, when what was let in is due, and when it is given up."""

from .errors import Overloaded
from .pace import Pace

LATE = 3
"""How much later than expected a text may be served before it is given up."""
STRETCH = 5
"""A request is due once it has taken this many times what it would take if it were alone."""
TOKEN_S = 1e-4
"""What a token is taken to last until it has been measured."""
TRY_LATER = "Try again later, or elsewhere."


class Admission:
    """The limits of a queue, in tokens and in the seconds that they take."""

    def __init__(self, max_tokens: int, max_s: float | None, pace: Pace) -> None:
        self._max_tokens, self._max_s = max_tokens, float("inf") if max_s is None else max_s
        self._pace = pace

    def why_not(self, waiting: int, tokens: int | None) -> Overloaded | None:
        """Return why a call of so many tokens cannot wait behind those that do; None if it can.

        ``tokens``: None if they were not counted, for it does not matter how many they are.
        """
        wait_s = self._pace.seconds(waiting) or 0.0
        if waiting + (tokens or 1) > self._max_tokens:
            limit = f"max_queue_tokens is {self._max_tokens}"
        elif wait_s > self._max_s:
            limit = f"they take {wait_s:.1f} s, and max_queue_s is {self._max_s:g}"
        else:
            return None
        call = "" if tokens is None else f" and this call has {tokens}"
        return Overloaded(f"{waiting} tokens wait already{call}; {limit}. {TRY_LATER}")

    def has_room(self, waiting: int, about_tokens: int) -> bool:
        """Say whether so much room is left that a call need not be counted exactly."""
        return 2 * waiting <= self._max_tokens and waiting + about_tokens <= self._max_tokens

    def token_s(self) -> float:
        """Return how much later a request is due for each of its tokens."""
        return STRETCH * (self._pace.seconds(1) or TOKEN_S)

    def patience_s(self, tokens: int) -> float:
        """Return how long a request may wait; what its own texts take is not held against it."""
        own_s = self._pace.seconds(tokens)
        return float("inf") if own_s is None else LATE * self._max_s + STRETCH * own_s

    def waited(self, seconds: float) -> Overloaded:
        """Return the error of a text that waited for longer than that."""
        return Overloaded(
            f"a text waited {seconds:.3f} s for others; max_queue_s is {self._max_s:g}. {TRY_LATER}"
        )
