"""What the routes serve: one encoder, and one batcher in which all requests meet.

Opens and warms them off the event loop, says whether they are ready and when to try again. Knows no
HTTP.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .admission import TRY_LATER
from .batcher import DynamicBatcher
from .batching import Batch
from .encoder import Encoder
from .errors import CoromError, CudaError, Overloaded
from .options import TextOptions, check_options
from .request import Usage
from .server_call import Call
from .server_lateness import Lateness
from .server_settings import Settings, Warmup
from .server_turns import Turns
from .shapes import WIDTHS
from .vectors import Vectors

MAX_RETRY_AFTER_S = 60
LATE_S = 0.02
"""An event loop that stays later than this reads more than it can answer."""
BUSY_S = 0.25
"""While less than this waits, coming late has other reasons, and a refusal would mend nothing."""
TOGETHER_S = 0.02
"""While more than this waits, workers have enough to do before a request that is read at once."""


class Service:
    """An encoder behind a batcher, from before it is open until it is closed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = "starting"
        """"starting", then "ready", then "draining"; "failed" if the device failed for good."""
        self.when_failed: Callable[[CudaError], None] = lambda _: None
        """To be called then: only another process gets the device back."""
        self.in_hand = 0
        """Requests that are being read or answered."""
        self._vector_bytes = 0
        """Of the vectors of those requests."""
        self.cut_off = 0
        """Requests that were given up because the server had to end."""
        self.lateness = Lateness()
        self._turns = Turns()
        self.encoder: Encoder
        self.batcher: DynamicBatcher

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may call the model by; the first is the one it answers with."""
        return self.settings.served_model_name or (self.encoder.manifest.name,)

    def prefix(self, prompt_name: str | None) -> str:
        """Return what a prompt of this name, or the default one, puts before each text."""
        settings = self.settings
        name = settings.default_prompt_name if prompt_name is None else prompt_name
        if name is None and settings.default_prompt is not None:
            return settings.default_prompt
        return check_options(self.encoder.manifest, prompt_name=name).prefix

    def open(self) -> None:
        """Open the encoder and warm it up. Takes seconds: call it in a thread."""
        settings = self.settings
        options = {"max_batch_tokens": settings.max_batch_tokens} | settings.encoder
        self.encoder = encoder = Encoder(settings.bundle, adaptive=True, **options)
        prompt = settings.default_prompt_name
        if prompt is not None:
            encoder.encode([], prompt_name=prompt)  # refuses a prompt that is not there
        warm_up(encoder, settings.warmup)
        self.batcher = DynamicBatcher(
            encoder,
            max_wait_us=settings.max_batch_wait_us,
            max_queue_tokens=settings.max_queue_tokens,
            max_queue_s=settings.queue_timeout,
        )

    def note_failure(self, error: CoromError) -> None:
        """Be ready no longer if this error is one of those that all later requests would get."""
        if isinstance(error, CudaError) and error.fatal and self.state == "ready":
            self.state = "failed"
            self.when_failed(error)

    def close(self) -> None:
        """Answer what waits, and release everything."""
        if hasattr(self, "batcher"):
            self.batcher.close()
        if hasattr(self, "encoder"):
            self.encoder.close()

    def begin(self, call: Call) -> None:
        """Have a request in hand, until ``end``."""
        call.in_hand = True
        self.in_hand += 1

    def end(self, call: Call) -> None:
        """Note that all of an answer is written, or that the request is given up; twice is once."""
        self.in_hand -= call.in_hand
        self._vector_bytes -= call.vector_bytes
        call.in_hand, call.vector_bytes = False, 0

    def have_room(self, call: Call, texts: int) -> None:
        """Have room for the vectors of a request, until ``end``.

        Raises ``Overloaded`` if those of others leave it none.
        """
        size, others = 4 * texts * self.encoder.dimension, self._vector_bytes
        if others and others + size > self.settings.vector_memory:
            raise Overloaded(
                f"{others} bytes of vectors are in hand already (--vector-memory). {TRY_LATER}"
            )
        call.vector_bytes = size
        self._vector_bytes += size

    async def encode(
        self,
        texts: str | list[str] | list[list[int]],
        usage: Usage,
        options: TextOptions,
    ) -> Vectors:
        """Return the vectors (N, H) of N texts, (1, H) of one; what it took goes into ``usage``.

        Raises as ``DynamicBatcher.aencode`` does.
        """
        vectors = await self.batcher.aencode(texts, usage=usage, **options)
        return vectors[None] if isinstance(texts, str) else vectors

    def before_reading(self) -> None:
        """Have requests read together while work waits; called before a request's body is read.

        Raises ``Overloaded`` while requests come faster than they can be read: refused here, one
        costs the event loop the least.
        """
        wait_s = self.batcher.wait_s()
        if wait_s > BUSY_S:
            self._refuse_if_late(wait_s)
        elif wait_s > TOGETHER_S:
            self._turns.pause()

    def _refuse_if_late(self, wait_s: float) -> None:
        late_s = self.lateness.seconds
        if late_s >= LATE_S:
            raise Overloaded(
                f"requests come faster than they are read: {1000 * late_s:.0f} ms late, and what "
                f"waits takes {wait_s:.1f} s. {TRY_LATER}"
            )

    def retry_after_s(self) -> int:
        """Return in how many seconds what waits now will have been executed, 1 to 60."""
        return retry_after_s(self.batcher.wait_s())


def retry_after_s(wait_s: float) -> int:
    """Return what to answer while all that waits takes so long: whole seconds, 1 to 60."""
    return max(1, math.ceil(min(MAX_RETRY_AFTER_S, wait_s)))


def warm_up(encoder: Encoder, how: Warmup) -> None:
    """Execute texts before anyone asks: "min" the ends of what may come, "full" each length.

    On a GPU each width that batches are padded to, until graphs are captured.
    """
    if how == "none":
        return
    limit = encoder.max_length
    on_gpu = encoder.device == "cuda"
    lengths: Sequence[int] = [min(8, limit), limit]
    if on_gpu:
        lengths = [*(width for width in WIDTHS if width < limit), limit]
    elif how == "full":
        lengths = sorted({*range(8, limit, 8), limit})
    # native keeps nothing for a size: a large batch would only take its time.
    tokens = (
        min(512, encoder.batch_tokens) if encoder.backend_name == "native" else encoder.batch_tokens
    )
    with ThreadPoolExecutor(encoder.workers) as workers:
        for length in lengths:
            full = max(1, tokens // length)
            rows = {1, min(8, full), full} if how == "full" or on_gpu or length == limit else {1}
            for count in sorted(rows):
                ids = np.ones((count, length), np.int64)
                batch = Batch(ids, np.full(count, length, np.int64))
                if encoder.adaptive:
                    encoder.run_alone(batch)
                if on_gpu:
                    encoder.warm(batch)
                    continue
                # At once, so that each worker has what it keeps for itself.
                list(workers.map(encoder.run, [batch] * encoder.workers))
