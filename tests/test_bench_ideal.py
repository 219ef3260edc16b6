"""The server without overhead: small cases by hand, and what holds for all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.benchmarks.ideal_server import served, tails
from corom.benchmarks.load import finish_times

SERVICE = st.lists(st.integers(1, 50), min_size=1, max_size=60).map(lambda x: np.array(x, float))
GAP = st.integers(1, 40).map(float)


def first_come(number: int, _: float) -> float:
    return number


def least_left(_: int, left: float) -> float:
    return left


def test_a_short_one_passes_a_long_one() -> None:
    came, service = np.array([0.0, 2.0, 4.0]), np.array([10.0, 1.0, 1.0])
    assert served(came, service, first_come).tolist() == [10, 9, 8]
    assert served(came, service, least_left).tolist() == [12, 1, 1]


def test_one_that_is_nearly_done_is_not_put_aside() -> None:
    came, service = np.array([0.0, 3.0]), np.array([4.0, 3.0])
    assert served(came, service, least_left).tolist() == [4, 4]


@given(SERVICE, GAP)
def test_no_order_is_faster_than_alone_and_least_left_first_has_the_smallest_mean(
    service: np.ndarray, gap: float
) -> None:
    came = np.arange(len(service)) * gap
    in_turn, short = served(came, service, first_come), served(came, service, least_left)
    np.testing.assert_allclose(in_turn, finish_times(came, service) - came)
    assert (short >= service - 1e-9).all()
    assert short.sum() <= in_turn.sum() + 1e-6
    # Both are busy for as long: whoever is the last ends at the same time.
    assert (came + in_turn).max() == pytest.approx((came + short).max())


def test_tails_are_of_the_size_that_is_asked_for() -> None:
    groups = [[0], [0], [0, 1, 1]] * 100
    came = np.arange(300) * 2.0
    found = {texts: tails([10, 40], groups, came, texts) for texts in (1, 3)}
    assert found[1]["fewest texts first"] == pytest.approx(1)
    assert found[1]["least left first"] == pytest.approx(1)
    assert found[3]["least left first"] <= 2
    assert found[1]["as they come"] > 1
    alone = tails([1], [[0]], np.zeros(1), 1)
    assert set(alone.values()) == {1}
