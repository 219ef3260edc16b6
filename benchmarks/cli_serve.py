"""`corom bench serve`: the real server under load over loopback, every vector checked."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from corom.runtime import Encoder
from corom.runtime.cache import cache_root
from corom.runtime.cli_options import Number, bundle_argument, encoder_options, json_option
from corom.runtime.errors import missing_extra

from .cli_options import mix_option
from .contestants import COSINE_MIN
from .load import Arrivals, arrival_times
from .report import output_option, show
from .texts import Mix, made_texts, read_texts

if TYPE_CHECKING:
    from .http_calls import Call
    from .http_server import Server
    from .serve_load import Subject

NEEDS = {"starlette": "serve", "httptools": "serve", "uvloop": "serve", "psutil": "bench"}
TEXTS = 500
LOADS, BURST = (0.5, 0.9), 2.0
IDEAL_REQUESTS = 10_000
SHORT_SHARE = 1 / 6
"""Of ``--seconds``: what each load takes that comes before the open loops."""
PEER_SHARE = 0.4
"""Of that: what each load of a round beside the peer takes."""


@click.command()
@bundle_argument
@encoder_options
@click.option(
    "--seconds",
    type=Number(0.5),
    default=60.0,
    show_default=True,
    help="What each open loop takes.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "fixed"]),
    default="poisson",
    show_default=True,
    help="How requests come in the open loops: as from independent callers, or evenly.",
)
@click.option(
    "--deadline",
    type=Number(0.01),
    default=5.0,
    show_default=True,
    help="Seconds that an accepted request may take; the server's --request-timeout.",
)
@click.option("--queue-timeout", type=Number(0.01), help="The server's own; see there.")
@mix_option
@click.option("--texts", "file", type=click.Path(path_type=Path), help="One text a line.")
@click.option("--peer", type=click.Choice(["infinity"]), help="Its server too, in turns with ours.")
@click.option("--source", help="With --peer: what BUNDLE was made of.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="With --peer.")
@output_option
@json_option
def serve(
    bundle: Path,
    seconds: float,
    arrivals: Arrivals,
    deadline: float,
    queue_timeout: float | None,
    mix: Mix,
    file: Path | None,
    peer: str | None,
    source: str | None,
    rounds: int,
    output: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Put `corom serve BUNDLE` under load over loopback, and check every vector that comes back.

    HTTP beside `encode`, single texts beside a caller who indexes, a closed loop for the capacity,
    then open loops at 50 %, 90 % and 200 % of it, --seconds each, whose latency counts from when a
    request was due. Nine of ten requests hold one text, the tenth eight. Exit code 1 if a vector is
    wrong or an answer is lost; a figure beyond its limit is shown, not an error: machines differ.
    """
    for package, extra in NEEDS.items():
        if find_spec(package) is None:
            raise missing_extra(package, extra, "Measuring the server")
    if (source is None) != (peer is None):
        raise click.UsageError("--peer and --source go together: what BUNDLE was made of.")
    import uvloop

    from .http_server import Server, corom_command
    from .serve_report import floors, tables

    texts = list(dict.fromkeys(made_texts(mix, TEXTS) if file is None else read_texts(file)))
    timeouts = {"request_timeout": deadline, "queue_timeout": queue_timeout}
    start = partial(Server, corom_command(bundle, server_words(options | timeouts)), {})
    with Encoder(bundle, **options) as encoder:
        report: dict[str, Any] = {
            "benchmark": "serve",
            "model": encoder.manifest.name,
            "choice": encoder.choice,
            "source": file.name if file else f"{mix}, made",
            "deadline_s": deadline,
        }
        start_peer = None if source is None else peer_starter(encoder, source)
        with start() as server:
            measured = measure(encoder, server, texts, seconds, arrivals, start_peer, rounds)
            report |= uvloop.run(measured)
    report["floors"] = [floor._asdict() for floor in floors(report, deadline)]
    show(report, tables(report), output, as_json=as_json)


