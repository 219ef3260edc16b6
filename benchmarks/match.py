"""Contestants in one sitting: each checked against the reference first, then timed in turns."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corom.runtime.parity import row_cosines
from corom.runtime.vectors import Vectors

from .contestants import BATCHES, COSINE_MIN, Contestant
from .peer_environment import ensure_environment
from .peer_process import PeerError, PeerProcess, worker_command

RUNG = [sys.executable, "-m", "corom.benchmarks.rung_worker"]
WARM_TEXTS = 64
TURN_SECONDS = 1.0
"""What a turn takes at least, of one text at a time and of many, for all alike: how long a CPU
needs to be at full speed again after it was idle, and the one before to let go of it (threads of
OpenMP wait busily for 0.2 s), would count most for who is fastest."""
CALLER_SECONDS = 2.0


@dataclass(frozen=True)
class Conditions:
    """What is the same for all: folders by layout, threads, tokens a text is cut to, pooling."""

    folders: Mapping[str, Path]
    threads: int
    max_length: int
    pooling: str
    dimension: int

    def job(self, contestant: Contestant) -> dict[str, Any]:
        """Return what the contestant's worker is asked to open."""
        return {
            "kind": contestant.kind,
            "folder": str(self.folders[contestant.layout].resolve()),
            "threads": self.threads,
            "max_length": self.max_length,
            "pooling": self.pooling,
            "dimension": self.dimension,
            **contestant.job,
        }


@dataclass
class Entry:
    """A contestant and what became of it: figures a round, or why there are none."""

    contestant: Contestant
    process: PeerProcess | None = None
    failure: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    cosine_min: float | None = None
    setting: int | None = None
    """What it chose for many texts: a peer the rows of a batch, corom the executions at once."""
    latencies: list[list[float]] = field(default_factory=list)
    """Seconds of each text alone, for each round."""
    rates: list[float] = field(default_factory=list)
    """Texts a second, for each round."""
    caller_latencies: list[list[float]] = field(default_factory=list)
    """Seconds of each text that many callers of corom asked for at once, for each round."""
    caller_rates: list[float] = field(default_factory=list)
    """Texts a second that they got together, for each round."""

    def give_up(self, error: PeerError) -> None:
        """Take no further part; what was measured does not count."""
        self.failure = str(error)
        if self.process is not None:
            self.process.close()
            self.process = None


@contextmanager
def entered(
    contestants: Sequence[Contestant], conditions: Conditions, say: Callable[[str], None]
) -> Iterator[list[Entry]]:
    """Install, prepare and open each contestant; what fails is in its entry, the rest goes on."""
    entries = [Entry(contestant) for contestant in contestants]
    try:
        for entry in entries:
            say(entry.contestant.name)
            try:
                _open(entry, conditions)
            except PeerError as error:
                entry.give_up(error)
                say(f"{entry.contestant.name} takes no part: {error}")
        yield entries
    finally:
        for entry in entries:
            if entry.process is not None:
                entry.process.close()


def _open(entry: Entry, conditions: Conditions) -> None:
    contestant, job = entry.contestant, conditions.job(entry.contestant)
    command: Sequence[str | Path] = RUNG
    if contestant.environment is not None:
        command = worker_command(ensure_environment(contestant.environment))
    if contestant.prepare:
        with PeerProcess(command, conditions.threads) as process:
            process.ask("prepare", **job)
    entry.process = PeerProcess(command, conditions.threads)
    entry.versions = entry.process.ask("open", **job)["versions"]


def check(entries: Sequence[Entry], texts: list[str], expected: Vectors) -> None:
    """Measure each contestant's cosine to the reference; who is too far off is not timed."""

    def compare(entry: Entry, process: PeerProcess) -> None:
        found = process.vectors(texts)
        if found.shape != expected.shape:
            raise PeerError(f"its vectors are {found.shape}, the reference's {expected.shape}.")
        entry.cosine_min = float(row_cosines(expected, found).min())
        floor = COSINE_MIN[entry.contestant.precision]
        if not entry.cosine_min >= floor:
            raise PeerError(
                f"its vectors are not the reference's: cosine {entry.cosine_min:.4f}, "
                f"at least {floor} is expected."
            )

    _each(entries, compare)


def warm(entries: Sequence[Entry], texts: list[str], threads: int) -> None:
    """Let every contestant see the texts, and choose the setting that is fastest for it."""

    def choose(entry: Entry, process: PeerProcess) -> None:
        process.ask("latency", texts=texts[:WARM_TEXTS], seconds=0)
        settings = sorted({1, threads}) if entry.contestant.ours else BATCHES
        seconds = {}
        for setting in (settings[0], *settings):  # the first call of all is no measure
            answer = process.ask("throughput", texts=texts, setting=setting, seconds=TURN_SECONDS)
            seconds[setting] = answer["seconds"]
        entry.setting = min(seconds, key=seconds.__getitem__)

    _each(entries, choose)


def play(
    entries: Sequence[Entry],
    latency_texts: list[str],
    texts: list[str],
    rounds: int,
    after_round: Callable[[], None],
    callers: int = 0,
) -> None:
    """Time every contestant once a round, in another order each round.

    ``callers``: threads that ask corom's rungs for single texts at once, as no peer in a process
    can be asked.
    """

    def measure(entry: Entry, process: PeerProcess) -> None:
        answer = process.ask("latency", texts=latency_texts, seconds=TURN_SECONDS)
        entry.latencies.append(answer["seconds"])
        answer = process.ask("throughput", texts=texts, setting=entry.setting, seconds=TURN_SECONDS)
        entry.rates.append(len(texts) / answer["seconds"])
        if entry.contestant.ours and callers:
            found = process.ask(
                "callers",
                texts=texts,
                setting=entry.setting,
                callers=callers,
                seconds=CALLER_SECONDS,
            )
            entry.caller_latencies.append(found["latencies"])
            entry.caller_rates.append(len(found["latencies"]) / found["elapsed"])

    for number in range(rounds):
        order = np.random.default_rng(number).permutation(len(entries)).tolist()
        _each([entries[row] for row in order], measure)
        after_round()


def _each(entries: Sequence[Entry], act: Callable[[Entry, PeerProcess], None]) -> None:
    for entry in entries:
        if entry.process is not None:
            try:
                act(entry, entry.process)
            except PeerError as error:
                entry.give_up(error)
