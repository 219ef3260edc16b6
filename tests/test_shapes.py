"""Buckets and packing: pure functions under attack."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.runtime.batching import Batch
from corom.runtime.errors import InputError
from corom.runtime.packing import ALIGNMENT, layout, pack, views
from corom.runtime.shapes import SPARE_TOKENS, Bucket, Buckets
from corom.runtime.sidecar import Profile

PROFILES = (
    Profile(name="single", batch=(1, 1, 4), length=(8, 32, 128)),
    Profile(name="bulk", batch=(1, 64, 256), length=(8, 64, 128)),
    Profile(name="long", batch=(1, 16, 64), length=(129, 256, 512)),
)
BUCKETS = Buckets(PROFILES)

ranges = st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(0, 200)).map(
    lambda t: (t[0], t[0] + t[1], t[0] + t[1] + t[2])
)
profiles = st.lists(
    st.builds(Profile, name=st.just("p"), batch=ranges, length=ranges), min_size=1, max_size=4
)


def holds(profile: Profile, bucket: Bucket) -> bool:
    return (
        profile.batch[0] <= bucket.rows <= profile.batch[2]
        and profile.length[0] <= bucket.width <= profile.length[2]
    )


@given(profiles)
def test_every_bucket_is_within_its_profile(some: list[Profile]) -> None:
    for bucket in Buckets(some):
        assert holds(some[bucket.profile], bucket)


@given(profiles, st.data())
def test_fit_holds_the_batch_or_says_why_not(some: list[Profile], data: st.DataObject) -> None:
    buckets = Buckets(some)
    rows, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    if not any(b.rows >= rows and b.width >= width for b in buckets):
        with pytest.raises(InputError, match="beyond the engine's profiles"):
            buckets.fit(rows, width)
        return
    bucket = buckets.fit(rows, width)
    assert bucket.rows >= rows
    assert bucket.width >= width


@given(st.lists(st.integers(1, 512), min_size=1, max_size=700))
def test_split_gives_every_row_once_in_order(lengths: list[int]) -> None:
    at = 0
    for start, stop, bucket in BUCKETS.split(lengths):
        assert start == at < stop
        at = stop
        assert stop - start <= bucket.rows
        assert max(lengths[start:stop]) <= bucket.width
        assert holds(PROFILES[bucket.profile], bucket)
    assert at == len(lengths)


@given(profiles, st.data())
def test_split_works_for_any_profiles(some: list[Profile], data: st.DataObject) -> None:
    buckets = Buckets(some)
    widths = st.integers(1, buckets.max_width)
    lengths = data.draw(st.lists(widths, min_size=1, max_size=50))
    assert [row for start, stop, _ in buckets.split(lengths) for row in range(start, stop)] == list(
        range(len(lengths))
    )


@given(st.integers(1, 1000), st.integers(1, 128))
def test_split_wastes_little(rows: int, width: int) -> None:
    for start, stop, bucket in BUCKETS.split([width] * rows):
        spare = bucket.rows - (stop - start)
        assert spare * bucket.width <= SPARE_TOKENS or 4 * spare <= bucket.rows


def test_a_single_short_text_takes_the_tightest_profile() -> None:
    assert BUCKETS.fit(1, 5) == Bucket(1, 16, 0) or BUCKETS.fit(1, 5) == Bucket(1, 8, 0)
    assert BUCKETS.fit(5, 20).profile == 1
    assert BUCKETS.fit(1, 129).profile == 2


def test_a_large_batch_is_split() -> None:
    assert [b.rows for _, _, b in BUCKETS.split([128] * 600)] == [256, 256, 96]


def test_a_text_beyond_the_profiles_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"513 tokens .*max_length=512"):
        list(BUCKETS.split([3, 513]))


@given(st.integers(1, 9), st.integers(1, 20), st.data())
def test_packing_round_trip(rows: int, width: int, data: st.DataObject) -> None:
    bucket = Bucket(rows, width, 0)
    n, s = data.draw(st.integers(1, rows)), data.draw(st.integers(1, width))
    batch = Batch(
        np.arange(1, n * s + 1, dtype=np.int64).reshape(n, s), np.full(n, s, dtype=np.int64)
    )
    place = layout(bucket, 7)
    block = np.full(place.in_bytes, 0xA5, np.uint8)
    into = views(block, bucket, place)
    pack(batch, into)
    assert place.ids_offset % ALIGNMENT == 0
    lengths = np.frombuffer(block.tobytes(), np.int32, rows)
    ids = np.frombuffer(block.tobytes(), np.int32, rows * width, place.ids_offset)
    ids = ids.reshape(rows, width)
    assert (ids[:n, :s] == batch.input_ids).all()
    assert ids.sum() == batch.input_ids.sum()
    assert lengths.tolist() == [s] * n + [1] * (rows - n)
    assert place.out_bytes == rows * 7 * 4
