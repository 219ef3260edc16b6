"""The roads from text to vector that are compared: corom's own and torch's, on the same ids.

Every road takes padded batches, so that tokenizing and padding cost each the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from corom.runtime.backend_onnxruntime_cuda import OnnxRuntimeCudaBackend
from corom.runtime.batching import Batch, pad
from corom.runtime.errors import CoromError
from corom.runtime.manifest import Manifest, checked_file, load_manifest
from corom.runtime.open_tensorrt import open_tensorrt
from corom.runtime.tokens import Tokenizer
from corom.runtime.vectors import Vectors

from .gpu_checks import require_torch_cuda

Run = Callable[[Batch], Vectors]


class Road(NamedTuple):
    """One way to execute a batch; ``missing`` says why it is not there."""

    name: str
    run: Run | None
    missing: str | None


def tokenizer_of(bundle: Path, manifest: Manifest) -> Tokenizer:
    """Return the tokenizer of a bundle."""
    content = checked_file(bundle, manifest.entry("tokenizer.json")).read_bytes()
    return Tokenizer(content, manifest.max_length, manifest.max_positions)


def batch_of(tokenizer: Tokenizer, texts: list[str]) -> Batch:
    """Return the padded batch of these texts, longest first."""
    tokens = tokenizer(texts)
    return pad(tokens, np.argsort(-tokens.lengths, kind="stable"))


@contextmanager
def open_roads(bundle: Path, checkpoint: Path | None) -> Iterator[list[Road]]:
    """Open every road that can run here; ``checkpoint``: a transformers folder for torch's."""
    manifest = load_manifest(bundle)
    fp16 = manifest.variant("fp16") or manifest.variants[0]
    graph = checked_file(bundle, manifest.entry(fp16.file))
    openers: dict[str, Callable[[], Any]] = {
        "corom tensorrt": lambda: open_tensorrt(bundle, manifest, "fp16"),
        "corom tensorrt, no CUDA graphs": lambda: open_tensorrt(
            bundle, manifest, "fp16", graphs=False
        ),
        "onnxruntime CUDA": lambda: OnnxRuntimeCudaBackend(graph, manifest.dimension, 1),
        "onnxruntime CUDA, CUDA graphs": lambda: OnnxRuntimeCudaBackend(
            graph, manifest.dimension, 1, cuda_graphs=True
        ),
    }
    with ExitStack() as stack:
        roads = []
        for name, opener in openers.items():
            try:
                backend = opener()
            except CoromError as error:
                roads.append(Road(name, None, str(error)))
            else:
                stack.callback(backend.close)
                roads.append(Road(name, backend.run, None))
        roads += [torch_road(checkpoint, compiled=compiled) for compiled in (False, True)]
        yield roads


def torch_road(checkpoint: Path | None, *, compiled: bool) -> Road:
    """Return transformers' model in fp16, plain or by torch.compile(mode="reduce-overhead")."""
    name = "torch.compile reduce-overhead fp16" if compiled else "torch eager fp16"
    if checkpoint is None:
        return Road(name, None, "no checkpoint folder")
    try:
        torch = require_torch_cuda()
        import transformers

        model: Any = transformers.AutoModel.from_pretrained(
            checkpoint, add_pooling_layer=False, local_files_only=True
        )
        model = model.half().cuda().eval()
        if compiled:
            model = torch.compile(model, mode="reduce-overhead", dynamic=False)
    except (CoromError, ImportError, OSError, ValueError) as error:
        return Road(name, None, str(error))

    def run(batch: Batch) -> Vectors:
        rows, width = batch.input_ids.shape
        # Multiples of 16: a compiled model is compiled anew for each shape.
        wide = np.zeros((rows, -(-width // 16) * 16), np.int64)
        wide[:, :width] = batch.input_ids
        mask = np.arange(wide.shape[1]) < batch.lengths[:, None]
        with torch.inference_mode():
            ids = torch.from_numpy(wide).cuda(non_blocking=True)
            kept = torch.from_numpy(mask.astype(np.int64)).cuda(non_blocking=True)
            hidden = model(input_ids=ids, attention_mask=kept).last_hidden_state
            vectors: Vectors = hidden[:, 0].float().cpu().numpy()
        return vectors

    return Road(name, run, None)
