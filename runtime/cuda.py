"""The device: what corom asks of CUDA, and the two adapters that give it.

Handles are plain integers, as the driver has them, so that TensorRT, PyCUDA and cuda-bindings
mean the same stream and the same memory. Knows no engine and no batches.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Literal, Protocol

from .errors import UnavailableError, missing_extra
from .packing import Bytes

Adapter = Literal["pycuda", "cuda-bindings"]


class Device(Protocol):
    """One GPU's primary context. Calls are made inside ``with device.use():``, from any thread.

    Every method raises ``CudaError`` when a CUDA call fails.
    """

    adapter: Adapter

    def use(self) -> AbstractContextManager[None]:
        """Make the context this thread's current one, and put back what was."""
        ...

    def stream(self) -> int:
        """Return a new stream that does not wait for the legacy default stream."""
        ...

    def free_stream(self, stream: int) -> None:
        """Destroy a stream."""
        ...

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes of device memory, aligned to 256."""
        ...

    def free(self, address: int) -> None:
        """Free device memory."""
        ...

    def pinned(self, size: int) -> Bytes:
        """Return page-locked host memory, (size,) bytes, until ``free_pinned``."""
        ...

    def free_pinned(self, block: Bytes) -> None:
        """Free page-locked memory; arrays over it must not be used afterwards."""
        ...

    def copy_in(self, address: int, block: Bytes, stream: int) -> None:
        """Begin to copy a page-locked block to the device."""
        ...

    def copy_out(self, block: Bytes, address: int, stream: int) -> None:
        """Begin to copy from the device into a page-locked block."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait, without the GIL, until all work of the stream has ended."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Return a graph of what ``work`` enqueues on the stream; nothing of it is executed."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Begin to execute a graph."""
        ...

    def free_graph(self, graph: int) -> None:
        """Destroy a graph."""
        ...

    def free_memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of device memory."""
        ...

    def close(self) -> None:
        """Give the primary context back; other users of it are not affected."""
        ...


def open_device(ordinal: int = 0, adapter: Adapter | None = None) -> Device:
    """Open a GPU; without a name PyCUDA where it is installed, else cuda-bindings alone.

    Raises ``UnavailableError`` if there is no driver, no such GPU, or the package is missing.
    """
    if not _is_installed("cuda.bindings"):
        raise missing_extra("cuda-bindings", "gpu", "running on a GPU")
    if adapter is None:
        adapter = "pycuda" if _is_installed("pycuda") else "cuda-bindings"
    if adapter == "cuda-bindings":
        from .cuda_driver import DriverDevice

        return DriverDevice(ordinal)
    if not _is_installed("pycuda"):
        raise UnavailableError(
            "the adapter pycuda needs the package pycuda, which is not installed. "
            "Run: pip install pycuda, or use the adapter cuda-bindings."
        )
    from .cuda_pycuda import PyCudaDevice

    return PyCudaDevice(ordinal)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
