"""The seam between batches and what executes them, and the table of backends that fill it."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from .batching import Batch
from .cpus import int8_saturates
from .engine_cache import EngineCache
from .errors import InputError, UnavailableError
from .graph_interface import FUSED_GRAPH
from .manifest import Manifest, Precision, Variant, checked_file
from .native_weights import load_native_weights
from .preemption import Preemption


class Backend(Protocol):
    """Executes batches. ``run`` may be called by several threads at once."""

    batch_tokens: int
    """Padded tokens of a batch beyond which more rows make it no faster."""

    def run(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return the un-normalized vectors of a batch, (B, H), owned by the caller."""
        ...

    def close(self) -> None:
        """Release what the backend holds; ``run`` must not be called afterwards."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A backend that executes one batch while the next is made."""

    def stream(self, batches: Iterable[Batch]) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the vectors of each batch, in order."""
        ...


@runtime_checkable
class Warming(Protocol):
    """A backend that keeps something for each shape, in more than one place."""

    def warm(self, batch: Batch) -> None:
        """Execute a batch until all that is kept for its shape is there."""
        ...


@runtime_checkable
class Sharing(Backend, Protocol):
    """A backend whose model others can execute too, also in the middle of a batch."""

    def run(self, batch: Batch, preemption: Preemption | None = None) -> npt.NDArray[np.float32]:
        """Return a batch's vectors as ``Backend`` does; ``preemption`` may put it aside.

        In the middle of it the same thread may call this again, once at a time.
        """
        ...

    def with_threads(self, threads: int) -> Backend:
        """Return another backend on the same model, of so many threads for one execution."""
        ...


BACKENDS = {
    "tensorrt": ("cuda",),
    "native": ("cpu",),
    "onnxruntime": ("cuda", "cpu"),
    "openvino": ("cpu",),
}
"""Backend names and the devices each runs on; "auto" tries them in this order on each device."""
EXECUTES: dict[str, tuple[Precision, ...]] = {
    "tensorrt": ("fp32", "fp16"),
    "native": ("fp32", "bf16", "int8-per-token"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8-per-token", "int8"),
}
"""The precisions that each backend executes as such."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def pairs(precision: str = "auto") -> list[tuple[str, str]]:
    """Return every backend with every device it runs on, in the order "auto" tries them.

    The GPU goes before the CPU. int8 is OpenVINO's first, but for processors without VNNI, where
    ONNX Runtime is twice as fast.
    """
    found = [(name, device) for name, devices in BACKENDS.items() for device in devices]
    found.sort(key=lambda pair: pair[1] == "cpu")
    if precision == "int8" and not int8_saturates():
        found.sort(key=lambda pair: pair == ("onnxruntime", "cpu"))
    return found


def require_execution(backend: str, precision: Precision) -> None:
    """Raise ``UnavailableError`` unless the backend executes this precision as such."""
    if precision not in EXECUTES[backend]:
        others = [name for name, executed in EXECUTES.items() if precision in executed]
        raise UnavailableError(
            f"backend '{backend}' executes {', '.join(EXECUTES[backend])}, not {precision}. "
            f"{precision} is executed by: {', '.join(others)}."
        )


def choose_backend(
    backend: str,
    device: str,
    why_not: Callable[[str, str], str | None],
    precision: str = "auto",
) -> tuple[str, str]:
    """Return the backend and device to use; raises ``InputError`` for a name that does not exist.

    "auto" is the first that can run here: ``why_not`` gives None for a backend and device that can,
    else the reason. What is asked for by name is taken as it is, so that opening it says what is
    missing. Raises ``UnavailableError`` with every reason if nothing can run, and for a precision
    that the backend asked for does not execute.
    """
    if precision not in {"auto", *PRECISIONS}:
        raise InputError(
            f"there is no precision '{precision}'. Precisions: auto, {', '.join(PRECISIONS)}."
        )
    names = list(BACKENDS) if backend == "auto" else [backend]
    for name in names:
        if name not in BACKENDS:
            raise InputError(
                f"there is no backend '{name}'. Backends: auto, {', '.join(BACKENDS)}."
            )
    wanted = [(name, d) for name, d in pairs(precision) if name in names and device in {"auto", d}]
    if not wanted:
        devices = sorted({d for name in names for d in BACKENDS[name]})
        raise InputError(
            f"backend '{backend}' does not run on device '{device}', only on: {devices}."
        )
    if backend != "auto" and precision in PRECISIONS:
        require_execution(backend, precision)
    if len(wanted) == 1:
        return wanted[0]
    reasons = []
    for name, candidate in wanted:
        reason = why_not(name, candidate)
        if reason is None:
            return name, candidate
        reasons.append(f"{name} on {candidate}: {reason}")
    raise UnavailableError("\n".join([f"nothing can run on device '{device}' here.", *reasons]))


