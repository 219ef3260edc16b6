"""The best server there could be: small cases by hand, and what holds for all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.benchmarks.ideal_server import first_come, shortest_first, tails

SERVICE = st.lists(st.integers(1, 50), min_size=1, max_size=60).map(lambda x: np.array(x, float))
GAP = st.integers(1, 40).map(float)


def test_a_short_one_passes_a_long_one() -> None:
    service = np.array([10.0, 1.0, 1.0])  # at 0, 2 and 4
    assert first_come(service, 2.0).tolist() == [10, 9, 8]
    assert shortest_first(service, 2.0).tolist() == [12, 1, 1]


def test_one_that_is_nearly_done_is_not_put_aside() -> None:
    assert shortest_first(np.array([4.0, 3.0]), 3.0).tolist() == [4, 4]


@given(SERVICE, GAP)
def test_no_order_is_faster_than_alone_and_shortest_first_has_the_smallest_mean(
    service: np.ndarray, gap: float
) -> None:
    came, short = first_come(service, gap), shortest_first(service, gap)
    assert (came >= service).all()
    assert (short >= service).all()
    assert short.sum() <= came.sum() + 1e-6
    # Both are busy for as long: whoever is the last ends at the same time.
    times = np.arange(len(service)) * gap
    assert (times + came).max() == pytest.approx((times + short).max())


def test_tails_are_of_the_size_that_is_asked_for() -> None:
    groups = [[0], [0], [0, 1, 1]] * 100
    found = {texts: tails([10, 40], groups, 0.5, texts) for texts in (1, 3)}
    assert found[1]["shortest first"] == 1
    assert found[3]["shortest first"] <= 2
    assert found[1]["as they come"] > 1
    rare = tails([1], [[0]], 0.9, 1)
    assert rare == {"as they come": 1, "shortest first": 1}
