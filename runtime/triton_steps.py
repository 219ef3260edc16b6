"""What the Python models of a Triton repository compute: arrays in, arrays out. Knows no Triton."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from .batching import attention_mask, pad
from .encoder import Encoder
from .errors import InputError
from .manifest import checked_file, load_manifest
from .options import check_options
from .tokens import Tokenizer, Tokens, Truncate
from .vectors import Vectors

Arrays = dict[str, npt.NDArray[Any]]
ASKABLE = ("prompt", "prompt_name", "truncate")
"""Parameters of a request that mean something; a server may add others of its own."""


class TokenizerStep:
    """Texts to padded ids, with one flag a text that says whether it was cut.

    ``folder``: holds manifest.json and tokenizer.json. ``widths``: tokens that a request is padded
    to, the least of them that holds its longest text; none: that text's own number.
    """

    def __init__(
        self, folder: Path, max_length: int, truncate: Truncate, widths: Sequence[int]
    ) -> None:
        self._manifest = load_manifest(folder)
        tokenizer_json = checked_file(folder, self._manifest.entry("tokenizer.json")).read_bytes()
        self._tokenizer = Tokenizer(tokenizer_json, max_length, self._manifest.max_positions)
        self._max_length, self._truncate, self._widths = max_length, truncate, widths

    def __call__(self, raw: npt.NDArray[np.object_], asked: Mapping[str, object]) -> Arrays:
        """Return ``input_ids`` and ``attention_mask`` (B, S), ``lengths`` and ``TRUNCATED`` (B, 1).

        ``raw``: UTF-8 bytes (B, 1). ``asked``: parameters of the request, those of ``ASKABLE``.

        Raises ``InputError`` for bytes that are no text, and what ``Encoder.encode`` raises.
        """
        options: dict[str, Any] = {name: asked[name] for name in ASKABLE if name in asked}
        truncate = _truncate(options.pop("truncate", self._truncate))
        wish = check_options(self._manifest, truncate=truncate, **options)
        texts = [_text(row, content) for row, content in enumerate(raw.reshape(-1))]
        tokens = self._tokenizer(texts, prefix=wish.prefix, truncate=truncate)
        batch = pad(tokens, np.arange(len(texts)))
        width = self._width(batch.input_ids.shape[1])
        added = ((0, 0), (0, width - batch.input_ids.shape[1]))
        return {
            "input_ids": np.pad(batch.input_ids, added),
            "attention_mask": attention_mask(batch.lengths, width),
            "lengths": batch.lengths[:, None],
            "TRUNCATED": self._cut(texts, wish.prefix, tokens)[:, None],
        }

    def _width(self, longest: int) -> int:
        if not self._widths:
            return longest
        if longest > self._widths[-1]:
            raise InputError(
                f"a text has {longest} tokens, special tokens included; the encoder takes up to "
                f"{self._widths[-1]}. Shorten it, or have it cut: truncate=true."
            )
        return next(width for width in self._widths if width >= longest)

    def _cut(self, texts: list[str], prefix: str, tokens: Tokens) -> npt.NDArray[np.bool_]:
        """Return which texts were cut (B,): of those that fill the limit, some may just fit."""
        cut = np.zeros(len(texts), np.bool_)
        if tokens.truncated:
            for row in np.flatnonzero(tokens.lengths == self._max_length).tolist():
                one = self._tokenizer.one(texts[row], prefix=prefix, truncate=True)
                cut[row] = one.truncated > 0
        return cut


class Ids(NamedTuple):
    """Token ids of one request, right-padded."""

    input_ids: npt.NDArray[np.int32]
    """(B, S)"""
    lengths: npt.NDArray[np.int32]
    """(B, 1) ids of each text that are not padding."""


class EncoderStep:
    """Ids of several requests to vectors, scaled as the manifest says, together.

    ``options``: those of ``Encoder``.
    """

    def __init__(self, bundle: Path, **options: Any) -> None:  # noqa: ANN401  # typed by Encoder
        self._encoder = Encoder(bundle, **options)
        self._wish = check_options(self._encoder.manifest)

    def __call__(self, requests: Sequence[Ids]) -> list[Vectors]:
        """Return the vectors (B, H) of each request; raises ``InputError`` for impossible ids."""
        for request in requests:
            self._check(request)
        ids: list[list[int]] = []
        for input_ids, lengths in requests:
            ids += [row[:n] for row, n in zip(input_ids.tolist(), lengths[:, 0], strict=True)]
        counts = np.array([len(row) for row in ids], np.int64)
        vectors = self._wish.finish(self._encoder.encode_tokens(Tokens(ids, counts, 0)))
        ends = np.cumsum([len(request.lengths) for request in requests])
        return np.split(vectors, ends[:-1])

    def close(self) -> None:
        """Release the encoder."""
        self._encoder.close()

    def _check(self, request: Ids) -> None:
        widest = min(request.input_ids.shape[1], self._encoder.manifest.max_positions)
        if ((request.lengths < 1) | (request.lengths > widest)).any():
            raise InputError(
                f"lengths are {request.lengths[:, 0].tolist()}; each must be 1 to {widest}."
            )
        if (request.input_ids < 0).any():
            raise InputError("input_ids has negative ids. Take those that the tokenizer gives.")


def _truncate(value: object) -> Truncate:
    """Return the choice; a parameter in Triton may also be the words true, false and error."""
    words: dict[object, Truncate] = {"true": True, "false": False}
    return words.get(value, cast("Truncate", value)) if isinstance(value, str) else value  # type: ignore[return-value]


def _text(row: int, content: object) -> str:
    if isinstance(content, str):
        return content
    assert isinstance(content, bytes)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"text {row} is not UTF-8: {error.reason} at byte {error.start}. Encode texts as UTF-8."
        ) from None
