"""The bundles that are measured: the demo's trained weights, and seeded ones in CoROM's shapes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from corom.runtime.errors import CoromError
from corom.runtime.sidecar import Flavour

SEED = 20_261_124


class Shape(NamedTuple):
    """The shape of a BERT encoder."""

    hidden: int
    layers: int
    heads: int


SHAPES = {"corom-tiny-random": Shape(256, 4, 4), "corom-base-random": Shape(768, 12, 12)}
"""CoROM's published shapes; the weights are random, the arithmetic is the same."""


def export(source: str, bundle: Path, flavours: tuple[Flavour, ...], pooling: str = "auto") -> None:
    """Run `corom export` in a process of its own, where torch's memory ends with it.

    Raises ``CoromError`` with the exporter's own words if it fails.
    """
    command = [sys.executable, "-c", "from corom.runtime.cli import main; main()", "export", source]
    command += ["-o", str(bundle), "--precision", "fp16", "--pooling", pooling, "--overwrite"]
    for flavour in flavours:
        command += ["--engine", flavour]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise CoromError(f"corom export {source} ended with {result.returncode}: {result.stderr}")


def random_checkpoint(folder: Path, shape: Shape, demo_bundle: Path) -> Path:
    """Write a checkpoint of this shape with seeded random weights and the demo's vocabulary."""
    import torch
    import transformers

    words = json.loads((demo_bundle / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
    )
    torch.manual_seed(SEED)
    model = transformers.BertModel(config, add_pooling_layer=False)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    by_id = sorted(words, key=lambda word: int(words[word]))
    (folder / "vocab.txt").write_text("\n".join(by_id) + "\n", "utf-8")
    return folder


def demo_checkpoint() -> Path | None:
    """Return the folder of the demo's weights for transformers, or None without the exporter."""
    try:
        from corom.export.sources import resolve_source
    except ImportError:
        return None
    return resolve_source("demo").folder
