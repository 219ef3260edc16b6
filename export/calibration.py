"""What the matrix products of an encoder are fed with on real texts; int8 scales are chosen by it.

Letters in shapes: B texts, S tokens, T tokens that are kept, K values of one token.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from corom.runtime.batching import attention_mask, pad, plan_batches
from corom.runtime.errors import InputError
from corom.runtime.manifest import Precision
from corom.runtime.tokens import Tokenizer

from .checkpoint import Checkpoint
from .encoder import TorchEncoder
from .parity import read_texts

LEAST_TEXTS, MOST_TEXTS = 32, 512
"""Fewer say too little of what is to come; more are thinned out, they change nothing."""
BETTER_YOUR_OWN = (
    "int8 is fitted to the texts that come with corom. Texts like those to come fit better: "
    "--calibration-texts FILE"
)
SAMPLE_ROWS = 768
"""Rows kept of each input: more do not change the scales that are chosen."""
BATCH_TOKENS = 4096


class Inputs(NamedTuple):
    """What one linear layer was fed with."""

    sample: Tensor
    """(T, K) rows, spread over all texts."""
    low: Tensor
    """(K,) smallest value of each column over all texts."""
    high: Tensor
    """(K,) largest value of each column over all texts."""


def read_calibration_texts(file: Path | None, precisions: Collection[Precision]) -> list[str]:
    """Return the texts of a file, at most ``MOST_TEXTS`` spread over it, for None the parity texts.

    Raises ``InputError`` for a file without use, not UTF-8 or with too few texts.
    """
    if file is not None and "int8" not in precisions:
        raise InputError("calibration texts are for int8 only: add --precision int8.")
    texts = read_texts(file, "choosing the scales of int8", LEAST_TEXTS)
    return texts[:: -(-len(texts) // MOST_TEXTS)]


def linear_inputs(
    encoder: TorchEncoder, checkpoint: Checkpoint, texts: list[str]
) -> dict[str, Inputs]:
    """Return the inputs of every linear layer on these texts, by the layer's name."""
    tokenizer = Tokenizer(
        checkpoint.tokenizer_json, checkpoint.max_length, checkpoint.config.max_positions
    )
    tokens = tokenizer(texts)
    seen: dict[str, list[Inputs]] = {}
    for rows in plan_batches(tokens.lengths, BATCH_TOKENS):
        batch = pad(tokens, rows)
        mask = torch.from_numpy(attention_mask(batch.lengths, batch.input_ids.shape[1]).copy())

        def keep(name: str, hidden: Tensor, mask: Tensor = mask) -> None:
            # A last layer that computes [CLS] alone is fed one row a text.
            whole = hidden.shape[1] == mask.shape[1]
            kept = hidden[mask.bool()] if whole else hidden.flatten(0, 1)
            total = int(tokens.lengths.sum()) if whole else len(texts)
            step = max(1, total // SAMPLE_ROWS)
            found = Inputs(kept[::step].clone(), kept.amin(0), kept.amax(0))
            seen.setdefault(name, []).append(found)

        with torch.inference_mode(), _watched(encoder, keep):
            encoder(torch.from_numpy(batch.input_ids), mask)
    return {name: _joined(parts) for name, parts in seen.items()}


@contextmanager
def _watched(encoder: nn.Module, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: keep(name, inputs[0])

    hooks = [
        module.register_forward_pre_hook(hook(name))
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _joined(parts: list[Inputs]) -> Inputs:
    return Inputs(
        torch.cat([part.sample for part in parts]),
        torch.stack([part.low for part in parts]).amin(0),
        torch.stack([part.high for part in parts]).amax(0),
    )