def choose_variant(
    manifest: Manifest, precision: str, backend: str = "onnxruntime", device: str = "cpu"
) -> Variant:
    """Return the variant to execute; "auto" takes the most exact one that the backend executes.

    On a GPU "auto" is fp16 where the bundle has it: engines are built for it and operators fused.

    Raises ``UnavailableError`` if the bundle has no variant of the precision asked for.
    """
    if precision == "auto":
        half = manifest.variant("fp16") if device == "cuda" else None
        executed = EXECUTES.get(backend, PRECISIONS)
        return half or next(
            (v for v in manifest.variants if v.precision in executed), manifest.variants[0]
        )
    for variant in manifest.variants:
        if variant.precision == precision:
            return variant
    present = ", ".join(v.precision for v in manifest.variants)
    raise UnavailableError(
        f"bundle '{manifest.name}' has no variant of precision '{precision}'; it has: {present}. "
        f"Export it again, from what it was made of ({manifest.source.uri}): "
        f"corom export SOURCE -o NEW_BUNDLE --precision {precision}"
    )


def open_backend(
    name: str,
    device: str,
    bundle: Path,
    manifest: Manifest,
    variant: Variant,
    threads: int,
    engine_cache: EngineCache = "off",
    cuda_graphs: bool | None = None,
    workers: int | None = None,
) -> Backend:
    """Open a backend on a variant, after the hashes of its files are found to be as recorded.

    ``cuda_graphs``: None does as the backend does best. ``workers``: calls of ``run`` at once, each
    with ``threads`` CPU threads; None is one.

    Raises ``BundleError`` for a missing or altered file, ``UnavailableError`` for what is not here,
    and ``InputError`` for CUDA graphs on a CPU and for workers on a GPU.
    """
    if workers is not None and device == "cuda":
        raise InputError(f"workers is for device 'cpu'; {name} runs on '{device}' here.")
    if cuda_graphs is not None and device != "cuda":
        raise InputError(f"cuda_graphs is for device 'cuda'; {name} runs on '{device}' here.")
    require_execution(name, variant.precision)
    # Imported late: an import alone takes longer than the rest of corom.runtime together.
    if name == "tensorrt":
        from .backend_tensorrt import open_tensorrt

        return open_tensorrt(
            bundle, manifest, variant.precision, engine_cache, graphs=cuda_graphs is not False
        )
    if name == "native":
        from .backend_native import NativeBackend
        from .native_library import NativeEncoder

        weights = load_native_weights(bundle, manifest)
        encoder = NativeEncoder(weights, variant.precision, manifest.pooling)
        return NativeBackend(encoder, threads, workers=workers or 1)
    fused = device == "cuda" and variant.precision == "fp16" and manifest.has(FUSED_GRAPH)
    entries = manifest.graph_entries(FUSED_GRAPH if fused else variant.file)
    graph, *_ = [checked_file(bundle, entry) for entry in entries]
    if fused:
        from .engine_onnxruntime import open_fused

        return open_fused(
            graph, manifest.dimension, manifest.max_positions, graphs=cuda_graphs is not False
        )
    if device == "cuda":
        from .backend_onnxruntime_cuda import OnnxRuntimeCudaBackend

        return OnnxRuntimeCudaBackend(
            graph, manifest.dimension, threads, cuda_graphs=cuda_graphs is True
        )
    if name == "openvino":
        from .backend_openvino import OpenVinoBackend

        return OpenVinoBackend(
            graph,
            "-".join(entry.sha256[:16] for entry in entries),
            manifest.dimension,
            threads,
            variant.precision,
            workers=workers or 1,
            max_tokens=manifest.max_length,
            max_positions=manifest.max_positions,
        )
    from .backend_onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(graph, manifest.dimension, threads)
