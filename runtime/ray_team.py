"""How many workers a Ray cluster takes, and what each has of its machine. Knows no Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import InputError, UnavailableError
from .late_encoder import LateEncoder
from .manifest import load_manifest
from .tuning import Winner, find_winner, leaves_open


class Machine(NamedTuple):
    """What a machine of the cluster has for workers."""

    cpus: int
    gpus: int


class Team(NamedTuple):
    """How many workers there are, and what each takes of its machine.

    ``threads``: of each of the ``at_once`` batches that a worker executes together.
    """

    workers: int
    threads: int
    gpus: int
    at_once: int = 1

    @property
    def cpus(self) -> int:
        """CPUs of each worker."""
        return self.threads * self.at_once


def plan_team(
    machines: Sequence[Machine],
    num_workers: int | None,
    threads: int | None,
    device: str,
    at_once: int = 1,
) -> Team:
    """Return how many workers of how many threads a cluster takes.

    ``threads``: of each of the ``at_once`` batches that a worker executes together; None divides
    a machine.

    Raises ``InputError`` for more than fit, ``UnavailableError`` for a GPU where there is none.
    """
    with_gpus = [machine for machine in machines if machine.gpus]
    if device == "cuda" and not with_gpus:
        raise UnavailableError("no machine of the Ray cluster has a GPU. Use --device cpu.")
    gpus = int(bool(with_gpus) and device != "cpu")
    usable = [machine for machine in (with_gpus if gpus else machines) if machine.cpus]
    if not usable:
        raise UnavailableError("no machine of the Ray cluster has a CPU for workers.")
    slots = sum(machine.gpus for machine in usable) if gpus else len(usable)
    workers = num_workers or slots
    if threads is None:
        together = -(-workers // len(usable))  # on one machine
        threads = max(1, min(machine.cpus for machine in usable) // together // at_once)
    team = Team(workers, threads, gpus, at_once)
    fits = [min(m.cpus // team.cpus, m.gpus) if gpus else m.cpus // team.cpus for m in usable]
    if workers > sum(fits):
        found = ", ".join(f"{m.cpus} CPUs" + f" and {m.gpus} GPUs" * gpus for m in usable)
        raise InputError(
            f"{workers} workers of {team.cpus} threads{' and a GPU each' * gpus} do not fit; the "
            f"cluster's machines have: {found}. Give fewer --num-workers or --threads."
        )
    return team


def tuned_winner(late: LateEncoder, machines: Sequence[Machine]) -> Winner | None:
    """Return what was tuned on this machine, where the user left open what executes."""
    asked = dict(late.options)
    with_gpus = asked.get("device", "auto") != "cpu" and any(m.gpus for m in machines)
    if with_gpus or not leaves_open(asked):
        return None
    goal = asked.get("tuned", "throughput")
    return find_winner(Path(late.bundle), load_manifest(Path(late.bundle)), goal)
