"""A stand-in for an engine on a real GPU: one small kernel with an engine's inputs and outputs.

It shows that lanes, copies, graphs, threads and errors work on a GPU where no TensorRT is; its
figures are those of the plumbing and are labelled so. The kernel's answer is exact, so that one
wrong byte shows.
"""

import ctypes

import numpy as np

from corom.runtime.batching import Batch
from corom.runtime.cuda import Device
from corom.runtime.cuda_driver import call
from corom.runtime.engine import Addresses
from corom.runtime.shapes import Bucket
from corom.runtime.sidecar import Profile
from corom.runtime.vectors import Vectors

PROFILES = (
    Profile(name="single", batch=(1, 1, 4), length=(1, 32, 128)),
    Profile(name="bulk", batch=(1, 64, 256), length=(1, 64, 128)),
)
THREADS = 128
MODULUS = 4093

PTX = """
.version 7.0
.target sm_75
.address_size 64
.visible .entry corom_stand_in(
    .param .u64 lengths, .param .u64 ids, .param .u64 vectors,
    .param .u32 rows, .param .u32 width, .param .u32 dimension)
{
    .reg .pred %p<3>;
    .reg .b32 %r<12>;
    .reg .b64 %rd<11>;
    .reg .f32 %f<2>;
    ld.param.u64 %rd1, [lengths];
    ld.param.u64 %rd2, [ids];
    ld.param.u64 %rd3, [vectors];
    ld.param.u32 %r2, [width];
    ld.param.u32 %r3, [dimension];
    mov.u32 %r4, %ctaid.x;
    mov.u32 %r5, %tid.x;
    mov.u32 %r6, %ntid.x;
    mul.wide.u32 %rd4, %r4, 4;
    add.u64 %rd4, %rd1, %rd4;
    ld.global.u32 %r7, [%rd4];
    mul.lo.u32 %r8, %r4, %r2;
    mul.wide.u32 %rd5, %r8, 4;
    add.u64 %rd5, %rd2, %rd5;
    mov.u64 %rd6, 0;
    mov.u32 %r9, 0;
SUM:
    setp.ge.u32 %p1, %r9, %r7;
    @%p1 bra WRITE;
    ld.global.u32 %r10, [%rd5];
    add.u32 %r9, %r9, 1;
    mul.wide.u32 %rd7, %r10, %r9;
    add.u64 %rd6, %rd6, %rd7;
    add.u64 %rd5, %rd5, 4;
    bra SUM;
WRITE:
    rem.u64 %rd6, %rd6, 4093;
    cvt.u32.u64 %r11, %rd6;
    mul.lo.u32 %r8, %r4, %r3;
    mul.wide.u32 %rd8, %r8, 4;
    add.u64 %rd8, %rd3, %rd8;
NEXT:
    setp.ge.u32 %p2, %r5, %r3;
    @%p2 bra END;
    add.u32 %r10, %r11, %r5;
    cvt.rn.f32.u32 %f1, %r10;
    mul.wide.u32 %rd9, %r5, 4;
    add.u64 %rd10, %rd8, %rd9;
    st.global.f32 [%rd10], %f1;
    add.u32 %r5, %r5, %r6;
    bra NEXT;
END:
    ret;
}
"""


def expected_vectors(batch: Batch, dimension: int) -> Vectors:
    """Return what the kernel must give for a batch, (B, dimension), exactly."""
    places = np.arange(1, batch.input_ids.shape[1] + 1)
    kept = places <= batch.lengths[:, None]
    sums = (batch.input_ids * places * kept).sum(axis=1) % MODULUS
    vectors: Vectors = (sums[:, None] + np.arange(dimension)).astype(np.float32)
    return vectors


class StandInEngine:
    """Takes an engine's place in a lane; see ``corom.runtime.engine.Engine``."""

    def __init__(self, device: Device, dimension: int = 256, scratch_bytes: int = 1 << 20) -> None:
        self.dimension, self.scratch_bytes = dimension, scratch_bytes
        self.profiles: tuple[Profile, ...] = PROFILES
        with device.use():
            self._module = call("cuModuleLoadData", PTX.encode() + b"\0")
            self.kernel = call("cuModuleGetFunction", self._module, b"corom_stand_in")

    def prepare(self, bucket: Bucket, stream: int) -> "StandInExecution":  # noqa: ARG002
        """Return an execution of a bucket."""
        return StandInExecution(self, bucket)

    def close(self) -> None:
        """Unload the kernel."""
        call("cuModuleUnload", self._module)


class StandInExecution:
    """One launch of the kernel; see ``corom.runtime.engine.Execution``."""

    def __init__(self, engine: StandInEngine, bucket: Bucket) -> None:
        self._engine, self._bucket = engine, bucket
        self.scratch_bytes = engine.scratch_bytes

    def bind(self, addresses: Addresses) -> None:
        """Set the kernel's arguments."""
        rows, width, _ = self._bucket
        values = (addresses.lengths, addresses.ids, addresses.vectors, rows, width)
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        types = (pointer, pointer, pointer, number, number, number)
        self._arguments = ((*values, self._engine.dimension), types)

    def enqueue(self, stream: int) -> None:
        """Launch the kernel, a block for each row."""
        grid, block = (self._bucket.rows, 1, 1), (THREADS, 1, 1)
        call("cuLaunchKernel", self._engine.kernel, *grid, *block, 0, stream, self._arguments, 0)

    def close(self) -> None:
        """Nothing is held."""
