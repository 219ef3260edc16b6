"""Proof that what executes here gives the bundle's golden vectors: a wrong kernel is silent."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .batching import Batch, pad, plan_batches
from .cpus import SATURATION, int8_saturates
from .errors import ParityError
from .golden import GOLDEN_NAME, load_golden
from .manifest import Manifest, Precision, Tolerance, checked_file
from .parity import row_cosines
from .tokens import Tokenizer
from .vectors import Vectors

ROUNDED: frozenset[Precision] = frozenset({"bf16", "int8-per-token", "int8"})
"""Precisions that processors round differently, so that they are proven where they are opened."""

LENGTHS = 0.1
"""How much the lengths of vectors may differ; by rounding they do by a thousandth. Where scores are
inner products a wrong length is a wrong score, and no cosine sees it."""


def prove(
    run: Callable[[Batch], Vectors],
    batch_tokens: int,
    folder: Path,
    manifest: Manifest,
    tokenizer_json: bytes,
    tolerance: Tolerance,
    what: str,
) -> None:
    """Raise ``ParityError`` unless ``run`` gives the golden vectors; ``what`` names it."""
    golden = load_golden(checked_file(folder, manifest.entry(GOLDEN_NAME)))
    # A tokenizer of its own: the golden texts were cut to the manifest's length.
    tokens = Tokenizer(tokenizer_json, manifest.max_length, manifest.max_positions)(golden.texts)
    vectors = np.empty_like(golden.vectors)
    for rows in plan_batches(tokens.lengths, batch_tokens):
        vectors[rows] = run(pad(tokens, rows))
    with np.errstate(all="ignore"):  # NaN and zeros are wrong as well
        cosine = float(row_cosines(golden.vectors, vectors).min())
        error = float(np.abs(vectors - golden.vectors).max())
        lengths = np.linalg.norm(vectors, axis=1) / np.linalg.norm(golden.vectors, axis=1)
        length = float(np.abs(lengths - 1).max())
    most = tolerance.max_abs_error
    problems = [
        (f"cosine {cosine:.6f}, at least {tolerance.cosine_min}", cosine >= tolerance.cosine_min),
        (f"max abs {error:.3g}, at most {most}", most is None or error <= most),
        (f"a length that differs by {length:.1%}, at most {LENGTHS:.0%}", length <= LENGTHS),
    ]
    wrong = [words for words, right in problems if not right]
    if wrong:
        raise ParityError(
            f"{what} gives wrong vectors on this machine: compared with the golden ones, "
            f"{'; '.join(wrong)}. Export the bundle again "
            "on this machine; until then use --backend onnxruntime --precision fp32."
            + (f" {SATURATION}" if "int8" in what and int8_saturates() else "")
        )
