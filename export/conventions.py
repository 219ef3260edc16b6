"""How a checkpoint is meant to be used: pooling, normalization, similarity, length, prompts.

Three layouts are read: sentence-transformers (modules.json), ModelScope (configuration.json of a
sentence-embedding task) and a plain Hugging Face folder, which says nothing about pooling.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import msgspec

from corom.runtime.manifest import Pooling, Similarity
from corom.runtime.options import passage_prompt

from .config import read_json
from .errors import CheckpointError

MODELSCOPE_MAX_LENGTH = 128
"""The sequence_length that ModelScope's sentence-embedding pipeline takes when none is given."""

_MODELSCOPE_POOLINGS: dict[str, Pooling] = {"cls": "cls", "avg": "mean"}
_MODULES = ("Transformer", "Pooling", "Normalize")
# sentence-transformers names this file after the architecture of the day.
_SENTENCE_CONFIGS = ("bert", "roberta", "xlm-roberta", "xlm_roberta")
# What that file may hold beside the length and the case, and the values that change no vector.
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": (
        None,
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    ),
    "module_output_name": ("token_embeddings",),
    "unpad_inputs": (None, False, True),
    "processing_kwargs": (None, {}),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
    "tokenizer_name_or_path": (None,),
}
# And of arguments for transformers, those without effect: how to execute, not what.
_MODEL_ARGUMENTS = {
    *("add_pooling_layer", "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage"),
    *("torch_dtype", "trust_remote_code", "use_safetensors"),
}
_ARGUMENTS = {
    "model_args": _MODEL_ARGUMENTS,
    "model_kwargs": _MODEL_ARGUMENTS,
    "tokenizer_args": {"trust_remote_code", "use_fast"},
    "processor_kwargs": {"trust_remote_code", "use_fast"},
    "config_args": {"trust_remote_code"},
    "config_kwargs": {"trust_remote_code"},
}


@dataclass(frozen=True)
class Conventions:
    """What a checkpoint's own files say; None where they say nothing.

    ``encoder_folder``: where config.json, the weights and the tokenizer lie. ``lowercase``: texts
    are lower-cased before the tokenizer sees them.
    """

    encoder_folder: Path
    pooling: Pooling | None = None
    normalize: bool = False
    similarity: Similarity = "cosine"
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    lowercase: bool = False


def read_conventions(folder: Path) -> Conventions:
    """Return what the files in ``folder`` say; see the module for the layouts.

    Defaults follow sentence-transformers: no normalization without a Normalize module, cosine
    similarity, empty prompts for queries and documents. ModelScope's are no normalization, inner
    product, [CLS], 128 tokens. Raises ``CheckpointError`` for what corom cannot reproduce.
    """
    if (folder / "modules.json").is_file():
        return _sentence_transformers(folder)
    configuration = read_json(folder / "configuration.json")
    if configuration is not None and configuration.get("task") == "sentence-embedding":
        return _modelscope(folder, configuration)
    return Conventions(encoder_folder=folder)


def _sentence_transformers(folder: Path) -> Conventions:
    path = folder / "modules.json"
    try:
        modules = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}. Download it again.") from None
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if tuple(kinds) not in (_MODULES[:2], _MODULES):
        raise CheckpointError(
            f"'{path}' lists the modules {', '.join(kinds) or 'none'}; corom exports Transformer, "
            "Pooling and optionally Normalize, in this order."
        )
    places = [_inside(folder, str(module.get("path") or "")) for module in modules]
    sentence = _sentence_config(places[0])
    if len(kinds) == 3:
        _refuse_other_vector(places[2] / "config.json")
    settings = read_json(folder / "config_sentence_transformers.json") or {}
    name = settings.get("default_prompt_name")
    return Conventions(
        encoder_folder=places[0],
        pooling=_pooling(places[1] / "config.json"),
        normalize=len(kinds) == 3,
        similarity=_similarity(folder, settings.get("similarity_fn_name")),
        max_length=_length(sentence.get("max_seq_length"), places[0]),
        prompts=_prompts(folder, settings.get("prompts")),
        default_prompt_name=name if isinstance(name, str) else None,
        lowercase=bool(sentence.get("do_lower_case")),
    )


