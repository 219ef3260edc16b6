"""Vectors as a column, for those who bring their own engine: Ray Data, Spark, datasets, pandas."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from .errors import InputError, InputTypeError
from .late_encoder import LateEncoder
from .options import EncodeOptions
from .row import DEFAULT_TEXT
from .tokens import check_text
from .vectors import Vectors

KINDS = (
    "a dict of lists or arrays, a pandas DataFrame, a pyarrow Table or RecordBatch, or an iterator "
    "of these"
)


class MapBatches:
    """Adds a column of vectors to a batch, of the same kind as it came: call it with the batch.

    It takes what the engines hand over: a dict of lists or arrays (Hugging Face datasets, Ray
    Data), a pandas DataFrame, a pyarrow Table or RecordBatch, and an iterator of any of these,
    which gives an iterator (Spark's mapInPandas). Vectors are float32: (N, H) in a dict of arrays,
    one (H,) a row in a list or DataFrame, a fixed-size list in Arrow.

    ``options``: those of ``Encoder`` and of ``Encoder.encode``. Where several processes share a
    machine, give ``threads``: an encoder takes all CPUs otherwise. It may be pickled; each process
    opens an encoder of its own at its first batch, and the bundle must be at the same path there.

    Raises ``InputError`` for a batch without the text column or with the output column, and for a
    row that is no text, naming column and row.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        text_column: str = DEFAULT_TEXT,
        output_column: str = "embedding",
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.text_column, self.output_column = text_column, output_column
        asked = {name: options.pop(name) for name in list(options) if name in ENCODE_OPTIONS}
        self._encode_options = cast("EncodeOptions", asked)
        self._late = LateEncoder.of(bundle, **options)

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401
        """Return the batch with the vectors of its texts."""
        if isinstance(batch, Iterator):
            return map(self, batch)
        if isinstance(batch, Mapping):
            texts = self._checked(list(batch), batch)
            vectors = self._vectors(_list(texts))
            # Not a new dict: datasets hands over one whose other columns are read when needed.
            added = {self.output_column: list(vectors) if type(texts) is list else vectors}
            return cast("Any", batch) | added
        kind = type(batch).__module__.partition(".")[0], type(batch).__name__
        if kind == ("pandas", "DataFrame"):
            vectors = self._vectors(_list(self._checked(list(batch.columns), batch)))
            return batch.assign(**{self.output_column: list(vectors)})
        if kind in {("pyarrow", "Table"), ("pyarrow", "RecordBatch")}:
            vectors = self._vectors(_list(self._checked(batch.schema.names, batch)))
            return batch.append_column(self.output_column, _arrow_column(vectors))
        raise InputTypeError(f"the batch is {type(batch).__name__}; it must be {KINDS}.")

    def __repr__(self) -> str:
        return f"MapBatches({self._late.bundle!r}, {self.text_column} → {self.output_column})"

    def _checked(self, columns: list[str], batch: Any) -> Any:  # noqa: ANN401
        """Return the texts, as the batch has them."""
        if self.text_column not in columns:
            raise InputError(
                f"the batch has no column '{self.text_column}'; it has: "
                f"{', '.join(map(str, columns)) or 'none'}. Name one with text_column=."
            )
        if self.output_column in columns:
            raise InputError(
                f"the batch has a column '{self.output_column}' already. Name another with "
                "output_column=."
            )
        texts = batch[self.text_column]
        if isinstance(texts, str):
            raise InputTypeError(
                f"column '{self.text_column}' is one text, not a batch of them. Hugging Face's map "
                "gives batches with batched=True."
            )
        return texts

    def _vectors(self, texts: list[Any]) -> Vectors:
        place = f"of column '{self.text_column}'"
        for row, text in enumerate(texts):
            if _is_null(text):
                raise InputTypeError(f"row {row} {place} is null. Drop or fill such rows first.")
            check_text(text, f"row {row} {place}")
        try:
            return self._late.encoder().encode(texts, **self._encode_options)
        except InputError as error:
            raise type(error)(f"{error} (Text 0 is row 0 {place} in this batch.)") from None


def _is_null(value: object) -> bool:
    """Return whether this is None, NaN or pandas' NA."""
    nan = isinstance(value, float) and math.isnan(value)
    return value is None or nan or type(value).__name__ == "NAType"


def _list(column: Any) -> list[Any]:  # noqa: ANN401
    """Return a column of any of the kinds as a list of Python's own values."""
    for name in ("to_pylist", "tolist"):
        if hasattr(column, name):
            return cast("list[Any]", getattr(column, name)())
    return list(column)


def _arrow_column(vectors: Vectors) -> Any:  # noqa: ANN401
    import pyarrow as arrow

    values = arrow.array(vectors.reshape(-1))
    return arrow.FixedSizeListArray.from_arrays(values, vectors.shape[1])


ENCODE_OPTIONS = frozenset(EncodeOptions.__annotations__)
