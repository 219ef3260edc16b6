"""Measurements on a GPU: latency and throughput of each road in turn, stages, floors."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from corom.runtime.batching import pad, plan_batches
from corom.runtime.cuda import Device
from corom.runtime.engine import Addresses, Engine
from corom.runtime.packing import layout, pack, views
from corom.runtime.shapes import Buckets
from corom.runtime.tokens import Tokenizer

from .figures import Latency, latency
from .gpu_checks import random_batch, require_torch_cuda
from .gpu_roads import Road, Run, batch_of

WARMUPS = 8
TURN = 20
"""Requests in a row of one road before the next has its turn, as in a service that is busy."""


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return ``rounds`` durations of each run, seconds. They take turns: noise is shared."""
    for run in runs.values():
        for _ in range(WARMUPS):
            run()
    durations: dict[str, list[float]] = {name: [] for name in runs}
    for done in range(0, rounds, TURN):
        for name, run in runs.items():
            for _ in range(min(TURN, rounds - done)):
                start = time.perf_counter()
                run()
                durations[name].append(time.perf_counter() - start)
    return durations


def text_latencies(
    roads: Sequence[Road], tokenizer: Tokenizer, texts: list[str], rounds: int
) -> dict[str, Latency]:
    """Return text→vector latency of each road that is there, tokenizing included."""
    runs: dict[str, Callable[[], object]] = {}
    for road in roads:
        if road.encode is not None:
            runs[road.name] = partial(road.encode, texts)
        elif road.run is not None:
            runs[road.name] = partial(_one_request, road.run, tokenizer, texts)
    return {name: latency(found) for name, found in interleaved(runs, rounds).items()}


def _one_request(run: Run, tokenizer: Tokenizer, texts: list[str]) -> None:
    run(batch_of(tokenizer, texts))


def throughput(road: Road, tokenizer: Tokenizer, texts: list[str], batch_tokens: int) -> float:
    """Return texts a second, tokenizing included, sorted by length in windows of 4,096.

    All texts go through once before, so that no shape is new.
    """
    for _ in range(2):
        start = time.perf_counter()
        if road.encode is not None:
            road.encode(texts)
        else:
            assert road.run is not None
            for at in range(0, len(texts), 4096):
                tokens = tokenizer(texts[at : at + 4096])
                for rows in plan_batches(tokens.lengths, batch_tokens):
                    road.run(pad(tokens, rows))
        seconds = time.perf_counter() - start
    return len(texts) / seconds


def tokenize_rate(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Return texts a second of tokenizing alone."""
    start = time.perf_counter()
    for at in range(0, len(texts), 4096):
        tokenizer(texts[at : at + 4096])
    return len(texts) / (time.perf_counter() - start)


def stages(
    device: Device, engine: Engine, rows: int, width: int, rounds: int = 300
) -> dict[str, float]:
    """Return the median microseconds of each stage of one plain execution of rows × width tokens.

    Every stage is timed with the wait that follows it; "wait alone" is what that wait costs.
    """
    bucket = Buckets(engine.profiles).fit(rows, width)
    place = layout(bucket, engine.dimension)
    batch = random_batch(0, rows, width)
    with device.use():
        stream = device.stream()
        into, out = device.pinned(place.in_bytes), device.pinned(place.out_bytes)
        there, back = device.allocate(place.in_bytes), device.allocate(place.out_bytes)
        execution = engine.prepare(bucket, stream)
        scratch_bytes = max(256, execution.scratch_bytes)
        scratch = device.allocate(scratch_bytes)
        execution.bind(Addresses(there + place.ids_offset, there, back, scratch, scratch_bytes))

        def waited(work: Callable[[], None]) -> Callable[[], object]:
            return lambda: _then_wait(work, device, stream)

        steps: dict[str, Callable[[], object]] = {
            "pack": lambda: pack(batch, views(into, bucket, place)),
            "wait alone": waited(lambda: None),
            "copy in": waited(lambda: device.copy_in(there, into, stream)),
            "compute": waited(lambda: execution.enqueue(stream)),
            "copy out": waited(lambda: device.copy_out(out, back, stream)),
        }
        for step in steps.values():  # once before the capture: the first run initializes
            step()
        graph = device.capture(stream, lambda: execution.enqueue(stream))
        steps["compute as a graph"] = waited(lambda: device.launch(graph, stream))
        durations = interleaved(steps, rounds)
        device.free_graph(graph)
        execution.close()
        for address in (there, back, scratch):
            device.free(address)
        for pinned in (into, out):
            device.free_pinned(pinned)
        device.free_stream(stream)
    return {f"{name}_us": latency(found).p50_us for name, found in durations.items()}


def copy_floors(device: Device, size: int = 64 << 20) -> dict[str, float]:
    """Return the copy bandwidth, GB/s, and what copying 1 KiB takes, microseconds."""
    with device.use():
        stream, address, block = device.stream(), device.allocate(size), device.pinned(size)
        block[:] = 1

        def waited(work: Callable[[], None]) -> Callable[[], object]:
            return lambda: _then_wait(work, device, stream)

        runs: dict[str, Callable[[], object]] = {
            "in": waited(lambda: device.copy_in(address, block, stream)),
            "out": waited(lambda: device.copy_out(block, address, stream)),
            "small": waited(lambda: device.copy_in(address, block[:1024], stream)),
        }
        durations = interleaved(runs, 20)
        device.free_pinned(block)
        device.free(address)
        device.free_stream(stream)
    best = {name: float(np.min(found)) for name, found in durations.items()}
    return {
        "copy_in_gb_s": size / best["in"] / 1e9,
        "copy_out_gb_s": size / best["out"] / 1e9,
        "copy_1kib_us": best["small"] * 1e6,
    }


def gemm_floor(size: int = 8192) -> float:
    """Return the rate of torch's fp16 matrix product of size³, TFLOP/s."""
    torch = require_torch_cuda()
    left = torch.randn(size, size, device="cuda", dtype=torch.float16)
    torch.cuda.synchronize()

    def product() -> None:
        torch.mm(left, left)
        torch.cuda.synchronize()

    best = min(interleaved({"mm": product}, 10)["mm"])
    return 2 * size**3 / best / 1e12


def _then_wait(work: Callable[[], None], device: Device, stream: int) -> None:
    work()
    device.synchronize(stream)
