"""The torch module that is exported: token ids to un-normalized sentence vectors.

The same numbers as transformers' BertModel and pooling, with less arithmetic: with [CLS] pooling
the last layer is computed for position 0 alone. Plain MatMul, Softmax, MatMul, so that every
engine can run and fuse the graph. Knows no files, no tokenizer.

Letters in shapes: B texts, S tokens, Q rows that are asked for (S or 1), H hidden. Between
embeddings and pooling (B, S, H) may be one matrix (B·S, H) instead, and (B, Q, H) one of (B·Q, H).
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .config import Activation
from .weights import State

_M = TypeVar("_M", bound=nn.Module)

MASKED = -30_000.0
"""Added to the scores of padding. Its exp is 0 in float32, it fits into float16, and being finite
it leaves a text that is nothing but padding without NaN."""


class TorchEncoder(nn.Module):
    """(B, S) int64 ``input_ids`` and ``attention_mask`` to (B, H) float32 vectors.

    Padding stands on the right: positions are counted from the first token. A row of nothing but
    padding gives a finite vector without meaning. ``flat``: the form that CPUs execute fastest in
    fp32, the same numbers. The tokens of all texts are one matrix: ONNX Runtime adds the bias while
    it multiplies matrices, but not stacks of them. [CLS] is pooled by ``FirstRowAttention``. int8
    is faster without both, and engines were built from the other form.
    """

    def __init__(self, checkpoint: Checkpoint, *, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.pooling = checkpoint.pooling
        self.matmul_dtype = torch.float32
        self.embeddings = Embeddings(checkpoint)
        one_row = flat and checkpoint.pooling == "cls"
        *earlier, last = (f"encoder.layer.{k}." for k in range(checkpoint.config.layers))
        self.layers = nn.ModuleList(Layer(checkpoint, prefix, Attention) for prefix in earlier)
        self.layers.append(Layer(checkpoint, last, FirstRowAttention if one_row else Attention))
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the pooled vectors (B, H)."""
        kept = attention_mask.float()
        bias = ((1.0 - kept) * MASKED)[:, None, None, :].to(self.matmul_dtype)  # (B, 1, 1, S)
        hidden = self.embeddings(input_ids)
        texts = hidden.shape
        if self.flat:
            hidden = hidden.flatten(0, 1)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, hidden, bias)
        if self.pooling == "cls":
            first = hidden.view(texts)[:, 0 if self.flat else slice(1)]
            vector: Tensor = self.layers[-1](first, hidden, bias)
            return vector if self.flat else vector.squeeze(1)
        hidden = self.layers[-1](hidden, hidden, bias).view(texts)
        total: Tensor = (hidden * kept[:, :, None]).sum(dim=1)
        return total / kept.sum(dim=1, keepdim=True).clamp(min=1.0)


class Embeddings(nn.Module):
    """Word, position and token type to (B, S, H); the one token type is folded into positions."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        state, config = checkpoint.state, checkpoint.config
        words = state["embeddings.word_embeddings.weight"]
        table = nn.Embedding(config.vocab_size, config.hidden, device="meta")
        self.words = _filled(table, {"weight": words})
        first = config.position_offset
        positions = state["embeddings.position_embeddings.weight"][
            first : first + config.max_positions
        ]
        types = state["embeddings.token_type_embeddings.weight"]
        self.positions = nn.Parameter(positions + types[0])
        self.norm = _norm(checkpoint, "embeddings.LayerNorm")

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the first hidden states (B, S, H)."""
        positions = self.positions[: input_ids.shape[1]]
        hidden: Tensor = self.norm(self.words(input_ids) + positions)
        return hidden


