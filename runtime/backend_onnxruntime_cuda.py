"""ONNX Runtime on the GPU: executes a portable graph by its CUDA provider, or says why it cannot.

For what has no fused graph: fp32, and bundles made before there was one. Its CUDA graphs are
captured per shape, so with them batches are padded to buckets.
"""

import logging
import threading
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backend_onnxruntime import open_session
from .batching import Batch, attention_mask
from .errors import UnavailableError
from .onnx_runtime import onnxruntime
from .shapes import Bucket, Buckets
from .sidecar import Profile

PROVIDER, DEVICE = "CUDAExecutionProvider", "cuda"
PROFILES = (Profile(name="any", batch=(1, 64, 512), length=(1, 64, 512)),)
"""Shapes of the CUDA graphs; longer texts run without."""

INSTALL = (
    "pip install 'corom[gpu]' && pip uninstall -y onnxruntime onnxruntime-gpu && "
    "pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
"""The CPU's ONNX Runtime, which corom brings, and the GPU's share a folder: the last one stays."""

logger = logging.getLogger("corom")


class OnnxRuntimeCudaBackend:
    """One session on the GPU, shared by all threads. Inputs and outputs are bound, not fed.

    ``cuda_graphs``: capture one graph a bucket; requests then run one at a time, because the
    library's replay is not thread-safe. Raises ``UnavailableError`` if the provider is not active.
    """

    batch_tokens = 16384

    def __init__(
        self,
        graph: Path,
        dimension: int,
        threads: int,
        *,
        device_id: int = 0,
        cuda_graphs: bool = False,
    ) -> None:
        require_cuda_provider()
        load_cuda_libraries()
        # Unasked, fp32 would be multiplied as TF32, of ten bits, where the GPU can.
        chosen = {
            "device_id": str(device_id),
            "enable_cuda_graph": str(int(cuda_graphs)),
            "use_tf32": "0",
        }
        self._session = open_session(graph, dimension, threads, [(PROVIDER, chosen)])
        require_started(self._session)
        self._device_id = device_id
        self._buckets = Buckets(PROFILES) if cuda_graphs else None
        self._bound: dict[Bucket, Any] = {}
        self._lock = threading.Lock()

    def run(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return the un-normalized vectors of a batch, (B, H)."""
        rows, width = batch.input_ids.shape
        if self._buckets is not None and rows <= 512 and width <= 512:
            with self._lock:
                return self._replay(batch, self._buckets.fit(rows, width))
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(batch.input_ids))
        binding.bind_cpu_input("attention_mask", attention_mask(batch.lengths, width))
        binding.bind_output("sentence_embedding", "cpu")
        options = onnxruntime.RunOptions()
        if self._buckets is not None:
            options.add_run_config_entry("gpu_graph_id", "-1")  # no capture
        self._session.run_with_iobinding(binding, options)
        vectors: npt.NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return vectors

    def close(self) -> None:
        """Drop the session."""
        self._bound.clear()
        del self._session

    def _replay(self, batch: Batch, bucket: Bucket) -> npt.NDArray[np.float32]:
        if bucket not in self._bound:
            self._bound[bucket] = self._bind(bucket, len(self._bound) + 1)
        binding, options, ids, mask = self._bound[bucket]
        rows, width = batch.input_ids.shape
        padded = np.zeros((bucket.rows, bucket.width), np.int64)
        padded[:rows, :width] = batch.input_ids
        lengths = np.ones(bucket.rows, np.int64)
        lengths[:rows] = batch.lengths
        ids.update_inplace(padded)
        mask.update_inplace(attention_mask(lengths, bucket.width))
        self._session.run_with_iobinding(binding, options)
        vectors: npt.NDArray[np.float32] = binding.copy_outputs_to_cpu()[0][:rows]
        return vectors

    def _bind(self, bucket: Bucket, graph_id: int) -> Any:  # noqa: ANN401  # of untyped objects
        """Return a binding to memory of its own, which a captured graph needs."""
        shape = (bucket.rows, bucket.width)
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        ids = make(shape, np.int64, DEVICE, self._device_id)
        mask = make(shape, np.int64, DEVICE, self._device_id)
        dimension = self._session.get_outputs()[0].shape[-1]
        vectors = make((bucket.rows, dimension), np.float32, DEVICE, self._device_id)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("attention_mask", mask)
        binding.bind_ortvalue_output("sentence_embedding", vectors)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        return binding, options, ids, mask


def require_started(session: onnxruntime.InferenceSession) -> None:
    """Raise ``UnavailableError`` unless a session executes by the CUDA provider."""
    found = session.get_providers()
    if not found or found[0] != PROVIDER:
        raise UnavailableError(
            f"ONNX Runtime did not start {PROVIDER}: found the providers {found}. Its CUDA and "
            f"cuDNN libraries must match onnxruntime-gpu. Run: {INSTALL}, or use --device cpu."
        )


def require_cuda_provider() -> None:
    """Raise ``UnavailableError`` unless the installed ONNX Runtime was built for CUDA."""
    found = onnxruntime.get_available_providers()
    if PROVIDER not in found:
        raise UnavailableError(
            f"the installed ONNX Runtime has no {PROVIDER}: found {found}. Run: {INSTALL}"
        )


@cache
def load_cuda_libraries() -> None:
    """Load the CUDA libraries that pip has installed, which ONNX Runtime does not look for."""
    words = StringIO()
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with redirect_stdout(words):  # results are on standard output
            onnxruntime.preload_dlls()
    if words.getvalue():
        logger.info("ONNX Runtime: %s", words.getvalue().strip())
