"""A lane: one stream with its buffers, and a slot for each bucket it has executed.

One batch at a time: ``start`` packs and enqueues, ``finish`` waits and copies out. Which lane is
free, and what is done when one fails, is the backend's business.
"""

import logging
from collections import OrderedDict
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from .batching import Batch
from .cuda import Device
from .engine import Addresses, Engine, Execution
from .errors import CudaError, DeviceMemoryError, EngineError
from .packing import Layout, Views, aligned, layout, pack, views
from .shapes import Bucket, Buckets
from .vectors import Vectors

SLOTS = 48
"""Buckets a lane keeps ready; the one used longest ago makes room for the next."""
RUNS_BEFORE_CAPTURE = 2
"""Plain executions of a bucket before its graph is captured: the first ones initialize."""

logger = logging.getLogger("corom")


class Slot:
    """A bucket that is ready to be executed. ``graph``: None executes by plain enqueue."""

    def __init__(self, execution: Execution, place: Layout, into: Views, out: Vectors) -> None:
        self.execution, self.place, self.into, self.out = execution, place, into, out
        self.graph: int | None = None
        self.why_plain = "not run often enough yet"
        self.runs = 0


class SlotState(NamedTuple):
    """How one bucket is executed, for people: "graph", or why not."""

    bucket: Bucket
    executed_by: str
    runs: int


class Lane:
    """One stream, page-locked blocks in and out, device blocks of the same sizes, and scratch.

    Calls are made inside ``with device.use():``, by one thread at a time.
    """

    def __init__(
        self,
        device: Device,
        engine: Engine,
        buckets: Buckets,
        *,
        graphs: bool = True,
        slots: int = SLOTS,
    ) -> None:
        self._device, self._engine, self._graphs = device, engine, graphs
        self._most_slots = slots
        places = [layout(bucket, engine.dimension) for bucket in buckets]
        in_bytes = max(place.in_bytes for place in places)
        out_bytes = max(place.out_bytes for place in places)
        self._slots: OrderedDict[Bucket, Slot] = OrderedDict()
        self._scratch, self._scratch_bytes = 0, 0
        self._running: tuple[Slot, int] | None = None
        with ExitStack() as undo:  # a lane that memory is too short for leaves none of it taken
            self.stream = device.stream()
            undo.callback(device.free_stream, self.stream)
            self._in = device.pinned(in_bytes)
            undo.callback(device.free_pinned, self._in)
            self._out = device.pinned(out_bytes)
            undo.callback(device.free_pinned, self._out)
            self._device_in = device.allocate(in_bytes)
            undo.callback(device.free, self._device_in)
            self._device_out = device.allocate(out_bytes)
            undo.callback(device.free, self._device_out)
            self._release = undo.pop_all()

    def start(self, batch: Batch, bucket: Bucket) -> None:
        """Pack a batch that fits the bucket and begin to execute it.

        Raises ``DeviceMemoryError`` if memory is short even after all other slots are given up.
        """
        try:
            slot = self._slot(bucket)
        except DeviceMemoryError:
            self.drop_slots()
            slot = self._slot(bucket)
        pack(batch, slot.into)
        if slot.graph is None and self._graphs and slot.runs == RUNS_BEFORE_CAPTURE:
            self._capture(bucket, slot)
        if slot.graph is None:
            try:
                self._enqueue(slot)
            except EngineError:
                # The execution's state is unknown now; the next request gets a new one.
                self._device.synchronize(self.stream)
                self._drop(bucket)
                raise
        else:
            self._device.launch(slot.graph, self.stream)
        slot.runs += 1
        self._running = slot, len(batch.lengths)

    def finish(self) -> Vectors:
        """Wait for what ``start`` began and return its vectors (B, H), owned by the caller."""
        assert self._running is not None
        slot, rows = self._running
        self._running = None
        self._device.synchronize(self.stream)
        return slot.out[:rows].copy()

    def states(self) -> list[SlotState]:
        """Return how each bucket that is ready is executed."""
        return [
            SlotState(bucket, slot.why_plain if slot.graph is None else "graph", slot.runs)
            for bucket, slot in self._slots.items()
        ]

    def drop_slots(self) -> None:
        """Give up every slot and the scratch memory; what runs is waited for."""
        self._device.synchronize(self.stream)
        for bucket in list(self._slots):
            self._drop(bucket)
        self._free_scratch()

    def close(self) -> None:
        """Release everything."""
        self.drop_slots()
        self._running = None  # the views end before the memory below them does
        self._release.close()

    def _slot(self, bucket: Bucket) -> Slot:
        slot = self._slots.get(bucket)
        if slot is not None:
            self._slots.move_to_end(bucket)
            return slot
        while len(self._slots) >= self._most_slots:
            self._drop(next(iter(self._slots)))
        execution = self._engine.prepare(bucket, self.stream)
        try:
            self._reserve_scratch(execution.scratch_bytes)
            place = layout(bucket, self._engine.dimension)
            execution.bind(
                Addresses(
                    ids=self._device_in + place.ids_offset,
                    lengths=self._device_in,
                    vectors=self._device_out,
                    scratch=self._scratch,
                    scratch_bytes=self._scratch_bytes,
                )
            )
        except BaseException:
            execution.close()
            raise
        out = self._out[: place.out_bytes].view(np.float32).reshape(bucket.rows, -1)
        slot = self._slots[bucket] = Slot(execution, place, views(self._in, bucket, place), out)
        if not self._graphs:
            slot.why_plain = "CUDA graphs are switched off"
        return slot

    def _reserve_scratch(self, size: int) -> None:
        """Make the scratch block at least ``size`` bytes; slots over a smaller one are given up."""
        if size <= self._scratch_bytes:
            return
        self.drop_slots()
        self._scratch = self._device.allocate(aligned(size))
        self._scratch_bytes = aligned(size)

    def _free_scratch(self) -> None:
        if self._scratch_bytes:
            self._device.free(self._scratch)
        self._scratch, self._scratch_bytes = 0, 0

    def _enqueue(self, slot: Slot) -> None:
        device, place = self._device, slot.place
        device.copy_in(self._device_in, self._in[: place.in_bytes], self.stream)
        slot.execution.enqueue(self.stream)
        device.copy_out(self._out[: place.out_bytes], self._device_out, self.stream)

    def _capture(self, bucket: Bucket, slot: Slot) -> None:
        try:
            slot.graph = self._device.capture(self.stream, lambda: self._enqueue(slot))
        except (CudaError, EngineError) as error:
            if isinstance(error, CudaError) and error.fatal:
                raise
            slot.why_plain = f"no CUDA graph: {error}"
            logger.warning("%d × %d tokens run without a CUDA graph: %s", *bucket[:2], error)

    def _drop(self, bucket: Bucket) -> None:
        slot = self._slots.pop(bucket)
        if slot.graph is not None:
            self._device.free_graph(slot.graph)
        slot.execution.close()
