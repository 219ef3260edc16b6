"""Batches: every row exactly once, within the budget, and padding that nothing can see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.runtime.batching import pad, plan_batches
from corom.runtime.tokens import Tokens

LENGTHS = st.lists(st.integers(1, 512), max_size=200).map(lambda x: np.array(x, np.int64))
BUDGETS = st.integers(1, 20_000)
SIZES = st.none() | st.integers(1, 50)


@given(LENGTHS, BUDGETS, SIZES)
def test_every_row_comes_exactly_once(lengths: np.ndarray, budget: int, size: int | None) -> None:
    rows = [row for batch in plan_batches(lengths, budget, size) for row in batch.tolist()]
    assert sorted(rows) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS, SIZES)
def test_a_batch_keeps_to_the_budget_unless_one_text_exceeds_it(
    lengths: np.ndarray, budget: int, size: int | None
) -> None:
    for rows in plan_batches(lengths, budget, size):
        assert len(rows) >= 1
        assert size is None or len(rows) <= size
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= budget


@given(LENGTHS, BUDGETS)
def test_texts_of_like_length_go_together(lengths: np.ndarray, budget: int) -> None:
    planned = [lengths[rows] for rows in plan_batches(lengths, budget)]
    for longer, shorter in zip(planned, planned[1:], strict=False):
        assert longer.min() >= shorter.max()


@given(LENGTHS, BUDGETS)
def test_a_batch_is_as_large_as_the_budget_allows(lengths: np.ndarray, budget: int) -> None:
    planned = list(plan_batches(lengths, budget))
    for rows in planned[:-1]:
        assert (len(rows) + 1) * lengths[rows].max() > budget


@given(LENGTHS, BUDGETS, SIZES)
def test_results_written_by_row_stand_in_the_order_of_the_input(
    lengths: np.ndarray, budget: int, size: int | None
) -> None:
    out = np.full(len(lengths), -1)
    for rows in plan_batches(lengths, budget, size):
        out[rows] = lengths[rows]
    assert out.tolist() == lengths.tolist()


@given(
    st.lists(st.lists(st.integers(1, 30_000), min_size=1, max_size=40), min_size=1, max_size=20),
    st.data(),
)
def test_a_padded_batch_holds_each_text_and_nothing_else(
    ids: list[list[int]], data: st.DataObject
) -> None:
    tokens = Tokens(ids, np.array([len(row) for row in ids], np.int64), 0)
    chosen = data.draw(st.lists(st.sampled_from(range(len(ids))), min_size=1, unique=True))
    batch = pad(tokens, np.array(chosen, np.intp))
    assert batch.input_ids.dtype == np.int64
    assert batch.input_ids.shape == (len(chosen), max(len(ids[row]) for row in chosen))
    for target, row in enumerate(chosen):
        length = batch.lengths[target]
        assert batch.input_ids[target, :length].tolist() == ids[row]
        assert not batch.input_ids[target, length:].any()


@pytest.mark.parametrize("budget", [1, 100])
def test_no_texts_make_no_batches(budget: int) -> None:
    assert list(plan_batches(np.zeros(0, np.int64), budget)) == []
