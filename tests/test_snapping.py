"""Snapping: few shapes, little padding, the same rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corom.runtime.batching import Batch, attention_mask
from corom.runtime.snapping import snap, snapped, snapped_sizes

sizes = st.integers(1, 100_000)


@given(sizes)
def test_a_size_grows_by_an_eighth_at_most_and_stays_once_it_fits(size: int) -> None:
    assert size <= snap(size) <= size * 9 / 8
    assert snap(snap(size)) == snap(size)


@given(sizes, sizes)
def test_larger_sizes_never_snap_to_smaller_ones(first: int, second: int) -> None:
    assert (first <= second) <= (snap(first) <= snap(second))


def test_sizes_are_few() -> None:
    assert [snap(n) for n in (1, 15, 16, 17, 31, 33, 63, 65, 121)] == [
        *(1, 15, 16, 18, 32, 36, 64, 72, 128)
    ]
    assert list(snapped_sizes(18)) == [*range(1, 17), 18]
    assert len(list(snapped_sizes(512))) == 56


@given(st.integers(1, 3000))
def test_every_length_has_its_size_among_those_prepared(longest: int) -> None:
    assert {snap(n) for n in range(1, longest + 1)} == set(snapped_sizes(longest))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(0, 30), st.randoms())
def test_a_snapped_batch_masks_all_that_was_added(
    lengths: list[int], spare: int, random: object
) -> None:
    rows, width = len(lengths), max(lengths)
    ids = np.random.default_rng(hash(random) % 2**32).integers(1, 500, (rows, width))
    batch = Batch(ids, np.array(lengths))
    found = snapped(batch, max_width=width + spare)
    assert found.input_ids.shape == (snap(rows), min(snap(width), width + spare))
    assert (found.input_ids[:rows, :width] == ids).all()
    assert found.lengths[:rows].tolist() == lengths
    mask = attention_mask(found.lengths, found.input_ids.shape[1])
    assert (mask[:rows, :width] == attention_mask(batch.lengths, width)).all()
    assert not mask[:rows, width:].any()
    assert (mask.sum(axis=1) >= 1).all()  # a row without a token has no softmax worth the name


def test_a_batch_that_fits_is_not_copied() -> None:
    batch = Batch(np.ones((2, 16), np.int64), np.array([16, 3]))
    assert snapped(batch, 512) is batch
