"""What backend "native" executes: where in the bundle's fp32 graph an encoder's weights lie.

The graph holds them as plain arrays, and an index in the bundle has the place of each: the bundle
holds them once, for every precision that the backend makes of them.
"""

from math import prod
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from .errors import BundleError, UnavailableError
from .manifest import Manifest, Pooling, checked_file
from .vectors import Vectors

INDEX_NAME = "native/weights.json"
GROUP = 64
"""Values of a token with one scale in int8-per-token by OpenVINO; benchmarks/README.md has others.
The kernels want as many of an attention head, and layers of a multiple, in every precision."""
WIDEST = 4096
"""Hidden values that the kernels can normalize."""
PIECES = 16
COARSE, FINE = 3, 5
"""An activation is made of so many polynomials of a degree, the finer for fp32: native/math.h."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of an encoder; ``inner``: values of a token between the two halves of feed-forward."""

    layers: int
    hidden: int
    inner: int
    words: int
    positions: int

    def fit(self) -> bool:
        """Say whether the kernels execute such an encoder."""
        whole = self.hidden % GROUP == self.inner % GROUP == 0
        return whole and self.hidden <= WIDEST and min(msgspec.structs.astuple(self)) > 0


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where in which file of the bundle an array of float32 begins; little-endian, by rows."""

    file: str
    offset: int


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of the index."""

    sizes: Sizes
    epsilon: float
    """Of every LayerNorm."""
    activation: dict[int, list[float]]
    """By the degree: where the bump ends, then the coefficients of power 0, of 1, …"""
    arrays: dict[str, Place]
    """By the names of ``array_shapes``."""

    def fits(self, pooling: Pooling, size_bytes: int) -> bool:
        """Say whether this can be an encoder, whose arrays lie in so many bytes."""
        polynomials = {degree: len(numbers) for degree, numbers in self.activation.items()}
        numbers = [number for one in self.activation.values() for number in one]
        if not (
            self.sizes.fit()
            and self.sizes.layers <= len(self.arrays)  # before their shapes are made
            and polynomials == {n: 1 + PIECES * (n + 1) for n in (COARSE, FINE)}
            and all(abs(number) < 1e3 for number in numbers)
            and all(one[0] > 0 for one in self.activation.values())
            and 0 < self.epsilon < 1
        ):
            return False
        shapes = array_shapes(self.sizes, pooling)
        # Each, not all together: equal arrays share a place.
        largest = max(map(prod, shapes.values()))
        return list(self.arrays) == list(shapes) and 4 * largest <= size_bytes


class NativeWeights(NamedTuple):
    """An encoder: what the index says, and the arrays it points to."""

    sizes: Sizes
    epsilon: float
    activation: dict[int, Vectors]
    arrays: dict[str, Vectors]


def array_shapes(sizes: Sizes, pooling: Pooling) -> dict[str, tuple[int, ...]]:
    """Return shape and name, as in export/encoder.py, of every array, in the graph's order.

    Matrices are (outputs, inputs); the scale of attention's scores is in the query weights, the
    token type's vector in every position. Where [CLS] alone attends, keys need no bias. A norm's
    smoothing is what its values are divided by before 8-bit codes are made of them; none are made
    of the last one's.
    """
    hidden, inner = sizes.hidden, sizes.inner
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.positions": (sizes.positions, hidden),
        "embeddings.words.weight": (sizes.words, hidden),
        "embeddings.norm.weight": (hidden,),
        "embeddings.norm.bias": (hidden,),
        "embeddings.norm.smoothing": (hidden,),
    }
    for layer in range(sizes.layers):
        for part, shape in (
            ("attention.query", (hidden, hidden)),
            ("attention.key", (hidden, hidden)),
            ("attention.value", (hidden, hidden)),
            ("attention.output", (hidden, hidden)),
            ("attention_norm", (hidden,)),
            ("inner", (inner, hidden)),
            ("outer", (hidden, inner)),
            ("output_norm", (hidden,)),
        ):
            shapes[f"layers.{layer}.{part}.weight"] = shape
            shapes[f"layers.{layer}.{part}.bias"] = shape[:1]
            if part.endswith("norm"):
                shapes[f"layers.{layer}.{part}.smoothing"] = shape
    del shapes[f"layers.{sizes.layers - 1}.output_norm.smoothing"]
    if pooling == "cls":
        del shapes[f"layers.{sizes.layers - 1}.attention.key.bias"]
    return shapes


def require_index(manifest: Manifest) -> None:
    """Raise ``UnavailableError`` if the bundle has no index."""
    if all(entry.path != INDEX_NAME for entry in manifest.files):
        raise UnavailableError(
            f"bundle '{manifest.name}' has nothing for backend 'native'. Either its attention "
            f"heads have not {GROUP} values, its layers are no multiple of that, or it is wider "
            f"than {WIDEST}: take another backend. Or an earlier corom exported it: export it "
            f"again, from what it was made of ({manifest.source.uri}): "
            "corom export SOURCE -o NEW_BUNDLE"
        )


def load_native_weights(bundle: Path, manifest: Manifest) -> NativeWeights:
    """Read an encoder's weights, after the hashes of their files are found to be as recorded.

    Raises ``UnavailableError`` if the bundle has none, and ``BundleError`` for an index that does
    not point to an encoder's.
    """
    require_index(manifest)
    path = checked_file(bundle, manifest.entry(INDEX_NAME))
    try:
        index = msgspec.json.decode(path.read_bytes(), type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"'{path}' cannot be read: {error}. Export the bundle again.") from None
    entries = [manifest.entry(name) for name in {place.file for place in index.arrays.values()}]
    size_bytes = sum(entry.size_bytes for entry in entries)
    if not (index.sizes.hidden == manifest.dimension and index.fits(manifest.pooling, size_bytes)):
        raise BundleError(
            f"'{path}' does not describe an encoder, or an earlier corom made it. Export the "
            "bundle again."
        )
    files = {entry.path: checked_file(bundle, entry) for entry in entries}
    return NativeWeights(
        index.sizes,
        index.epsilon,
        {degree: np.array(numbers, np.float32) for degree, numbers in index.activation.items()},
        {
            name: _read(files[index.arrays[name].file], index.arrays[name].offset, shape)
            for name, shape in array_shapes(index.sizes, manifest.pooling).items()
        },
    )


def _read(path: Path, offset: int, shape: tuple[int, ...]) -> Vectors:
    if not 0 <= offset <= path.stat().st_size - 4 * prod(shape):
        raise BundleError(
            f"'{path}' has no {prod(shape)} values from byte {offset} on. Export the bundle again."
        )
    return np.fromfile(path, "<f4", prod(shape), offset=offset).reshape(shape)
