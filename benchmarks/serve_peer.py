"""infinity's server beside `corom serve`: one checkpoint, client and texts, in turns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import figures
from .http_server import HOST, Server, free_port
from .peer_environment import ensure_environment, requirements_of
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
    ours: Subject, theirs: Subject, rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure both servers with each number of callers, in turns; ratios are of each round.

    ``seconds``: of each number of callers, server and round.
    """
    subjects = {"corom": ours, "infinity": theirs}
    found: dict[str, dict[int, list[dict[str, Any]]]]
    found = {name: {count: [] for count in CALLERS} for name in subjects}
    for number in range(1 + rounds):  # the first warms both
        say(f"round {number} of {rounds}" if number else "warming both")
        for count in CALLERS:
            names = list(subjects)
            np.random.default_rng([number, count]).shuffle(names)
            for name in names:
                load = await closed(subjects[name], count, seconds)
                if number:
                    found[name][count].append(load)
    pinned = requirements_of("infinity").splitlines()
    return {
        "versions": dict(line.split("==") for line in pinned if line.startswith(PACKAGES)),
        "rounds": rounds,
        "callers": {
            str(count): _compared(found["corom"][count], found["infinity"][count])
            for count in CALLERS
        },
    }


def _compared(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rates = [[load["requests_per_second"] for load in loads] for loads in (ours, theirs)]
    p50_ms = [[load["latency"]["p50_us"] / 1e3 for load in loads] for loads in (ours, theirs)]
    each = {
        name: {
            "requests_per_second": figures.spread(rate)._asdict(),
            "p50_ms": figures.spread(p50)._asdict(),
        }
        for name, rate, p50 in zip(("corom", "infinity"), rates, p50_ms, strict=True)
    }
    return each | {
        "times the requests/s": figures.ratio_spread(*rates)._asdict(),
        "p50 by infinity's": figures.ratio_spread(*p50_ms)._asdict(),
    }
