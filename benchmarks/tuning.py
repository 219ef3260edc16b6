"""Measures every way to execute a bundle on this machine, and finds which are worth having.

A noisy machine must not choose: the finalists are measured again, in turns.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corom.runtime import Encoder
from corom.runtime.golden import GOLDEN_NAME, load_golden
from corom.runtime.manifest import Precision, checked_file, load_manifest
from corom.runtime.parity import row_cosines

from .contestants import Contestant, rungs
from .figures import Spread, spread

BUDGETS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Padded tokens of one execution that are tried, until more of them cost much; of native none."""
TOKENS_A_CPU = 2048
"""No budget is tried that has more for each CPU of an execution, two at least."""
TEXTS_A_CPU, MOST_TEXTS = 64, 512
"""That are measured with; see ``enough``."""
BATCHES_A_WORKER = 4
"""All texts at once make at least so many for each, or large batches would leave workers idle that
a corpus keeps busy."""
ALONE_TEXTS = 32
"""Texts whose calls are timed: every way has to encode the same ones."""
FALLING = 0.9
"""Larger budgets are not tried once one reached less than this share of the best rate."""
FINALISTS, FINAL_BUDGETS, FINAL_ROUNDS = 3, 2, 5
WARM_TEXTS = 24
FIRST_CHARACTER = 0x4E00
"""Of Chinese, 20,000 of which follow."""


class Way(NamedTuple):
    """One way to execute: everything that "auto" would otherwise choose."""

    backend: str
    precision: Precision
    threads: int
    workers: int

    @property
    def alone(self) -> tuple[str, str, int]:
        """All that decides how long one text alone takes: one worker has it."""
        return self.backend, self.precision, self.threads

    def open(self, bundle: Path) -> Encoder:
        """Open the bundle so."""
        return Encoder(
            bundle,
            backend=self.backend,
            device="cpu",
            precision=self.precision,
            threads=self.threads,
            workers=self.workers,
        )


class Measured(NamedTuple):
    """A way with a batch budget, and what it reached; ``p50_ms``: of one text alone."""

    way: Way
    batch_tokens: int
    cosine_min: float
    p50_ms: float
    texts_per_second: float


class Final(NamedTuple):
    """A finalist and its figures over the rounds."""

    measured: Measured
    p50_ms: Spread
    texts_per_second: Spread


def ways(found: Sequence[Contestant], cpus: int) -> list[Way]:
    """Return every way to execute the rungs with at most so many CPUs.

    Threads and workers that together take one CPU, all, and powers of two between.
    """
    counts = sorted({cpus, *(2**k for k in range(cpus.bit_length()) if 2**k <= cpus)})
    return [
        Way(rung.job["backend"], rung.precision, threads, workers)
        for rung in found
        for workers in counts
        for threads in counts
        if workers * threads <= cpus and (workers == 1 or workers * threads == cpus)
    ]


def budgets(cpus: int) -> tuple[int, ...]:
    """Return the batch budgets worth trying where so many CPUs execute one."""
    return tuple(budget for budget in BUDGETS if budget <= TOKENS_A_CPU * max(2, cpus))


def texts_for(cpus: int) -> int:
    """Return how many texts are measured with on so many CPUs."""
    return min(MOST_TEXTS, TEXTS_A_CPU * max(2, cpus))


def candidates(bundle: Path, cpus: int) -> list[Way]:
    """Return every way to execute this bundle on this machine's CPUs."""
    return ways(rungs(bundle), cpus)


def measure(
    bundle: Path, way: Way, texts: list[str], min_cosine: float, seconds: float
) -> Iterator[Measured]:
    """Yield what a way reaches with each batch budget; nothing if it misses the parity floor.

    Parity is of the golden texts against their reference vectors, measured here. A rate rises with
    the budget, then falls: from where it has fallen, twice in turn, no larger one is tried. native
    pads nothing and makes its own parts of a batch: the budget it takes was measured
    (benchmarks/README.md).
    """
    with way.open(bundle) as encoder:
        cosine = golden_cosine(bundle, encoder)
        if not cosine >= min_cosine:
            return
        p50 = alone_ms(encoder, texts[:ALONE_TEXTS], seconds)
        tokens = token_count(encoder, texts)
        best = 0.0
        own = (encoder.batch_tokens,)
        for budget in own if way.backend == "native" else budgets(way.threads):
            encoder.batch_tokens = budget
            together = enough(texts, tokens, budget * way.workers)
            rate = throughput(encoder, together, seconds)
            if rate < FALLING * best:  # or the machine did something else meanwhile
                rate = max(rate, throughput(encoder, together, seconds))
            yield Measured(way, budget, cosine, p50, rate)
            if rate < FALLING * best:
                return
            best = max(best, rate)


