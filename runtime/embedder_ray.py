"""A corpus computed by the workers of Ray: their start, the portions in order, their failures."""

import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from .embedder import Advance, Described, Embedded, Say
from .errors import CoromError, UnavailableError
from .job_source import JobSource
from .late_encoder import LateEncoder
from .options import EncodeOptions
from .ray_cluster import connected, quiet_start
from .ray_pipeline import RETRIES, Computed, Remote, differ, pipeline, record_of
from .ray_team import Team, plan_team, tuned_winner

PATIENCE_S = 30
"""After so long the user is told that workers do not start."""
FAREWELL_S = 10
"""How long threads of Ray Data may take for what they do last."""
CALLING_THREADS = ("iter_threaded", "StreamingExecutor-", "ray-data-metadata-prefetch")
"""How the names of those begin that call Ray."""


class RayEmbedder:
    """Sends the portions of a job through the pipeline and takes them in order."""

    def __init__(self, team: Team, remote: Remote, say: Say = lambda _line: None) -> None:
        self._ray: Any = import_module("ray")
        import_module("ray.data")  # which sets up its logger
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters is said here
        self._team, self._remote, self._say = team, remote, say
        self._stream: Generator[Embedded, None, None] | None = None
        self.described = self._opened()
        self.choice = self.described.choice

    def embed(self, source: JobSource, advance: Advance) -> Iterator[Embedded]:
        """Yield every portion, in order, with its vectors; Ray Data reads some ahead."""
        self._stream = self._embed(source, advance)
        return self._stream

    def close(self) -> None:
        """End what is under way, before Ray itself ends."""
        if self._stream is not None:
            self._stream.close()

    def _embed(self, source: JobSource, advance: Advance) -> Generator[Embedded, None, None]:
        if not source.corpus.can_be_read_twice:
            self._say("What can be read only once is copied first, below TMPDIR.")
        lives: set[str] = set()
        with (
            source.corpus.for_another_process() as corpus,
            closing(self._computed(replace(source, corpus=corpus))) as stream,
        ):
            for (embedded, life), vectors in stream:
                portion = embedded.portion
                advance(portion.rows)
                if portion.number in source.done:
                    yield embedded
                    continue
                if life not in lives and len(lives) >= self._team.workers:
                    self._say("A worker died and was started again; nothing it had is lost.")
                lives.add(life)
                rows = np.frombuffer(vectors, np.float32)
                shape = len(portion.keys), self.described.dimension
                yield embedded._replace(vectors=rows.reshape(shape))

    def _computed(self, source: JobSource) -> Generator[tuple[Computed, Any], None, None]:
        """Yield what the workers return, or raise what they say was wrong."""
        dataset = pipeline(self._team, self._remote, self.described, source)
        options = {"batch_size": 1, "batch_format": "pyarrow", "prefetch_batches": 0}
        # Closed at once when this ends early: a pipeline that outlives its Ray starts another.
        with (
            self._failures(),
            _threads_ended(),
            closing(iter(dataset.iter_batches(**options))) as tables,
        ):
            with quiet_start():
                table = next(tables, None)
            while table is not None:
                record = record_of(table)
                if isinstance(record, Exception):
                    raise record
                yield record, table["vectors"][0].as_buffer()
                table = next(tables, None)

    def _opened(self) -> Described:
        """Have as many encoders opened as there will be workers; returns what they all are."""
        described = self._ray.remote(
            num_cpus=self._team.cpus,
            num_gpus=self._team.gpus,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )(_Described)
        actors = [described.remote(self._remote) for _ in range(self._team.workers)]
        waiting = [actor.answer.remote() for actor in actors]
        found: list[Described] = []
        try:
            with self._failures():
                while waiting:
                    done, waiting = self._ray.wait(waiting, timeout=PATIENCE_S)
                    for answer in map(self._ray.get, done):
                        if isinstance(answer, Exception):
                            raise answer
                        found.append(answer)
                    if not done:
                        count = f"{len(waiting)} of {len(actors)}"
                        self._say(f"{count} workers wait for the cluster's CPUs.")
        finally:
            for actor in actors:  # their CPUs are for the pipeline
                self._ray.kill(actor)
        for other in found:
            if other != found[0]:
                raise differ(found[0], other)
        return found[0]

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise this library's error for processes that Ray lost."""
        try:
            yield
        except self._ray.exceptions.RayTaskError:
            raise  # a bug
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from None


class _Described:
    """An actor of Ray that opens an encoder to say what it is."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def answer(self) -> Described | Exception:
        try:
            return self._remote.embedder().described
        except (CoromError, OSError) as error:
            return error


@contextmanager
def _threads_ended() -> Iterator[None]:
    """Wait at the end for the threads of Ray Data that call Ray.

    A pipeline that is closed waits two seconds for one and not at all for others, and Ray ends
    the process, with exit code 1, of a thread that calls it while it shuts down.
    """
    try:
        yield
    finally:
        deadline = time.monotonic() + FAREWELL_S
        for thread in threading.enumerate():
            if thread.name.startswith(CALLING_THREADS):
                thread.join(max(0.0, deadline - time.monotonic()))


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
    with connected(say) as machines:
        if (winner := tuned_winner(late, machines)) is not None:
            asked |= {"backend": winner.backend, "precision": winner.precision}
            budget = budget or min(winner.batch_tokens, asked.get("max_batch_tokens", 16384))
            say(f"as tuned on this machine: {winner.precision} by {winner.backend}.")
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
        with closing(RayEmbedder(team, Remote(late, options, budget), say)) as embedder:
            yield embedder


def _lost(error: Exception) -> UnavailableError:
    said = (str(error) or type(error).__name__).splitlines()[0]
    return UnavailableError(
        f"a worker, or who reads for them, was lost and not replaced: {said} The same command goes "
        "on with what is written. If memory ran out: fewer --num-workers, or fewer --shard-rows."
    )
