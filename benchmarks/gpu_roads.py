"""The roads from text to vector that are compared: corom's own and torch's, on the same ids.

Every road takes padded batches, so that tokenizing and padding cost each the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corom.runtime.backend import open_backend
from corom.runtime.backend_onnxruntime_cuda import OnnxRuntimeCudaBackend
from corom.runtime.batching import Batch, attention_mask, pad
from corom.runtime.encoder import Encoder
from corom.runtime.errors import CoromError
from corom.runtime.manifest import Manifest, checked_file, load_manifest
from corom.runtime.tokens import Tokenizer
from corom.runtime.vectors import Vectors

from .gpu_checks import require_torch_cuda

Run = Callable[[Batch], Vectors]
ON_GPU = ("tensorrt", "onnxruntime")
"""The backends that run on a GPU."""
RECOMPILE_LIMIT = 256
"""Shapes that torch.compile keeps; beyond its default of 8 it falls back to eager, silently."""


class Road(NamedTuple):
    """One way to execute a batch; ``missing`` says why it is not there."""

    name: str
    run: Run | None
    missing: str | None
    encode: Callable[[list[str]], Vectors] | None = None
    """Texts to vectors by ``Encoder.encode``, where this road is one that users have."""
    compiles: bool = False
    """Whether each new shape takes seconds before it is executed."""


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
        "portable graph": partial(OnnxRuntimeCudaBackend, graph, manifest.dimension, 1),
        "portable graph, CUDA graphs": partial(
            OnnxRuntimeCudaBackend, graph, manifest.dimension, 1, cuda_graphs=True
        ),
    }
    for backend in ON_GPU:
        opened = partial(open_backend, backend, "cuda", bundle, manifest, fp16, threads=1)
        openers[f"corom {backend}"] = opened
        openers[f"corom {backend}, no CUDA graphs"] = partial(opened, cuda_graphs=False)
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
        roads += [_encoder_road(bundle, name, stack) for name in ON_GPU]
        roads += [torch_road(checkpoint, compiled=compiled) for compiled in (False, True)]
        yield roads


def _encoder_road(bundle: Path, backend: str, stack: ExitStack) -> Road:
    """Return ``Encoder.encode`` as users call it, whatever it adds or overlaps included."""
    name = f"Encoder.encode, {backend}"
    try:
        encoder = Encoder(bundle, backend=backend, device="cuda", precision="fp16")
    except CoromError as error:
        return Road(name, None, str(error))
    stack.callback(encoder.close)
    return Road(name, None, None, encoder.encode)


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
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            model = torch.compile(model, mode="reduce-overhead", dynamic=False)
    except (CoromError, ImportError, OSError, ValueError) as error:
        return Road(name, None, str(error))

    def run(batch: Batch) -> Vectors:
        ids, mask = few_shapes(batch) if compiled else (batch.input_ids, mask_of(batch))
        with torch.inference_mode():
            there = torch.from_numpy(ids).cuda(non_blocking=True)
            kept = torch.from_numpy(mask).cuda(non_blocking=True)
            hidden = model(input_ids=there, attention_mask=kept).last_hidden_state
            vectors: Vectors = hidden[: len(batch.lengths), 0].float().cpu().numpy()
        return vectors

    return Road(name, run, None, compiles=compiled)


def few_shapes(batch: Batch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return ids and mask padded to a multiple of 16 tokens and a power of two rows.

    A compiled model is compiled anew for each shape.
    """
    rows, width = batch.input_ids.shape
    ids = np.zeros((1 << (rows - 1).bit_length(), -(-width // 16) * 16), np.int64)
    ids[:rows, :width] = batch.input_ids
    mask = np.ones_like(ids)
    mask[:rows] = np.arange(ids.shape[1]) < batch.lengths[:, None]
    return ids, mask


def mask_of(batch: Batch) -> npt.NDArray[np.int64]:
    """Return the mask (B, S) of a batch."""
    return attention_mask(batch.lengths, batch.input_ids.shape[1])
