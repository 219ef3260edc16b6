"""The workers of Ray: each holds one encoder and computes whole portions; this process writes them.

A worker that dies is started again and its portions are computed again, on whatever machine.
"""

import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from .cpus import available_cpus
from .embedder import Advance, Described, Embedded, Say, at_its_place, describe
from .encoder import Encoder
from .errors import CoromError, InputError, UnavailableError, missing_extra
from .late_encoder import LateEncoder
from .manifest import load_manifest
from .options import EncodeOptions
from .portions import Portion
from .tuning import Winner, find_winner
from .vectors import Vectors

PORTIONS_A_WORKER = 2
"""Portions that a worker has: the one it computes, and the next."""
RETRIES = 3
"""How often a portion is computed again whose worker died: it may be what kills them."""
PATIENCE_S = 30
"""After so long the user is told that workers do not start."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # of 40 s each, for a cluster that crashed here
}
"""What Ray reads when it is imported; what a user has set stays."""


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


class Worker:
    """Runs in a process of its own, an actor of Ray. Opens its encoder when first asked."""

    def __init__(self, late: LateEncoder, options: EncodeOptions, budget: int | None) -> None:
        self._late, self._options, self._budget = late, options, budget
        self._life = uuid4().hex

    def describe(self) -> Described:
        """Return what this worker's encoder is."""
        return describe(self._encoder(), self._options)

    def encode(self, texts: list[str], expected: Described) -> tuple[Vectors, int, str]:
        """Return the vectors (N, H), how many texts were cut, and what only this process returns.

        Raises ``UnavailableError`` if a worker started on another machine has another encoder.
        """
        if (found := self.describe()) != expected:
            raise _differ(expected, found)
        encoder = self._encoder()
        cut = encoder.truncated_texts
        vectors = encoder.encode(texts, **self._options)
        return vectors, encoder.truncated_texts - cut, self._life

    def _encoder(self) -> Encoder:
        encoder = self._late.encoder()
        encoder.batch_tokens = self._budget or encoder.batch_tokens
        return encoder


class Task(NamedTuple):
    """A portion that a worker has in hand, and Ray's reference to what will come of it."""

    portion: Portion
    worker: Any
    reference: Any


class RayEmbedder:
    """Gives portions to workers, at most ``PORTIONS_A_WORKER`` to each, and collects in order."""

    def __init__(
        self,
        team: Team,
        late: LateEncoder,
        options: EncodeOptions,
        budget: int | None,
        say: Say = lambda _line: None,
    ) -> None:
        self._ray: Any = import_module("ray")
        actor = self._ray.remote(
            num_cpus=team.cpus,
            num_gpus=team.gpus,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )(Worker)
        self._workers = [actor.remote(late, options, budget) for _ in range(team.workers)]
        self._lives: dict[Any, str] = {}
        self._flight: deque[Task] = deque()
        self._say = say
        self.described = self._opened()

    def embed(self, portions: Iterable[Portion], advance: Advance) -> Iterator[Embedded]:
        """Yield the portions with their vectors, in order; some are read ahead."""
        free = deque(self._workers * PORTIONS_A_WORKER)
        most = 2 * len(free)  # so that a slow worker does not keep the others waiting
        busy: dict[Any, Any] = {}
        for portion in portions:
            if len(self._flight) == most:
                yield self._next(advance)
            while not free:
                for done in self._ray.wait(list(busy))[0]:
                    free.append(busy.pop(done))
            worker = free.popleft()
            reference = worker.encode.remote(portion.texts, self.described)
            busy[reference] = worker
            self._flight.append(Task(portion, worker, reference))
        while self._flight:
            yield self._next(advance)

    def close(self) -> None:
        """End the workers and what they have in hand, or Ray complains of it when it ends."""
        for worker in self._workers:
            self._ray.kill(worker)
        if references := [task.reference for task in self._flight]:
            self._ray.wait(references, num_returns=len(references), timeout=5)

    def _next(self, advance: Advance) -> Embedded:
        """Wait for the portion whose turn it is."""
        portion, worker, reference = self._flight[0]
        try:
            vectors, truncated_texts, life = self._got(reference)
        except InputError as error:
            raise at_its_place(error, portion) from None
        if self._lives.setdefault(worker, life) != life:
            self._lives[worker] = life
            self._say("A worker died and was started again; what it had in hand is not lost.")
        self._flight.popleft()
        advance(portion.rows)
        return Embedded(portion, vectors, truncated_texts)

    def _opened(self) -> Described:
        """Wait until every worker has its encoder; returns what they are."""
        waiting = [worker.describe.remote() for worker in self._workers]
        opened: list[Described] = []
        while waiting:
            done, waiting = self._ray.wait(waiting, timeout=PATIENCE_S)
            opened += map(self._got, done)
            if not done:
                self._say(
                    f"{len(waiting)} of {len(self._workers)} workers wait for the cluster's CPUs."
                )
        for other in opened:
            if other != opened[0]:
                raise _differ(opened[0], other)
        return opened[0]

    def _got(self, reference: Any) -> Any:  # noqa: ANN401
        """Return what a worker returned, or raise what it raised."""
        failures = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except failures.RayTaskError as error:
            if isinstance(error.cause, CoromError | OSError):
                raise error.cause from None
            raise
        except failures.RayError as error:
            raise UnavailableError(
                f"a worker died {RETRIES + 1} times over the same rows, or cannot be reached: "
                f"{str(error).splitlines()[0]} If memory ran out: fewer --num-workers, or fewer "
                "--shard-rows."
            ) from None