class Layer(nn.Module):
    """Attention and feed-forward, each with its residual and LayerNorm."""

    def __init__(
        self, checkpoint: Checkpoint, prefix: str, attention: "type[Attention | FirstRowAttention]"
    ) -> None:
        super().__init__()
        self.attention = attention(checkpoint, f"{prefix}attention.")
        self.attention_norm = _norm(checkpoint, f"{prefix}attention.output.LayerNorm")
        self.inner = _linear(checkpoint, f"{prefix}intermediate.dense")
        self.activation = _activation(checkpoint.config.activation)
        self.outer = _linear(checkpoint, f"{prefix}output.dense")
        self.output_norm = _norm(checkpoint, f"{prefix}output.LayerNorm")

    def forward(self, rows: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
        """Return (B, Q, H): the output for ``rows`` (B, Q, H), which attend to ``hidden``."""
        rows = self.attention_norm(rows + self.attention(rows, hidden, bias))
        output: Tensor = self.output_norm(rows + self.outer(self.activation(self.inner(rows))))
        return output


class Attention(nn.Module):
    """Multi-head attention; the scale of the scores is folded into the query weights."""

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        super().__init__()
        config = checkpoint.config
        self.heads = (config.heads, config.head_size)
        self.query = _linear(checkpoint, f"{prefix}self.query", scale=config.head_size**-0.5)
        self.key = _linear(checkpoint, f"{prefix}self.key")
        self.value = _linear(checkpoint, f"{prefix}self.value")
        self.output = _linear(checkpoint, f"{prefix}output.dense")

    def forward(self, rows: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
        """Return what ``rows`` (B, Q, H) gather from ``hidden`` (B, S, H): (B, Q, H)."""
        by_head = (bias.shape[0], -1, *self.heads)
        query = self.query(rows).view(by_head).transpose(1, 2)
        key = self.key(hidden).view(by_head).permute(0, 2, 3, 1)
        value = self.value(hidden).view(by_head).transpose(1, 2)
        weights = torch.softmax(query @ key + bias, dim=-1)
        gathered: Tensor = self.output((weights @ value).transpose(1, 2).reshape(rows.shape))
        return gathered


class FirstRowAttention(nn.Module):
    """Attention for one row a text (Q = 1): keys and values are never made.

    q·(W x) = (Wᵀ q)·x, and a sum of values is the values' weights times a sum of tokens: two
    products a text and head instead of two a token. The keys' bias adds the same to all scores of
    a row, which softmax does not see; the values' comes through as it is, weights sum to 1.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        super().__init__()
        state, config = checkpoint.state, checkpoint.config
        self.heads = (config.heads, config.head_size)
        self.query = _linear(checkpoint, f"{prefix}self.query", scale=config.head_size**-0.5)
        by_head = (*self.heads, config.hidden)
        self.key = nn.Parameter(state[f"{prefix}self.key.weight"].view(by_head))
        value = state[f"{prefix}self.value.weight"].view(by_head)
        self.value = nn.Parameter(value.transpose(1, 2).contiguous())
        self.value_bias = nn.Parameter(state[f"{prefix}self.value.bias"])
        self.output = _linear(checkpoint, f"{prefix}output.dense")

    def forward(self, rows: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
        """Return what ``rows`` (B, H) gather from ``hidden`` (B·S, H): (B, H)."""
        tokens = hidden.view(bias.shape[0], -1, hidden.shape[-1])
        query = self.query(rows).view(-1, *self.heads).transpose(0, 1)
        wanted = (query @ self.key).transpose(0, 1)  # (B, heads, H)
        weights = torch.softmax(wanted @ tokens.transpose(1, 2) + bias[:, 0], dim=-1)
        mixed = (weights @ tokens).transpose(0, 1)
        values = (mixed @ self.value).transpose(0, 1).reshape(rows.shape)
        gathered: Tensor = self.output(values + self.value_bias)
        return gathered


def _activation(name: Activation) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


def _linear(checkpoint: Checkpoint, name: str, scale: float = 1.0) -> nn.Linear:
    weight, bias = checkpoint.state[f"{name}.weight"], checkpoint.state[f"{name}.bias"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    return _filled(linear, {"weight": weight * scale, "bias": bias * scale})


def _norm(checkpoint: Checkpoint, name: str) -> nn.LayerNorm:
    weight, bias = checkpoint.state[f"{name}.weight"], checkpoint.state[f"{name}.bias"]
    norm = nn.LayerNorm(weight.shape[0], eps=checkpoint.config.layer_norm_eps, device="meta")
    return _filled(norm, {"weight": weight, "bias": bias})


def _filled(module: _M, state: State) -> _M:
    module.load_state_dict(state, assign=True)
    return module
