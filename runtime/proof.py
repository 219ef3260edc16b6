"""Proof that what executes here gives the bundle's golden vectors: a wrong kernel is silent."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .batching import Batch, pad, plan_batches
from .cpus import SATURATION, int8_saturates
from .errors import ParityError
from .golden import GOLDEN_NAME, load_golden
from .manifest import Manifest, Precision, checked_file
from .parity import row_cosines
from .tokens import Tokenizer
from .vectors import Vectors

ROUNDED: frozenset[Precision] = frozenset({"bf16", "int8-per-token", "int8"})
"""Precisions that processors round differently, so that they are proven where they are opened."""


def prove(
    run: Callable[[Batch], Vectors],
    batch_tokens: int,
    folder: Path,
    manifest: Manifest,
    tokenizer_json: bytes,
    cosine_min: float,
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
    if not cosine >= cosine_min:
        raise ParityError(
            f"{what} gives wrong vectors on this machine: cosine {cosine:.6f} to "
            f"the golden ones, at least {cosine_min} is expected. Export the bundle again "
            "on this machine; until then use --backend onnxruntime --precision fp32."
            + (f" {SATURATION}" if "int8" in what and int8_saturates() else "")
        )
