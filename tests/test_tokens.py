"""Tokens: the ids of the library's own truncation, for any text; clear refusals of the rest."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.runtime.errors import BundleError, InputError, InputTypeError
from corom.runtime.tokens import FEW, Tokenizer

MAX_POSITIONS = 160

# Unicode at large, and the corners that texts of the domain have.
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="头痛发烧吃药CTmg12 \t[SEP]", max_size=300),
    st.text(alphabet=st.characters(categories=["Cc", "Cf", "Zs", "Mn", "So", "Lo"]), max_size=40),
)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def tokenizer_json(
    request: pytest.FixtureRequest, tiny_bundle: Path, make_checkpoint: Callable[..., Path]
) -> bytes:
    """A WordPiece and a byte-level tokenizer, as bundles hold them."""
    folder = tiny_bundle if request.param == "bert" else make_checkpoint(model_type="roberta")
    return (folder / "tokenizer.json").read_bytes()


@pytest.fixture
def tokenizer(tiny_bundle: Path) -> Tokenizer:
    return Tokenizer((tiny_bundle / "tokenizer.json").read_bytes(), 128, MAX_POSITIONS)


def ids_of_the_library(content: bytes, texts: list[str], max_length: int) -> list[list[int]]:
    """Return the ids that the library gives when it truncates by itself."""
    library = tokenizers.Tokenizer.from_buffer(content)
    library.no_padding()
    library.enable_truncation(max_length)
    return [library.encode(text).ids for text in texts]


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(TEXTS, max_size=5), max_length=st.integers(3, MAX_POSITIONS))
def test_any_text_has_the_ids_of_the_librarys_own_truncation(
    tokenizer_json: bytes, texts: list[str], max_length: int
) -> None:
    tokens = Tokenizer(tokenizer_json, max_length, MAX_POSITIONS)(texts)
    assert tokens.ids == ids_of_the_library(tokenizer_json, texts, max_length)
    assert tokens.lengths.tolist() == [len(ids) for ids in tokens.ids]
    whole = ids_of_the_library(tokenizer_json, texts, 1_000_000)
    assert tokens.truncated == sum(len(ids) > max_length for ids in whole)


@settings(deadline=None, max_examples=50)
@given(text=TEXTS, prefix=st.text(max_size=10))
def test_a_prefix_is_part_of_the_text(tokenizer_json: bytes, text: str, prefix: str) -> None:
    tokenizer = Tokenizer(tokenizer_json, 32, MAX_POSITIONS)
    assert tokenizer([text], prefix=prefix).ids == tokenizer([prefix + text]).ids


@settings(deadline=None, max_examples=50)
@given(before=st.text(max_size=10), bad=st.characters(categories=["Cs"]), row=st.integers(0, 2))
def test_a_lone_surrogate_is_refused_by_its_place(
    tokenizer_json: bytes, before: str, bad: str, row: int
) -> None:
    texts = ["好", "好", "好"]
    texts[row] = f"{before}{bad}尾"
    with pytest.raises(InputError, match=rf"text {row + 10} holds .* character {len(before)}\)"):
        Tokenizer(tokenizer_json, 32, MAX_POSITIONS)(texts, first=10)


def test_a_lone_surrogate_in_the_prefix_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="prompt holds a lone surrogate"):
        tokenizer(["好"], prefix="\ud800")


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), prefix=st.sampled_from(["", "问：", "query: "]))
def test_each_text_by_itself_has_the_tokens_it_has_with_others(
    tokenizer_json: bytes, texts: list[str], prefix: str
) -> None:
    tokenizer = Tokenizer(tokenizer_json, 12, MAX_POSITIONS)
    for truncate in (True, "left"):
        together = tokenizer(texts, prefix=prefix, truncate=truncate)
        each = tokenizer.each(texts, prefix=prefix, truncate=truncate)
        assert [ids for tokens in each for ids in tokens.ids] == together.ids
        assert [int(tokens.lengths[0]) for tokens in each] == together.lengths.tolist()
        assert sum(tokens.truncated for tokens in each) == together.truncated


def test_the_tokens_of_chinese_are_estimated_exactly(tokenizer: Tokenizer) -> None:
    for text in ("", "头痛", "发烧怎么办" * 40):
        assert tokenizer.estimate(text, prefix="问") == len(tokenizer(["问" + text]).ids[0])


@given(TEXTS)
def test_an_estimate_is_within_the_limit(tokenizer_json: bytes, text: str) -> None:
    assert 2 <= Tokenizer(tokenizer_json, 12, MAX_POSITIONS).estimate(text, prefix="") <= 12


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 400])
def test_few_texts_have_the_same_tokens_as_many(tokenizer: Tokenizer, count: int) -> None:
    texts = [f"头痛{k}怎么办" for k in range(count)]
    found = tokenizer(texts, prefix="问")
    assert found.ids == [tokenizer.one(text, prefix="问", truncate=True).ids[0] for text in texts]


def test_an_estimate_refuses_what_tokenizing_would(tokenizer: Tokenizer) -> None:
    for text, prefix, place in (("坏\ud83d", "", "text 0"), ("好", "\ud83d", "prompt")):
        with pytest.raises(InputError, match=f"{place} holds a lone surrogate"):
            tokenizer.estimate(text, prefix=prefix)


def test_error_mode_names_the_first_text_that_is_too_long(tokenizer: Tokenizer) -> None:
    texts = ["短", "长" * 126, "长" * 127, "长" * 300]
    with pytest.raises(InputError, match="text 7 has 129 tokens.* limit is 128"):
        tokenizer(texts, truncate="error", first=5)
    assert tokenizer(texts[:2], truncate="error").truncated == 0


def test_without_truncation_the_positions_of_the_model_are_the_limit(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["长" * 158], truncate=False)
    assert tokens.lengths.tolist() == [160]
    assert tokens.truncated == 0
    with pytest.raises(InputError, match="text 0 has 161 tokens.* limit is 160"):
        tokenizer(["长" * 159], truncate=False)


@pytest.mark.parametrize("truncate", ["yes", None, 2, "ERROR"])
def test_an_unknown_truncation_is_refused_even_if_nothing_is_too_long(
    tokenizer: Tokenizer, truncate: object
) -> None:
    with pytest.raises(InputError, match="truncate is"):
        tokenizer(["短"], truncate=truncate)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text 1 is NoneType, not str"),
        (3, "text 1 is int"),
        (2.5, "text 1 is float"),
        (b"bytes", r"text 1 is bytes.*\.decode\('utf-8'\)"),
        (["nested"], "text 1 is list.* flat list"),
        (("pair", "of"), "text 1 is tuple.* flat list"),
        ({"text": "x"}, "text 1 is dict"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(
    tokenizer: Tokenizer, text: object, message: str
) -> None:
    with pytest.raises(InputTypeError, match=message):
        tokenizer(["好", text])  # type: ignore[list-item]


def test_subclasses_of_str_are_texts(tokenizer: Tokenizer) -> None:
    class Title(str):
        __slots__ = ()

    assert tokenizer([Title("头痛"), np.str_("头痛")]).ids == tokenizer(["头痛"]).ids * 2


def test_a_megabyte_in_one_text_is_cut(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["头痛怎么办" * 70_000])
    assert tokens.lengths.tolist() == [128]
    assert tokens.truncated == 1


def test_no_texts_are_no_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer([])
    assert (tokens.ids, tokens.lengths.shape, tokens.truncated) == ([], (0,), 0)


@pytest.mark.parametrize("max_length", [-1, 0, 2, 161, 10**9])
def test_a_length_that_the_model_cannot_take_is_refused(tiny_bundle: Path, max_length: int) -> None:
    content = (tiny_bundle / "tokenizer.json").read_bytes()
    with pytest.raises(InputError, match=f"max_length is {max_length}; it must be 3 .* 160"):
        Tokenizer(content, max_length, MAX_POSITIONS)


@pytest.mark.parametrize("max_length", ["5", 5.5, True])
def test_a_length_that_is_no_whole_number_is_refused(tiny_bundle: Path, max_length: object) -> None:
    content = (tiny_bundle / "tokenizer.json").read_bytes()
    with pytest.raises(InputTypeError, match="max_length is"):
        Tokenizer(content, max_length, MAX_POSITIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xfe", b"[" * 100])
def test_a_broken_tokenizer_file_is_a_bundle_error(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(content, 128, 512)


# --- Very long texts


WORDS = st.sampled_from(
    ["头痛", "，", "head", " ", "  ", "\n", "[SEP]", "[", "café", "e\u0301", "\u0301", "한국"]
    + ["x" * 99, "y" * 101, "z" * 300, "\u200b", "\x00", "１２", "!?", "##a", "𠀀", "\ufffd"]
)


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(WORDS, min_size=1, max_size=30),
    times=st.integers(1, 60),
    max_length=st.integers(3, MAX_POSITIONS),
    end=st.booleans(),
)
def test_very_long_texts_have_the_ids_of_the_whole(
    tokenizer_json: bytes, words: list[str], times: int, max_length: int, end: bool
) -> None:
    text = "".join(words) * times
    whole = tokenizers.Tokenizer.from_buffer(tokenizer_json)
    whole.no_truncation()
    ids = whole.encode(text).ids
    expected = ids
    if len(ids) > max_length:
        expected = ids[:1] + ids[1 - max_length :] if end else ids[: max_length - 1] + ids[-1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corom.runtime.tokens.LONG_CHARACTERS", 200)
        patch.setattr("corom.runtime.long_text.FIRST_CHARACTERS", 1)
        tokenizer = Tokenizer(tokenizer_json, max_length, MAX_POSITIONS)
        for tokens in (
            tokenizer([text], truncate="left" if end else True),
            tokenizer.one(text, prefix="", truncate="left" if end else True),
        ):
            assert tokens.ids[0] == expected
            assert tokens.truncated == (len(ids) > max_length)


def test_a_text_of_megabytes_costs_little_memory(tiny_bundle: Path) -> None:
    """A token takes some 200 bytes; of these texts there are millions."""
    program = (
        "from pathlib import Path; from corom.benchmarks.peak_memory import peak_bytes\n"
        "from corom.runtime.tokens import Tokenizer\n"
        f"t = Tokenizer(Path({str(tiny_bundle / 'tokenizer.json')!r}).read_bytes(), 128, 160)\n"
        "before = peak_bytes()\n"
        "for text in ('头' * 2**20, 'ab ' * 2**20, '!' * 2**21):\n"
        "    assert t([text]).truncated == 1 and t([text], truncate='left').truncated == 1\n"
        "print((peak_bytes() - before) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50_000


def test_a_very_long_text_is_refused_as_a_long_one_is(tokenizer: Tokenizer) -> None:
    for text in ("头痛" * 100_000, "a " * 100_000):
        with pytest.raises(InputError, match="text 8 has more than 128 tokens"):
            tokenizer(["a", text], truncate="error", first=7)
        with pytest.raises(InputError, match="text 0 has more than 160 tokens"):
            tokenizer.one(text, prefix="", truncate=False)
        with pytest.raises(InputError, match="text 1 holds a lone surrogate"):
            tokenizer(["a", text + "\ud800"])


# --- Ids instead of texts, ends instead of beginnings, and the way back


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), max_length=st.integers(3, MAX_POSITIONS))
def test_ids_with_and_without_special_tokens_are_the_text(
    tokenizer_json: bytes, texts: list[str], max_length: int
) -> None:
    tokenizer = Tokenizer(tokenizer_json, max_length, MAX_POSITIONS)
    whole = ids_of_the_library(tokenizer_json, texts, 1_000_000)
    expected = tokenizer(texts)
    tokens = tokenizer.from_ids(whole)
    assert (tokens.ids, tokens.truncated) == (expected.ids, expected.truncated)
    bare = [ids[1:-1] for ids in whole]
    for ids, found, wanted in zip(bare, tokenizer.from_ids(bare).ids, expected.ids, strict=True):
        # What begins and ends as a whole text does is taken for one.
        if ids[:1] != wanted[:1]:
            assert found == wanted


def test_the_beginning_or_the_end_is_kept(tokenizer: Tokenizer) -> None:
    ids = list(range(10, 400))
    (beginning,) = tokenizer.from_ids([ids]).ids
    (end,) = tokenizer.from_ids([ids], truncate="left").ids
    assert beginning == [2, *ids[:126], 3]
    assert end == [2, *ids[-126:], 3]


@pytest.mark.parametrize("wrong", [[2000], [-1], [5, 10**9]])
def test_ids_that_the_vocabulary_lacks_are_refused(tokenizer: Tokenizer, wrong: list[int]) -> None:
    for call in (lambda: tokenizer.from_ids([[5], wrong]), lambda: tokenizer.decode(wrong)):
        with pytest.raises(InputError, match=r"token id .*; this model's are 0 to 1999"):
            call()
    odd: list[Any] = [True, "5", 5.0, None]
    for item in odd:
        with pytest.raises(InputTypeError, match="text 1 holds"):
            tokenizer.from_ids([[5], [5, item]])


@settings(deadline=None, max_examples=50)
@given(text=TEXTS)
def test_pieces_say_which_characters_they_are(tokenizer_json: bytes, text: str) -> None:
    tokenizer = Tokenizer(tokenizer_json, MAX_POSITIONS, MAX_POSITIONS)
    pieces = tokenizer.pieces(text)
    assert [piece.id for piece in pieces] == ids_of_the_library(tokenizer_json, [text], 10**6)[0]
    assert pieces[0].special
    assert pieces[0].start is pieces[0].stop is None
    for piece in pieces:
        if not piece.special:
            assert piece.start is not None
            assert piece.stop is not None
            assert 0 <= piece.start <= piece.stop <= len(text)
    bare = tokenizer.pieces(text, add_special_tokens=False)
    assert [piece.id for piece in bare] == [piece.id for piece in pieces][1:-1]
