"""`corom bench corpus`: what the job of a corpus costs beside encoding its texts alone."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np

from corom.runtime import Encoder, VectorIndex, search
from corom.runtime.cli_options import bundle_argument, encoder_options, json_option
from corom.runtime.shard_manifest import MANIFEST, PARTIAL
from corom.runtime.windows import WINDOW_TEXTS

from .cli_options import rounds_option
from .figures import ratio_spread, spread, text_table
from .peak_memory import COMMAND
from .report import output_option, say_if_equal, show
from .texts import made_texts, read_texts

QUERIES, HITS = 1000, 10
MILLION = 1_000_000


class Run(NamedTuple):
    """One process of `corom embed`: seconds, and the most memory it held."""

    seconds: float
    peak_bytes: int


class Floor(NamedTuple):
    """What a figure must reach, of 50,000 passages on two CPUs; ``most``: not more than that."""

    figure: str
    most: bool
    limit: float


FLOORS = (
    Floor("local job ÷ encode", False, 0.9),
    Floor("ray job ÷ local job", False, 0.7),
    Floor("peak memory, MB", True, 1500),
    Floor("peak memory ÷ that of the short job", True, 1.1),
    Floor("going on where all shards are there, s", True, 5),
    Floor(f"search, {QUERIES} queries, s", True, 2),
)


@click.command()
@bundle_argument
@encoder_options
@click.option(
    "--texts",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Passages, one a line (of .tsv the last column); default: made ones.",
)
@click.option(
    "--rows",
    type=click.IntRange(100),
    default=10_000,
    show_default=True,
    help="Passages of the job.",
)
@click.option("--few-rows", type=click.IntRange(10), help="Rows of a short job, for its memory.")
@rounds_option(default=3)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: measured beside local, which it is held against.",
)
@output_option
@json_option
def corpus(
    bundle: Path,
    file: Path | None,
    rows: int,
    few_rows: int | None,
    rounds: int,
    engine: str,
    output: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Measure the job of a corpus on BUNDLE: rate, memory, going on, search.

    Rounds of `corom embed -o FOLDER` take turns with rounds of `Encoder.encode` over the same texts
    in one process, and with --engine ray with rounds of Ray on this machine. The texts are repeated
    until there are as many as asked for. Each figure that has a floor says whether it reached it;
    floors are for 50,000 passages.
    """
    found = made_texts("passages", min(rows, 20_000)) if file is None else read_texts(file)
    texts = list(islice(cycle(found), rows))
    say_if_equal("first window", texts[:WINDOW_TEXTS])
    engines = ["local", "ray"] if engine == "ray" else ["local"]
    with tempfile.TemporaryDirectory(prefix="corom-bench-") as work:
        place = Path(work)
        few = _lines(place / "few.jsonl", texts[: few_rows or max(10, rows // 5)])
        many = _lines(place / "many.jsonl", texts)
        alone: list[float] = []
        jobs: dict[str, list[Run]] = {name: [] for name in engines}
        with Encoder(bundle, **options) as encoder:
            encoder.encode(texts[:256])
            for turn in range(rounds):
                start = time.perf_counter()
                encoder.encode(iter(texts))
                alone.append(time.perf_counter() - start)
                for name in engines:
                    folder = place / f"{name}{turn}"
                    jobs[name].append(_embed(bundle, many, folder, name, options))
            choice = encoder.choice
            queries = encoder.encode(texts[:QUERIES])
        short = _embed(bundle, few, place / "short", "local", options)
        folder = place / "local0"
        index = VectorIndex(folder)
        start = time.perf_counter()
        search(index, queries, HITS)
        searched = time.perf_counter() - start
        (folder / MANIFEST).rename(folder / PARTIAL)  # as a job that was killed at its very end
        resumed = _embed(bundle, many, folder, "local", options)
    figures = figures_of(rows, alone, jobs, (short, resumed, searched))
    report: dict[str, Any] = {
        "benchmark": "corpus",
        "bundle": bundle.name,
        "choice": choice,
        "engine": engine,
    }
    report |= {"rows": rows, "rounds": rounds, "figures": figures, "floors": verdicts(figures)}
    report["passed"] = all(verdict["passed"] for verdict in report["floors"])
    words = {v["figure"]: _verdict(v) for v in report["floors"]}
    cells = [(name, _shown(value), words.get(name, "")) for name, value in figures.items()]
    title = f"{choice}, {rows:,} rows, {rounds} rounds in turns"
    header = ("figure", "value", "floor")
    show(report, f"{title}\n\n{text_table(header, cells)}", output, as_json=as_json)


def figures_of(
    rows: int, alone: list[float], jobs: dict[str, list[Run]], ends: tuple[Run, Run, float]
) -> dict[str, Any]:
    """Return the figures. ``alone``: seconds of `encode`, round by round, as the runs of ``jobs``.

    ``ends``: the short job, the one that went on, and the seconds of the search.
    """
    short, resumed, searched = ends
    # A job's time holds all that its command does: the interpreter, opening the encoder, the files.
    took = {name: [run.seconds for run in runs] for name, runs in jobs.items()}
    figures: dict[str, Any] = {"encode, rows/s": spread([rows / s for s in alone])._asdict()}
    for name, seconds in took.items():
        figures[f"{name} job, rows/s"] = spread([rows / s for s in seconds])._asdict()
    figures["local job ÷ encode"] = ratio_spread(alone, took["local"])._asdict()
    if "ray" in took:
        figures["ray job ÷ local job"] = ratio_spread(took["local"], took["ray"])._asdict()
    peak = max(run.peak_bytes for run in jobs["local"])
    figures |= {
        "peak memory, MB": peak / 1e6,
        "peak memory ÷ that of the short job": peak / short.peak_bytes,
        "going on where all shards are there, s": resumed.seconds,
        f"search, {QUERIES} queries, s": searched,
    }
    for name, seconds in took.items():
        hours = MILLION / rows * float(np.median(seconds)) / 3600
        figures[f"a million rows, {name}, hours (extrapolated)"] = hours
    return figures


def verdicts(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each floor of a figure that was measured what was found and whether it passed."""
    found = []
    for figure, most, limit in FLOORS:
        if figure in figures:
            value = figures[figure]
            value = value["median"] if isinstance(value, dict) else value
            passed = value <= limit if most else value >= limit
            side = {"at_most": limit} if most else {"at_least": limit}
            found.append({"figure": figure, "value": value, **side, "passed": passed})
    return found


def _verdict(found: dict[str, Any]) -> str:
    side = f"≤ {found['at_most']:g}" if "at_most" in found else f"≥ {found['at_least']:g}"
    return f"{side}: {'reached' if found['passed'] else 'MISSED'}"


def _lines(path: Path, texts: Sequence[str]) -> Path:
    """Write texts as JSON lines with ids, so that columns are read as users' are."""
    records = [{"id": f"p{number}", "text": text} for number, text in enumerate(texts)]
    path.write_bytes(msgspec.json.Encoder().encode_lines(records))
    return path


def _embed(bundle: Path, source: Path, folder: Path, engine: str, options: dict[str, Any]) -> Run:
    """Run `corom embed` in a process of its own, where its memory is its own."""
    reads, writes = os.pipe()
    command = [sys.executable, "-c", COMMAND, str(writes), "embed"]
    command += [str(bundle), "-i", str(source), "--id-column", "id", "-o", str(folder)]
    command += ["--engine", engine]
    for name in ("backend", "device", "precision", "threads", "workers", "max_length", "tuned"):
        if options.get(name) is not None:
            command += [f"--{name.replace('_', '-')}", str(options[name])]
    if options.get("cuda_graphs") is not None:
        command.append("--cuda-graphs" if options["cuda_graphs"] else "--no-cuda-graphs")
    if options.get("engine_cache") == "auto":
        command.append("--rebuild")
    start = time.perf_counter()
    with os.fdopen(reads) as told:
        process = subprocess.run(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[writes],
            check=False,
        )
        seconds = time.perf_counter() - start
        os.close(writes)
        if process.returncode:
            said = process.stderr.decode(errors="replace")
            raise click.ClickException(f"corom embed failed: {said}")
        return Run(seconds, int(told.read()))


def _shown(value: object) -> object:
    if isinstance(value, dict):
        return f"{value['median']:,.3g} ({value['low']:,.3g} to {value['high']:,.3g})"
    return float(value) if isinstance(value, float) else value
