"""What waits: every text once, batches within their budget, nobody behind all of a long request."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corom.runtime.options import Wish
from corom.runtime.request import Request
from corom.runtime.tokens import Tokens
from corom.runtime.waiting import Waiting

BUDGET = 64
WISH = Wish("", True, 4, False)
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=40)


def request(lengths: list[int]) -> Request:
    return Request(Tokens([[7] * n for n in lengths], np.array(lengths, np.int64), 0), WISH)


def fill(*requests: list[int]) -> tuple[Waiting, list[Request]]:
    waiting, made = Waiting(BUDGET), [request(lengths) for lengths in requests]
    for one in made:
        waiting.add(one)
    return waiting, made


@given(st.lists(LENGTHS, max_size=12))
def test_every_text_comes_exactly_once_in_batches_within_the_budget(
    requests: list[list[int]],
) -> None:
    waiting, made = fill(*requests)
    seen: list[tuple[int, int]] = []
    while waiting:
        chosen = waiting.next_batch()
        batch = chosen.batch()
        assert batch.input_ids.size <= BUDGET or len(chosen.texts) == 1
        assert batch.lengths.tolist() == [len(ids) for ids in chosen.ids]
        for (one, row), ids in zip(*chosen, strict=True):
            assert one.tokens.ids[row] is ids
            seen.append((made.index(one), row))
    expected = [(k, row) for k, lengths in enumerate(requests) for row in range(len(lengths))]
    assert sorted(seen) == expected


@given(st.lists(LENGTHS, min_size=1, max_size=12))
def test_the_oldest_request_is_in_the_next_batch(requests: list[list[int]]) -> None:
    waiting, made = fill(*requests)
    assert made[0] in {one for one, _ in waiting.next_batch().texts}


@given(LENGTHS, st.integers(1, 6))
def test_requests_of_many_texts_and_single_ones_take_turns(
    lengths: list[int], singles: int
) -> None:
    """However long the first request, each of the others is served within a few batches."""
    waiting, made = fill(lengths * 20, *([[5]] * singles), [3] * 400)
    for _ in range(singles + 2):
        waiting.next_batch()
    assert not any(one.rows for one in made[1:-1])
    assert len(made[-1].rows) < 400


@given(st.lists(LENGTHS, max_size=12), st.data())
def test_dropped_requests_are_never_served(requests: list[list[int]], data: st.DataObject) -> None:
    waiting, made = fill(*requests)
    for one in made:
        one.dropped = data.draw(st.booleans())
    if data.draw(st.booleans()):
        waiting.forget_dropped()
        assert waiting.all() == [one for one in made if not one.dropped]
    served = set()
    while waiting:
        served |= {one for one, _ in waiting.next_batch().texts}
    assert served == {one for one in made if not one.dropped}


def test_texts_of_like_length_go_together() -> None:
    waiting, _ = fill([8], [60], [8], [61], [9])
    assert [len(ids) for ids in waiting.next_batch().ids] == [9, 8, 8]
    assert [len(ids) for ids in waiting.next_batch().ids] == [60]
    assert [len(ids) for ids in waiting.next_batch().ids] == [61]


def test_a_batch_is_full_when_more_could_not_make_it_larger() -> None:
    assert not fill([20], [20])[0].fill_a_batch()
    assert fill([20], [44])[0].fill_a_batch()


def test_a_request_of_a_batchs_size_stands_in_line_once() -> None:
    """Its texts are of unlike length, so they go in several batches, in turns with the others."""
    waiting, (few, *others) = fill([5, 30, 20], *([10 + k] for k in range(40)))
    batches = 0
    while few.rows:
        waiting.next_batch()
        batches += 1
    assert batches <= 5
    assert sum(bool(other.rows) for other in others) > 10


def test_a_request_of_many_batches_lets_others_pass() -> None:
    waiting, (many, other) = fill([30] * 20, [10])
    assert len(waiting.next_batch().texts) == 2
    assert len(many.rows) == 18
    waiting.next_batch()
    assert not other.rows
