"""The pipeline of Ray Data that a corpus goes through: read in one place, computed by workers.

A row of it is a whole portion, so that Ray Data, which cuts and joins blocks as it sees fit, cuts
none. What dies on the way is started again: a reader reads from the first row on and Ray drops what
it has already, a worker computes its portion again. Errors travel as rows.
"""

import os
import pickle
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple
from uuid import uuid4

from .corpus import Corpus
from .embedder import Described, Embedded, LocalEmbedder
from .errors import CoromError, UnavailableError
from .job_source import JobSource
from .late_encoder import LateEncoder
from .options import EncodeOptions
from .portions import SHARD_CHARACTERS
from .ray_team import Team
from .urls import is_url

PORTIONS_A_WORKER = 2
"""Portions that a worker has: the one it computes, and the next."""
RETRIES = 3
"""How often what died is tried again: it may be what kills them."""

Table = Any
"""A pyarrow.Table of one row: "record" is what one process tells the next, pickled; "vectors"."""


class Remote(NamedTuple):
    """An encoder as workers open it; ``budget``: tokens of a batch, None: as it chooses."""

    late: LateEncoder
    options: EncodeOptions
    budget: int | None

    def embedder(self) -> LocalEmbedder:
        """Return what computes in this process."""
        encoder = self.late.encoder()
        encoder.batch_tokens = self.budget or encoder.batch_tokens
        return LocalEmbedder(encoder, self.options)


class Computed(NamedTuple):
    """What a worker says of a portion; its vectors, and no texts, go beside it."""

    embedded: Embedded
    life: str
    """What only that process says."""


def read(_start: object, source: JobSource, environment: dict[str, str]) -> Iterator[Table]:
    """Yield the portions of a corpus, and at last what was wrong with it."""
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

    def __call__(self, table: Table) -> Table:
        """Return a portion with its vectors, or what was wrong with it or before it."""
        portion = record_of(table)
        if isinstance(portion, Exception):
            return table
        try:
            embedder = self._remote.embedder()
            if embedder.described != self._expected:  # started later, elsewhere
                raise differ(self._expected, embedder.described)
            _, vectors, truncated_texts = embedder.embed_portion(portion)
        except (CoromError, OSError) as error:
            return _row(error)
        embedded = Embedded(portion.without_texts(), None, truncated_texts)
        return _row(Computed(embedded, self._life), b"" if vectors is None else vectors.tobytes())


def pipeline(team: Team, remote: Remote, expected: Described, source: JobSource) -> Any:  # noqa: ANN401
    """Return the dataset of what the workers return, in the order of the corpus."""
    ray: Any = import_module("ray")
    data: Any = import_module("ray.data")
    portion_bytes = 3 * SHARD_CHARACTERS + 4 * source.shard_rows * expected.dimension
    with warnings.catch_warnings():
        # max_retries, max_task_retries: Ray 2.64 takes them no more, and warns of it before.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        # The reader takes no CPU: workers have them all. It runs where the files are.
        made = (
            data.from_items([{"start": 0}])
            .map_batches(
                read,
                fn_args=[source, _environment(source.corpus)],
                num_cpus=0,
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
                max_retries=RETRIES,
            )
            .map_batches(
                Worker,
                fn_constructor_args=[remote, expected],
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=team.cpus,
                num_gpus=team.gpus or None,
                compute=data.ActorPoolStrategy(
                    size=team.workers, max_tasks_in_flight_per_actor=PORTIONS_A_WORKER
                ),
                max_task_retries=RETRIES,
            )
        )
    context = made.context
    context.execution_options.preserve_order = True
    # What the reader is ahead, and what is computed before its turn.
    context.execution_options.resource_limits = data.ExecutionResources(
        object_store_memory=portion_bytes * (PORTIONS_A_WORKER * team.workers + 2)
    )
    context.target_max_block_size = 1  # a block for each row: none waits for the next
    context.execution_no_progress_timeout_s = -1  # a portion takes as long as it takes
    return made


def record_of(table: Table) -> Any:  # noqa: ANN401
    """Return what the process before said: a portion, what came of it, or an error."""
    return pickle.loads(table["record"][0].as_buffer())  # made by _row


def differ(one: Described, other: Described) -> UnavailableError:
    """Return the error for workers that would not give the same vectors."""
    return UnavailableError(
        f"the machines of the cluster do not run the same: {one.choice} here, {other.choice} "
        "there. Say which with --backend, --device and --precision."
    )


def _environment(corpus: Corpus) -> dict[str, str]:
    """Return the command's environment if URLs are opened: who does looks for keys there."""
    return dict(os.environ) if any(map(is_url, corpus.names)) else {}


def _row(record: object, vectors: bytes = b"") -> Table:
    import pyarrow as arrow

    values = {"record": pickle.dumps(record), "vectors": vectors}
    return arrow.table({k: arrow.array([v], arrow.large_binary()) for k, v in values.items()})
