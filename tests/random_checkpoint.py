"""A checkpoint in memory: a BERT with seeded random weights of the size that training gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
import torch

from corom.export.checkpoint import Checkpoint
from corom.export.config import EncoderConfig
from corom.runtime.manifest import Pooling

torch.set_num_threads(1)  # for models this small more threads only wait for each other

HIDDEN, LAYERS, HEADS, INNER, VOCABULARY, POSITIONS = 64, 2, 2, 128, 500, 160

RAW_CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


def random_checkpoint(
    pooling: Pooling = "cls", scales: Mapping[str, float] | None = None
) -> Checkpoint:
    """Return the checkpoint; ``scales``: weights whose name ends so are multiplied by that."""
    config = EncoderConfig(
        architecture="bert",
        vocab_size=VOCABULARY,
        hidden=HIDDEN,
        layers=LAYERS,
        heads=HEADS,
        intermediate=INNER,
        activation="gelu",
        max_positions=POSITIONS,
        position_offset=0,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        pad_token_id=0,
    )
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, shape in config.shapes().items():
        gain = float(name.endswith("LayerNorm.weight"))
        state[name] = torch.randn(shape, generator=generator) * 0.15 + gain
        for suffix, scale in (scales or {}).items():
            if name.endswith(suffix):
                state[name] *= scale
    return Checkpoint(
        folder=Path(),
        config=config,
        raw_config=RAW_CONFIG,
        state=state,
        ignored_weights=(),
        pooling=pooling,
        normalize=False,
        similarity="dot",
        max_length=128,
        prompts={},
        default_prompt_name=None,
        tokenizer_json=TOKENIZER,
        weights_sha256="",
        license=None,
        uri="folder:random",
        revision=None,
    )


def random_ids(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Return random token ids of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def _tokenizer() -> bytes:
    """Words are numbers that stand for their own ids."""
    vocabulary = {str(k): k for k in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="1"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


TOKENIZER = _tokenizer()
