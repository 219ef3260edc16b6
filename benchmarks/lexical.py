"""BM25, what a search without a model finds: by a library, on pairs of characters.

Tokens: of every run of Chinese characters each two neighbours (a lone one by itself), of every run
of other letters and digits the whole, in lower case; nothing else.
"""

import re

from .ranking import DEPTH, Scores

TOKENIZATION = "pairs of Chinese characters, other words whole, lower case"
_RUNS = re.compile(r"[\u3400-\u9fff]+|[^\W_\u3400-\u9fff]+")


def bm25_tokens(text: str) -> list[str]:
    """Return the tokens of a text."""
    tokens: list[str] = []
    for run in _RUNS.findall(text.lower()):
        if "\u3400" <= run[0] <= "\u9fff" and len(run) > 1:
            tokens += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            tokens.append(run)
    return tokens


def bm25_scores(corpus: dict[str, str], queries: dict[str, str]) -> Scores:
    """Return each query's best passages with their scores."""
    import bm25s

    index = bm25s.BM25()
    index.index([bm25_tokens(text) for text in corpus.values()], show_progress=False)
    keys = list(corpus)
    depth = min(DEPTH, len(keys))
    scores: dict[str, dict[str, float]] = {}
    for query, text in queries.items():
        tokens = bm25_tokens(text)
        if not tokens:
            continue
        rows, values = index.retrieve([tokens], k=depth, show_progress=False)
        pairs = zip(rows[0].tolist(), values[0].tolist(), strict=True)
        scores[query] = {keys[row]: value for row, value in pairs if value > 0}
    return scores
