"""The texts that are measured with: a file's, or ones made from those that come with corom.

Made texts have the lengths of real ones and no meaning, so nothing should be tuned to them.
"""

from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from corom.runtime.errors import InputError
from corom.runtime.row import BadRow, Columns
from corom.runtime.rows import read_rows

Mix = Literal["queries", "passages", "both"]
MIXES: tuple[Mix, ...] = ("queries", "passages", "both")
LOG_NORMAL = {"queries": (3.61, 0.69), "passages": (4.61, 0.60)}
"""Mean and deviation of the logarithm of a text's characters: 47 and 120 of them on average, as in
Chinese medical questions and answers."""
LONGEST = 2000


def shipped_texts() -> list[str]:
    """Return the sentences that come with corom, of real lengths."""
    content = resources.files("corom.export").joinpath("parity_texts.txt").read_text("utf-8")
    return [line for line in content.split("\n") if line]


def read_texts(file: Path) -> list[str]:
    """Return the texts of a file, one a line; of a .tsv file, the last column.

    Raises ``InputError`` for a file that is not UTF-8 or has no text.
    """
    texts = []
    for row in read_rows(str(file), Columns(), ".txt"):
        if isinstance(row, BadRow):
            raise InputError(f"row {row.number} of '{file}': {row.reason}.")
        if row.text:
            texts.append(row.text)
    if file.suffix == ".tsv":
        texts = [line.rpartition("\t")[2] for line in texts]
    if not texts:
        raise InputError(f"'{file}' has no text. Give a UTF-8 file with one text a line.")
    return texts


def sample(texts: list[str], count: int) -> list[str]:
    """Return ``count`` of the texts in their order, always the same; all if there are fewer."""
    rows = np.random.default_rng(0).permutation(len(texts))[:count]
    return [texts[row] for row in np.sort(rows).tolist()]


def made_texts(mix: Mix, count: int, seed: int = 0) -> list[str]:
    """Return ``count`` texts cut from the shipped ones; "both": queries and passages in turns."""
    if mix == "both":
        pair = zip(
            made_texts("queries", -(-count // 2), seed),
            made_texts("passages", -(-count // 2), seed),
            strict=True,
        )
        return [text for texts in pair for text in texts][:count]
    letters = " ".join(shipped_texts())
    random = np.random.default_rng([seed, MIXES.index(mix)])
    sizes = np.clip(random.lognormal(*LOG_NORMAL[mix], count), 1, LONGEST).astype(int).tolist()
    starts = random.integers(0, len(letters) - LONGEST, count).tolist()
    return [letters[at : at + size] for at, size in zip(starts, sizes, strict=True)]
