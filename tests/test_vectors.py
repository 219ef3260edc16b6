"""Vectors after the encoder: shortened, normalized, compared."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corom.runtime.errors import InputError, InputTypeError
from corom.runtime.vectors import are_finite, normalize, shorten, similarity

VALUES = st.floats(-1e3, 1e3, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
SHAPES = st.tuples(st.integers(0, 9), st.integers(1, 9))
VECTORS = arrays.arrays(np.float32, SHAPES, elements=VALUES)


@given(VECTORS)
def test_normalized_rows_have_length_one_and_zeros_stay(vectors: np.ndarray) -> None:
    scaled = normalize(vectors)
    lengths = np.linalg.norm(scaled, axis=1)
    empty = ~vectors.any(axis=1)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(lengths[~empty], 1, atol=1e-5)
    assert not scaled[empty].any()


@given(VECTORS)
def test_normalizing_twice_changes_nothing(vectors: np.ndarray) -> None:
    once = normalize(vectors)
    np.testing.assert_allclose(normalize(once), once, atol=1e-6)


@given(VECTORS, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_what_is_not_finite_is_never_hidden(
    vectors: np.ndarray, value: float, data: st.DataObject
) -> None:
    assert are_finite(vectors)
    if not vectors.size:
        return
    row, column = (data.draw(st.integers(0, count - 1)) for count in vectors.shape)
    others = np.arange(len(vectors)) != row
    broken = vectors.copy()
    broken[row, column] = value
    assert not are_finite(broken)
    scaled = normalize(broken)
    assert not np.isfinite(scaled[row]).all()
    np.testing.assert_array_equal(scaled[others], normalize(vectors)[others])


@given(VECTORS, st.data())
def test_shortened_rows_are_the_first_values(vectors: np.ndarray, data: st.DataObject) -> None:
    dimension = data.draw(st.integers(1, vectors.shape[1]))
    short = shorten(vectors, dimension)
    assert short.flags.c_contiguous
    np.testing.assert_array_equal(short, vectors[:, :dimension])


@pytest.mark.parametrize("dimension", [0, -1, 4, 10**9])
def test_a_dimension_that_is_not_there_is_refused(dimension: int) -> None:
    with pytest.raises(InputError, match=f"truncate_dim is {dimension}; .* 3 dimensions"):
        shorten(np.ones((2, 3), np.float32), dimension)


@pytest.mark.parametrize("dimension", ["2", 2.0, True, [2]])
def test_a_dimension_that_is_no_whole_number_is_refused(dimension: object) -> None:
    with pytest.raises(InputTypeError, match="truncate_dim is"):
        shorten(np.ones((2, 3), np.float32), dimension)  # type: ignore[arg-type]


def test_dot_and_cosine() -> None:
    queries = np.array([[3, 4], [0, 2]], np.float32)
    documents = np.array([[6, 8], [5, 0], [0, 0]], np.float32)
    np.testing.assert_allclose(
        similarity(queries, documents, "dot"), [[50, 15, 0], [16, 0, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        similarity(queries, documents, "cosine"), [[1, 0.6, 0], [0.8, 0, 0]], rtol=1e-6
    )
