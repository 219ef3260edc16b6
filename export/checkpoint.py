"""A folder of files to a checked checkpoint: weights, shape, tokenizer and how to use them.

Reads only; nothing is downloaded, executed or left to chance. What the recipe says goes before
what the folder says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch

from corom.runtime.manifest import Pooling, Similarity

from .config import EncoderConfig, encoder_config, read_json
from .conventions import Conventions, completed, read_conventions
from .errors import CheckpointError
from .recipe import Recipe
from .sources import ResolvedSource
from .tokenizer import tokenizer_json
from .weights import canonical_state, read_weights, sha256_of_files, weight_files


@dataclass(frozen=True)
class Checkpoint:
    """A sentence encoder in torch, complete and checked.

    ``state``: float32 weights by the names of transformers' BertModel, without a prefix.
    ``raw_config``: config.json as it is, for the reference, which reads it with transformers' eyes.
    ``folder``: where config.json and the tokenizer's files lie.
    ``ignored_weights``: heads and buffers that the files hold and the encoder does not need.
    """

    folder: Path
    config: EncoderConfig
    raw_config: Mapping[str, Any]
    state: Mapping[str, torch.Tensor]
    ignored_weights: tuple[str, ...]
    pooling: Pooling
    normalize: bool
    similarity: Similarity
    max_length: int
    prompts: dict[str, str]
    default_prompt_name: str | None
    tokenizer_json: bytes
    weights_sha256: str
    license: str | None
    uri: str
    revision: str | None


def load_checkpoint(source: ResolvedSource, recipe: Recipe | None = None) -> Checkpoint:
    """Read the checkpoint in ``source.folder``, by ``recipe`` or else the source's own.

    Raises ``CheckpointError`` that names the file, what it holds and what is supported.
    """
    recipe = recipe or source.recipe or Recipe(source=source.uri)
    conventions = read_conventions(source.folder)
    folder = conventions.encoder_folder
    raw_config = _raw_config(source.folder, folder)
    config = encoder_config(raw_config, folder / "config.json")
    files = weight_files(folder)
    weights_sha256 = sha256_of_files(files)
    if recipe.weights_sha256 not in (None, weights_sha256):
        raise CheckpointError(
            f"the weights in '{folder}' have sha256 {weights_sha256}, but the recipe expects "
            f"{recipe.weights_sha256}. Download them again, or correct the recipe."
        )
    state, ignored = canonical_state(read_weights(files), config)
    tokenizer = tokenizer_json(folder, config)
    if conventions.lowercase:
        _refuse_outer_lowercase(tokenizer, folder)
    prompts = conventions.prompts
    if recipe.prompts:  # for a folder of sentence-transformers, which always has some
        prompts = completed(recipe.prompts) if prompts else recipe.prompts
    return Checkpoint(
        folder=folder,
        config=config,
        raw_config=raw_config,
        state=state,
        ignored_weights=ignored,
        pooling=_pooling(recipe, conventions),
        normalize=conventions.normalize if recipe.normalize is None else recipe.normalize,
        similarity=recipe.similarity or conventions.similarity,
        max_length=_max_length(recipe, conventions, config),
        prompts=prompts,
        default_prompt_name=_default_prompt(recipe, conventions, prompts),
        tokenizer_json=tokenizer,
        weights_sha256=weights_sha256,
        license=recipe.license,
        uri=source.uri,
        revision=source.revision,
    )


def _raw_config(folder: Path, encoder_folder: Path) -> dict[str, Any]:
    raw = read_json(encoder_folder / "config.json")
    if raw is None:
        raise CheckpointError(
            f"'{encoder_folder}' has no config.json, so it is not a checkpoint. Give the folder "
            "that holds config.json and the weights."
        )
    # ModelScope's loader takes the type from configuration.json, so config.json may lack it.
    model = (read_json(folder / "configuration.json") or {}).get("model")
    if "model_type" not in raw and isinstance(model, dict) and "type" in model:
        raw["model_type"] = model["type"]
    return raw


def _pooling(recipe: Recipe, conventions: Conventions) -> Pooling:
    pooling = recipe.pooling or conventions.pooling
    if pooling is None:
        raise CheckpointError(
            f"'{conventions.encoder_folder}' does not say how its token vectors become one "
            "sentence vector, and a guess would give wrong vectors. Look it up in the model's card "
            "and pass --pooling cls or --pooling mean."
        )
    return pooling


def _max_length(recipe: Recipe, conventions: Conventions, config: EncoderConfig) -> int:
    """Return the recipe's, else the folder's, else the tokenizer's or the positions' limit."""
    asked = conventions.max_length if recipe.max_length is None else recipe.max_length
    if asked is not None:
        if not 0 < asked <= config.max_positions:
            raise CheckpointError(
                f"max_length is {asked}; it must be 1 to {config.max_positions}, the positions "
                "that the model was trained with. Pass a smaller --max-length."
            )
        return asked
    settings = read_json(conventions.encoder_folder / "tokenizer_config.json") or {}
    limit = settings.get("model_max_length")
    # Tokenizers without a limit write 10^30 here.
    if isinstance(limit, int | float) and 0 < limit < config.max_positions:
        return int(limit)
    return config.max_positions


def _default_prompt(
    recipe: Recipe, conventions: Conventions, prompts: Mapping[str, str]
) -> str | None:
    name = recipe.default_prompt_name or conventions.default_prompt_name
    if name is not None and name not in prompts:
        raise CheckpointError(
            f"the default prompt is '{name}', but the prompts are: {', '.join(prompts) or 'none'}."
        )
    return name


def _refuse_outer_lowercase(tokenizer: bytes, folder: Path) -> None:
    """sentence-transformers can lower-case texts itself; only the tokenizer does that here."""
    normalizer = tokenizers.Tokenizer.from_buffer(tokenizer).normalizer
    # What it makes of letters, not of words: most vocabularies here know no word of capitals.
    letters = "CorÓm ÀB"
    made = [normalizer.normalize_str(t) if normalizer else t for t in (letters, letters.lower())]
    if made[0] != made[1]:
        raise CheckpointError(
            f"'{folder}' asks sentence-transformers to lower-case texts (do_lower_case) before a "
            "tokenizer that does not. Set lowercase in tokenizer.json instead."
        )
