"""A corpus through a pipeline of Ray Data: read in one place, computed by workers, back in order.

A row of the pipeline is a whole portion, so that Ray Data, which cuts and joins blocks as it sees
fit, cuts none. What dies on the way is started again: a reader reads from the first row on and Ray
drops what it has already, a worker computes its portion again, on whatever machine.
"""

import logging
import os
import pickle
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from .embedder import Advance, Described, Embedded, Say, at_its_place, describe
from .encoder import Encoder
from .errors import CoromError, InputError, UnavailableError
from .job_source import JobSource
from .late_encoder import LateEncoder
from .options import EncodeOptions
from .portions import Portion
from .ray_cluster import connected, quiet_start
from .ray_team import Team, plan_team, tuned_winner

PORTIONS_A_WORKER = 2
"""Portions that a worker has: the one it computes, and the next."""
RETRIES = 3
"""How often a portion is computed again whose worker died: it may be what kills them."""
PATIENCE_S = 30
"""After so long the user is told that workers do not start."""

Table = Any
"""A pyarrow.Table of one row: "record" is what one process tells the next, pickled; "vectors"."""


class Remote(NamedTuple):
    """An encoder as workers open it; ``budget``: tokens of a batch, None: as it chooses."""

    late: LateEncoder
    options: EncodeOptions
    budget: int | None

    def encoder(self) -> Encoder:
        """Return this process's encoder."""
        encoder = self.late.encoder()
        encoder.batch_tokens = self.budget or encoder.batch_tokens
        return encoder

    def describe(self) -> Described:
        """Return what this process's encoder is."""
        return describe(self.encoder(), self.options)


class Computed(NamedTuple):
    """What a worker says of a portion, beside its vectors."""

    portion: Portion
    truncated_texts: int
    life: str
    """What only that process says."""


def read(_start: Table, source: JobSource, environment: dict[str, str]) -> Iterator[Table]:
    """Yield the portions of a corpus, and at last what was wrong with it.

    ``environment`` is that of the command: what opens URLs looks for credentials there.
    """
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        for portion in source:
            yield _row(portion)
    except (CoromError, OSError) as error:
        yield _row(error)


class Worker:
    """Computes whole portions with one encoder, in a process of its own, an actor of Ray."""

    def __init__(self, remote: Remote, expected: Described) -> None:
        self._remote, self._expected = remote, expected
        self._life = uuid4().hex

    def __call__(self, batch: Table) -> Table:
        """Return a portion with its vectors, or what was wrong with it or before it."""
        portion = pickle.loads(batch["record"][0].as_buffer())  # from read, above
        if isinstance(portion, Exception):
            return _row(portion)
        try:
            vectors, truncated_texts = self._vectors(portion)
        except InputError as error:
            return _row(at_its_place(error, portion))
        except (CoromError, OSError) as error:
            return _row(error)
        return _row(Computed(portion.without_texts(), truncated_texts, self._life), vectors)

    def _vectors(self, portion: Portion) -> tuple[bytes, int]:
        if not portion.texts:
            return b"", 0
        if (found := self._remote.describe()) != self._expected:
            raise UnavailableError(
                f"the machines of the cluster do not run the same: {self._expected.choice} here, "
                f"{found.choice} there. Say which with --backend, --device and --precision."
            )
        encoder = self._remote.encoder()
        cut = encoder.truncated_texts
        vectors = encoder.encode(portion.texts, **self._remote.options)
        return vectors.tobytes(), encoder.truncated_texts - cut


class RayEmbedder:
    """Sends the portions of a job through the pipeline and takes them in order."""

    def __init__(self, team: Team, remote: Remote, say: Say = lambda _line: None) -> None:
        self._ray: Any = import_module("ray")
        self._data: Any = import_module("ray.data")
        self._team, self._remote, self._say = team, remote, say
        self._stream: Generator[Embedded, None, None] | None = None
        self.described = self._describe()

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
            for computed, vectors in stream:
                portion, truncated_texts, life = computed
                advance(portion.rows)
                if portion.number in source.done:
                    yield Embedded(portion, None, 0)
                    continue
                if life not in lives and len(lives) >= self._team.workers:
                    self._say("A worker died and was started again; nothing it had is lost.")
                lives.add(life)
                rows = np.frombuffer(vectors, np.float32)
                shape = len(portion.keys), self.described.dimension
                yield Embedded(portion, rows.reshape(shape), truncated_texts)

    def _computed(self, source: JobSource) -> Generator[tuple[Computed, Any], None, None]:
        """Yield what the workers return, or raise what they say was wrong."""
        pipeline = self._pipeline(source)
        options = {"batch_size": 1, "batch_format": "pyarrow", "prefetch_batches": 0}
        try:
            # Closed at once when this ends early: a pipeline that outlives its Ray starts another.
            with closing(iter(pipeline.iter_batches(**options))) as batches:
                with quiet_start():
                    batch = next(batches, None)
                while batch is not None:
                    record = pickle.loads(batch["record"][0].as_buffer())  # Worker's
                    if isinstance(record, Exception):
                        raise record
                    yield record, batch["vectors"][0].as_buffer()
                    batch = next(batches, None)
        except self._ray.exceptions.RayTaskError:
            raise  # a bug
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from None

    def _pipeline(self, source: JobSource) -> Any:  # noqa: ANN401
        context = self._data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.target_max_block_size = 1  # a block for each row: none waits for the next
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters is said here
        # max_task_retries: Ray 2.64 takes no such argument any more, and warns of it before.
        warnings.simplefilter("ignore", self._ray.util.annotations.RayDeprecationWarning)
        team = self._team
        # The reader takes no CPU: workers have them all. It runs where the files are.
        return (
            self._data.from_items([{"start": 0}])
            .map_batches(
                read,
                fn_args=[source, dict(os.environ)],
                num_cpus=0,
                label_selector={"ray.io/node-id": self._ray.get_runtime_context().get_node_id()},
            )
            .map_batches(
                Worker,
                fn_constructor_args=[self._remote, self.described],
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=team.cpus,
                num_gpus=team.gpus or None,
                compute=self._data.ActorPoolStrategy(
                    size=team.workers, max_tasks_in_flight_per_actor=PORTIONS_A_WORKER
                ),
                max_task_retries=RETRIES,
            )
        )

    def _describe(self) -> Described:
        """Return what an encoder is where the workers will be; its process ends with it."""
        remote = self._ray.remote(
            num_cpus=self._team.cpus, num_gpus=self._team.gpus, max_calls=1, max_retries=RETRIES
        )(_described)
        reference = remote.remote(self._remote)
        if not self._ray.wait([reference], timeout=PATIENCE_S)[0]:
            self._say("The workers wait for the cluster's CPUs.")
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from None
        if isinstance(found, Exception):
            raise found
        described: Described = found
        return described


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


def _described(remote: Remote) -> Described | Exception:
    try:
        return remote.describe()
    except (CoromError, OSError) as error:
        return error


def _row(record: object, vectors: bytes = b"") -> Table:
    import pyarrow as arrow

    values = {"record": pickle.dumps(record), "vectors": vectors}
    return arrow.table({k: arrow.array([v], arrow.large_binary()) for k, v in values.items()})


def _lost(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"a worker died {RETRIES + 1} times over the same rows, or cannot be reached: "
        f"{str(error).splitlines()[0]} If memory ran out: fewer --num-workers, or fewer "
        "--shard-rows."
    )
