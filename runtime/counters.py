"""What a batcher counts, for a metrics endpoint."""

from typing import NamedTuple

WAIT_BUCKETS = 32
SIZE_BUCKETS = 20


class Counters(NamedTuple):
    """A batcher's counters at one moment. All but the first three and the last only grow."""

    waiting_texts: int
    waiting_tokens: int
    running_texts: int
    texts: int
    """Texts executed."""
    batches: int
    batch_tokens: int
    """Tokens executed, without padding."""
    padded_tokens: int
    """Tokens executed, padding included."""
    overloaded: int
    """Calls refused because the queue was full."""
    expired: int
    """Calls given up because their deadline had passed."""
    cancelled: int
    """Calls given up by their caller."""
    failed: int
    """Calls that ended with another error after they were admitted."""
    wait_seconds: float
    """Time that the executed texts waited, added up."""
    waits: tuple[int, ...]
    """Executed texts by how long they waited: item k counts waits below 2**k microseconds that
    no item before it counts."""
    put_aside: int
    """Batches of shorter calls that were executed in the middle of another."""
    run_seconds: float
    """Time that executions took, added up; one by the threads of all workers counts for each."""
    sizes: tuple[int, ...]
    """Batches by their texts: item k counts those below 2**k that no item before it counts."""
    token_sizes: tuple[int, ...]
    """Batches by their tokens, without padding, likewise."""
    tokens_per_s: float | None
    """Tokens a second that the last batches were executed at; None before the first."""


class Tally:
    """The counters as they are counted, under the batcher's lock."""

    def __init__(self) -> None:
        self.waiting_texts = self.waiting_tokens = 0
        self.texts = self.batches = self.batch_tokens = self.padded_tokens = 0
        self.overloaded = self.expired = self.cancelled = self.failed = 0
        self.wait_seconds = 0.0
        self.put_aside = 0
        self.waits = [0] * WAIT_BUCKETS
        self.run_seconds = 0.0
        self.sizes = [0] * SIZE_BUCKETS
        self.token_sizes = [0] * SIZE_BUCKETS

    def execute(self, tokens: int, waited_s: float) -> None:
        """Count one text that is put into a batch."""
        self.texts += 1
        self.batch_tokens += tokens
        self.waiting_texts -= 1
        self.waiting_tokens -= tokens
        self.wait_seconds += waited_s
        self.waits[min(int(waited_s * 1e6).bit_length(), WAIT_BUCKETS - 1)] += 1

    def batch(self, texts: int, tokens: int, longest: int) -> None:
        """Count one batch, whose texts are counted by ``execute``."""
        self.batches += 1
        self.padded_tokens += texts * longest
        self.sizes[min(texts.bit_length(), SIZE_BUCKETS - 1)] += 1
        self.token_sizes[min(tokens.bit_length(), SIZE_BUCKETS - 1)] += 1

    def snapshot(self, running_texts: int, tokens_per_s: float | None) -> Counters:
        """Return what was counted so far."""
        lists = {name: tuple(getattr(self, name)) for name in ("waits", "sizes", "token_sizes")}
        counted = vars(self) | lists
        return Counters(running_texts=running_texts, tokens_per_s=tokens_per_s, **counted)
