"""transformers' own model on the same weights: what every exported variant is measured against.

Reads config.json with transformers' own classes, so that a field corom misreads shows up as a
difference instead of being misread twice.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from .checkpoint import Checkpoint
from .config import Architecture
from .errors import CheckpointError

Array = npt.NDArray[np.float32]

_CLASSES: dict[Architecture, tuple[Any, Any]] = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
}


class Reference:
    """transformers' float32 model with eager attention, loaded strictly, and the pooling."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config_class, model_class = _CLASSES[checkpoint.config.architecture]
        try:
            config = config_class.from_dict(
                dict(checkpoint.raw_config), attn_implementation="eager"
            )
        except Exception as error:  # whatever a value of the wrong kind leads to
            raise CheckpointError(f"transformers refuses config.json: {error}") from None
        self._model = model_class(config, add_pooling_layer=False).float().eval()
        self._model.load_state_dict(dict(checkpoint.state), strict=True)
        self._pooling = checkpoint.pooling
        self._pad = checkpoint.config.pad_token_id

    def vectors(self, token_ids: list[list[int]], *, batch_tokens: int = 8192) -> Array:
        """Return the un-normalized vectors (N, H) of N texts, in the order given.

        ``token_ids``: ids of each text, special tokens included. ``batch_tokens``: padded tokens
        in one forward pass.
        """
        vectors = np.empty((len(token_ids), self._model.config.hidden_size), np.float32)
        longest_first = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
        while longest_first:
            size = max(1, batch_tokens // max(1, len(token_ids[longest_first[0]])))
            rows, longest_first = longest_first[:size], longest_first[size:]
            vectors[rows] = self._pooled([token_ids[row] for row in rows])
        return vectors

    def hidden_states(
        self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]
    ) -> list[tuple[str, Array]]:
        """Return what each stage gives for a batch (B, S), in order, as (name, (B, S, H)).

        Names: ``embeddings``, then ``layer 0 attention``, ``layer 0 output``, and so on.
        """
        stages = {"embeddings": self._model.embeddings}
        for k, layer in enumerate(self._model.encoder.layer):
            stages[f"layer {k} attention"] = layer.attention.output
            stages[f"layer {k} output"] = layer.output
        seen: dict[str, Array] = {}

        def keep(name: str) -> Callable[[torch.nn.Module, object, torch.Tensor], None]:
            return lambda _module, _inputs, output: seen.update({name: output.numpy()})

        hooks = [module.register_forward_hook(keep(name)) for name, module in stages.items()]
        try:
            self._forward(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        finally:
            for hook in hooks:
                hook.remove()
        return [(name, seen[name]) for name in stages]

    def _pooled(self, batch: list[list[int]]) -> Array:
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), self._pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            mask[row, : len(tokens)] = 1
        hidden = self._forward(ids, mask)
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        else:
            kept = mask[:, :, None].float()
            pooled = (hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1e-9)
        array: Array = pooled.numpy()
        return array

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            output = self._model(input_ids=ids, attention_mask=mask)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden
