"""native: corom's own kernels, on CPUs with AVX2 or AVX-512.

Nothing is padded and every value of a text is summed in the same order, so its vector is the same,
bit for bit, alone and in any batch, by one thread and by many; a length never seen before costs
nothing.
"""

import os
import threading
from queue import SimpleQueue

from .batching import Batch
from .errors import CoromError
from .native_library import NativeEncoder, NativeRunner
from .preemption import Preemption
from .vectors import Vectors


class NativeBackend:
    """One model in memory, and a runner for each of ``workers`` executions at once.

    Raises ``UnavailableError`` if so many threads cannot be started.
    """

    def __init__(self, encoder: NativeEncoder, threads: int, workers: int = 1) -> None:
        # At the end of a batch its threads wait for each other, which 64 parts of 128 tokens for
        # each make rare: benchmarks/README.md. (More than an encoder allows unless it is told so,
        # from three threads on.) Several workers are to have a batch each.
        alone = workers == 1 and threads > 1
        self.batch_tokens = 8192 * threads if alone else 256 * max(2, threads)
        self._encoder = encoder
        self._process = os.getpid()
        self._idle: SimpleQueue[NativeRunner] = SimpleQueue()
        self._aside: SimpleQueue[NativeRunner] = SimpleQueue()
        """For threads that have a batch put aside, and with it a runner."""
        self._thread = threading.local()
        for _ in range(workers):
            self._idle.put(NativeRunner(encoder, threads))
            self._aside.put(NativeRunner(encoder, threads=1))

    def run(self, batch: Batch, preemption: Preemption | None = None) -> Vectors:
        """Return the un-normalized vectors of a batch, (B, H); waits for a runner that is idle.

        ``preemption``: what may put the batch aside. In its middle the same thread may call this
        again, once at a time.
        """
        if os.getpid() != self._process:
            raise CoromError(
                "this encoder was opened before the process forked, and its threads stayed behind. "
                "Open an encoder in each process, after the fork."
            )
        in_the_middle = getattr(self._thread, "executes", False)
        idle = self._aside if in_the_middle else self._idle
        runner = idle.get()
        self._thread.executes = True
        try:
            return runner.run(batch.input_ids, batch.lengths, preemption)
        finally:
            self._thread.executes = in_the_middle
            idle.put(runner)

    def with_threads(self, threads: int) -> "NativeBackend":
        """Return a backend on the same model with one runner, of so many threads."""
        return NativeBackend(self._encoder, threads)

    def close(self) -> None:
        """Drop the runners; those that execute are freed when they are done."""
        del self._idle, self._aside, self._encoder
