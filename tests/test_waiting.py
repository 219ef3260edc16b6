"""What waits: every text once, batches within their budget, short before long, nothing for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.runtime.options import Wish
from corom.runtime.request import MANY, PATIENT, Request, Untokenized
from corom.runtime.tokens import Tokens
from corom.runtime.waiting import LEG, POOL, Chosen, Waiting

BUDGET = 64
TOKEN_S = 0.01
WISH = Wish("", True, 4, False)
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=40)


def request(lengths: list[int], asked: float = 0.0) -> Request:
    made = Request(Tokens([[7] * n for n in lengths], np.array(lengths, np.int64), 0), WISH)
    made.asked = asked
    return made


def fill(*requests: list[int]) -> tuple[Waiting, list[Request]]:
    """Return what waits of requests that were all made at once, and these."""
    waiting, made = Waiting(BUDGET, TOKEN_S), [request(lengths) for lengths in requests]
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
        for (one, row), ids in zip(chosen.texts, chosen.ids, strict=True):
            assert one.tokens.ids[row] is ids
            seen.append((made.index(one), row))
    expected = [(k, row) for k, lengths in enumerate(requests) for row in range(len(lengths))]
    assert sorted(seen) == expected


@given(st.lists(LENGTHS, min_size=1, max_size=12))
def test_the_request_that_is_due_first_is_in_the_next_batch(requests: list[list[int]]) -> None:
    waiting, made = fill(*requests)
    while waiting:
        due = {one: one.due for one in made if one.rows}
        served = {one for one, _ in waiting.next_batch().texts}
        assert min(due.values()) == min(due[one] for one in served)


@given(LENGTHS, st.integers(1, 6))
def test_a_long_request_lets_short_ones_pass(lengths: list[int], singles: int) -> None:
    """However long the first request, each of the others is served within a few batches."""
    waiting, made = fill(lengths * 20, *([[5]] * singles), [3] * 400)
    for _ in range(singles + 3):
        waiting.next_batch()
    assert not any(one.rows for one in made[1:-1])
    for _ in range(2 * LEG):  # the first leg, of texts that do not go together well
        waiting.next_batch()
    assert len(made[-1].rows) < 400


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, BUDGET))
def test_a_long_request_is_not_put_off_for_ever(texts: int, length: int) -> None:
    """Short ones that alone would keep the machine busy leave it the share that it was promised."""
    stretch = 5
    waiting = Waiting(BUDGET, stretch)
    long = request([length] * texts)
    waiting.add(long)
    now = came = 0.0
    while long.rows:
        while came <= now:
            waiting.add(request([4], came))
            came += 4
        now += sum(map(len, waiting.next_batch().ids))
    later = stretch * long.times_later
    assert now <= later * (length * texts + BUDGET) * stretch / (stretch - 1) + 2 * BUDGET


@given(st.lists(LENGTHS, max_size=12), st.data())
def test_dropped_requests_are_never_served(requests: list[list[int]], data: st.DataObject) -> None:
    waiting, made = fill(*requests)
    for one in made:
        one.dropped = data.draw(st.booleans())
    if data.draw(st.booleans()):
        waiting.forget_dropped()
        assert set(waiting.all()) == {one for one in made if not one.dropped}
    served = set()
    while waiting:
        served |= {one for one, _ in waiting.next_batch().texts}
    assert served == {one for one in made if not one.dropped}


def untokenized(count: int) -> list[Request]:
    return [Request(Untokenized(f"{k}", 20), WISH) for k in range(count)]


@given(st.integers(0, 30), st.data())
def test_untokenized_texts_are_taken_once_in_their_order_and_served_then(
    count: int, data: st.DataObject
) -> None:
    waiting, (plain,) = fill([5])
    made = untokenized(count)
    for one in made:
        waiting.add(one)
    taken = []
    while some := waiting.take_untokenized():
        assert len(some) <= -(-POOL * BUDGET // 20)
        taken += some
        assert set(waiting.all()) == {plain, *(one for one in made if not one.dropped)}
        for one in some:
            fate = data.draw(st.sampled_from(["tokens", "dropped", "failed"]))
            one.dropped = fate != "tokens"
            if fate != "failed":
                one.note_tokens(Tokens([[7] * 9], np.array([9], np.int64), 0), 0.5)
        waiting.add_tokenized(some)
    assert taken == made
    served = set()
    while waiting:
        served |= {one for one, _ in waiting.next_batch().texts}
    assert served == {plain, *(one for one in made if not one.dropped)}
    assert waiting.all() == []


def test_untokenized_texts_count_as_what_waits() -> None:
    waiting = Waiting(BUDGET, TOKEN_S)
    first, *rest = untokenized(4)
    waiting.add(first)
    assert waiting
    assert waiting.asked() == first.asked
    assert not waiting.fill_a_batch()
    for one in rest:
        waiting.add(one)
    assert waiting.fill_a_batch()
    assert waiting.take_untokenized() == [first, *rest]
    assert not waiting  # nothing to take, and yet
    assert set(waiting.all()) == {first, *rest}
    first.dropped = True
    waiting.forget_dropped()
    assert set(waiting.all()) == set(rest)


def test_a_text_is_due_by_its_tokens_and_waits_from_when_they_are_there() -> None:
    (one,) = untokenized(1)
    one.asked = 3.0
    waiting = Waiting(BUDGET, TOKEN_S)
    waiting.add(one)
    waiting.take_untokenized()
    one.note_tokens(Tokens([[7] * 9], np.array([9], np.int64), 0), 0.5)
    waiting.add_tokenized([one])
    assert (one.waiting_tokens, one.asked, one.due) == (9, 3.5, 3.5 + 9 * TOKEN_S)


def test_texts_of_like_length_go_together() -> None:
    waiting, _ = fill([8], [60], [8], [61], [9])
    assert [len(ids) for ids in waiting.next_batch().ids] == [9, 8, 8]
    assert [len(ids) for ids in waiting.next_batch().ids] == [60]
    assert [len(ids) for ids in waiting.next_batch().ids] == [61]


def test_nobody_waits_for_texts_of_bulk_and_bulk_for_nobody() -> None:
    waiting, (_, bulk, one, other) = fill([4], [8] * 50, [8], [60])
    assert [r.bulk for r in (bulk, one)] == [True, False]
    assert [len(ids) for ids in waiting.next_batch().ids] == [8, 4]
    assert {r for r, _ in waiting.next_batch().texts} == {other}
    while waiting:
        assert {r for r, _ in waiting.next_batch().texts} == {bulk}


def test_many_texts_are_bulk_however_short_and_so_is_a_piece_of_a_call() -> None:
    waiting, (many, few) = fill([1] * MANY, [1] * (MANY - 1))
    piece, long = Request(few.tokens, WISH, of_more=True), request([LEG * BUDGET + 1])
    waiting.add(piece)
    waiting.add(long)
    assert [one.bulk for one in (many, few, piece, long)] == [True, False, True, False]
    assert many.due == PATIENT * MANY * TOKEN_S
    assert few.due == (MANY - 1) * TOKEN_S


def test_in_the_middle_of_a_batch_only_what_is_short_and_due_before_it_is_executed() -> None:
    waiting, (bulk, *made) = fill([4] * 100, [8], [9], [10], [11])
    late = Chosen([(bulk, 0)], [[7] * 30], due=10.5 * TOKEN_S, bulk=True)
    assert waiting.first_short() is made[0]
    chosen = waiting.next_batch(late)
    assert {one for one, _ in chosen.texts} == set(made[:3])
    assert (chosen.due, chosen.tokens, chosen.bulk) == (8 * TOKEN_S, 27, False)
    assert waiting.next_batch(late).texts == []
    made[3].dropped = True
    assert waiting.first_short() is None


@given(st.lists(LENGTHS, min_size=1, max_size=12), st.integers(1, 80), st.floats(0, 2))
def test_a_batch_is_of_one_kind_and_no_larger_than_what_it_is_in_the_middle_of(
    requests: list[list[int]], tokens: int, due: float
) -> None:
    waiting, made = fill(*requests)
    outer = Chosen([(made[0], 0)], [[7] * tokens], due, bulk=True)
    found = [waiting.next_batch()]
    first = waiting.first_short()
    found.append(waiting.next_batch(outer))
    assert bool(found[1].texts) == (first is not None and first.due < due)
    for chosen in found:
        served = {one for one, _ in chosen.texts}
        assert {one.bulk for one in served} <= {chosen.bulk}
    aside = found[1]
    assert not aside.bulk
    assert aside.tokens <= min(tokens, BUDGET) or len(aside.texts) == 1
    left = sum(len(one.rows) for one in made)
    assert left + sum(len(chosen.texts) for chosen in found) == sum(map(len, requests))


def test_a_batch_is_full_when_more_could_not_make_it_larger() -> None:
    assert not fill([20], [20])[0].fill_a_batch()
    assert fill([20], [44])[0].fill_a_batch()


def test_few_texts_of_unlike_length_do_not_stand_in_line_once_for_each() -> None:
    """They go in several batches, which are due before what comes long after."""
    waiting, (few, *_) = fill([5, 30, 20])
    for k in range(40):
        waiting.add(request([10 + k], asked=0.1 + k))
    batches = 0
    while few.rows:
        waiting.next_batch()
        batches += 1
    assert batches <= 5
    assert len(waiting.all()) > 30


def test_of_a_very_long_request_each_leg_is_due_in_its_turn() -> None:
    leg = LEG * BUDGET
    waiting, (long, middling) = fill([32] * leg, [32] * (leg // 32 + 4))
    dues = set()
    while long.rows:
        dues.add(long.due)
        waiting.next_batch()
    assert sorted(dues) == pytest.approx([PATIENT * TOKEN_S * leg * k for k in range(1, 33)])
    assert not middling.rows


def test_a_leg_is_due_at_the_pace_known_then() -> None:
    """A guess of the pace, or one of before, must not let a long request go first for ever."""
    waiting, (long,) = fill([32] * 400)
    waiting.next_batch()
    waiting.token_s = 10 * TOKEN_S  # the machine is slower than was thought
    now, passed = 10.0, []
    while long.rows:
        single = request([4], now)
        waiting.add(single)
        batches = 0
        while single.rows:
            waiting.next_batch()
            batches, now = batches + 1, now + BUDGET * TOKEN_S * 2
        passed.append(batches)
    assert max(passed) <= LEG + 2


def test_a_budget_may_change() -> None:
    waiting, (one,) = fill([10] * 60)
    sizes = []
    for budget in (64, 20, 5, 200):
        waiting.batch_tokens = budget
        sizes.append(len(waiting.next_batch().texts))
    assert sizes == [6, 2, 1, 20]
    assert len(one.rows) == 31
