"""Checks of the device layer on a GPU, with a stand-in for the engine: no TensorRT needed.

Each check is a function that raises; what could not be checked is reported as missing.
"""

import resource
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from corom.runtime.backend import choose_variant, open_backend
from corom.runtime.backend_lanes import LaneBackend
from corom.runtime.batching import Batch
from corom.runtime.cuda import Adapter, Device, open_device
from corom.runtime.errors import (
    CudaError,
    DeviceMemoryError,
    EngineError,
    EngineMismatchError,
    UnavailableError,
)
from corom.runtime.manifest import load_manifest

from .gpu_standin import StandInEngine, expected_vectors

Outcome = Literal["passed", "failed", "missing"]
GROWTH_BYTES = 64 << 20
"""Memory that may be gone after many requests: the pools of driver and allocator."""


class Check(NamedTuple):
    """What became of one check."""

    name: str
    outcome: Outcome
    detail: str


def run_check(name: str, check: Callable[[], str]) -> Check:
    """Run one check; ``check`` returns a detail, or raises.

    Missing is what is not installed and engines for other machines; an engine or a device that
    fails has failed.
    """
    try:
        return Check(name, "passed", check())
    except EngineMismatchError as error:
        return Check(name, "missing", str(error))
    except (EngineError, CudaError) as error:
        return Check(name, "failed", str(error))
    except UnavailableError as error:
        return Check(name, "missing", str(error))
    except Exception:
        return Check(name, "failed", traceback.format_exc(limit=-3))


def device_checks(adapter: Adapter, requests: int = 2000) -> Iterator[Check]:
    """Yield the checks of one adapter, engine replaced by a stand-in."""
    checks: dict[str, Callable[[Device], str]] = {
        "copies": copies,
        "stand-in vectors and graphs": vectors_and_graphs,
        "stand-in in 8 threads": threads,
        "out of memory, then on": out_of_memory,
        f"stand-in, {requests} random requests, no growth": lambda d: no_growth(d, requests),
    }
    for name, check in checks.items():
        yield run_check(f"{adapter}: {name}", lambda check=check: _on_device(adapter, check))  # type: ignore[misc]
    yield run_check(f"{adapter}: torch in the same process", lambda: torch_interop(adapter))


def _on_device(adapter: Adapter, check: Callable[[Device], str]) -> str:
    device = open_device(0, adapter)
    return check(device)


def copies(device: Device) -> str:
    """A block goes in and comes out unchanged, directly and by a graph."""
    size = 1 << 20
    with device.use():
        stream, address = device.stream(), device.allocate(size)
        there, back = device.pinned(size), device.pinned(size)

        def round_trip() -> None:
            device.copy_in(address, there, stream)
            device.copy_out(back, address, stream)

        there[:] = np.random.default_rng(0).integers(0, 256, size)
        round_trip()
        device.synchronize(stream)
        _require(np.array_equal(there, back), "a copied block differs")
        graph = device.capture(stream, round_trip)
        there[:] = 7
        device.launch(graph, stream)
        device.synchronize(stream)
        _require(bool((back == 7).all()), "a block copied by a graph differs")
        device.free_graph(graph)
        for block in (there, back):
            device.free_pinned(block)
        device.free(address)
        device.free_stream(stream)
    device.close()
    return f"{size:,} bytes, directly and by a graph"


def vectors_and_graphs(device: Device) -> str:
    """Random batches give exact vectors; a bucket's third run is a graph."""
    backend = LaneBackend(device, StandInEngine(device))
    for seed in range(200):
        require_exact(backend, random_batch(seed))
    for _ in range(6):
        require_exact(backend, random_batch(0, rows=1, width=16))
    states = backend.states()
    graphs = sum(state.executed_by == "graph" for state in states)
    backend.close()
    _require(graphs > 0, f"no bucket got a CUDA graph: {[s.executed_by for s in states][:3]}")
    return f"{graphs} of {len(states)} slots run as a graph"


def threads(device: Device) -> str:
    """Threads share the lanes; each gets its own vectors."""
    backend = LaneBackend(device, StandInEngine(device))

    def work(seed: int) -> None:
        for k in range(60):
            require_exact(backend, random_batch(1000 * seed + k))

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result(120)
    backend.close()
    return "480 requests"


