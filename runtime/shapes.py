"""Which shapes an engine is run at: buckets of rows × tokens. Pure functions; knows no GPU.

A batch is padded to a bucket, so that few shapes are seen, each with one captured CUDA graph.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .errors import InputError
from .sidecar import Profile

ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
WIDTHS = (
    *(16, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    *(640, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 8192),
)
SPARE_TOKENS = 1024
"""Padded tokens of whole rows that cost less than one more launch on any GPU worth an engine."""


class Bucket(NamedTuple):
    """One shape that is executed: ``rows`` × ``width`` tokens, by the profile of that index."""

    rows: int
    width: int
    profile: int


class Part(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch and the bucket they are executed in."""

    start: int
    stop: int
    bucket: Bucket


class Buckets:
    """The table of buckets that the profiles of an engine allow."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self._table: dict[int, list[Bucket]] = {}
        for width in _sizes(WIDTHS, [p.length for p in profiles]):
            buckets = [
                Bucket(rows, width, profile)
                for rows in _sizes(ROWS, [p.batch for p in profiles])
                if (profile := _tightest(profiles, rows, width)) is not None
            ]
            if buckets:
                self._table[width] = buckets

    def __iter__(self) -> Iterator[Bucket]:
        return (bucket for buckets in self._table.values() for bucket in buckets)

    @property
    def max_width(self) -> int:
        """Tokens of the longest text that fits."""
        return max(self._table)

    def fit(self, rows: int, width: int) -> Bucket:
        """Return the smallest bucket that holds ``rows`` × ``width`` tokens.

        Raises ``InputError`` if there is none.
        """
        for candidate, buckets in self._table.items():
            if candidate >= width:
                for bucket in buckets:
                    if bucket.rows >= rows:
                        return bucket
        raise InputError(
            f"a batch of {rows} texts of {width} tokens is beyond the engine's profiles (texts of "
            f"up to {self.max_width} tokens). Cut texts with max_length={self.max_width} "
            "(--max-length), or export again with a longer profile in the recipe."
        )

    def split(self, lengths: Sequence[int]) -> Iterator[Part]:
        """Yield the parts that a batch with these lengths is executed in, in row order.

        One part if a bucket holds it without much padding; every row comes exactly once.
        """
        start = 0
        while start < len(lengths):
            width = max(lengths[start:])
            rows = self._take(len(lengths) - start, width)
            stop = start + rows
            yield Part(start, stop, self.fit(rows, max(lengths[start:stop])))
            start = stop

    def _take(self, rows: int, width: int) -> int:
        """Return how many of ``rows`` texts to execute together."""
        width = self.fit(1, width).width
        sizes = [bucket.rows for bucket in self._table[width]]
        if rows >= sizes[-1]:
            return sizes[-1]
        above = next(size for size in sizes if size >= rows)
        below = max((size for size in sizes if size <= rows), default=above)
        spare = above - rows
        cheap = spare * width <= SPARE_TOKENS or 4 * spare <= above
        return rows if cheap else min(rows, below)


def _sizes(usual: Sequence[int], ranges: Sequence[tuple[int, int, int]]) -> list[int]:
    """Return the usual sizes within any (min, opt, max), and each min and max, sorted."""
    limits = {limit for low, _, high in ranges for limit in (low, high)}
    within = {s for s in usual for low, _, high in ranges if low <= s <= high}
    return sorted(limits | within)


def _tightest(profiles: Sequence[Profile], rows: int, width: int) -> int | None:
    """Return the index of the smallest profile that holds the shape: it is tuned nearest to it."""
    fitting = [
        (profile.batch[2] * profile.length[2], index)
        for index, profile in enumerate(profiles)
        if profile.batch[0] <= rows <= profile.batch[2]
        and profile.length[0] <= width <= profile.length[2]
    ]
    return min(fitting)[1] if fitting else None
