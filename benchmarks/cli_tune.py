"""`corom tune`: finds what is fastest on this machine, and has "auto" use it from then on."""

import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import msgspec

from corom.runtime.choice import Asked, choose
from corom.runtime.cli_options import Number, bundle_argument, json_option
from corom.runtime.cpus import available_cpus
from corom.runtime.errors import BundleError, ParityError, UnavailableError
from corom.runtime.manifest import Manifest, load_manifest, manifest_sha256
from corom.runtime.progress import progress_bar
from corom.runtime.tuning import (
    TUNING_VERSION,
    Tuning,
    Winner,
    refuse_unless_writable,
    save_tuning,
    this_machine,
)

from .figures import text_table
from .texts import made_texts, read_texts, sample
from .tuning import (
    FINAL_ROUNDS,
    Final,
    Measured,
    budgets,
    candidates,
    fastest_alone,
    fastest_together,
    final,
    finalists,
    measure,
    pareto_front,
    texts_for,
)


@click.command()
@bundle_argument
@click.option("--texts", "file", type=click.Path(path_type=Path), help="Your texts, one a line.")
@click.option(
    "--min-cosine",
    type=Number(0, 1),
    default=0.999,
    show_default=True,
    help="To torch; what is further off is left out.",
)
@click.option("--cpus", type=click.IntRange(1), help="At most; default: all of this process.")
@click.option(
    "--seconds",
    type=Number(0.001),
    default=0.7,
    show_default=True,
    help="What each measurement takes at least.",
)
@json_option
def tune(
    bundle: Path,
    file: Path | None,
    min_cosine: float,
    cpus: int | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure every backend, precision, threads and workers, and batch budget on this CPU.

    What misses the parity floor (cosine to torch, on the golden texts, which int8 is calibrated on
    unless it was told others) is left out. The fastest for one text and for many are measured again
    in turns; the winners go to corom's cache, and "auto" uses them for this bundle on this machine,
    on its CPUs. Interrupted, it changes nothing. Figures depend on the texts: give your own, of
    which 64 a CPU, 128 to 512, no two alike, are taken from all over the file. Without, made
    queries are used.
    """
    manifest = load_manifest(bundle)
    what = manifest_sha256(bundle), this_machine()
    refuse_unless_writable(manifest)  # before the work, not after it
    _say_if_gpu(bundle, manifest)
    cpus = min(cpus or available_cpus(), available_cpus())
    count = texts_for(cpus)
    given = made_texts("queries", count) if file is None else read_texts(file)
    texts = sample(list(dict.fromkeys(given)), count)
    random.Random(0).shuffle(texts)  # files are sorted, and calls are timed with a part of them
    wanted = candidates(bundle, cpus)
    click.echo(
        f"{len(wanted)} ways to execute, each with up to {len(budgets(cpus))} batch budgets, "
        "and the fastest again; until the end nothing is changed",
        err=True,
    )
    show = sys.stderr is not None and sys.stderr.isatty()
    found: list[Measured] = []
    unavailable = 0
    with progress_bar("ways", len(wanted) + FINAL_ROUNDS, show=show) as advance:
        for way in wanted:
            try:
                found += measure(bundle, way, texts, min_cosine, seconds)
            except (ParityError, UnavailableError) as error:
                unavailable += isinstance(error, UnavailableError)
                click.echo(f"left out: {way.precision} by {way.backend}: {error}", err=True)
            advance(1)
        if unavailable == len(wanted):
            raise UnavailableError(
                "nothing executes this bundle on this CPU. See why: corom inspect"
            )
        if not found:
            raise ParityError(
                f"nothing here reaches a cosine of {min_cosine} to torch. Lower --min-cosine."
            )
        finals = final(bundle, finalists(found), texts, seconds, lambda: advance(1))
    if (manifest_sha256(bundle), this_machine()) != what:
        raise BundleError("the bundle, or what executes it, changed meanwhile. Tune again.")
    fastest, most = fastest_alone(finals), fastest_together(finals)
    tuning = Tuning(
        version=TUNING_VERSION,
        bundle=what[0],
        machine=what[1],
        min_cosine=min_cosine,
        latency=_winner(fastest, cpus),
        throughput=_winner(most, cpus),
    )
    kept = save_tuning(manifest, tuning)  # first: whoever reads the table may have left
    click.echo(f"kept for {manifest.name} on this machine: {kept}", err=True)
    if as_json:
        front = pareto_front(found)
        report: dict[str, Any] = {
            "tuning": tuning,
            "measured": [_record(one) | {"front": one in front} for one in found],
            "finals": [_record_final(one) for one in finals],
        }
        click.echo(msgspec.json.encode(report).decode())
    else:
        click.echo(_table(found, finals, fastest, most))


def _say_if_gpu(bundle: Path, manifest: Manifest) -> None:
    asked = Asked("auto", "auto", "auto", None, None, "off", "off", adaptive=False)
    with suppress(UnavailableError):  # then it is not a GPU either
        if choose(bundle, manifest, asked).device == "cuda":
            words = 'this is about the CPU. "auto" takes the GPU here, unless device "cpu" is asked'
            click.echo(f"{words} for: then it uses the winners.", err=True)


def _winner(one: Final, cpus: int) -> Winner:
    way = one.measured.way
    return Winner(
        **way._asdict(),
        cpus=cpus,
        batch_tokens=one.measured.batch_tokens,
        cosine_min=one.measured.cosine_min,
        p50_ms=one.p50_ms.median,
        texts_per_second=one.texts_per_second.median,
    )


def _record(one: Measured) -> dict[str, Any]:
    return {**one._asdict(), "way": one.way._asdict()}


def _record_final(one: Final) -> dict[str, Any]:
    figures = {"p50_ms": one.p50_ms, "texts_per_second": one.texts_per_second}
    return _record(one.measured) | {name: value._asdict() for name, value in figures.items()}


def _table(found: list[Measured], finals: list[Final], fastest: Final, most: Final) -> str:
    front = pareto_front(found)
    header = ("", "threads", "workers", "batch tokens", "p50 ms", "texts/s", "cosine min", "front")
    rows = [
        [*_words(one), one.p50_ms, one.texts_per_second, f"{one.cosine_min:.6f}", _mark(one, front)]
        for one in sorted(found, key=lambda one: -one.texts_per_second)
    ]
    again = [
        [
            *_words(one.measured),
            one.p50_ms,
            one.texts_per_second,
            " and ".join(
                goal
                for goal, winner in (("latency", fastest), ("throughput", most))
                if winner is one
            ),
        ]
        for one in finals
    ]
    finals_header = (*header[:6], "wins")
    return (
        f"{text_table(header, rows)}\n\n* no other is better in latency, throughput and parity\n\n"
        f"again, in turns, {FINAL_ROUNDS} rounds: median (lowest to highest)\n\n"
        f"{text_table(finals_header, again)}"
    )


def _words(one: Measured) -> list[object]:
    way = one.way
    return [f"{way.precision} {way.backend}", way.threads, way.workers, one.batch_tokens]


def _mark(one: Measured, front: list[Measured]) -> str:
    return "*" if one in front else ""
