"""Preemption: a batch that is executed is put aside between two of its steps, for a shorter one."""

from collections.abc import Callable
from ctypes import CFUNCTYPE, addressof, c_int
from time import perf_counter
from typing import Any

_Call = CFUNCTYPE(None)


class Preemption:
    """Whether the batch that a thread executes is to be put aside, and what the thread does then.

    ``serve`` is called by that thread in the middle of the batch; it executes the other one. What
    it raises does not end the batch, and is told by ``sys.unraisablehook``.
    """

    def __init__(self, serve: Callable[[], None]) -> None:
        self._serve = serve
        self._wanted = c_int(0)
        self.seconds = 0.0
        """How long batches were put aside so far, added up."""

    def for_kernels(self) -> tuple[int, Any]:
        """Return the address of a flag, and what is to be called where it is not 0.

        Made anew each time: this one would refer to itself by it.
        """
        return addressof(self._wanted), _Call(self._serve_noting)

    @property
    def wanted(self) -> bool:
        """Whether the batch is to be put aside and is not yet."""
        return bool(self._wanted.value)

    def want(self, wanted: bool = True) -> None:
        """Have the batch put aside; False: no longer."""
        self._wanted.value = wanted

    def _serve_noting(self) -> None:
        began = perf_counter()
        try:
            self._serve()
        finally:
            self.seconds += perf_counter() - began
