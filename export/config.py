"""config.json: the shape of the encoder. Knows no weights, no tokenizer, no pooling."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import msgspec

from .errors import CheckpointError

Architecture = Literal["bert", "roberta", "xlm-roberta"]
Activation = Literal["gelu", "gelu_tanh", "relu"]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of a BERT-type encoder.

    ``max_positions``: tokens a text may have. ``position_offset``: row of the position table that
    belongs to the first token; RoBERTa keeps the rows before it for padding.
    """

    architecture: Architecture
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    activation: Activation
    max_positions: int
    position_offset: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every weight that the encoder needs."""
        hidden, inner = self.hidden, self.intermediate
        positions = self.position_offset + self.max_positions
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (positions, hidden),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, hidden),
            "embeddings.LayerNorm.weight": (hidden,),
            "embeddings.LayerNorm.bias": (hidden,),
        }
        for layer in range(self.layers):
            for name, rows, columns in (
                ("attention.self.query", hidden, hidden),
                ("attention.self.key", hidden, hidden),
                ("attention.self.value", hidden, hidden),
                ("attention.output.dense", hidden, hidden),
                ("intermediate.dense", inner, hidden),
                ("output.dense", hidden, inner),
            ):
                shapes[f"encoder.layer.{layer}.{name}.weight"] = (rows, columns)
                shapes[f"encoder.layer.{layer}.{name}.bias"] = (rows,)
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes[f"encoder.layer.{layer}.{name}.weight"] = (hidden,)
                shapes[f"encoder.layer.{layer}.{name}.bias"] = (hidden,)
        return shapes


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no such file.

    Raises ``CheckpointError`` if the file cannot be read or holds no JSON object.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}. Download it again.") from None


def encoder_config(raw: Mapping[str, Any], path: Path) -> EncoderConfig:
    """Return the shape that ``raw``, the contents of config.json at ``path``, describes.

    Raises ``CheckpointError`` for an encoder that corom does not export, or a missing number.
    """
    architecture = _choice(raw, path, "model_type", get_args(Architecture), default=None)
    _choice(raw, path, "position_embedding_type", ("absolute",), default="absolute")
    for flag in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if raw.get(flag):
            raise CheckpointError(f"'{path}' says {flag}: corom exports encoders only.")
    activation = _choice(raw, path, "hidden_act", tuple(_ACTIVATIONS), default="gelu")
    roberta = architecture != "bert"
    pad_token_id = _number(raw, path, "pad_token_id", default=1 if roberta else 0, lowest=0)
    offset = pad_token_id + 1 if roberta else 0
    config = EncoderConfig(
        architecture=cast(Architecture, architecture),
        vocab_size=_number(raw, path, "vocab_size"),
        hidden=_number(raw, path, "hidden_size"),
        layers=_number(raw, path, "num_hidden_layers"),
        heads=_number(raw, path, "num_attention_heads"),
        intermediate=_number(raw, path, "intermediate_size"),
        activation=_ACTIVATIONS[activation],
        max_positions=_number(raw, path, "max_position_embeddings") - offset,
        position_offset=offset,
        type_vocab_size=_number(raw, path, "type_vocab_size", default=2),
        layer_norm_eps=_epsilon(raw, path),
        pad_token_id=pad_token_id,
    )
    if config.hidden % config.heads:
        raise CheckpointError(
            f"'{path}' has hidden_size {config.hidden}, which {config.heads} attention heads do "
            "not divide. The file does not belong to this checkpoint."
        )
    if config.max_positions < 1 or config.pad_token_id >= config.vocab_size:
        raise CheckpointError(
            f"'{path}' has pad_token_id {pad_token_id}, which does not go with vocab_size "
            f"{config.vocab_size} and max_position_embeddings {raw['max_position_embeddings']}."
        )
    return config


def _choice(
    raw: Mapping[str, Any], path: Path, key: str, allowed: tuple[str, ...], default: str | None
) -> str:
    value = raw.get(key, default)
    if value not in allowed:
        raise CheckpointError(
            f"'{path}' has {key} {value!r}, which corom does not export. "
            f"Supported: {', '.join(allowed)}."
        )
    return str(value)


def _number(
    raw: Mapping[str, Any], path: Path, key: str, *, default: int | None = None, lowest: int = 1
) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if type(value) is not int or value < lowest:
        raise CheckpointError(
            f"'{path}' has {key} {value!r}; it must be a whole number of at least {lowest}."
        )
    return value


def _epsilon(raw: Mapping[str, Any], path: Path) -> float:
    value = raw.get("layer_norm_eps", 1e-12)
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(
            f"'{path}' has layer_norm_eps {value!r}; it must be a number between 0 and 1."
        )
    return float(value)
