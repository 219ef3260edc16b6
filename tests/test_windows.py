"""windows: every text once, in order, in lists that are bounded in texts and in characters."""

from hypothesis import given
from hypothesis import strategies as st

from corom.runtime.windows import WINDOW_CHARACTERS, WINDOW_TEXTS, windows


@given(st.lists(st.text(max_size=8), max_size=60))
def test_every_text_comes_once_and_in_order(texts: list[str]) -> None:
    assert [text for window in windows(iter(texts)) for text in window] == texts
    assert all(windows(texts))


def test_a_window_ends_at_its_number_of_texts() -> None:
    assert [len(w) for w in windows("x" * (2 * WINDOW_TEXTS + 1))] == [WINDOW_TEXTS] * 2 + [1]


def test_long_texts_make_small_windows() -> None:
    long = "长" * (WINDOW_CHARACTERS // 4)
    assert [len(window) for window in windows([long] * 10)] == [4, 4, 2]
    assert [len(window) for window in windows([long * 9, "短"])] == [1, 1]


def test_what_is_no_text_passes_for_the_tokenizer_to_refuse() -> None:
    assert list(windows([None, 3])) == [[None, 3]]  # type: ignore[list-item]
