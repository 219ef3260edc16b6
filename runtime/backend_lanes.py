"""Batches through a pool of lanes, so that packing overlaps the device's work.

Knows devices and engines only by their protocols: TensorRT's are in engine_tensorrt, ONNX Runtime's
in engine_onnxruntime.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from queue import Empty, LifoQueue

import numpy as np

from .batching import Batch
from .cuda import Device
from .engine import Engine
from .errors import CudaError, DeviceMemoryError, closed_encoder
from .lane import RUNS_BEFORE_CAPTURE, SLOTS, Lane, SlotState
from .shapes import Buckets
from .vectors import Vectors

LANES = 2
"""Batches on the device at once: one runs while the next is packed and copied."""


class LaneBackend:
    """An opened engine on an opened device; owns both. Threads may share it.

    ``slots``: buckets that a lane keeps ready. A request that finds too little device memory is cut
    in halves, and fails alone if that does not help. After a fatal CUDA error every call raises
    ``CudaError`` that says so, after ``close`` ``CoromError``.
    """

    batch_tokens = 16384

    def __init__(
        self,
        device: Device,
        engine: Engine,
        *,
        lanes: int = LANES,
        graphs: bool = True,
        slots: int = SLOTS,
    ) -> None:
        self._device, self._engine = device, engine
        self.buckets = Buckets(engine.profiles)
        self._lanes: list[Lane] = []
        # The lane used last is taken first: its graphs are captured and its memory is warm.
        self._free: LifoQueue[Lane | None] = LifoQueue()
        self._dead: str | None = None
        self._giving_back, self._warming = threading.Lock(), threading.Lock()
        self._closed = self._released = False
        try:
            with device.use():
                for _ in range(lanes):
                    lane = Lane(device, engine, self.buckets, graphs=graphs, slots=slots)
                    self._lanes.append(lane)
                    self._free.put(lane)
        except BaseException:
            self.close()
            raise

    def run(self, batch: Batch) -> Vectors:
        """Return the un-normalized vectors of a batch, (B, H), split where it must be."""
        parts = list(self._parts(batch))
        if len(parts) > 1:
            return np.concatenate(list(self._execute(iter(parts))))
        # The short way for a single request: latency is what it is for.
        lane = self._take(wait=True)
        assert lane is not None
        if self._start(lane, parts[0]) is None:
            return self._finish(lane)
        return self._with_less_memory(parts[0])

    def stream(self, batches: Iterable[Batch]) -> Iterator[Vectors]:
        """Yield the vectors of each batch in order; the next batch is made while one runs."""
        counts: deque[int] = deque()

        def parts() -> Iterator[Batch]:
            for batch in batches:
                cut = list(self._parts(batch))
                counts.append(len(cut))
                yield from cut

        results = self._execute(parts())
        try:
            for first in results:
                rest = list(islice(results, counts.popleft() - 1))
                yield np.concatenate([first, *rest]) if rest else first
        finally:
            results.close()

    @property
    def streams(self) -> list[int]:
        """The stream of each lane."""
        return [lane.stream for lane in self._lanes]

    def states(self) -> list[SlotState]:
        """Return how each bucket that was executed so far is executed, lane by lane."""
        return [state for lane in self._lanes for state in lane.states()]

    def warm(self, batch: Batch) -> None:
        """Execute a batch in every lane, so often that its graphs are captured."""
        taken: list[Lane] = []
        with self._warming:  # two that hold a lane each would wait for the other's
            try:
                while len(taken) < len(self._lanes):
                    lane = self._take(wait=True)
                    assert lane is not None
                    taken.append(lane)
                for lane in taken:
                    self._warm(lane, batch)
            finally:
                for lane in taken:
                    self._give_back(lane)

    def _warm(self, lane: Lane, batch: Batch) -> None:
        with self._device.use():
            for part in self._parts(batch):
                bucket = self.buckets.fit(*part.input_ids.shape)
                for _ in range(RUNS_BEFORE_CAPTURE + 1):
                    lane.start(part, bucket)
                    lane.finish()

    def close(self) -> None:
        """Release lanes, engine and device: at once, or when the last call under way has ended."""
        with self._giving_back:
            if self._closed:
                return
            self._closed = True
            self._release_if_idle()

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        for start, stop, bucket in self.buckets.split(batch.lengths.tolist()):
            yield Batch(batch.input_ids[start:stop, : bucket.width], batch.lengths[start:stop])

    def _execute(self, parts: Iterator[Batch]) -> Generator[Vectors]:
        """Yield the vectors of each part in order, with as many lanes at work as are free."""
        flight: deque[Lane] = deque()
        try:
            for part in parts:
                lane = self._take(wait=not flight)
                while lane is None:
                    # To wait for others while holding a lane they wait for would be for ever.
                    yield self._finish(flight.popleft())
                    lane = self._take(wait=not flight)
                if self._start(lane, part) is None:
                    flight.append(lane)
                    continue
                while flight:
                    yield self._finish(flight.popleft())
                yield self._with_less_memory(part)
            while flight:
                yield self._finish(flight.popleft())
        finally:
            # Reached early if a request failed or its caller went away.
            while flight:
                self._abandon(flight.popleft())

    def _take(self, *, wait: bool) -> Lane | None:
        self._refuse_if_unusable()
        try:
            lane = self._free.get(block=wait)
        except Empty:
            return None
        if lane is None:
            self._free.put(None)  # for the next who waits
        elif self._dead is not None or self._closed:
            self._give_back(lane)
        else:
            return lane
        self._refuse_if_unusable()
        raise AssertionError("no lane is left, though the backend is open")

    def _give_back(self, lane: Lane) -> None:
        """Let the next request have the lane; after ``close``, release all once all are back."""
        with self._giving_back:
            self._free.put(lane)
            self._release_if_idle()

    def _release_if_idle(self) -> None:
        if not self._closed or self._released:
            return
        lanes: list[Lane] = []
        try:
            while len(lanes) < len(self._lanes):
                lane = self._free.get_nowait()
                assert lane is not None
                lanes.append(lane)
        except Empty:  # whoever has one gives it back, and comes here again
            for lane in lanes:
                self._free.put(lane)
            return
        self._released, self._lanes = True, []
        self._free.put(None)
        try:
            if self._dead is None:
                with self._device.use():
                    # Executions end before their engine, and that before the streams it runs on.
                    for lane in lanes:
                        lane.drop_slots()
                    self._engine.close()
                    for lane in lanes:
                        lane.close()
        finally:
            self._device.close()

    def _start(self, lane: Lane, part: Batch) -> DeviceMemoryError | None:
        """Begin a part; with too little device memory return that, with the lane free again."""
        try:
            with self._device.use():
                lane.start(part, self.buckets.fit(*part.input_ids.shape))
        except DeviceMemoryError as error:
            self._give_back(lane)
            return error
        except BaseException as error:
            self._note(error)
            self._give_back(lane)
            raise
        return None

    def _finish(self, lane: Lane) -> Vectors:
        try:
            with self._device.use():
                return lane.finish()
        except BaseException as error:
            self._note(error)
            raise
        finally:
            self._give_back(lane)

    def _abandon(self, lane: Lane) -> None:
        """Wait for a part that nobody asks for any more, so that its lane is free again."""
        try:
            self._finish(lane)
        except CudaError as error:
            self._note(error)

    def _with_less_memory(self, part: Batch) -> Vectors:
        """Execute a part after idle lanes have given up their memory, in halves if it must be."""
        idle = []
        while (lane := self._take(wait=False)) is not None:
            idle.append(lane)
        for lane in idle:
            with self._device.use():
                lane.drop_slots()
            self._give_back(lane)
        lane = self._take(wait=True)
        assert lane is not None
        error = self._start(lane, part)
        if error is None:
            return self._finish(lane)
        if len(part.lengths) == 1:
            raise error
        middle = len(part.lengths) // 2
        return np.concatenate(
            [
                self._with_less_memory(Batch(part.input_ids[rows], part.lengths[rows]))
                for rows in (slice(0, middle), slice(middle, None))
            ]
        )

    def _note(self, error: BaseException) -> None:
        if isinstance(error, CudaError) and error.fatal:
            self._dead = str(error)

    def _refuse_if_unusable(self) -> None:
        if self._closed:
            raise closed_encoder()
        if self._dead is not None:
            raise CudaError(
                f"this encoder is unusable since a CUDA call failed: {self._dead} Close it and "
                "open a new one; if that fails too, restart the process.",
                fatal=True,
            )
