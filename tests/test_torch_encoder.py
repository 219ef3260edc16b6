"""The torch encoder gives transformers' vectors: any length, padding, pooling, architecture."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.export.checkpoint import Checkpoint, load_checkpoint
from corom.export.encoder import TorchEncoder
from corom.export.recipe import Recipe
from corom.export.reference import Reference
from corom.export.sources import ResolvedSource

TOLERANCE = 1e-5
POSITIONS = 72
SHAPES = {
    "bert": {},
    "gelu_new": {"hidden_act": "gelu_new"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu, wide epsilon": {"hidden_act": "relu", "layer_norm_eps": 1e-3},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1},
    "roberta": {"model_type": "roberta"},
    "xlm-roberta": {"model_type": "xlm-roberta", "layer_norm_eps": 1e-5},
}


class Pair:
    """A checkpoint's torch encoder beside transformers' own model of the same folder."""

    def __init__(self, folder: Path, pooling: str) -> None:
        recipe = Recipe(source="", pooling=pooling)
        self.checkpoint = load_checkpoint(ResolvedSource(folder, "folder:test"), recipe)
        self.encoder = TorchEncoder(self.checkpoint)
        self.flat = TorchEncoder(self.checkpoint, flat=True)
        self.model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
        self.model = self.model.float().eval()

    def batch(self, lengths: list[int], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask (B, S) with rows of these lengths, S being the longest + padding."""
        config = self.checkpoint.config
        width = min(max(lengths) + padding, config.max_positions)
        generator = torch.Generator().manual_seed(sum(lengths))
        mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(5, config.vocab_size, mask.shape, generator=generator)
        return ids * mask + config.pad_token_id * (1 - mask), mask

    def expected(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the vectors (B, H) by transformers and the textbook's pooling."""
        with torch.inference_mode():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.checkpoint.pooling == "cls":
            return hidden[:, 0]
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def difference(self, lengths: list[int], padding: int) -> float:
        """Return the largest absolute difference over a batch."""
        ids, mask = self.batch(lengths, padding)
        expected = self.expected(ids, mask)
        worst = 0.0
        for encoder in (self.encoder, self.flat):
            with torch.inference_mode():
                found = encoder(ids, mask)
            assert found.dtype == torch.float32
            assert found.shape == (len(lengths), self.checkpoint.config.hidden)
            worst = max(worst, float((found - expected).abs().max()))
        return worst


@pytest.fixture(scope="module")
def pairs(make_checkpoint: Callable[..., Path]) -> Callable[[str, str], Pair]:
    """Return the function that gives the pair for a shape and a pooling, made once."""
    made: dict[tuple[str, str], Pair] = {}

    def pair(shape: str, pooling: str) -> Pair:
        if (shape, pooling) not in made:
            options = {"max_position_embeddings": POSITIONS} | SHAPES[shape]
            made[shape, pooling] = Pair(make_checkpoint(**options), pooling)
        return made[shape, pooling]

    return pair


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers_at_every_length(
    pairs: Callable[[str, str], Pair], shape: str, pooling: str
) -> None:
    pair = pairs(shape, pooling)
    longest = pair.checkpoint.config.max_positions
    differences = [pair.difference([length], length % 4) for length in range(1, longest + 1)]
    assert max(differences) < TOLERANCE
    assert pair.difference(list(range(1, longest + 1)), 0) < TOLERANCE


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", ["bert", "roberta"])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, POSITIONS - 2), min_size=1, max_size=5),
    padding=st.integers(0, 40),
)
def test_equals_transformers_in_every_batch(
    pairs: Callable[[str, str], Pair], shape: str, pooling: str, lengths: list[int], padding: int
) -> None:
    assert pairs(shape, pooling).difference(lengths, padding) < TOLERANCE


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", ["bert", "roberta"])
def test_a_row_of_padding_is_finite_and_changes_no_other(
    pairs: Callable[[str, str], Pair], shape: str, pooling: str
) -> None:
    pair = pairs(shape, pooling)
    ids, mask = pair.batch([9, 4], padding=3)
    without = mask * torch.tensor([[1], [0]])
    for encoder in (pair.encoder, pair.flat):
        with torch.inference_mode():
            alone = encoder(ids[:1], mask[:1])
            beside = encoder(ids, without)
        assert torch.isfinite(beside).all()
        torch.testing.assert_close(beside[:1], alone, atol=1e-6, rtol=0)


