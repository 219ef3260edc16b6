"""Measures what an encoder executes against golden vectors, in every shape that could differ."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .availability import why_not
from .backend import pairs
from .encoder import Encoder
from .errors import BundleError, ParityError, UnavailableError
from .golden import GOLDEN_NAME, Golden, load_golden
from .manifest import Parity, Tolerance, Variant, checked_file, load_manifest
from .parity import compare
from .vectors import Vectors

BATCH_SIZES = (32, 7)
"""Rows of the batches, sorted by length, in which every text is measured beside being alone."""
PADDED_TEXTS, PADDED_SIZE = 64, 8
"""Texts, spread over all, that are padded as far as can be, and how many of them at once."""


class Verdict(NamedTuple):
    """What became of one variant on this machine, executed by one backend on one device.

    ``backend`` and ``device``: None if nothing can run the variant here. ``parity``: None if it was
    not measured. ``failed``: its vectors are wrong. ``problems`` says why in each case.
    """

    variant: Variant
    backend: str | None
    device: str | None
    parity: Parity | None
    failed: bool
    problems: list[str]


def measure(encoder: Encoder, golden: Golden) -> Parity:
    """Return the parity of the encoder's un-normalized vectors with the golden ones.

    Every text is executed alone and sorted among its likes in batches of ``BATCH_SIZES``, and
    ``PADDED_TEXTS`` of them beside the longest text of all.
    """
    texts = golden.texts
    alone = np.concatenate([encoder.encode_together([text]) for text in texts])
    longest_first = np.argsort([-len(ids) for ids in encoder.token_ids(texts)], kind="stable")
    batches = [_in_batches(encoder, texts, longest_first, size) for size in BATCH_SIZES]
    padded = _beside_longest(encoder, texts, int(longest_first[0]), alone)
    return compare(texts, golden.vectors, alone, [*batches, padded])


def verify_bundle(bundle: Path, threads: int | None = None) -> Iterator[Verdict]:
    """Yield a verdict for each variant and each backend and device that can run it here.

    First the hash of every file is found to be as recorded.

    Raises ``BundleError`` for a file that is missing or altered.
    """
    manifest = load_manifest(bundle)
    for entry in manifest.files:
        checked_file(bundle, entry)
    golden = load_golden(checked_file(bundle, manifest.entry(GOLDEN_NAME)))
    if golden.vectors.shape[1] != manifest.dimension:
        raise BundleError(f"'{GOLDEN_NAME}' is of another dimension than the manifest says.")
    for variant in manifest.variants:
        reasons = []
        for backend, device in pairs():
            reason = why_not(bundle, manifest, variant.precision, "off", backend, device)
            if reason is None:
                yield _verdict(bundle, variant, backend, device, golden, threads)
            else:
                reasons.append(f"{backend} on {device}: {reason}")
        if len(reasons) == len(pairs()):
            yield Verdict(variant, None, None, None, False, reasons)


class _Unproven(Encoder):
    """Opened whatever it gives: it is measured here, and a report says more than an error."""

    def _prove(self, folder: Path, tokenizer_json: bytes, tolerance: Tolerance) -> None:
        pass


def _verdict(
    bundle: Path, variant: Variant, backend: str, device: str, golden: Golden, threads: int | None
) -> Verdict:
    try:
        with _Unproven(
            bundle, precision=variant.precision, backend=backend, device=device, threads=threads
        ) as encoder:
            parity = measure(encoder, golden)
    except (ParityError, UnavailableError) as error:
        failed = isinstance(error, ParityError)
        return Verdict(variant, backend, device, None, failed, [str(error)])
    problems = parity.failures(variant.tolerance)
    return Verdict(variant, backend, device, parity, bool(problems), problems)


def _in_batches(
    encoder: Encoder, texts: list[str], order: npt.NDArray[np.intp], size: int
) -> Vectors:
    vectors = np.empty((len(texts), encoder.dimension), np.float32)
    for start in range(0, len(texts), size):
        rows = order[start : start + size]
        vectors[rows] = encoder.encode_together([texts[row] for row in rows])
    return vectors


def _beside_longest(encoder: Encoder, texts: list[str], longest: int, alone: Vectors) -> Vectors:
    """Return ``alone`` with the vectors of a part of the texts as they come out beside the longest.

    A part, because each costs as much as the longest does.
    """
    vectors = alone.copy()
    chosen = list(range(0, len(texts), max(1, len(texts) // PADDED_TEXTS)))
    for start in range(0, len(chosen), PADDED_SIZE):
        rows = chosen[start : start + PADDED_SIZE]
        together = encoder.encode_together([*(texts[row] for row in rows), texts[longest]])
        vectors[rows] = together[:-1]
    return vectors
