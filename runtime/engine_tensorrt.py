"""TensorRT's own: an engine file to executions. `tensorrt` and `tensorrt_rtx` by one code path.

Only the API that is addressed by tensor names, which TensorRT 10, 11 and RTX share.
"""

import hashlib
import logging
from collections import deque
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from .cuda import Device
from .engine import Addresses
from .errors import BundleError, DeviceMemoryError, EngineError, missing_extra
from .gpu_machine import DISTRIBUTIONS
from .shapes import Bucket
from .sidecar import Flavour, Sidecar

IDS, LENGTHS, VECTORS = "input_ids", "lengths", "sentence_embedding"

logger = logging.getLogger("corom")


def import_tensorrt(flavour: Flavour) -> Any:  # noqa: ANN401  # the bindings have no types
    """Import the module of a flavour; the error says what is missing and how to get it."""
    name = DISTRIBUTIONS[flavour][0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise _unloadable(flavour, error) from None
        raise missing_extra(name, flavour, f"an engine of kind {flavour}") from None
    except (ImportError, OSError, RuntimeError) as error:
        raise _unloadable(flavour, error) from None


def _unloadable(flavour: Flavour, error: Exception) -> EngineError:
    package = DISTRIBUTIONS[flavour][0]
    return EngineError(
        f"{package} is installed but its libraries cannot be loaded: {error}. Run: pip install "
        f"--force-reinstall {package}, or put the folder of libnvinfer into LD_LIBRARY_PATH."
    )


@cache
def tensorrt_log(flavour: Flavour) -> Any:  # noqa: ANN401
    """Return the one logger of a flavour: TensorRT keeps the first it is given, for ever.

    Its method ``explain`` returns the errors logged since the last call.
    """
    trt = import_tensorrt(flavour)

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]  # its base is found at run time
        """Keeps errors for the exception that follows; passes the rest to logging."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=4)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            """Take a message from TensorRT."""
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self._errors.append(message)
            logger.debug("%s: %s", flavour, message)

        def explain(self) -> str:
            """Return the errors logged since the last call."""
            text = " · ".join(self._errors)
            self._errors.clear()
            return text or "TensorRT gives no reason"

    return Log()


class TensorRTEngine:
    """An engine file opened by TensorRT. Raises ``EngineError`` with TensorRT's own words.

    ``sidecar`` has been compared with this machine. The file is opened only if its sha256 is the
    sidecar's, because an engine holds code.
    """

    def __init__(self, path: Path, sidecar: Sidecar, device: Device) -> None:
        plan = _checked_plan(path, sidecar)
        self._trt = trt = import_tensorrt(sidecar.flavour)
        self._log = tensorrt_log(sidecar.flavour)
        self._device = device
        with device.use():
            self._runtime = runtime = trt.Runtime(self._log)
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise _failure(f"'{path}' cannot be opened", self._log.explain())
        self._engine = engine
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        if sorted(names) != sorted([IDS, LENGTHS, VECTORS]):
            raise EngineError(
                f"'{path}' has the tensors {names}, expected {[IDS, LENGTHS, VECTORS]}. "
                "Build it with: corom export … --engine"
            )
        self.dimension = int(engine.get_tensor_shape(VECTORS)[-1])
        self.profiles = sidecar.profiles
        found = [self._ranges(k) for k in range(engine.num_optimization_profiles)]
        expected = [(profile.batch, profile.length) for profile in sidecar.profiles]
        if found != expected:
            raise EngineError(
                f"the profiles of '{path}' are {found}, its sidecar says {expected}. "
                "Build it again."
            )

    def prepare(self, bucket: Bucket, stream: int) -> "TensorRTExecution":
        """Return a new execution of a bucket."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise _failure("an execution context cannot be made", self._log.explain())
        _accepted(
            context.set_optimization_profile_async(bucket.profile, stream),
            f"profile {bucket.profile}",
            self._log,
        )
        self._device.synchronize(stream)
        return TensorRTExecution(context, bucket, self._log)

    def close(self) -> None:
        """Release the engine."""
        del self._engine, self._runtime

    def _ranges(self, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (min, opt, max) of rows and of tokens."""
        shapes = self._engine.get_tensor_profile_shape(IDS, profile)
        rows, widths = zip(*(tuple(shape) for shape in shapes), strict=True)
        return tuple(rows), tuple(widths)


class TensorRTExecution:
    """An execution context at one shape."""

    def __init__(self, context: Any, bucket: Bucket, log: Any) -> None:  # noqa: ANN401
        self._context, self._log = context, log
        shapes = {IDS: (bucket.rows, bucket.width), LENGTHS: (bucket.rows,)}
        for name, shape in shapes.items():
            _accepted(context.set_input_shape(name, shape), f"shape {shape} of {name}", log)
        if missing := context.infer_shapes():
            raise EngineError(f"the engine does not derive its shapes: {missing} stay unknown.")
        self.scratch_bytes = int(context.update_device_memory_size_for_shapes())

    def bind(self, addresses: Addresses) -> None:
        """Set where inputs, outputs and scratch lie."""
        context, log = self._context, self._log
        for name, address in (
            (IDS, addresses.ids),
            (LENGTHS, addresses.lengths),
            (VECTORS, addresses.vectors),
        ):
            _accepted(context.set_tensor_address(name, address), f"address of {name}", log)
        context.set_device_memory(addresses.scratch, addresses.scratch_bytes)

    def enqueue(self, stream: int) -> None:
        """Begin to execute on a stream."""
        # It gives False instead of raising.
        _accepted(self._context.execute_async_v3(stream), "this execution", self._log)

    def close(self) -> None:
        """Release the context."""
        del self._context


def _checked_plan(path: Path, sidecar: Sidecar) -> bytes:
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise BundleError(f"'{path}' cannot be read: {error.strerror}.") from None
    found = hashlib.sha256(plan).hexdigest()
    if found != sidecar.engine_sha256:
        raise BundleError(
            f"'{path}' was altered or cut short: found sha256 {found}, expected "
            f"{sidecar.engine_sha256}. Copy it anew, or build it again with --rebuild."
        )
    return plan


def _accepted(accepted: bool, what: str, log: Any) -> None:  # noqa: ANN401
    if not accepted:
        raise _failure(f"TensorRT refuses {what}", log.explain())


def _failure(what: str, reason: str) -> EngineError | DeviceMemoryError:
    if "out of memory" in reason.lower() or "outofmemory" in reason.lower():
        return DeviceMemoryError(f"{what}: the device has too little free memory. {reason}")
    return EngineError(f"{what}: {reason}.")