async def measure(
    encoder: Encoder,
    server: "Server",
    texts: list[str],
    seconds: float,
    arrivals: Arrivals,
    start_peer: "Callable[[], Server] | None",
    rounds: int,
) -> dict[str, Any]:
    """Return the figures of every load, in the order they were put on the server."""
    from .http_calls import BATCH_TEXTS, apart, call_rows, make_calls
    from .http_client import Client
    from .ideal_server import tails
    from .serve_indexing import beside_indexing, indexing_rows
    from .serve_load import CALLERS, Subject, burst, closed, growth, opened, overhead, settled

    floor = COSINE_MIN[encoder.precision]
    expected = encoder.encode(texts)
    kept = apart(expected, floor)
    texts, expected = [texts[row] for row in kept], expected[kept]
    short = seconds * SHORT_SHARE
    calls = [
        make_calls(texts, call_rows(len(texts), len(texts), mixed=mixed), encoder.manifest.name)
        for mixed in (False, True)
    ]
    single = Subject(server, Client(server.url), calls[0], expected, floor)
    report: dict[str, Any] = {"texts": len(texts), "batch_texts": BATCH_TEXTS}
    say("HTTP beside encode, in turns")
    report["overhead"] = await overhead(single, encoder.encode, texts, short)
    many = make_calls(texts, indexing_rows(len(texts)), encoder.manifest.name)
    if start_peer is not None:
        report["peer"] = await beside_peer(single, many, start_peer, rounds, short * PEER_SHARE)
    say("single texts beside a caller who indexes")
    report["indexing"] = await beside_indexing(single, many, short)
    subject = Subject(server, single.client, calls[1], expected, floor)
    lengths = [len(ids) for ids in encoder.token_ids(texts)]
    groups = [call.rows for call in calls[1]] * (IDEAL_REQUESTS // len(calls[1]) + 1)
    came = arrival_times(arrivals, LOADS[-1], len(groups))
    sizes = sorted({len(rows) for rows in groups})
    report["ideal"] = {size: tails(lengths, groups, came, size) for size in sizes}
    say("one caller, then capacity")
    loads = {"one caller": await closed(subject, 1, short)}
    await closed(subject, CALLERS, short / 5)  # memory is compared from here on
    subject.memory.clear()
    loads[f"{CALLERS} callers"] = full = await closed(subject, CALLERS, short)
    report["capacity"] = capacity = full["requests_per_second"]
    for share in LOADS:
        say(f"open loop at {share:.0%} of {capacity:.0f} requests/s")
        loads[f"open loop, {share * 100:.0f} %"] = await opened(
            subject, share * capacity, arrivals, seconds
        )
    say(f"open loop at {BURST:.0%} of {capacity:.0f} requests/s")
    unloaded_s = loads["one caller"]["latency, 1 text"]["p50_us"] / 1e6
    twice = partial(burst, subject, BURST * capacity, arrivals, p50_s=unloaded_s)
    loads[f"open loop, {BURST * 100:.0f} %"], report["recovery"] = await twice(seconds=seconds)
    say("and once more, for its memory")
    after = await settled(server, short / 5)
    await twice(seconds=short)
    again = await settled(server, short / 5)
    report["memory"] = growth(subject.memory, after, again)
    return report | {"loads": loads}


async def beside_peer(
    ours: "Subject",
    many: "list[Call]",
    start_peer: "Callable[[], Server]",
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Start the peer, measure both in turns, and end it."""
    from .http_client import Client
    from .serve_load import Subject
    from .serve_peer import beside

    say("starting infinity's server; the first time it is installed")
    with start_peer() as server:
        # Its fp32 may be as far from our vectors as these from fp32.
        theirs = Subject(server, Client(server.url), ours.calls, ours.expected, ours.cosine_min)
        return await beside(ours, theirs, many, rounds, seconds, say)


def peer_starter(encoder: Encoder, source: str) -> "Callable[[], Server]":
    """Return what starts infinity's server with the weights that the encoder's bundle was made of.

    Raises ``InputError`` if ``source`` has others.
    """
    from .peer_source import peer_checkpoint, require_weights
    from .serve_peer import start_infinity

    manifest = encoder.manifest
    checkpoint = peer_checkpoint(source, manifest.pooling)
    require_weights(manifest, checkpoint)
    folder = cache_root() / "peers" / "work" / f"{checkpoint.weights_sha256[:12]}-infinity"
    return partial(start_infinity, checkpoint, folder, manifest.name, encoder.max_length)


def server_words(options: dict[str, Any]) -> list[str]:
    """Return options of this command, by parameter, as words of `corom serve`'s command line."""
    words = ["--rebuild"] if options["engine_cache"] == "auto" else []
    if (graphs := options["cuda_graphs"]) is not None:
        words.append("--cuda-graphs" if graphs else "--no-cuda-graphs")
    for name, value in options.items():
        if name not in {"engine_cache", "cuda_graphs"} and value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def say(line: str) -> None:
    """Tell the person what is measured now."""
    click.echo(line, err=True)
