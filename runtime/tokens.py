"""Texts to token ids and lengths. Knows no arrays with padding, no batches, no graph."""

from typing import Literal, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt
import tokenizers

from .cpus import available_cpus
from .errors import BundleError, InputError, InputTypeError, TextTooLong
from .long_text import cut_margin, excerpt

LONG_CHARACTERS = 20_000
"""Of a text beyond this no more is tokenized than its limit needs."""
FEW, FEW_CHARACTERS = max(4, 64 // available_cpus()), max(256, 4096 // available_cpus())
"""No more texts than this are tokenized by the caller's thread: to wake others takes as long, and
on two CPUs they come late beside batches that are executed. 16 CPUs gain from five texts on."""
Truncate = bool | Literal["error", "left"]
"""What is done with a text longer than the limit: see ``Encoder.encode``."""
Text = str | list[int]
"""A text, or the ids of one by this very tokenizer, with or without its special tokens."""


class Tokens(NamedTuple):
    """Token ids of N texts, special tokens included, without padding."""

    ids: list[list[int]]
    lengths: npt.NDArray[np.int64]
    """(N,) number of ids of each text."""
    truncated: int
    """How many of the texts were cut to the maximum length."""


class Piece(NamedTuple):
    """One token of a text, and the characters it stands for; special ones stand for none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizer:
    """Turns texts into ids by a tokenizer.json. Immutable, so threads may share it.

    ``max_length``: tokens a text is cut to; at most ``max_positions``, what the model can take.
    """

    def __init__(self, tokenizer_json: bytes, max_length: int, max_positions: int) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"tokenizer.json cannot be read: {error}.") from None
        # The library's truncation and padding are state of the shared object, and its truncation
        # keeps every part it cut off; slicing the ids here gives the same ids for less.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._prefix, self._suffix = _special_tokens(self._tokenizer)
        self.vocabulary_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._max_length, self._max_positions = max_length, max_positions
        self._cut_margin = cut_margin(self._tokenizer)
        if isinstance(max_length, bool) or not isinstance(max_length, int):
            raise InputTypeError(f"max_length is {max_length!r}; pass a whole number.")
        shortest = self._tokenizer.num_special_tokens_to_add(False) + 1
        if not shortest <= max_length <= max_positions:
            raise InputError(
                f"max_length is {max_length}; it must be {shortest} (the special tokens and one "
                f"of text) to {max_positions} (the positions of the model)."
            )

    def one(self, text: str, *, prefix: str, truncate: Truncate) -> Tokens:
        """Return the tokens of one text: as a call does, in fewer steps."""
        if len(text) > LONG_CHARACTERS:
            return self([text], prefix=prefix, truncate=truncate)
        try:
            return self.each([text], prefix=prefix, truncate=truncate)[0]
        except TypeError:
            return self([text], prefix=prefix, truncate=truncate)  # which says what is wrong

    def each(self, texts: list[str], *, prefix: str, truncate: Truncate) -> list[Tokens]:
        """Return the tokens of each text by itself: as ``one`` does, for less.

        None may be longer than ``LONG_CHARACTERS``, nor hold what ``estimate`` refuses.
        """
        found = []
        for encoding in self._tokenizer.encode_batch_fast(
            [prefix + text for text in texts] if prefix else texts
        ):
            ids = encoding.ids
            if len(ids) > self._max_length:
                found.append(self._limited([ids], truncate, 0))
            else:
                found.append(Tokens([ids], np.array([len(ids)], np.int64), 0))
        return found

    def estimate(self, text: str, *, prefix: str) -> int:
        """Return about how many tokens a text is cut to, without making them.

        A Chinese character is a token of three bytes, an English word one of four to six.
        Raises what ``one`` does for text that cannot be encoded.
        """
        try:
            size = len((prefix + text).encode())
        except UnicodeEncodeError:
            self([text], prefix=prefix)
            raise  # if that did not say what is wrong
        return min(size // 3 + len(self._prefix) + len(self._suffix), self._max_length)

    def __call__(
        self, texts: list[str], *, prefix: str = "", truncate: Truncate = True, first: int = 0
    ) -> Tokens:
        """Return the tokens of ``texts``, each with ``prefix`` before it.

        ``truncate``: see ``Encoder.encode``. ``first``: position of the first text, for messages.
        """
        check_truncate(truncate)
        for row, text in enumerate(texts, first):
            if type(text) is not str:
                check_text(text, f"text {row}")
        whole = self._cut_margin is None or max(map(len, texts), default=0) <= LONG_CHARACTERS
        if not whole:
            texts = [self._excerpt(text, truncate, row) for row, text in enumerate(texts, first)]
        try:
            encodings = self._encode([prefix + text for text in texts] if prefix else texts)
        except TypeError:
            for row, text in enumerate(texts, first):
                _refuse_surrogates(text, f"text {row}")
            _refuse_surrogates(prefix, "prompt")
            raise
        return self._limited([encoding.ids for encoding in encodings], truncate, first, whole)

    def from_ids(
        self, series: list[list[int]], *, truncate: Truncate = True, first: int = 0
    ) -> Tokens:
        """Return the tokens of texts given as ids; special tokens that they lack are added.

        Raises ``InputError`` for an id that the vocabulary does not have.
        """
        check_truncate(truncate)
        return self._limited(
            [
                self._with_special_tokens(ids, f"text {row}")
                for row, ids in enumerate(series, first)
            ],
            truncate,
            first,
        )

    def pieces(self, text: str, *, add_special_tokens: bool = True) -> list[Piece]:
        """Return the tokens of a text one by one, none cut."""
        _refuse_surrogates(text, "the text")
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return [
            Piece(number, token, bool(special), *((None, None) if special else span))
            for number, token, special, span in zip(
                encoding.ids,
                encoding.tokens,
                encoding.special_tokens_mask,
                encoding.offsets,
                strict=True,
            )
        ]

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text that these ids stand for, as far as the vocabulary remembers it."""
        self._refuse_unknown(ids, "the text")
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def _encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        encode = self._tokenizer.encode_batch_fast
        if len(texts) <= FEW and sum(map(len, texts)) <= FEW_CHARACTERS:
            return [encode([text])[0] for text in texts]
        return encode(texts)

    def _excerpt(self, text: str, truncate: Truncate, row: int) -> str:
        """Return as much of a text as decides what its tokens are within the limit."""
        if len(text) <= LONG_CHARACTERS or self._cut_margin is None:
            return text
        _refuse_surrogates(text, f"text {row}")
        return excerpt(
            text,
            self._limit(truncate),
            self._cut_margin,
            lambda part: len(self._tokenizer.encode_batch_fast([part])[0].ids),
            of_its_end=truncate == "left",
        )

    def _limit(self, truncate: Truncate) -> int:
        return self._max_positions if truncate is False else self._max_length

    def _with_special_tokens(self, ids: list[int], place: str) -> list[int]:
        self._refuse_unknown(ids, place)
        front = [] if ids[: len(self._prefix)] == self._prefix else self._prefix
        back = [] if front == [] and ids[-len(self._suffix) :] == self._suffix else self._suffix
        return front + ids + back

    def _refuse_unknown(self, ids: list[int], place: str) -> None:
        if not set(map(type, ids)) <= {int}:
            wrong = next(number for number in ids if type(number) is not int)
            raise InputTypeError(f"{place} holds {wrong!r} among its ids. Pass int.")
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary_size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise InputError(
                f"{place} holds the token id {wrong}; this model's are 0 to "
                f"{self.vocabulary_size - 1}. Ids of another model's tokenizer give no vector: "
                "send the text itself."
            )

    def _limited(
        self, ids: list[list[int]], truncate: Truncate, first: int, whole: bool = True
    ) -> Tokens:
        """Return ids cut to the limit, or refuse those that are longer.

        ``whole``: the ids are all that their texts have.
        """
        counts = [len(row) for row in ids]
        lengths = np.array(counts, np.int64)
        limit = self._limit(truncate)
        if max(counts, default=0) <= limit:
            return Tokens(ids, lengths, 0)
        too_long: list[int] = np.flatnonzero(lengths > limit).tolist()
        if truncate is False or truncate == "error":
            row = too_long[0]
            count = f"{lengths[row]}" if whole else f"more than {limit}"
            raise TextTooLong(
                f"text {first + row} has {count} tokens, special tokens included; the limit is "
                f"{limit}."
            )
        keep = limit - len(self._suffix)
        for row in too_long:
            if truncate == "left":
                ids[row] = self._prefix + ids[row][len(self._prefix) - limit :]
            else:
                ids[row] = ids[row][:keep] + self._suffix
        return Tokens(ids, np.minimum(lengths, limit), len(too_long))


def _special_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special ids that the tokenizer puts before and behind every text."""
    encoding = tokenizer.encode("1")
    ids: list[int] = encoding.ids
    mask: list[int] = encoding.special_tokens_mask
    if 0 not in mask:
        return [], []
    return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]


def _refuse_surrogates(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} holds a lone surrogate ({text[error.start]!r} at character {error.start}), "
            "which is no text. Decode the bytes it came from with errors='replace', or remove it."
        ) from None


def check_truncate(truncate: object) -> None:
    """Raise ``InputError`` unless this is a value of ``Truncate``."""
    named = isinstance(truncate, str) and truncate in {"error", "left"}
    if not named and not isinstance(truncate, bool):
        raise InputError(f"truncate is {truncate!r}; allowed: True, False, 'error', 'left'.")


def are_ids(texts: list[str] | list[list[int]]) -> TypeGuard[list[list[int]]]:
    """Say whether texts are given as token ids: whether the first one is."""
    first = texts[0] if texts else None
    return isinstance(first, list) and bool(first) and isinstance(first[0], int)


def check_text(text: object, place: str) -> None:
    """Raise ``InputTypeError`` unless ``text`` is a string; ``place`` names it in the message."""
    if isinstance(text, str):
        return
    advice = "Pass str."
    if isinstance(text, bytes | bytearray):
        advice = "Decode it first: text.decode('utf-8')."
    elif isinstance(text, list | tuple):
        advice = "Pass one flat list of str."
    raise InputTypeError(f"{place} is {type(text).__name__}, not str. {advice}")
