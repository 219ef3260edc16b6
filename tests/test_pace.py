"""The pace: tokens a second of all workers, and batches that fit their time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.runtime.pace import BATCH_S, LEAST_TOKENS, Pace

SPEEDS = st.floats(1e-6, 1e-2)


@given(st.integers(1, 64), SPEEDS, st.lists(st.integers(1, 4096), min_size=1, max_size=30))
def test_a_steady_pace_is_found(workers: int, token_s: float, batches: list[int]) -> None:
    pace = Pace(workers)
    assert pace.tokens_per_s is None
    assert pace.seconds(1) is None
    assert pace.batch_tokens(512) == 512
    for tokens in batches:
        pace.note(tokens, tokens * token_s)
        pace.note(tokens, tokens * token_s / workers, alone=True)
    assert pace.tokens_per_s == pytest.approx(workers / token_s)
    assert pace.seconds(1000) == pytest.approx(1000 * token_s / workers)


@given(SPEEDS, st.integers(1, 100_000))
def test_a_batch_takes_its_time_at_most_or_is_small(token_s: float, most: int) -> None:
    pace = Pace(1)
    pace.note(100, 100 * token_s)
    tokens = pace.batch_tokens(most)
    assert 1 <= tokens <= most
    assert tokens * token_s <= BATCH_S * 1.001 or tokens <= LEAST_TOKENS


def test_one_batch_that_was_held_up_does_not_say_much() -> None:
    pace = Pace(2)
    for _ in range(20):
        pace.note(100, 0.01)
    pace.note(100, 60, alone=True)
    assert pace.tokens_per_s == pytest.approx(20_000, rel=0.6)


def test_a_machine_that_has_become_slower_is_noticed() -> None:
    pace = Pace(1)
    for _ in range(20):
        pace.note(100, 0.001)
    for _ in range(60):
        pace.note(100, 0.1)
    assert pace.tokens_per_s == pytest.approx(1000, rel=0.1)
