"""native: corom's own kernels, on CPUs with AVX-512.

Nothing is padded and every value of a text is summed in the same order, so its vector is the same,
bit for bit, alone and in any batch, by one thread and by many; a length never seen before costs
nothing.
"""

import os
from queue import SimpleQueue

from .batching import Batch
from .errors import CoromError
from .manifest import Pooling, Precision
from .native_library import NativeEncoder, NativeRunner
from .native_weights import NativeWeights
from .vectors import Vectors


class NativeBackend:
    """One model in memory, and a runner for each of ``workers`` executions at once.

    Raises ``UnavailableError`` without the kernels or on a CPU that lacks what the precision needs.
    """

    def __init__(
        self,
        weights: NativeWeights,
        precision: Precision,
        pooling: Pooling,
        threads: int,
        workers: int = 1,
    ) -> None:
        # Two parts of 128 tokens for each thread, so that one which is late has less to do than the
        # others; benchmarks/README.md.
        self.batch_tokens = 512 if threads == 1 else 2048 * threads
        encoder = NativeEncoder(weights, precision, pooling)
        self._process = os.getpid()
        self._idle: SimpleQueue[NativeRunner] = SimpleQueue()
        for _ in range(workers):
            self._idle.put(NativeRunner(encoder, threads))

    def run(self, batch: Batch) -> Vectors:
        """Return the un-normalized vectors of a batch, (B, H); waits for a runner that is idle."""
        if os.getpid() != self._process:
            raise CoromError(
                "this encoder was opened before the process forked, and its threads stayed behind. "
                "Open an encoder in each process, after the fork."
            )
        idle = self._idle
        runner = idle.get()
        try:
            return runner.run(batch.input_ids, batch.lengths)
        finally:
            idle.put(runner)

    def close(self) -> None:
        """Drop the runners; those that execute are freed when they are done."""
        del self._idle
