"""The rows of a job, in portions, with what makes it stop before anything is computed."""

from collections.abc import Iterator
from dataclasses import dataclass

from .corpus import Corpus, Passage
from .errors import InputError
from .portions import Portion, portions


@dataclass(frozen=True)
class JobSource:
    """Yields the portions of a corpus, each time from the first; pickles, as it holds no file.

    ``done``: the numbers of the portions that have a shard; they come without their texts.
    ``complete``: no others may come. ``bad_rows``: rows that cannot be used do not end the job.
    """

    corpus: Corpus
    shard_rows: int
    done: frozenset[int]
    complete: bool
    bad_rows: bool

    def __iter__(self) -> Iterator[Portion]:
        """Read the corpus; raises ``InputError`` for a row that ends the job."""
        # Mapped, so that a portion is gone while the next one is read.
        return map(self._checked, portions(self.corpus.passages(), self.shard_rows))

    def _checked(self, portion: Portion) -> Portion:
        if portion.bad and not self.bad_rows:
            raise refuse_bad_rows(portion.bad[0])
        if portion.number in self.done:
            return portion.without_texts()
        if self.complete:
            raise input_changed(f"it has rows after those of {len(self.done)} shards")
        return portion


def refuse_bad_rows(first: Passage, count: int = 0, rows: int = 0) -> InputError:
    """Return the error for rows that cannot be used, when nobody said what to do with them.

    ``count`` of ``rows``: 0 where the rest was not read.
    """
    of = f" {count:,} of {rows:,} rows cannot be used." if rows else ""
    return InputError(
        f"{first.place}: {first.reason}.{of} Mend the input, or pass --bad-rows FILE to write such "
        "rows there and go on without them."
    )


def input_changed(why: str) -> InputError:
    """Return the error for an input that is not the one that a folder was begun with."""
    return InputError(
        f"the input has changed since this folder was begun: {why}. Give another folder."
    )
