"""Very long texts: only as much is tokenized as can get past the limit, to the same ids.

A token takes some 200 bytes while it is made, so a text of megabytes would take hundreds of them to
be cut to a few hundred tokens. Exact for BERT's tokenizers, which look at no more than one word at
a time; other texts are tokenized whole.
"""

import json
from collections.abc import Callable

import tokenizers

FIRST_CHARACTERS = 8
"""Characters for each token of the limit that are tried first; four times as many each time."""


def cut_margin(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Return how many tokens beside a cut may differ from those of the whole text.

    It is one word's, and those of an added token that was cut through. None: any may.
    """
    found = json.loads(tokenizer.to_str())
    kinds = [(found[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
        return None
    longest = max((len(token["content"]) for token in found["added_tokens"]), default=0)
    return int(found["model"]["max_input_chars_per_word"]) + longest + 2


def excerpt(
    text: str, limit: int, margin: int, count: Callable[[str], int], *, of_its_end: bool
) -> str:
    """Return a beginning, or end, of a text whose first, or last, ``limit`` tokens are the text's.

    ``count``: tokens of a text. The text itself is returned if no part of it has enough tokens.
    """
    size = FIRST_CHARACTERS * (limit + margin)
    while size < len(text):
        part = text[-size:] if of_its_end else text[:size]
        if count(part) >= limit + margin:
            return part
        size *= 4
    return text