def out_of_memory(device: Device) -> str:
    """Scratch beyond the device's memory fails the request; the next one works."""
    engine = StandInEngine(device)
    backend = LaneBackend(device, engine)
    with device.use():
        _, total = device.free_memory()
    engine.scratch_bytes = 2 * total
    try:
        backend.run(random_batch(0, rows=2, width=16))
    except DeviceMemoryError:
        pass
    else:
        raise AssertionError(f"{2 * total:,} bytes of scratch were granted")
    engine.scratch_bytes = 1 << 20
    require_exact(backend, random_batch(1))
    backend.close()
    return f"{2 * total:,} bytes refused"


def no_growth(device: Device, requests: int) -> str:
    """Many requests of random shapes leave the free device memory as it was."""
    backend = LaneBackend(device, StandInEngine(device))
    taken = []
    for part in range(2):
        for k in range(requests // 2):
            require_exact(backend, random_batch(part * requests + k))
        taken.append(_taken(device))
    backend.close()
    return _growth(taken)


def soak(bundle: Path, backend: str, requests: int) -> str:
    """Requests of random shapes to a real engine leave host and device memory as they were.

    The first tenth is not counted: every bucket gets its memory and its graph there.
    """
    manifest = load_manifest(bundle)
    variant = choose_variant(manifest, "fp16")
    opened = open_backend(backend, "cuda", bundle, manifest, variant, threads=1)
    device = open_device()
    batches = [random_batch(seed, rows=1 + seed % 8) for seed in range(1024)]
    taken = []
    try:
        for count in (requests // 10, requests - requests // 10):
            for k in range(count):
                opened.run(batches[k % len(batches)])
            taken.append(_taken(device))
    finally:
        opened.close()
        device.close()
    return f"{requests:,} requests: {_growth(taken)}"


def _taken(device: Device) -> dict[str, int]:
    """Return the bytes in use on the device and by this process on the host."""
    with device.use():
        free, total = device.free_memory()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return {"device": total - free, "host": pages * resource.getpagesize()}


def _growth(taken: list[dict[str, int]]) -> str:
    grown = {where: taken[-1][where] - taken[0][where] for where in taken[0]}
    found = ", ".join(f"{where} {size:+,} bytes" for where, size in grown.items())
    _require(max(grown.values()) <= GROWTH_BYTES, f"memory grew: {found}")
    return found


def torch_interop(adapter: Adapter) -> str:
    """Torch works before, between and after requests on the same primary context."""
    torch = require_torch_cuda()
    ones = torch.ones(1000, device="cuda")
    device = open_device(0, adapter)
    backend = LaneBackend(device, StandInEngine(device))
    require_exact(backend, random_batch(0))
    _require(float(ones.sum()) == 1000.0, "torch's tensor changed")
    require_exact(backend, random_batch(1))
    backend.close()
    _require(float((ones + 1).sum()) == 2000.0, "torch fails after the device was closed")
    return f"torch {torch.__version__}"


def require_torch_cuda() -> Any:  # noqa: ANN401  # torch may not be here
    """Import torch with CUDA; raises ``UnavailableError`` if it has none."""
    try:
        import torch
    except ImportError as error:
        raise UnavailableError(f"torch cannot be imported: {error}") from None
    if not torch.cuda.is_available():
        raise UnavailableError(f"torch {torch.__version__} finds no CUDA device")
    return torch


def random_batch(seed: int, rows: int | None = None, width: int | None = None) -> Batch:
    """Return a batch of random shape and ids, longest text first."""
    generator = np.random.default_rng(seed)
    rows = rows or int(generator.integers(1, 97))
    lengths = np.sort(generator.integers(1, (width or 128) + 1, rows))[::-1].astype(np.int64)
    ids = generator.integers(1, 21128, (rows, int(lengths.max())))
    ids[np.arange(ids.shape[1]) >= lengths[:, None]] = 0
    return Batch(ids, lengths)


def require_exact(backend: LaneBackend, batch: Batch) -> None:
    """Raise ``AssertionError`` unless the stand-in's vectors are exact."""
    found = backend.run(batch)
    _require(
        np.array_equal(found, expected_vectors(batch, found.shape[1])),
        f"wrong vectors for a batch {batch.input_ids.shape}",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
