"""What backend "native" executes: an encoder's weights as plain arrays, in a file of the bundle.

Letters in shapes: V words, P positions, L layers, H hidden values, F those of the feed-forward
layer. Matrices are (outputs, inputs); the scale of attention's scores is in the query weights.
"""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BundleError, UnavailableError
from .manifest import FileEntry, Manifest
from .vectors import Vectors

NATIVE_NAME = "native/model_int8_per_token.npz"
GROUP = 64
"""Values of a token with one scale in int8-per-token, by every backend; benchmarks/README.md has
others. The kernels want as many of an attention head."""
DEGREE = 12
"""Of the polynomial that an activation is: see ``native/math.h``."""
WIDEST = 4096
"""Hidden values that the kernels can normalize."""


class Linear(NamedTuple):
    """The 8-bit form of one linear layer in each of L layers."""

    codes: npt.NDArray[np.int8]
    """(L, outputs, inputs)"""
    scales: Vectors
    """(L, outputs)"""
    bias: Vectors
    """(L, outputs)"""


class NativeWeights(NamedTuple):
    """An encoder in int8-per-token. Norms are weight and bias, one after the other."""

    epsilon: Vectors
    """(1,), of every LayerNorm"""
    activation: Vectors
    """(DEGREE + 2,): where the bump ends, then its coefficients"""
    words: Vectors
    """(V, H)"""
    positions: Vectors
    """(P, H), the token type's vector in each"""
    norm: Vectors
    """(2, H), of the embeddings"""
    query_key_value: Linear
    """3H outputs, H inputs"""
    output: Linear
    """H outputs, H inputs"""
    attention_norm: Vectors
    """(L, 2, H)"""
    inner: Linear
    """F outputs, H inputs"""
    outer: Linear
    """H outputs, F inputs"""
    output_norm: Vectors
    """(L, 2, H)"""


def weights_entry(manifest: Manifest) -> FileEntry:
    """Return the entry of the file; raises ``UnavailableError`` if the bundle has none."""
    for entry in manifest.files:
        if entry.path == NATIVE_NAME:
            return entry
    raise UnavailableError(
        f"bundle '{manifest.name}' has nothing for backend 'native': it was exported without "
        f"int8-per-token or by an earlier corom, its attention heads have not {GROUP} values, or "
        f"it is wider than {WIDEST}. Export it again, from what it was made of "
        f"({manifest.source.uri}): corom export SOURCE -o NEW_BUNDLE --precision int8-per-token"
    )


def save_native_weights(path: Path, weights: NativeWeights) -> None:
    """Write the arrays as they are: reading them needs no pickle."""
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = _named(weights)
    np.savez(path, **arrays)


def load_native_weights(path: Path) -> NativeWeights:
    """Read the arrays; raises ``BundleError`` for a file that does not hold an encoder."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: np.ascontiguousarray(file[name]) for name in file.files}
        fields: list[Any] = [
            Linear(*(arrays.pop(f"{field}.{part}") for part in Linear._fields))
            if kind is Linear
            else arrays.pop(field)
            for field, kind in NativeWeights.__annotations__.items()
        ]
        weights = NativeWeights(*fields)
        found = {name: (array.dtype.str, array.shape) for name, array in _named(weights).items()}
        whole = not arrays and found == _expected(weights)
    except Exception as error:  # a damaged zip or array raises errors of half a dozen classes
        raise BundleError(f"'{path}' cannot be read: {error}. Export the bundle again.") from None
    if not whole:
        raise BundleError(f"'{path}' does not hold an encoder. Export the bundle again.")
    return weights


def _named(weights: NativeWeights) -> dict[str, npt.NDArray[Any]]:
    named: dict[str, npt.NDArray[Any]] = {}
    for field, value in weights._asdict().items():
        parts = value._asdict() if isinstance(value, Linear) else {"": value}
        named |= {f"{field}.{part}".rstrip("."): array for part, array in parts.items()}
    return named


def _expected(weights: NativeWeights) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of every array, as the sizes of a few of them have it."""
    words, hidden = weights.words.shape
    layers, inner, _ = weights.inner.codes.shape
    shapes: dict[str, tuple[int, ...]] = {
        "epsilon": (1,),
        "activation": (DEGREE + 2,),
        "words": (words, hidden),
        "positions": (len(weights.positions), hidden),
        "norm": (2, hidden),
        "attention_norm": (layers, 2, hidden),
        "output_norm": (layers, 2, hidden),
    }
    expected = {name: ("<f4", shape) for name, shape in shapes.items()}
    for name, outputs, inputs in (
        ("query_key_value", 3 * hidden, hidden),
        ("output", hidden, hidden),
        ("inner", inner, hidden),
        ("outer", hidden, inner),
    ):
        expected[f"{name}.codes"] = ("|i1", (layers, outputs, inputs))
        expected[f"{name}.scales"] = expected[f"{name}.bias"] = ("<f4", (layers, outputs))
    fits = hidden % GROUP == inner % GROUP == 0 and hidden <= WIDEST
    some = all((words, hidden, layers, inner, len(weights.positions)))
    return expected if fits and some else {}