def golden_cosine(bundle: Path, encoder: Encoder) -> float:
    """Return the smallest cosine of a golden text's vector to the reference's."""
    manifest = load_manifest(bundle)
    golden = load_golden(checked_file(bundle, manifest.entry(GOLDEN_NAME)))
    vectors = encoder.encode(golden.texts, normalize_embeddings=False, prompt="")
    return float(row_cosines(golden.vectors, vectors).min())


def token_count(encoder: Encoder, texts: list[str]) -> int:
    """Return how many tokens all texts have together."""
    return sum(map(len, encoder.token_ids(texts)))


def enough(texts: list[str], tokens: int, tokens_at_once: int) -> list[str]:
    """Return the texts, as often as it takes to make ``BATCHES_A_WORKER`` full batches for each.

    ``tokens``: of all texts; ``tokens_at_once``: of a batch of every worker. Again, they have a
    character more before them: equal texts are computed once.
    """
    rounds = -(-BATCHES_A_WORKER * tokens_at_once // tokens)
    again = (f"{chr(FIRST_CHARACTER + k)}{text}" for k in range(rounds - 1) for text in texts)
    return [*texts, *again]


def alone_ms(encoder: Encoder, texts: list[str], seconds: float) -> float:
    """Return the median milliseconds of one text alone, over at least ``seconds``, all as often."""
    for text in texts[:WARM_TEXTS]:
        encoder.encode(text)
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not durations:
        for text in texts:
            start = time.perf_counter()
            encoder.encode(text)
            durations.append(time.perf_counter() - start)
    return float(np.median(durations)) * 1000


def throughput(encoder: Encoder, texts: list[str], seconds: float) -> float:
    """Return texts a second of all texts at once, over at least ``seconds``."""
    encoder.encode(texts[:WARM_TEXTS])
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        encoder.encode(texts)
        count += len(texts)
    return count / elapsed


def pareto_front(found: Sequence[Measured]) -> list[Measured]:
    """Return what no other beats in latency, throughput and parity together, fastest first."""

    def beaten(one: Measured) -> bool:
        return any(
            other.p50_ms <= one.p50_ms
            and other.texts_per_second >= one.texts_per_second
            and other.cosine_min >= one.cosine_min
            and other[2:] != one[2:]
            for other in found
        )

    front = [one for one in found if not beaten(one)]
    return sorted(front, key=lambda one: -one.texts_per_second)


def finalists(found: Sequence[Measured]) -> list[Measured]:
    """Return the fastest for one text and the fastest for many, with the best of their budgets.

    What differs in workers alone is as fast for one text: it takes one place there.
    """
    by_rate = sorted(found, key=lambda one: -one.texts_per_second)
    best: dict[Way, list[Measured]] = {}
    for one in by_rate:
        best.setdefault(one.way, []).append(one)
    most = list(best)[:FINALISTS]
    quickest = dict.fromkeys(one.way.alone for one in sorted(found, key=lambda one: one.p50_ms))
    alone = [next(w for w in best if w.alone == key) for key in list(quickest)[:FINALISTS]]
    chosen = [one for way in most for one in best[way][:FINAL_BUDGETS]]
    return [*chosen, *(best[way][0] for way in alone if way not in most)]


def fastest_alone(finals: Sequence[Final]) -> Final:
    """Return the fastest for one text; of those that differ in workers, the fastest for many."""
    fastest = min(finals, key=lambda one: one.p50_ms.median).measured.way.alone
    twins = [one for one in finals if one.measured.way.alone == fastest]
    return fastest_together(twins)


def fastest_together(finals: Sequence[Final]) -> Final:
    """Return the fastest for many texts."""
    return max(finals, key=lambda one: one.texts_per_second.median)


def final(
    bundle: Path,
    chosen: Sequence[Measured],
    texts: list[str],
    seconds: float,
    after_round: Callable[[], None],
) -> list[Final]:
    """Measure the finalists again, each once a round, in another order each round.

    Each round times other texts alone, the same ones of every finalist.
    """
    latencies: dict[Measured, list[float]] = {one: [] for one in chosen}
    rates: dict[Measured, list[float]] = {one: [] for one in chosen}
    with ExitStack() as stack:
        encoders = {
            way: stack.enter_context(way.open(bundle))
            for way in dict.fromkeys(one.way for one in chosen)
        }
        tokens = token_count(next(iter(encoders.values())), texts)
        together = {
            one: enough(texts, tokens, one.batch_tokens * one.way.workers) for one in chosen
        }
        for number in range(FINAL_ROUNDS):
            first = number * ALONE_TEXTS % len(texts)
            alone = [*texts[first:], *texts[:first]][:ALONE_TEXTS]
            for row in np.random.default_rng(number).permutation(len(chosen)).tolist():
                one = chosen[row]
                encoder = encoders[one.way]
                encoder.batch_tokens = one.batch_tokens
                latencies[one].append(alone_ms(encoder, alone, seconds))
                rates[one].append(throughput(encoder, together[one], seconds))
            after_round()
    return [Final(one, spread(latencies[one]), spread(rates[one])) for one in chosen]