@contextmanager
def ray_embedder(
    late: LateEncoder,
    options: EncodeOptions,
    num_workers: int | None,
    budget: int | None,
    say: Say,
) -> Iterator[RayEmbedder]:
    """Yield the workers of the cluster, or of one that is started on this machine for this block.

    ``num_workers`` None takes one on each machine, or on each GPU where there are any and the
    encoder's device is not "cpu". Threads are divided among the workers of a machine. ``budget``:
    tokens of a batch; None: as the encoder chooses. "auto" takes what was tuned on this machine, on
    all of them.
    """
    asked = dict(late.options)
    with _connected(say) as machines:
        if (winner := tuned_winner(late, machines)) is not None:
            asked |= {"backend": winner.backend, "precision": winner.precision}
            budget = budget or min(winner.batch_tokens, asked.get("max_batch_tokens", 16384))
        team = plan_team(
            machines,
            num_workers,
            asked.get("threads"),
            asked.get("device", "auto"),
            asked.get("workers") or 1,
        )
        say(f"workers: {team.workers}, threads of each: {team.cpus}.")
        options_of_all = tuple(sorted((asked | {"threads": team.threads}).items()))
        late = late._replace(options=options_of_all)
        embedder = RayEmbedder(team, late, options, budget, say)
        try:
            yield embedder
        finally:
            embedder.close()


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
    named = any(asked.get(name, "auto") != "auto" for name in ("backend", "precision"))
    counted = asked.get("threads") is not None or asked.get("workers") is not None
    goal = asked.get("tuned", "throughput")
    with_gpus = asked.get("device", "auto") != "cpu" and any(m.gpus for m in machines)
    if named or counted or goal == "off" or with_gpus:
        return None
    return find_winner(Path(late.bundle), load_manifest(Path(late.bundle)), goal)


@contextmanager
def _connected(say: Say) -> Iterator[list[Machine]]:
    """Join the cluster that there is, or start one; yields its machines."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if find_spec("ray") is None:
        raise missing_extra("ray", "ray", "--engine ray")
    ray: Any = import_module("ray")
    terminate = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        # Ray notes every death there, at length, where results would go.
        stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        stack.callback(ray.shutdown)
        _join_or_start(ray, say)
        signal.signal(signal.SIGTERM, terminate)  # Ray put its own in place
        yield [
            Machine(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
            for node in ray.nodes()
            if node["Alive"]
        ]


def _join_or_start(ray: Any, say: Say) -> None:  # noqa: ANN401
    """Join the cluster of RAY_ADDRESS or of `ray start`; start one if there is neither.

    Not address="auto": it would also join what another job started for itself, and end with it.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(address)
        try:
            ray.init(num_cpus=available_cpus(), include_dashboard=False, **quiet)
        except ValueError:  # there is a cluster: it has the CPUs it has
            ray.init(**quiet)
        else:
            say("There is no Ray cluster; one was started on this machine.")
    except (OSError, RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"the Ray cluster{' at RAY_ADDRESS=' * bool(address)}{address} cannot be reached: "
            f"{error}. If it asks for a token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN as Ray's "
            "documentation says. Without RAY_ADDRESS one is started on this machine (after a "
            "`ray stop` if one crashed here)."
        ) from None


def _knock(address: str) -> None:
    """Raise ``OSError`` if nobody answers there: Ray would try for a quarter of an hour."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _differ(one: Described, other: Described) -> UnavailableError:
    return UnavailableError(
        f"the machines of the cluster do not run the same: {one.choice} here, {other.choice} "
        "there. Say which with --backend, --device and --precision."
    )
