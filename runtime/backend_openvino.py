"""OpenVINO: executes an ONNX graph on the CPU, in fp32, in int8, or in bf16 where the CPU can.

int8-per-token: weights have 8 bits in the graph, and OpenVINO gives what they multiply 8 bits as it
comes, with a scale for each token and ``GROUP`` of its values.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .batching import Batch, attention_mask
from .cache import cache_root
from .cpus import cpu_model, has_vnni
from .engine_cache import file_lock
from .errors import BundleError, UnavailableError, missing_extra
from .graph_interface import require_interface
from .manifest import Precision
from .native_weights import GROUP
from .snapping import snapped, snapped_sizes

WARM_TOKENS = 128
"""Texts up to here are prepared for when opening; for longer ones making code is a small part."""
_HINTS: dict[Precision, str] = {
    "fp32": "f32",
    "bf16": "bf16",
    "int8-per-token": "f32",
    "int8": "f32",
}
"""What is computed in where the graph does not say; unasked OpenVINO takes bf16 where it can."""

logger = logging.getLogger("corom")


class OpenVinoBackend:
    """One compiled model on the CPU; each thread that calls has an infer request of its own.

    ``content``: names what graph and weights hold, for the cache of compiled models. ``threads``:
    of each of ``workers`` executions at once. ``max_tokens``: those a text is cut to;
    ``max_positions``: those the model can take.

    Raises ``UnavailableError`` without the package, or for a precision that this CPU lacks.
    """

    # As for ONNX Runtime: what is larger leaves the nearest caches; benchmarks/README.md.
    batch_tokens = 512

    def __init__(
        self,
        graph: Path,
        content: str,
        dimension: int,
        threads: int,
        precision: Precision,
        max_tokens: int,
        max_positions: int,
        workers: int = 1,
    ) -> None:
        core = open_core()
        require_precision(core, precision)
        options = _options(precision, threads, workers)
        self._model = _compiled(core, graph, content, options)
        inputs = {item.get_any_name() for item in self._model.inputs}
        outputs = {item.get_any_name(): _last_dimension(item) for item in self._model.outputs}
        require_interface(graph, inputs, outputs, dimension)
        self._max_positions = max_positions
        self._idle: list[Any] = []
        for width in snapped_sizes(min(WARM_TOKENS, max_tokens)):
            size = min(width, max_positions)
            self.run(Batch(np.zeros((1, size), np.int64), np.array([size])))

    def run(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return the un-normalized vectors of a batch, (B, H)."""
        rows = len(batch.input_ids)
        batch = snapped(batch, self._max_positions)
        mask = attention_mask(batch.lengths, batch.input_ids.shape[1])
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        inputs = {"input_ids": batch.input_ids, "attention_mask": mask}
        outputs = request.infer(inputs, share_inputs=True, share_outputs=True)
        vectors: npt.NDArray[np.float32] = outputs[0][:rows].copy()
        self._idle.append(request)
        return vectors

    def close(self) -> None:
        """Drop the model."""
        self._idle.clear()
        del self._model


def open_core() -> Any:  # noqa: ANN401  # an optional package
    """Return OpenVINO's entry point; raises ``UnavailableError`` without the package."""
    try:
        with _unreported():
            import openvino
    except ModuleNotFoundError:
        raise missing_extra("openvino", "openvino", "backend 'openvino'") from None
    return openvino.Core()


@contextmanager
def _unreported() -> Iterator[None]:
    """Hide the package through which OpenVINO tells its makers that it was imported.

    They would be told by the network, and the process would not end before they are.
    """
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        yield
    finally:
        sys.modules.pop(name, None)  # another thread may have been faster


def require_precision(core: Any, precision: str) -> None:  # noqa: ANN401
    """Raise ``UnavailableError`` for a precision that this CPU would execute as another."""
    if precision == "int8-per-token" and not has_vnni():
        raise UnavailableError(
            f"this CPU ({cpu_model()}) has no VNNI, or does not tell: without it OpenVINO would "
            "execute int8-per-token in fp32. Take fp32 or int8."
        )
    found = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in found:
        raise UnavailableError(
            f"this CPU ({core.get_property('CPU', 'FULL_DEVICE_NAME')}) has no bf16: OpenVINO "
            f"finds {', '.join(found)}. Take fp32 or int8."
        )


def execute_once(
    model: bytes, feeds: Mapping[str, npt.NDArray[Any]], precision: Precision
) -> list[npt.NDArray[np.float32]]:
    """Return every output of an ONNX graph in memory, to look into what OpenVINO computes."""
    core = open_core()
    options = _options(precision, threads=1, workers=1)
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    return [np.array(output) for output in compiled(dict(feeds)).to_tuple()]


def _options(precision: Precision, threads: int, workers: int) -> dict[str, object]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": threads * workers,
        "NUM_STREAMS": workers,
        # Pinned threads of two processes end up on the same CPUs.
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if precision == "int8-per-token" else 0,
    }


def _compiled(core: Any, graph: Path, content: str, options: dict[str, object]) -> Any:  # noqa: ANN401
    """Return the graph compiled; what an earlier process compiled here is taken from the cache."""
    # By precision, which OpenVINO 2026.4 leaves out of its key: what was compiled for fp32 gives
    # NaN in bf16 on CPUs with AMX, or ends the process.
    name = f"{content}-{options['INFERENCE_PRECISION_HINT']}"
    folder = cache_root() / "openvino" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # OpenVINO writes into its cache in place: a second process must not read meanwhile.
        with file_lock(folder / "lock"):
            return _compile(core, graph, options | {"CACHE_DIR": str(folder)})
    except (OSError, ImportError) as error:  # no such folder can be made, or no locks (Windows)
        logger.info("compiled models are not kept: %s", error)
        return _compile(core, graph, options)


def _compile(core: Any, graph: Path, options: dict[str, object]) -> Any:  # noqa: ANN401
    try:
        model = core.compile_model(graph, "CPU", options)
    except RuntimeError as error:  # the only class of the library
        raise BundleError(f"OpenVINO cannot open '{graph}': {error}") from None
    found = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    if found != options["INFERENCE_PRECISION_HINT"]:
        asked = options["INFERENCE_PRECISION_HINT"]
        raise UnavailableError(f"OpenVINO computes in {found} on this CPU, not in {asked}.")
    return model


def _last_dimension(output: Any) -> object:  # noqa: ANN401
    shape = output.partial_shape
    fixed = shape.rank.is_static and len(shape) > 0 and shape[-1].is_static
    return shape[-1].get_length() if fixed else None
