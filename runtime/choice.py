"""Which backend, precision, threads and workers execute: as asked for, as tuned, as there are."""

import logging
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from .availability import why_not, why_not_auto
from .backend import choose_backend, choose_variant
from .cpus import available_cpus
from .engine_cache import EngineCache
from .errors import InputError
from .manifest import Manifest, Variant
from .options import cpu_count
from .tuning import Goal, Winner, check_tuned, find_winner, leaves_open

logger = logging.getLogger("corom")


class Asked(NamedTuple):
    """What an encoder was asked for; see ``Encoder``."""

    backend: str
    device: str
    precision: str
    threads: int | None
    workers: int | None
    engine_cache: EngineCache
    tuned: Goal | Literal["off"]
    adaptive: bool


class Choice(NamedTuple):
    """What executes. ``winner``: of `corom tune`, if it decided."""

    backend: str
    device: str
    variant: Variant
    threads: int
    """CPU threads of one execution."""
    workers: int | None
    """Executions at once; None is one."""
    all_threads: int | None
    """CPU threads of an execution that is alone, if that is to be opened as well."""
    winner: Winner | None
    goal: Goal | Literal["off"]

    def __str__(self) -> str:
        words = f"{self.variant.precision} by {self.backend} on {self.device}"
        return words if self.winner is None else f"{words}, tuned for {self.goal}"


def choose(folder: Path, manifest: Manifest, asked: Asked) -> Choice:
    """Return what executes the bundle here.

    Raises ``InputError`` for what does not exist, ``UnavailableError`` for what cannot run here.
    """
    backend, device, precision, threads, workers, engine_cache, tuned, adaptive = asked
    if engine_cache not in get_args(EngineCache):
        raise InputError(f"engine_cache is {engine_cache!r}; allowed: 'auto', 'off'.")
    reason = why_not_auto if backend == "auto" else why_not
    cannot = partial(reason, folder, manifest, precision, engine_cache)
    name, device = choose_backend(backend, device, cannot, precision)
    check_tuned(tuned)
    adaptive = adaptive and workers is None and device == "cpu"
    winner = None
    if tuned != "off" and leaves_open(asked._asdict()):
        if device == "cpu":
            winner = find_winner(folder, manifest, tuned)
        elif tuned == "latency":  # nobody asks for it who has not tuned
            logger.warning("what was tuned is of CPUs, and this is %s. Take device 'cpu'.", device)
    if winner is not None:
        unproven = why_not_auto(
            folder, manifest, winner.precision, engine_cache, winner.backend, device
        )
        if unproven is not None:
            logger.warning("%s by %s, as tuned: %s", winner.precision, winner.backend, unproven)
            winner = None
    if winner is not None:
        name, precision = winner.backend, winner.precision
        threads, workers = winner.threads, winner.workers
        if adaptive:  # it has all CPUs for one text, and one for each of many
            threads, workers = winner.cpus, None
    variant = choose_variant(manifest, precision, name, device)
    if workers is not None:
        cpu_count("workers", workers)
    share = max(1, available_cpus() // (workers or 1))
    threads = share if threads is None else cpu_count("threads", threads)
    all_threads = None
    if adaptive and threads > 1:
        threads, workers, all_threads = 1, threads, threads
    return Choice(name, device, variant, threads, workers, all_threads, winner, tuned)
