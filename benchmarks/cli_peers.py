"""`corom bench peers`: the same checkpoint by other libraries, on this machine, in one sitting."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from corom.runtime.backend import PRECISIONS
from corom.runtime.cache import cache_root
from corom.runtime.cli_options import json_option
from corom.runtime.cpus import available_cpus
from corom.runtime.errors import InputError, ParityError, missing_extra
from corom.runtime.manifest import Pooling
from corom.runtime.progress import progress_bar

from .cli_options import rounds_option
from .contestants import PEERS, Contestant, as_executed, rungs
from .machine import describe_machine
from .report import output_option, save, stamped
from .texts import made_texts, read_texts, sample

if TYPE_CHECKING:
    from corom.export.checkpoint import Checkpoint

    from .match import Entry

CHECK_TEXTS = 128
NEEDS = {"torch": "export", "transformers": "export", "onnx": "export", "matplotlib": "bench"}


@click.command()
@click.argument("source")
@click.option("--bundle", type=click.Path(path_type=Path), help="Of SOURCE; default: exported now.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Rungs to export; repeatable. Default: those that this CPU executes.",
)
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean"]),
    default="cls",
    show_default=True,
    help="Of all contestants.",
)
@click.option(
    "--max-length",
    type=click.IntRange(3),
    default=128,
    show_default=True,
    help="Tokens a text is cut to, by all.",
)
@click.option("--threads", type=click.IntRange(1), help="For all alike; default: the CPUs here.")
@click.option("--texts", "file", type=click.Path(path_type=Path), help="One text a line.")
@click.option("--count", type=click.IntRange(2), default=400, show_default=True, help="Texts.")
@click.option("--alone", type=click.IntRange(1), default=60, show_default=True, help="Texts alone.")
@click.option(
    "--callers",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Threads that ask corom's rungs for single texts at once; 0 leaves this out.",
)
@rounds_option(default=5)
@click.option("--only", multiple=True, help="Peers whose name has this; repeatable.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for what is made on the way.")
@click.option("--prepare-only", is_flag=True, help="Install and check everything; time nothing.")
@output_option
@json_option
def peers(
    source: str,
    bundle: Path | None,
    precisions: tuple[str, ...],
    pooling: Pooling,
    max_length: int,
    threads: int | None,
    file: Path | None,
    count: int,
    alone: int,
    callers: int,
    rounds: int,
    only: tuple[str, ...],
    work: Path | None,
    prepare_only: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare corom with sentence-transformers, optimum, fastembed and ModelScope's pipeline.

    SOURCE: as for `corom export`, or corom-tiny-random: CoROM-tiny's shape with random weights.
    Every peer runs in a pinned environment of its own, made once. All get the same checkpoint,
    texts and threads, are checked against torch, and take turns. A peer that fails is reported.
    With -o FILE.json a chart goes beside it, as FILE.png and FILE.html.
    """
    if bundle is not None and precisions:
        raise click.UsageError("--bundle has the rungs it has; leave --precision out.")
    for package, extra in NEEDS.items():
        if find_spec(package) is None:
            raise missing_extra(package, extra, "Comparing with peers")
    describe_machine()
    from .peer_folders import peer_folders
    from .peer_source import default_precisions, peer_bundle, peer_checkpoint, require_same

    peers = chosen_peers(only)
    threads = threads or available_cpus()
    work = work or cache_root() / "peers" / "work"
    checkpoint = peer_checkpoint(source, pooling, work)
    here = default_precisions(checkpoint)
    chosen = [as_executed(peer, here) for peer in peers]
    work /= f"{checkpoint.weights_sha256[:12]}-{pooling}-{max_length}"
    if bundle is None:
        bundle = peer_bundle(checkpoint, work / "bundle", max_length, precisions or here)
    folders = peer_folders(checkpoint, work, max_length) | {
        "bundle": require_same(bundle, checkpoint)
    }
    texts = read_texts(file) if file else made_texts("queries", count)
    texts = sample(list(dict.fromkeys(texts)), count)  # corom computes equal ones once
    conditions: dict[str, Any] = {"threads": threads, "max_length": max_length, "pooling": pooling}
    found = compete(
        [*chosen, *rungs(bundle)],
        checkpoint,
        conditions | {"folders": folders, "dimension": checkpoint.config.hidden},
        texts,
        sample(texts, alone),
        0 if prepare_only else rounds,
        callers,
        "bf16" in here,
    )
    about = {
        "benchmark": "peers",
        "model": checkpoint.uri.rpartition("/")[2],
        "source": checkpoint.uri,
        "texts": file.name if file else "queries, made",
        "count": len(texts),
        "alone": min(alone, len(texts)),
        "callers": callers,
        "rounds": rounds,
    }
    if not prepare_only:
        report = stamped(about | conditions | found)
        publish(report, output, as_json=as_json)
    if failed := [row["name"] for row in found["absent"] if row["ours"]]:
        raise ParityError(f"{', '.join(failed)} took no part: what is said above tells why.")


def compete(
    contestants: list[Contestant],
    checkpoint: "Checkpoint",
    conditions: dict[str, Any],
    texts: list[str],
    alone: list[str],
    rounds: int,
    callers: int,
    bf16: bool = True,
) -> dict[str, Any]:
    """Return the standings after the rounds; without rounds: who failed its check.

    ``bf16``: whether this CPU executes it, and has a rate of it.
    """
    from .match import Conditions, check, entered, play, warm
    from .peer_source import reference_vectors, token_ids
    from .roofline import Roofline
    from .standings import absent, standings

    def say(line: str) -> None:
        click.echo(line, err=True)

    max_length = conditions["max_length"]
    lengths = [len(ids) for ids in token_ids(checkpoint, texts, max_length)]
    roof = Roofline(checkpoint, lengths, conditions["threads"], bf16=bf16)
    entries: list[Entry]
    with entered(contestants, Conditions(**conditions), say) as entries:
        some = texts[:CHECK_TEXTS]
        check(entries, some, reference_vectors(checkpoint, some, max_length))
        for entry in entries:
            say(f"{entry.contestant.name}: {entry.failure or f'cosine {entry.cosine_min:.5f}'}")
        if rounds:
            warm(entries, texts, conditions["threads"])
            show = sys.stderr is not None and sys.stderr.isatty()
            with progress_bar("rounds", rounds, show=show) as advance:

                def after_round() -> None:
                    roof.measure()
                    advance(1)

                play(entries, alone, texts, rounds, after_round, callers)
    if not rounds:
        return {"absent": absent(entries)}
    return {"tokens_per_text": sum(lengths) / len(lengths)} | standings(entries, roof)


def publish(report: dict[str, Any], output: Path | None, *, as_json: bool) -> None:
    """Print the report, and write it with its charts to ``output``."""
    from .chart import write_charts
    from .standings import tables

    click.echo(json.dumps(report, ensure_ascii=False) if as_json else tables(report))
    if output is not None:
        save(report, output)
        for written in [output, *write_charts(report, output)]:
            click.echo(f"written: {written}", err=True)


def chosen_peers(parts: tuple[str, ...]) -> list[Contestant]:
    """Return the peers whose name has one of the parts; all without parts."""
    chosen = [peer for peer in PEERS if not parts or any(part in peer.name for part in parts)]
    if not chosen:
        names = ", ".join(peer.name for peer in PEERS)
        raise InputError(f"no peer's name has {' or '.join(parts)}. Peers: {names}.")
    return chosen
