"""A row of a corpus, or why it is none; the columns it comes from, and what is wrong with them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .errors import InputError

DEFAULT_TEXT = "text"
NOT_UTF8 = "it is not UTF-8; to convert a file, for example: iconv -f GB18030 -t UTF-8"


class Columns(NamedTuple):
    """Which columns hold text and id: a name, or a number from 1 in a file without header line.

    ``text``: None takes "text". ``id``: None has no ids. Lines of .txt have no columns.
    """

    text: str | None = None
    id: str | None = None

    @property
    def wanted(self) -> list[str]:
        """The text column and, if there is one, the id column."""
        return [self.text or DEFAULT_TEXT, *([] if self.id is None else [self.id])]


class Row(NamedTuple):
    """One text; ``number`` counts lines (of Parquet: rows) of its file from 1."""

    number: int
    id: str | None
    text: str


class BadRow(NamedTuple):
    """A row that holds no text that can be encoded, and why."""

    number: int
    reason: str


Rows = Iterator[Row | BadRow]


def row_of(number: int, text: object, *ids: object) -> Row | BadRow:
    """Return the row of a text and, where an id column is asked for, its id."""
    if not isinstance(text, str):
        return BadRow(number, f"its text is {_shown(text)}")
    key: str | None = None
    for value in ids:
        if type(value) is not int and (not isinstance(value, str) or not value):
            return BadRow(number, f"its id is {_shown(value)}")
        key = str(value)
    if not is_unicode(text + (key or "")):
        return BadRow(number, NOT_UTF8)
    return Row(number, key, text)


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: whether its bytes were UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return "empty" if value == "" else f"{type(value).__name__}, not a string"


def column_twice(name: str, column: str) -> InputError:
    """Return the error for a file with two columns of a name."""
    return InputError(f"'{name}' has the column '{column}' more than once. Rename all but one.")


def no_column(name: str, column: str, found: Sequence[str], advice: str = "") -> InputError:
    """Return the error for a file without a column, which names those ``found``."""
    present = ", ".join(map(str, found)) or "none"
    return InputError(
        f"'{name}' has no column '{column}'; it has: {present[:500]}. "
        f"Name one with --text-column or --id-column. {advice}".rstrip()
    )
