"""Weight files to tensors under canonical names. Strict: nothing is guessed, nothing left random.

Canonical names are those of transformers' BertModel without a prefix: ``embeddings.…`` and
``encoder.layer.0.…``.
"""

import hashlib
from pathlib import Path

import msgspec
import safetensors.torch
import torch

from .config import EncoderConfig, read_json
from .errors import CheckpointError, listed

State = dict[str, torch.Tensor]

# In this order: safetensors holds nothing but numbers, so it goes before pickled files.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

_ANCHOR = "embeddings.word_embeddings.weight"
_PREFIXES = frozenset({"module", "model", "bert", "roberta", "encoder"})
_HEADS = frozenset({"pooler", "cls", "lm_head", "classifier", "qa_outputs"})
_BUFFERS = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})
_OLD_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of ``folder``: one, or the parts that an index names.

    Raises ``CheckpointError`` if there are none.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = read_json(folder / f"{name}.index.json")
        if index is not None:
            return _parts(folder, f"{name}.index.json", index)
    raise CheckpointError(
        f"'{folder}' holds no weights. Expected one of: {', '.join(WEIGHT_FILES)}, or an index "
        "(….index.json) with its parts."
    )


def sha256_of_files(paths: list[Path]) -> str:
    """Return the sha256 of the files' contents, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_weights(paths: list[Path]) -> State:
    """Return every tensor in the files, by the name it has there.

    Raises ``CheckpointError`` for a file that is cut short, damaged, or holds code or anything
    else but tensors.
    """
    state: State = {}
    for path in paths:
        state |= _read(path)
    return state


def canonical_state(raw: State, config: EncoderConfig) -> tuple[State, tuple[str, ...]]:
    """Return the encoder's weights in float32 by canonical name, and the names that were ignored.

    Ignored are known heads and buffers only. Raises ``CheckpointError`` with the names of weights
    that are missing, of another shape, unknown, not floating point, NaN or infinite.
    """
    prefix = _prefix(raw)
    shapes = config.shapes()
    state: State = {}
    ignored, unknown = [], []
    for name, tensor in raw.items():
        canonical = name.removeprefix(prefix)
        for old, new in _OLD_NAMES.items():
            canonical = canonical.replace(old, new)
        if canonical in shapes and name.startswith(prefix):
            state[canonical] = tensor
        elif canonical in _BUFFERS or canonical.removeprefix("module.").split(".")[0] in _HEADS:
            ignored.append(name)
        else:
            unknown.append(name)
    misshapen = [
        f"{name} {tuple(tensor.shape)} instead of {shapes[name]}"
        for name, tensor in state.items()
        if tuple(tensor.shape) != shapes[name]
    ]
    problems = {
        "are missing": [name for name in shapes if name not in state],
        "have another shape than config.json says": misshapen,
        "belong to nothing that corom exports": unknown,
        "are not floating point": [k for k, t in state.items() if not t.is_floating_point()],
        "hold NaN or infinite values": [k for k, t in state.items() if not _finite(t)],
    }
    found = [f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"the weights do not fit the encoder that config.json describes: {'; '.join(found)}. "
            "Check that config.json and the weights are of the same checkpoint."
        )
    return {name: state[name].float().contiguous() for name in shapes}, tuple(sorted(ignored))


def _parts(folder: Path, name: str, index: dict[str, object]) -> list[Path]:
    try:
        weight_map = msgspec.convert(index.get("weight_map"), dict[str, str])
    except msgspec.ValidationError:
        raise CheckpointError(f"'{folder / name}' has no weight_map.") from None
    parts = sorted(set(weight_map.values()))
    missing = [part for part in parts if Path(part).name != part or not (folder / part).is_file()]
    if missing or not parts:
        raise CheckpointError(
            f"'{folder / name}' names weight files that are not in the folder: {listed(missing)}. "
            "Download the checkpoint again."
        )
    return [folder / part for part in parts]


def _read(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many unrelated classes for a damaged file
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"'{path}' cannot be read as weights: it is cut short, damaged, or holds more than "
            f"tensors ({type(error).__name__}: {reason[:200]}). Download it again, or save it as "
            "safetensors."
        ) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise CheckpointError(
            f"'{path}' holds more than named tensors. Save the model's state_dict() alone."
        )
    return dict(loaded)


def _prefix(raw: State) -> str:
    """Return what stands before the encoder's names, such as ``bert.``; "" if nothing does."""
    prefixes = [name.removesuffix(_ANCHOR) for name in raw if name.endswith(_ANCHOR)]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} times ({listed(sorted(prefixes))})" if prefixes else "not at all"
        raise CheckpointError(
            f"the weights hold {_ANCHOR} {found}; exactly one encoder is needed. "
            f"Weights found: {listed(sorted(raw), 6) or 'none'}."
        )
    prefix = prefixes[0]
    if not set(prefix.split(".")[:-1]) <= _PREFIXES or (prefix and not prefix.endswith(".")):
        raise CheckpointError(
            f"the encoder's weights have the prefix '{prefix}', which corom does not know. "
            f"Known: none, or any of {', '.join(sorted(_PREFIXES))}, each with a dot."
        )
    return prefix


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
