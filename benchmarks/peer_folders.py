"""One checkpoint in the layouts that the peers read: sentence-transformers' and ModelScope's.

Written from the checked checkpoint, so that every peer gets the very same weights and vocabulary.
"""

import json
from pathlib import Path
from typing import Any

from corom.export.checkpoint import Checkpoint
from corom.runtime.errors import InputError

SPECIAL = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}


def peer_folders(checkpoint: Checkpoint, work: Path, max_length: int) -> dict[str, Path]:
    """Write the checkpoint in every layout below ``work`` and return the folders by layout."""
    if checkpoint.config.architecture != "bert":
        raise InputError(
            f"peers are compared on BERT encoders; this is {checkpoint.config.architecture}."
        )
    # A folder for each environment: what one version of transformers writes another cannot read.
    folders = {
        name: write_sentence_transformers(checkpoint, work / name, max_length)
        for name in ("torch", "onnx", "openvino")
    }
    return folders | {"modelscope": write_modelscope(checkpoint, work / "modelscope", max_length)}


def write_sentence_transformers(checkpoint: Checkpoint, folder: Path, max_length: int) -> Path:
    """Write the checkpoint as a sentence-transformers model, which optimum and fastembed read too.

    Without normalization: vectors come out as the encoder's pooling gives them.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(checkpoint.state), folder / "model.safetensors", {"format": "pt"})
    hidden = checkpoint.config.hidden
    pooling = {
        "word_embedding_dimension": hidden,
        "pooling_mode_cls_token": checkpoint.pooling == "cls",
        "pooling_mode_mean_tokens": checkpoint.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
    modules = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (kind, path) in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length})
    _write_transformers(checkpoint, folder, max_length)
    return folder


def write_modelscope(checkpoint: Checkpoint, folder: Path, max_length: int) -> Path:
    """Write the checkpoint as ModelScope keeps CoROM's."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    state = {f"bert.{name}": weight for name, weight in checkpoint.state.items()}
    torch.save(state, folder / "pytorch_model.bin")
    pooler = "cls" if checkpoint.pooling == "cls" else "avg"
    configuration = {
        "framework": "pytorch",
        "task": "sentence-embedding",
        "model": {"type": "bert", "emb_pooler_type": pooler},
        "pipeline": {"type": "sentence-embedding"},
    }
    _write(folder / "configuration.json", configuration)
    _write_transformers(checkpoint, folder, max_length)
    return folder


def _write_transformers(checkpoint: Checkpoint, folder: Path, max_length: int) -> None:
    config = dict(checkpoint.raw_config) | {"model_type": "bert", "architectures": ["BertModel"]}
    _write(folder / "config.json", config)
    tokenizer = json.loads(checkpoint.tokenizer_json)
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
    words: dict[str, int] = tokenizer["model"]["vocab"]
    by_id = sorted(words, key=words.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(by_id) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "do_lower_case": bool((tokenizer.get("normalizer") or {}).get("lowercase")),
    }
    _write(folder / "tokenizer_config.json", SPECIAL | settings)
    _write(folder / "special_tokens_map.json", SPECIAL)


def _write(path: Path, content: Any) -> None:  # noqa: ANN401
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
