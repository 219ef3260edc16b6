"""infinity's server beside `corom serve`: one checkpoint, client and texts, in turns."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import figures
from .http_calls import Call
from .http_server import HOST, Server, free_port
from .peer_environment import ensure_environment, requirements_of
from .serve_indexing import beside_indexing
from .serve_load import Subject, closed

if TYPE_CHECKING:
    from corom.export.checkpoint import Checkpoint

CALLERS = (1, 8, 64)
PACKAGES = ("infinity_emb=", "sentence-transformers=", "torch=", "transformers=")


def start_infinity(
    checkpoint: "Checkpoint", folder: Path, model_name: str, max_length: int
) -> Server:
    """Start infinity's server with the checkpoint, in its own environment, on the same CPUs.

    As its documentation starts it, on a CPU. It scales every vector to length 1.
    """
    from .peer_folders import write_sentence_transformers

    python = ensure_environment("infinity")
    model = write_sentence_transformers(checkpoint, folder, max_length)
    port = free_port()
    command: list[str | Path] = [
        python,
        "-m",
        "infinity_emb.cli",
        "v2",
        "--model-id",
        model.resolve(),
    ]
    command += ["--served-model-name", model_name, "--host", HOST, "--port", str(port)]
    # The kernels of BetterTransformer need optimum 1, which today's transformers left behind.
    command += ["--device", "cpu", "--no-bettertransformer", "--url-prefix", "/v1"]
    command += ["--log-level", "error"]
    offline = {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    return Server(command, offline, port)


async def beside(
    ours: Subject,
    theirs: Subject,
    many: list[Call],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure both servers under each load, in turns; ratios are of each round.

    ``many``: the calls of who indexes. ``seconds``: of each load, server and round.
    """
    subjects = {"corom": ours, "infinity": theirs}
    loads: list[Callable[[Subject], Awaitable[dict[str, Any]]]] = [
        *(partial(closed, count=count, seconds=seconds) for count in CALLERS),
        partial(beside_indexing, calls=many, seconds=seconds),
    ]
    found: dict[str, list[list[dict[str, Any]]]]
    found = {name: [[] for _ in loads] for name in subjects}
    for number in range(1 + rounds):  # the first warms both
        say(f"round {number} of {rounds}" if number else "warming both")
        for at, load in enumerate(loads):
            names = list(subjects)
            np.random.default_rng([number, at]).shuffle(names)
            for name in names:
                seen = await load(subjects[name])
                if number:
                    found[name][at].append(seen)
    pinned = requirements_of("infinity").splitlines()
    return {
        "versions": dict(line.split("==") for line in pinned if line.startswith(PACKAGES)),
        "rounds": rounds,
        "callers": {
            str(count): _compared(found["corom"][at], found["infinity"][at])
            for at, count in enumerate(CALLERS)
        },
        "beside indexing": _compared(
            found["corom"][-1], found["infinity"][-1], "indexed_texts_per_second"
        ),
    }


def _compared(
    ours: Sequence[dict[str, Any]],
    theirs: Sequence[dict[str, Any]],
    rate: str = "requests_per_second",
) -> dict[str, Any]:
    rates = [[load[rate] for load in loads] for loads in (ours, theirs)]
    p50_ms = [[load["latency"]["p50_us"] / 1e3 for load in loads] for loads in (ours, theirs)]
    each = {
        name: {
            rate: figures.spread(of_one)._asdict(),
            "p50_ms": figures.spread(p50)._asdict(),
        }
        for name, of_one, p50 in zip(("corom", "infinity"), rates, p50_ms, strict=True)
    }
    return each | {
        f"times the {rate.removesuffix('_per_second').replace('_', ' ')}/s": figures.ratio_spread(
            *rates
        )._asdict(),
        "p50 by infinity's": figures.ratio_spread(*p50_ms)._asdict(),
    }
