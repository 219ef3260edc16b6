"""The rows of a corpus in portions, one for each shard. Knows no encoder and no output."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .corpus import Passage
from .shards import texts_sha256

SHARD_CHARACTERS = 32_000_000
"""A portion ends here too, so that its texts and vectors fit into memory however long they are."""


class Portion(NamedTuple):
    """The rows that shard ``number`` stands for: ids and texts of those that can be used.

    ``rows`` counts the ``bad`` ones too; ``sha256`` is the hash of ids and texts. For messages:
    ``begin``, where the first of these texts stands, and ``end``, where the last row does.
    """

    number: int
    rows: int
    keys: list[str | int]
    texts: list[str]
    bad: list[Passage]
    sha256: str
    begin: str
    end: str

    def without_texts(self) -> "Portion":
        """Return what a portion is known by when its vectors are there."""
        return self._replace(texts=[])


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
    good = [passage for passage in passages if passage.text is not None]
    keys = [passage.key for passage in good]
    texts = [passage.text or "" for passage in good]
    return Portion(
        number,
        len(passages),
        keys,
        texts,
        [passage for passage in passages if passage.text is None],
        texts_sha256(keys, texts),
        str((good or passages)[0].place),
        str(passages[-1].place),
    )
