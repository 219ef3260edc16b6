"""What a lane asks of what it executes. TensorRT and ONNX Runtime fill it. Knows no CUDA calls."""

from typing import NamedTuple, Protocol

from .shapes import Bucket
from .sidecar import Profile


class Addresses(NamedTuple):
    """Where the tensors of one execution lie in device memory, and its scratch block."""

    ids: int
    lengths: int
    vectors: int
    scratch: int
    scratch_bytes: int


class Execution(Protocol):
    """One execution of one bucket: its shape is set at birth, its addresses once.

    Methods raise ``EngineError`` if the engine refuses, ``DeviceMemoryError`` if memory is short.
    """

    scratch_bytes: int
    """Device memory that ``enqueue`` needs beside inputs and outputs."""

    def bind(self, addresses: Addresses) -> None:
        """Set where inputs, outputs and scratch lie."""
        ...

    def enqueue(self, stream: int) -> None:
        """Begin to execute on a stream."""
        ...

    def close(self) -> None:
        """Release what the execution holds."""
        ...


class Engine(Protocol):
    """int32 ids (B, S) and lengths (B,) to float32 vectors (B, H), in its profiles' shapes."""

    dimension: int
    profiles: tuple[Profile, ...]

    def prepare(self, bucket: Bucket, stream: int) -> Execution:
        """Return a new execution of a bucket; ``stream`` is idle and carries its preparation."""
        ...

    def close(self) -> None:
        """Release the engine; its executions must be closed before."""
        ...
