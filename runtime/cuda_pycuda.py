"""The device by PyCUDA: context, memory, streams and copies. CUDA graphs, which PyCUDA lacks, come
from cuda-bindings on the same handles.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from cuda.bindings import driver

from .cuda import Adapter
from .cuda_driver import FATAL, OUT_OF_MEMORY, DriverDevice, call, cuda_error, initialize
from .errors import CudaError, UnavailableError
from .packing import Bytes

_T = TypeVar("_T")


class PyCudaDevice(DriverDevice):
    """A GPU's primary context by PyCUDA. Keeps PyCUDA's owner of each handle until it is freed."""

    adapter: Adapter = "pycuda"

    def __init__(self, ordinal: int = 0) -> None:
        initialize()
        self._cuda = cuda = import_pycuda()
        cuda.init()
        device = _checked(cuda, cuda.Device, ordinal)
        # The primary one: a context of PyCUDA's own would hide memory from torch and TensorRT.
        self._pycuda_context = _checked(cuda, device.retain_primary_context)
        self._streams: dict[int, Any] = {}
        self._allocations: dict[int, Any] = {}

    @contextmanager
    def use(self) -> Iterator[None]:
        """Make the context this thread's current one, and put back what was."""
        _checked(self._cuda, self._pycuda_context.push)
        try:
            yield
        finally:
            self._pycuda_context.pop()

    def stream(self) -> int:
        """Return a new stream that does not wait for the legacy default stream."""
        owner = _checked(self._cuda, self._cuda.Stream, 1)  # CU_STREAM_NON_BLOCKING
        self._streams[owner.handle] = owner
        return int(owner.handle)

    def free_stream(self, stream: int) -> None:
        """Destroy a stream."""
        del self._streams[stream]

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes of device memory."""
        owner = _checked(self._cuda, self._cuda.mem_alloc, size)
        self._allocations[int(owner)] = owner
        return int(owner)

    def free(self, address: int) -> None:
        """Free device memory."""
        _checked(self._cuda, self._allocations.pop(address).free)

    def pinned(self, size: int) -> Bytes:
        """Return page-locked host memory, (size,) bytes."""
        block: Bytes = _checked(self._cuda, self._cuda.pagelocked_empty, size, np.uint8)
        return block

    def free_pinned(self, block: Bytes) -> None:
        """Free page-locked memory."""
        _checked(self._cuda, _owner(block).free)

    def copy_in(self, address: int, block: Bytes, stream: int) -> None:
        """Begin to copy a page-locked block to the device."""
        copy = self._cuda.memcpy_htod_async
        _checked(self._cuda, copy, address, block, self._streams[stream])

    def copy_out(self, block: Bytes, address: int, stream: int) -> None:
        """Begin to copy from the device into a page-locked block."""
        copy = self._cuda.memcpy_dtoh_async
        _checked(self._cuda, copy, block, address, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        """Wait, without the GIL, until all work of the stream has ended."""
        _checked(self._cuda, self._streams[stream].synchronize)

    def close(self) -> None:
        """Give the primary context back."""
        before = call("cuCtxGetCurrent")
        # PyCUDA lets go of a context soundly only while it is the current one, and then leaves it
        # on the driver's stack.
        _checked(self._cuda, self._pycuda_context.push)
        _checked(self._cuda, self._pycuda_context.detach)
        call("cuCtxPopCurrent")
        call("cuCtxSetCurrent", before)


def import_pycuda() -> Any:  # noqa: ANN401  # PyCUDA has no types
    """Return the module pycuda.driver; raises ``UnavailableError`` if it cannot be loaded."""
    # Built against a stub, PyCUDA may not name libcuda as a library it needs.
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
        import pycuda.driver
    except (ImportError, OSError) as error:
        raise UnavailableError(
            f"PyCUDA cannot be loaded: {error}. Build it again for this Python and CUDA: "
            "pip install --force-reinstall --no-cache-dir pycuda"
        ) from None
    return pycuda.driver


def _checked(cuda: Any, function: Callable[..., _T], *arguments: object) -> _T:  # noqa: ANN401
    """Call a PyCUDA function; its error becomes a ``CudaError`` with the driver's own words."""
    try:
        return function(*arguments)
    except cuda.MemoryError:
        raise cuda_error(getattr(function, "__name__", "PyCUDA"), OUT_OF_MEMORY) from None
    except cuda.Error as error:
        # PyCUDA keeps no status code; a fatal one is given again by every later call.
        code = int(driver.cuCtxSynchronize()[0])
        raise CudaError(f"{error}.", fatal=code in FATAL) from None


def _owner(block: Bytes) -> Any:  # noqa: ANN401
    """Return the allocation below the arrays that view it."""
    owner: Any = block
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner
