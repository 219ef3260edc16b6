"""The parity gate: no bundle is published whose vectors differ from torch by more than allowed."""

from importlib import resources
from pathlib import Path

from corom.runtime.cpus import SATURATION, int8_saturates
from corom.runtime.encoder import Encoder
from corom.runtime.errors import InputError, ParityError
from corom.runtime.golden import Golden
from corom.runtime.manifest import Parity, Variant
from corom.runtime.tokens import Tokenizer
from corom.runtime.verify import measure

from .checkpoint import Checkpoint
from .drift import first_drift, layer_drifts
from .reference import Reference
from .tokenizer import file_token_ids, reference_token_ids, reference_tokenizer

NOTHING_PUBLISHED = "Nothing was published."
GOLDEN_TEXTS = 32
"""Texts whose reference vectors travel in the bundle."""


def read_texts(file: Path | None, purpose: str, at_least: int = 2) -> list[str]:
    """Return the texts of a file, one a line, or those that come with corom for None.

    Raises ``InputError`` for a file that is not UTF-8 or has too few texts for ``purpose``.
    """
    if file is None:
        content = resources.files("corom.export").joinpath("parity_texts.txt").read_bytes()
    else:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InputError(f"'{file}' cannot be read: {error.strerror}.") from None
    try:
        texts = [line for line in content.decode().split("\n") if line]
    except UnicodeDecodeError as error:
        raise InputError(f"'{file}' is not UTF-8 (byte {error.start}).") from None
    if len(texts) < at_least:
        raise InputError(
            f"'{file}' has {len(texts)} texts; {purpose} needs at least {at_least}, one a line."
        )
    return texts


def pass_gate(
    staging: Path,
    variant: Variant,
    golden: Golden,
    reference: Reference,
    backend: str = "onnxruntime",
) -> Parity:
    """Return the parity of a staged variant, measured through the runtime that users run.

    Raises ``ParityError`` with the worst text and the first layer that drifts if it is out of
    tolerance.
    """
    device = "cpu" if backend == "onnxruntime" else "auto"
    with Encoder(staging, backend=backend, device=device, precision=variant.precision) as encoder:
        parity = measure(encoder, golden)
        failures = parity.failures(variant.tolerance)
        if not failures:
            return parity
        token_ids = encoder.token_ids([parity.worst_text])[0]
    drifts = layer_drifts(staging / variant.file, reference, token_ids, backend, variant.precision)
    saturated = variant.precision == "int8" and int8_saturates()
    raise ParityError(
        f"{variant.precision} by {backend} failed parity with torch: {'; '.join(failures)}.\n"
        f"Worst text: {parity.worst_text[:200]}\n"
        f"First layer that drifts: {first_drift(drifts, variant.tolerance)}"
        + (f"\n{SATURATION}" if saturated else "")
    )


def choose_golden(golden: Golden) -> Golden:
    """Return the part of the parity texts that travels in the bundle, spread over all of them."""
    step = max(1, len(golden.texts) // GOLDEN_TEXTS)
    return Golden(golden.texts[::step], golden.vectors[::step])


def reference_golden(checkpoint: Checkpoint, reference: Reference, texts: list[str]) -> Golden:
    """Return the texts with the vectors that transformers, tokenizing by itself, gives them.

    Raises ``ParityError`` if the bundle's tokenizer gives a text other ids than transformers does,
    or transformers other ids than tokenizer.json.
    """
    tokenizer = Tokenizer(
        checkpoint.tokenizer_json, checkpoint.max_length, checkpoint.config.max_positions
    )
    theirs = reference_tokenizer(checkpoint.folder, checkpoint.config.architecture)
    # Hardly any text has a token that was added.
    added = [f"头 {token} 痛" for token in sorted(theirs.get_added_vocab())]
    checked = [*texts, *added]
    expected = reference_token_ids(theirs, checked, checkpoint.max_length)
    _require_equal(
        "the tokenizer differs from transformers' tokenizer for this checkpoint.",
        checked,
        tokenizer(checked).ids,
        expected,
    )
    of_file = file_token_ids(theirs, checkpoint.folder, texts)
    if of_file is not None:
        _require_equal(
            "transformers' tokenizer for this checkpoint differs from its tokenizer.json: one of "
            "them is not what the model was trained with.",
            texts,
            reference_token_ids(theirs, texts, None),
            of_file,
        )
    return Golden(texts, reference.vectors(expected[: len(texts)]))


def _require_equal(
    otherwise: str, texts: list[str], found: list[list[int]], expected: list[list[int]]
) -> None:
    """Raise ``ParityError`` with the first text whose ids differ."""
    for text, got, want in zip(texts, found, expected, strict=True):
        if got != want:
            raise ParityError(
                f"{otherwise}\nText: {text[:200]}\nFound: {got[:20]}\nExpected: {want[:20]}\n"
                f"{NOTHING_PUBLISHED}"
            )
