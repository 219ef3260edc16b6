"""golden.npz: texts and their reference vectors, which travel in the bundle to be checked again."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import BundleError
from .vectors import Vectors

GOLDEN_NAME = "golden.npz"


class Golden(NamedTuple):
    """Texts and the un-normalized vectors (N, H) that the torch reference gives them."""

    texts: list[str]
    vectors: Vectors


def save_golden(path: Path, golden: Golden) -> None:
    """Write golden texts and vectors as plain arrays: reading them needs no pickle."""
    # NumPy drops NULs at the end of a string, so each text goes with its line end.
    lines = np.array([f"{text}\n" for text in golden.texts])
    np.savez(path, texts=lines, vectors=golden.vectors)


def load_golden(path: Path) -> Golden:
    """Read golden texts and vectors; raises ``BundleError`` if the file is malformed."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            texts = [line.removesuffix("\n") for line in arrays["texts"].tolist()]
            vectors = arrays["vectors"]
    except Exception as error:  # a damaged zip or array raises errors of half a dozen classes
        raise BundleError(f"'{path}' cannot be read: {error}. Export the bundle again.") from None
    if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(texts) or not texts:
        raise BundleError(
            f"'{path}' does not hold a vector for each text. Export the bundle again."
        )
    return Golden(texts, vectors)