def _modelscope(folder: Path, configuration: dict[str, Any]) -> Conventions:
    path = folder / "configuration.json"
    model = configuration.get("model")
    model = model if isinstance(model, dict) else {}
    preprocessor = configuration.get("preprocessor")
    preprocessor = preprocessor if isinstance(preprocessor, dict) else {}
    if "type" not in preprocessor and isinstance(preprocessor.get("val"), dict):
        preprocessor = preprocessor["val"]  # as ModelScope: "train" beside it is not for inference
    unsupported = [key for key in ("boq", "eoq", "bod", "eod") if preprocessor.get(key) is not None]
    if unsupported:
        raise CheckpointError(
            f"'{path}' asks for text or tokens around each sentence ({', '.join(unsupported)}), "
            "which corom does not do."
        )
    pooler = model.get("emb_pooler_type", "cls")
    if not isinstance(pooler, str) or pooler not in _MODELSCOPE_POOLINGS:
        raise CheckpointError(
            f"'{path}' has emb_pooler_type {pooler!r}, which corom does not export. "
            f"Supported: {', '.join(_MODELSCOPE_POOLINGS)}."
        )
    max_length = _length(preprocessor.get("max_length"), path)
    return Conventions(
        encoder_folder=folder,
        pooling=_MODELSCOPE_POOLINGS[pooler],
        normalize=bool(model.get("normalize", False)),
        similarity="dot",
        max_length=max_length or MODELSCOPE_MAX_LENGTH,
    )


def _pooling(path: Path) -> Pooling:
    """Read either schema: ``pooling_mode`` (one name or a list), or one boolean for each mode."""
    raw = read_json(path)
    if raw is None:
        raise CheckpointError(f"'{path}' is missing; modules.json names it. Download it again.")
    old = "pooling_mode_"
    modes = raw.get("pooling_mode")
    if modes is None:
        modes = [key.removeprefix(old) for key, on in raw.items() if key.startswith(old) and on]
        modes = [{"cls_token": "cls", "mean_tokens": "mean"}.get(mode, mode) for mode in modes]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise CheckpointError(
            f"'{path}' asks for the pooling {' + '.join(map(str, modes)) or 'none'}, which corom "
            f"does not export. Supported: {', '.join(get_args(Pooling))}."
        )
    if raw.get("include_prompt") is False:
        raise CheckpointError(
            f"'{path}' leaves prompts out of the pooling (include_prompt: false), which corom does "
            "not do."
        )
    return cast(Pooling, modes[0])


def completed(prompts: Mapping[str, str]) -> dict[str, str]:
    """Return prompts as sentence-transformers has them: queries and documents have one always.

    So neither gets the default prompt. The library asks for "document" before "passage", which is
    never reached then. Who names a prompt "passage" and none "document" means it for documents, so
    it is taken here.
    """
    return {"query": "", passage_prompt(prompts): "", **prompts}


def _prompts(folder: Path, prompts: object) -> dict[str, str]:
    try:
        return completed(msgspec.convert(prompts or {}, dict[str, str]))
    except msgspec.ValidationError as error:
        path = folder / "config_sentence_transformers.json"
        raise CheckpointError(f"'{path}' has prompts that are not text: {error}.") from None


def _refuse_other_vector(path: Path) -> None:
    """Refuse a Normalize module that scales anything but the sentence's vector."""
    settings = read_json(path) or {}
    vector = "sentence_embedding"
    for key, allowed in (("module_input_name", (vector,)), ("module_output_name", (vector, None))):
        value = settings.get(key, vector)
        if value not in allowed:
            raise CheckpointError(f"'{path}' has {key} {value!r}, which corom does not export.")


def _similarity(folder: Path, name: object) -> Similarity:
    if name is None:
        return "cosine"
    if name not in get_args(Similarity):
        raise CheckpointError(
            f"'{folder / 'config_sentence_transformers.json'}' has similarity_fn_name {name!r}; "
            f"supported: {', '.join(get_args(Similarity))}."
        )
    return cast(Similarity, name)


def _sentence_config(folder: Path) -> dict[str, Any]:
    """Return the settings of the Transformer module; refuses those that corom would not heed."""
    for kind in _SENTENCE_CONFIGS:
        path = folder / f"sentence_{kind}_config.json"
        if settings := read_json(path):
            _refuse_unheeded(settings, path)
            return settings
    return {}


def _refuse_unheeded(settings: dict[str, Any], path: Path) -> None:
    for key, value in settings.items():
        if not _is_heeded_or_without_effect(key, value):
            raise CheckpointError(
                f"'{path}' has {key} {value!r}, which corom does not reproduce. If the vectors do "
                "not depend on it, remove it from a copy of the checkpoint."
            )


def _is_heeded_or_without_effect(key: str, value: object) -> bool:
    if key in ("max_seq_length", "do_lower_case"):
        return True
    if key in _ARGUMENTS:
        return not value or (isinstance(value, dict) and set(value) <= _ARGUMENTS[key])
    return value in _WITHOUT_EFFECT.get(key, ())


def _length(value: object, path: Path) -> int | None:
    if value is None or (type(value) is int and value > 0):
        return value
    raise CheckpointError(f"'{path}' asks for a maximum length of {value!r} tokens.")


def _inside(folder: Path, path: str) -> Path:
    inner = folder / path
    if "\0" in path or not inner.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"modules.json names {path!r}, a path outside the checkpoint.")
    return inner
