"""BM25, what a search without a model finds: by a library, on pairs of characters.

Tokens are each two neighbouring characters of the text in lower case without white space; a lone
character stands by itself. The library's own constants: k1 1.5, b 0.75.
"""

from .ranking import DEPTH, Scores


def bm25_tokens(text: str) -> list[str]:
    """Return the tokens of a text."""
    letters = "".join(text.lower().split())
    return [letters[at : at + 2] for at in range(max(1, len(letters) - 1))] if letters else []


def bm25_scores(corpus: dict[str, str], queries: dict[str, str]) -> Scores:
    """Return each query's best passages with their scores."""
    import bm25s

    index = bm25s.BM25(k1=1.5, b=0.75)
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
