"""The rows of a corpus in portions, one for each shard. Knows no encoder and no output."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .corpus import Passage
from .shards import texts_sha256

SHARD_CHARACTERS = 32_000_000
"""A portion ends here too, so that its texts and vectors fit into memory however long they are."""


class Portion(NamedTuple):
    """The rows that shard ``number`` stands for; ``good`` are those that can be used."""

    number: int
    rows: int
    good: list[Passage]
    bad: list[Passage]
    end: str
    """Where the last row stands, for messages."""

    @property
    def keys(self) -> list[str | int]:
        """The ids of the rows that can be used."""
        return [passage.key for passage in self.good]

    @property
    def texts(self) -> list[str]:
        """The texts of the rows that can be used."""
        return [passage.text or "" for passage in self.good]

    @property
    def sha256(self) -> str:
        """The hash of ids and texts."""
        return texts_sha256(self.keys, self.texts)


def portions(passages: Iterable[Passage], rows: int) -> Iterator[Portion]:
    """Yield portions of so many rows, bad ones too, or of ``SHARD_CHARACTERS``."""
    number = characters = 0
    portion: list[Passage] = []
    for passage in passages:
        portion.append(passage)
        characters += len(passage.text or "")
        if len(portion) == rows or characters >= SHARD_CHARACTERS:
            yield _portion(number, portion)
            number += 1
            portion, characters = [], 0
    if portion:
        yield _portion(number, portion)


def _portion(number: int, passages: list[Passage]) -> Portion:
    return Portion(
        number,
        len(passages),
        [passage for passage in passages if passage.text is not None],
        [passage for passage in passages if passage.text is None],
        str(passages[-1].place),
    )