def test_cls_pooling_computes_one_row_of_the_last_layer(
    pairs: Callable[[str, str], Pair],
) -> None:
    rows = {}
    for pooling in ("cls", "mean"):
        pair = pairs("bert", pooling)
        seen: list[int] = []
        hook = pair.encoder.layers[-1].inner.register_forward_hook(
            lambda _module, inputs, _output, seen=seen: seen.append(inputs[0].shape[1])
        )
        pair.difference([7], 0)
        hook.remove()
        rows[pooling] = seen
    assert rows == {"cls": [1], "mean": [7]}


def test_token_types_beyond_the_first_are_not_used(make_checkpoint: Callable[..., Path]) -> None:
    def disturb(state: dict[str, torch.Tensor]) -> None:
        state["embeddings.token_type_embeddings.weight"][1] = 100.0

    assert Pair(make_checkpoint(edit=disturb), "mean").difference([5, 3], 1) < TOLERANCE


@pytest.mark.parametrize("layout", ["modelscope", "sentence-transformers"])
def test_every_layout_gives_transformers_vectors(
    make_checkpoint: Callable[..., Path], layout: str
) -> None:
    prefix = "bert." if layout == "modelscope" else ""
    folder = make_checkpoint(layout=layout, prefix=prefix)
    for pooling in ("cls", "mean"):
        assert Pair(folder, pooling).difference([128, 20, 1], 0) < TOLERANCE


@pytest.mark.parametrize("shape", ["bert", "roberta"])
def test_reference_sorts_batches_and_restores_order(
    pairs: Callable[[str, str], Pair], shape: str
) -> None:
    pair = pairs(shape, "mean")
    lengths = [3, 41, 1, 17, 17, 70]
    ids, mask = pair.batch(lengths, padding=0)
    texts = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
    reference = Reference(pair.checkpoint)
    expected = pair.expected(ids, mask).numpy()
    for batch_tokens in (1, 60, 8192):
        found = reference.vectors(texts, batch_tokens=batch_tokens)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    assert reference.vectors([]).shape == (0, 48)


def test_reference_names_every_stage_in_order(pairs: Callable[[str, str], Pair]) -> None:
    pair = pairs("bert", "cls")
    ids, mask = pair.batch([6, 4], padding=2)
    with torch.inference_mode():
        output = pair.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    stages = Reference(pair.checkpoint).hidden_states(ids.numpy(), mask.numpy())
    names = [f"layer {k} {part}" for k in range(3) for part in ("attention", "output")]
    assert [name for name, _ in stages] == ["embeddings", *names]
    outputs = [array for name, array in stages if not name.endswith("attention")]
    for found, expected in zip(outputs, output.hidden_states, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def demo_checkpoint(demo_source: ResolvedSource) -> Checkpoint:
    return load_checkpoint(demo_source)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_trained_weights_give_transformers_vectors(
    demo_checkpoint: Checkpoint, parity_texts: list[str], pooling: str
) -> None:
    checkpoint = replace(demo_checkpoint, pooling=pooling)
    tokenizer = tokenizers.Tokenizer.from_buffer(checkpoint.tokenizer_json)
    texts = [tokenizer.encode(text).ids[:512] for text in parity_texts[::5]]
    expected = Reference(checkpoint).vectors(texts)
    encoder = TorchEncoder(checkpoint)
    worst = 0.0
    for text, vector in zip(texts, expected, strict=True):
        padding = min(len(text) % 5, 512 - len(text))
        ids = torch.tensor([text + [0] * padding])
        mask = torch.tensor([[1] * len(text) + [0] * padding])
        with torch.inference_mode():
            found = encoder(ids, mask)[0].numpy()
        worst = max(worst, float(np.abs(found - vector).max()))
    assert worst < TOLERANCE
