"""Measures of rankings, against the textbook; intervals; what BM25 is given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.benchmarks.lexical import bm25_scores, bm25_tokens
from corom.benchmarks.ranking import means, paired_interval, query_measures


def by_hand(ranking: list[str], relevant: set[str]) -> dict[str, float]:
    """The measures of one query, as the textbook has them."""
    hits = [passage in relevant for passage in ranking]
    first = next((rank for rank, hit in enumerate(hits[:10], 1) if hit), None)
    ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(10, len(relevant)) + 1))
    gain = sum(hit / np.log2(rank + 1) for rank, hit in enumerate(hits[:10], 1))
    recalls = {f"R@{k}": sum(hits[:k]) / len(relevant) for k in (10, 100, 1000)}
    return {"RR@10": 1 / first if first else 0.0, "nDCG@10": gain / ideal, **recalls}


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.permutations([f"p{k}" for k in range(25)]),
            st.sets(st.sampled_from([f"p{k}" for k in range(30)]), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_measures_are_the_textbooks(queries: list[tuple[list[str], set[str]]]) -> None:
    scores = {
        f"q{row}": {passage: float(-rank) for rank, passage in enumerate(ranking)}
        for row, (ranking, _) in enumerate(queries)
    }
    qrels = {f"q{row}": sorted(relevant) for row, (_, relevant) in enumerate(queries)}
    found = query_measures(scores, qrels)
    for row, (ranking, relevant) in enumerate(queries):
        for name, value in by_hand(ranking, relevant).items():
            assert found[name][f"q{row}"] == pytest.approx(value), name


def test_a_query_without_a_ranking_counts_as_zero_and_one_without_an_answer_not_at_all() -> None:
    found = query_measures({"a": {"p": 1.0}}, {"a": ["p"], "b": ["p"], "c": []})
    assert set(found["RR@10"]) == {"a", "b"}
    assert means(found)["RR@10"] == 0.5


def test_an_interval_is_of_the_pairs_and_covers_what_it_should() -> None:
    random = np.random.default_rng(1)
    hard = random.random(500)  # queries differ far more than the two systems do
    ours, theirs = hard + 0.01 + random.normal(0, 0.01, 500), hard
    found = paired_interval(ours.tolist(), theirs.tolist())
    assert found.low < found.difference < found.high
    assert found.difference == pytest.approx(0.01, abs=0.002)
    assert found.high - found.low < 0.004
    same = paired_interval([0.5, 1.0], [0.5, 1.0])
    assert same == (0.0, 0.0, 0.0)


def test_an_interval_has_its_coverage() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        differences = random.normal(0.3, 1, 60)
        found = paired_interval(differences.tolist(), [0.0] * 60, seed)
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 198


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("头痛怎么办", ["头痛", "痛怎", "怎么", "么办"]),
        ("头", ["头"]),
        ("CT 检查", ["ct", "t检", "检查"]),
        ("", []),
        (" \n", []),
    ],
)
def test_tokens_of_bm25(text: str, tokens: list[str]) -> None:
    assert bm25_tokens(text) == tokens


def test_bm25_finds_the_passage_with_the_words() -> None:
    corpus = {"1": "头痛怎么办才好", "2": "今天天气不错", "3": "感冒了要多喝水"}
    scores = bm25_scores(corpus, {"q": "天气怎样", "none": " ", "absent": "火星"})
    assert max(scores["q"], key=scores["q"].__getitem__) == "2"
    assert set(scores["q"]) == {"2"}
    assert "none" not in scores
    assert not scores["absent"]
