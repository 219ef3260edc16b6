"""Tokenizes the texts of many requests in one go. One that cannot be tokenized fails alone.

Text by text takes longer: the tokenizer's code and words are not in the CPU's caches when a
caller's thread comes to it, and with many threads each is put to sleep on the way.
"""

from collections.abc import Callable

from .options import Wish
from .request import Request
from .tokens import Tokens

TokenizeEach = Callable[[list[str], Wish], list[Tokens]]
"""Returns the tokens of each text by itself."""


def tokenize_together(
    requests: list[Request], tokenize_each: TokenizeEach
) -> list[tuple[Request, Tokens | Exception]]:
    """Return what became of the text of each request: its tokens, or its error."""
    by_wish: dict[Wish, list[Request]] = {}
    for request in requests:
        by_wish.setdefault(request.wish, []).append(request)
    return [
        outcome
        for wish, alike in by_wish.items()
        for outcome in _tokenize(alike, wish, tokenize_each)
    ]


def _tokenize(
    requests: list[Request], wish: Wish, tokenize_each: TokenizeEach
) -> list[tuple[Request, Tokens | Exception]]:
    """Return what became of requests that wish the same; if they fail, try each half."""
    texts = [request.untokenized.text for request in requests if request.untokenized is not None]
    try:
        return list(zip(requests, tokenize_each(texts, wish), strict=True))
    except Exception as error:
        if len(requests) == 1:
            return [(requests[0], error)]
    middle = len(requests) // 2
    return [
        *_tokenize(requests[:middle], wish, tokenize_each),
        *_tokenize(requests[middle:], wish, tokenize_each),
    ]
