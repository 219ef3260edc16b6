"""A device whose memory is the host's, at its real addresses, and whose work is done at once.

For engines that write where they are told: ONNX Runtime on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from corom.runtime.packing import Bytes


class HostDevice:
    """See ``corom.runtime.cuda.Device``; it captures nothing."""

    adapter = "cuda-bindings"

    def __init__(self) -> None:
        self._blocks: dict[int, Bytes] = {}
        self._streams = 0

    @contextmanager
    def use(self) -> Iterator[None]:
        yield

    def stream(self) -> int:
        self._streams += 1
        return self._streams

    def free_stream(self, stream: int) -> None:
        assert 1 <= stream <= self._streams

    def allocate(self, size: int) -> int:
        block = self.pinned(size)
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        del self._blocks[address]

    def pinned(self, size: int) -> Bytes:
        block = np.full(size, 0xA5, np.uint8)
        self._blocks[block.ctypes.data] = block
        return block

    def free_pinned(self, block: Bytes) -> None:
        del self._blocks[block.ctypes.data]

    def copy_in(self, address: int, block: Bytes, stream: int) -> None:  # noqa: ARG002
        self._blocks[address][: block.nbytes] = block

    def copy_out(self, block: Bytes, address: int, stream: int) -> None:  # noqa: ARG002
        block[:] = self._blocks[address][: block.nbytes]

    def synchronize(self, stream: int) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        assert not self._blocks
