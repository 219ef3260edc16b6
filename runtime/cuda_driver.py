"""The device by cuda-bindings alone: NVIDIA's own bindings, wheels, no compiler needed."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from cuda.bindings import driver

from .cuda import Adapter
from .errors import CudaError, DeviceMemoryError, UnavailableError
from .garbage import uncollected
from .packing import Bytes

FATAL = frozenset({46, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721})
"""CUresult codes after which the context, so the process, cannot use the device any more."""
OUT_OF_MEMORY = 2
_NON_BLOCKING = 1

# One at a time in a process, so that the garbage collector is switched off and on in pairs.
_capture_lock = threading.Lock()


def call(name: str, *arguments: object) -> Any:  # noqa: ANN401  # what the call returns
    """Call a driver function; return its results without the status, or raise ``CudaError``."""
    code, *results = getattr(driver, name)(*arguments)
    if code:
        raise cuda_error(name, int(code))
    return results[0] if len(results) == 1 else tuple(results)


def cuda_error(name: str, code: int) -> CudaError:
    """Return the error for a call that gave a status code."""
    label = driver.CUresult(code).name if code in list(driver.CUresult) else f"CUDA error {code}"
    message = f"{name} failed: {label} ({code})."
    if code == OUT_OF_MEMORY:
        return DeviceMemoryError(
            f"{message} The device has too little free memory: use smaller batches "
            "(max_batch_tokens), or end other programs on this GPU (nvidia-smi lists them)."
        )
    return CudaError(message, fatal=code in FATAL)


class DriverDevice:
    """A GPU's primary context, so that torch, CuPy and others share it, by cuda-bindings."""

    adapter: Adapter = "cuda-bindings"

    def __init__(self, ordinal: int = 0) -> None:
        initialize()
        self._device = call("cuDeviceGet", ordinal)
        self._context = call("cuDevicePrimaryCtxRetain", self._device)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Make the context this thread's current one, and put back what was."""
        call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")

    def stream(self) -> int:
        """Return a new stream that does not wait for the legacy default stream."""
        return int(call("cuStreamCreate", _NON_BLOCKING))

    def free_stream(self, stream: int) -> None:
        """Destroy a stream."""
        call("cuStreamDestroy", stream)

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes of device memory."""
        return int(call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        """Free device memory."""
        call("cuMemFree", address)

    def pinned(self, size: int) -> Bytes:
        """Return page-locked host memory, (size,) bytes."""
        address = int(call("cuMemHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, block: Bytes) -> None:
        """Free page-locked memory."""
        call("cuMemFreeHost", block.ctypes.data)

    def copy_in(self, address: int, block: Bytes, stream: int) -> None:
        """Begin to copy a page-locked block to the device."""
        call("cuMemcpyHtoDAsync", address, block.ctypes.data, block.nbytes, stream)

    def copy_out(self, block: Bytes, address: int, stream: int) -> None:
        """Begin to copy from the device into a page-locked block."""
        call("cuMemcpyDtoHAsync", block.ctypes.data, address, block.nbytes, stream)

    def synchronize(self, stream: int) -> None:
        """Wait, without the GIL, until all work of the stream has ended."""
        call("cuStreamSynchronize", stream)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Return an executable graph of what ``work`` enqueues on the stream."""
        # A collected owner of device memory frees it, and a free during capture makes it invalid.
        with _capture_lock, uncollected():
            call("cuStreamBeginCapture", stream, _thread_local())
            try:
                work()
            except BaseException:
                # Ends the capture; what it gives is useless, and so may be its status.
                _, graph = driver.cuStreamEndCapture(stream)
                if graph:
                    driver.cuGraphDestroy(graph)
                raise
            graph = call("cuStreamEndCapture", stream)
        try:
            return int(call("cuGraphInstantiate", graph, 0))
        finally:
            call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Begin to execute a graph."""
        call("cuGraphLaunch", graph, stream)

    def free_graph(self, graph: int) -> None:
        """Destroy a graph."""
        call("cuGraphExecDestroy", graph)

    def free_memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of device memory."""
        free, total = call("cuMemGetInfo")
        return int(free), int(total)

    def close(self) -> None:
        """Give the primary context back."""
        call("cuDevicePrimaryCtxRelease", self._device)


def initialize() -> None:
    """Initialize the driver; raises ``UnavailableError`` if there is none or it has no GPU."""
    try:
        call("cuInit", 0)
    except RuntimeError as error:  # what cuda-bindings raises when libcuda.so.1 is not there
        raise UnavailableError(
            f"there is no NVIDIA driver on this machine: {error}. Install one, or use --device cpu."
        ) from None
    except CudaError as error:
        raise UnavailableError(
            f"the NVIDIA driver finds no usable GPU: {error} Check with nvidia-smi."
        ) from None


def _thread_local() -> driver.CUstreamCaptureMode:
    return driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
