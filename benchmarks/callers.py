"""Many callers of single texts at once: how much of the offline throughput they get, and how soon.

Closed loop: each caller asks for its next text when it has the last one's vector, by threads that
wait for `submit` and by tasks that await `aencode`. Rounds with `Encoder.encode` on the same texts
in one call alternate with them, so that noise of the machine meets both.

Run: python -m corom.benchmarks.callers BUNDLE TEXTS_FILE [CALLERS] [SECONDS] [WORKERS]
"""

import asyncio
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from corom.runtime import DynamicBatcher, Encoder

from .figures import latency
from .machine import describe_machine

ROUND_SECONDS = 2.0


def by_threads(batcher: DynamicBatcher, texts: list[str], callers: int) -> list[float]:
    """Return the seconds each text took, asked for by threads."""
    source = itertools.cycle(texts)
    seconds: list[list[float]] = [[] for _ in range(callers)]
    until = time.perf_counter() + ROUND_SECONDS

    def call(mine: list[float]) -> None:
        start = time.perf_counter()
        while start < until:
            batcher.submit(next(source)).result()
            end = time.perf_counter()
            mine.append(end - start)
            start = end

    threads = [threading.Thread(target=call, args=(mine,)) for mine in seconds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(itertools.chain(*seconds))


def by_tasks(batcher: DynamicBatcher, texts: list[str], callers: int) -> list[float]:
    """Return the seconds each text took, asked for by tasks of one event loop."""
    source = itertools.cycle(texts)
    seconds: list[float] = []

    async def call(until: float) -> None:
        start = time.perf_counter()
        while start < until:
            await batcher.aencode(next(source))
            end = time.perf_counter()
            seconds.append(end - start)
            start = end

    async def all_of_them() -> None:
        until = time.perf_counter() + ROUND_SECONDS
        await asyncio.gather(*(call(until) for _ in range(callers)))

    asyncio.run(all_of_them())
    return seconds


def measure(
    bundle: str, texts: list[str], callers: int, seconds: float, workers: int
) -> dict[str, Any]:
    """Return the offline rate, and for each kind of caller rate, share of it and latency."""
    kinds: dict[str, Callable[[DynamicBatcher, list[str], int], list[float]]]
    kinds = {"threads": by_threads, "tasks": by_tasks}
    offline: list[float] = []
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    end = time.perf_counter() + seconds
    with Encoder(bundle, workers=workers) as encoder, DynamicBatcher(encoder) as batcher:
        encoder.encode(texts[:64])
        while time.perf_counter() < end:
            start = time.perf_counter()
            encoder.encode(texts)
            offline.append(len(texts) / (time.perf_counter() - start))
            for kind, run in kinds.items():
                start = time.perf_counter()
                durations = run(batcher, texts, callers)
                rates[kind].append(len(durations) / (time.perf_counter() - start))
                took[kind] += durations
        counters = batcher.counters()
    result: dict[str, Any] = {"callers": callers, "workers": workers}
    result["offline_per_s"] = round(median(offline), 1)
    for kind in kinds:
        shares = [rate / best for rate, best in zip(rates[kind], offline, strict=True)]
        result[kind] = {
            "per_s": round(median(rates[kind]), 1),
            "share_of_offline": round(median(shares), 3),
            "p99_over_p50": round(latency(took[kind]).p99_us / latency(took[kind]).p50_us, 2),
            **latency(took[kind])._asdict(),
        }
    result["texts_a_batch"] = round(counters.texts / counters.batches, 1)
    result["padding"] = round(1 - counters.batch_tokens / counters.padded_tokens, 3)
    return result


if __name__ == "__main__":
    bundle, file, *numbers = sys.argv[1:]
    callers, seconds, workers = [*map(int, numbers), *(64, 40, 1)[len(numbers) :]]
    lines = Path(file).read_text("utf-8").splitlines()
    result = measure(bundle, lines, callers, seconds, workers)
    print(json.dumps({"benchmark": "callers", **result, **describe_machine()}))  # noqa: T201
