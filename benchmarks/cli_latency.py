"""`corom bench latency`: from text to vector, at the batch size and the load that are asked for."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from corom.runtime import Encoder
from corom.runtime.cli_options import Number, bundle_argument, encoder_options, json_option

from . import figures
from .cli_options import mix_option
from .load import (
    Arrivals,
    Seconds,
    Served,
    arrival_times,
    closed_loop,
    closed_loop_callers,
    open_loop,
    open_loop_submitted,
)
from .report import output_option, say_if_cut, say_if_equal, say_what_executes, show
from .texts import Mix, made_texts, read_texts

TEXTS = 2000
WARM_CALLS = 50
AGAIN = 5
"""Calls at a length once it was seen, whose median the first one is compared with."""


@click.command()
@bundle_argument
@encoder_options
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Texts a call.")
@click.option(
    "--rate",
    "rates",
    type=Number(0, 1_000_000, min_open=True),
    multiple=True,
    help="Calls a second; repeatable.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "fixed"]),
    default="poisson",
    show_default=True,
    help="How the calls of --rate come: as from independent callers, or evenly.",
)
@click.option("--concurrency", type=click.IntRange(1), help="Callers of single texts at once.")
@click.option(
    "--seconds",
    type=Number(0.01),
    default=5.0,
    show_default=True,
    help="What each load takes.",
)
@mix_option
@click.option("--texts", "file", type=click.Path(path_type=Path), help="One text a line.")
@output_option
@json_option
def latency(
    bundle: Path,
    batch: int,
    rates: Sequence[float],
    arrivals: Arrivals,
    concurrency: int | None,
    seconds: float,
    mix: Mix,
    file: Path | None,
    output: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Measure the time from text to vector, tokenizing included.

    Always: a closed loop, and the first calls at lengths that were never seen before. With --rate:
    an open loop, whose latency counts from when a call was to be sent. With --concurrency N: N
    callers of single texts through a DynamicBatcher. Texts, unless a file is given, are made.
    """
    if concurrency is not None and batch != 1:
        raise click.UsageError("--concurrency is of single texts; leave --batch out.")
    texts = made_texts(mix, TEXTS) if file is None else read_texts(file)
    loads: dict[str, Any] = {}
    with ExitStack() as stack:
        encoder = stack.enter_context(Encoder(bundle, **options))
        say_what_executes(encoder)
        unseen = first_calls(encoder, texts)
        calls = calls_of(texts, batch)
        if batch > 1:
            say_if_equal("a call", max(calls, key=lambda call: len(call) - len(set(call))))
        for call in calls[:WARM_CALLS]:
            encoder.encode(call)
        loads["closed loop"] = described(closed_loop(encoder.encode, calls, seconds), batch)
        at_times: Callable[[Seconds], Served] = partial(open_loop, encoder.encode, calls)
        if concurrency is not None:
            from corom.runtime.batcher import DynamicBatcher

            batcher = stack.enter_context(DynamicBatcher(encoder))
            served = closed_loop_callers(batcher.submit, texts, seconds, concurrency)
            loads[f"closed loop, {concurrency} callers"] = described(served, 1)
            at_times = partial(open_loop_submitted, batcher.submit, texts)
        for rate in rates:
            times = arrival_times(arrivals, rate, max(1, round(rate * seconds)))
            loads[f"open loop, {arrivals}, {rate:g}/s"] = described(at_times(times), batch)
        say_if_cut(encoder)
        report: dict[str, Any] = {"bundle": encoder.manifest.name, "choice": encoder.choice}
    report |= {"texts": f"{mix}, made" if file is None else file.name, "batch": batch}
    report |= {"loads": loads, "lengths_never_seen": unseen}
    show({"benchmark": "latency"} | report, table(loads, unseen), output, as_json=as_json)


def calls_of(texts: list[str], batch: int) -> list[Any]:
    """Return what each call passes: a text, or a list of ``batch`` texts."""
    if batch == 1:
        return list(texts)
    endless = texts * (1 + -(-batch // len(texts)))
    return [endless[at : at + batch] for at in range(0, len(texts), batch)]


def described(served: Served, batch: int) -> dict[str, Any]:
    """Return the figures of a load."""
    found: dict[str, Any] = {"refused": served.refused, "texts_per_second": 0.0, "samples": 0}
    if served.latencies:
        found |= figures.latency(served.latencies)._asdict()
        found["texts_per_second"] = len(served.latencies) * batch / served.elapsed
    return found


def first_calls(encoder: Encoder, texts: list[str]) -> dict[str, Any] | None:
    """Return how long calls take at token lengths that the encoder has not executed before.

    Half the lengths of the texts warm the encoder; the first call at each of the others is
    measured, and then calls at the same length again. None if all texts are of one length.
    """
    by_length: dict[int, list[str]] = {}
    for text, ids in zip(texts, encoder.token_ids(texts), strict=True):
        by_length.setdefault(len(ids), []).append(text)
    lengths = sorted(by_length)
    for length in lengths[::2]:
        for _ in range(AGAIN):
            encoder.encode(by_length[length][0])
    unseen = np.random.default_rng(0).permutation(lengths[1::2]).tolist()
    if not unseen:
        return None
    first, again = [], []
    for length in unseen:
        durations = []
        for k in range(1 + AGAIN):
            text = by_length[length][k % len(by_length[length])]
            start = time.perf_counter()
            encoder.encode(text)
            durations.append(time.perf_counter() - start)
        first.append(durations[0])
        again.append(float(np.median(durations[1:])))
    slower = np.divide(first, again)
    return {
        "first": figures.latency(first)._asdict(),
        "again": figures.latency(again)._asdict(),
        "first_by_again": {
            "p50": float(np.median(slower)),
            "p99": float(np.percentile(slower, 99)),
        },
    }


def table(loads: dict[str, Any], unseen: dict[str, Any] | None) -> str:
    """Return the figures of all loads as a table."""
    tail = ("p50_us", "p95_us", "p99_us", "p999_us")
    columns = (*tail, "texts_per_second", "samples", "refused")
    header = ("load", "p50 µs", "p95 µs", "p99 µs", "p99.9 µs", "texts/s", "calls", "refused")
    named = dict(loads)
    for name in ("first", "again"):
        if unseen is not None:
            named[f"lengths never seen: {name}"] = unseen[name]
    # What has too few calls for p99.9, or no rate, has none.
    rows = [
        [name, *("" if load.get(c) is None else load[c] for c in columns)]
        for name, load in named.items()
    ]
    return figures.text_table(header, rows)
