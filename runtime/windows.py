"""Texts in lists that are tokenized, sorted by length and held in memory together."""

from collections.abc import Iterable, Iterator

WINDOW_TEXTS = 4096
WINDOW_CHARACTERS = 500_000
"""Tokens take about 200 bytes each while they are made: 100 MB for a window of long texts."""


def windows(
    texts: Iterable[str],
    max_texts: int = WINDOW_TEXTS,
    max_characters: int = WINDOW_CHARACTERS,
) -> Iterator[list[str]]:
    """Yield the texts in lists of bounded size, in order; a list has at least one text."""
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        # What is no text is refused later, with its position.
        characters += len(text) if isinstance(text, str | list) else 0
        if len(window) == max_texts or characters >= max_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window
