"""`corom bench corpus`: what the job of a corpus costs beside encoding its texts alone."""

import os
import resource
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

from .figures import spread, text_table
from .report import output_option, show
from .texts import made_texts, read_texts

QUERIES, HITS = 1000, 10
MILLION = 1_000_000


class Run(NamedTuple):
    """One process of `corom embed`: seconds, and the most memory it held."""

    seconds: float
    peak_bytes: int


@click.command()
@bundle_argument
@encoder_options
@click.option(
    "--texts",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Passages, one a line (of .tsv the last column); default: made ones.",
)
@click.option("--rows", type=click.IntRange(100), default=10_000, show_default=True)
@click.option("--few-rows", type=click.IntRange(10), help="Rows of a short job, for its memory.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
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
    """Measure the job of a corpus on BUNDLE: rate, memory, resuming, search.

    Rounds of `corom embed -o FOLDER` take turns with rounds of `Encoder.encode` over the same texts
    in one process. The texts are repeated until there are as many as asked for.
    """
    found = made_texts("passages", min(rows, 20_000)) if file is None else read_texts(file)
    texts = list(islice(cycle(found), rows))
    with tempfile.TemporaryDirectory(prefix="corom-bench-") as work:
        place = Path(work)
        few = _lines(place / "few.jsonl", texts[: few_rows or max(10, rows // 5)])
        many = _lines(place / "many.jsonl", texts)
        alone: list[float] = []
        jobs: list[Run] = []
        with Encoder(bundle, **options) as encoder:
            encoder.encode(texts[:256])
            for _ in range(rounds):
                start = time.perf_counter()
                encoder.encode(iter(texts))
                alone.append(rows / (time.perf_counter() - start))
                folder = place / f"vectors{len(jobs)}"
                jobs.append(_embed(bundle, many, folder, engine, options))
            choice = encoder.choice
            queries = encoder.encode(texts[:QUERIES])
        short = _embed(bundle, few, place / "short", engine, options)
        resumed = _embed(bundle, many, folder, engine, options)
        index = VectorIndex(folder)
        start = time.perf_counter()
        search(index, queries, HITS)
        searched = time.perf_counter() - start
    # A job's rate holds all that its command does: the interpreter, opening the encoder, the files.
    rates = [rows / job.seconds for job in jobs]
    figures = {
        "rows": rows,
        "encode alone, rows/s": spread(alone)._asdict(),
        "job, rows/s": spread(rates)._asdict(),
        "job ÷ encode": spread([a / b for a, b in zip(rates, alone, strict=True)])._asdict(),
        "peak memory, MB": max(job.peak_bytes for job in jobs) / 1e6,
        "peak memory of the short job, MB": short.peak_bytes / 1e6,
        "going on with a finished job, s": resumed.seconds,
        f"search, {len(queries)} queries, s": searched,
        "a million rows, hours (extrapolated)": MILLION / float(np.median(rates)) / 3600,
    }
    report = {"benchmark": "corpus", "bundle": bundle.name, "choice": choice, "engine": engine}
    cells = [(name, _shown(value)) for name, value in figures.items()]
    title = f"{choice}, engine {engine}, {rows:,} rows, {rounds} rounds in turns"
    show(
        report | {"figures": figures},
        f"{title}\n\n{text_table(('figure', 'value'), cells)}",
        output,
        as_json=as_json,
    )


def _lines(path: Path, texts: Sequence[str]) -> Path:
    """Write texts as JSON lines with ids, so that columns are read as users' are."""
    records = [{"id": f"p{number}", "text": text} for number, text in enumerate(texts)]
    path.write_bytes(msgspec.json.Encoder().encode_lines(records))
    return path


def _embed(bundle: Path, source: Path, folder: Path, engine: str, options: dict[str, Any]) -> Run:
    """Run `corom embed` in a process of its own, where its memory is its own."""
    command = [sys.executable, "-c", "from corom.runtime.cli import main; main()", "embed"]
    command += [str(bundle), "-i", str(source), "--id-column", "id", "-o", str(folder)]
    command += ["--engine", engine]
    for name in ("backend", "device", "precision", "threads", "max_length"):
        if options.get(name) is not None:
            command += [f"--{name.replace('_', '-')}", str(options[name])]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        usage = _wait(process)
    if process.returncode:
        raise click.ClickException(f"corom embed failed: {said.decode(errors='replace')}")
    return Run(time.perf_counter() - start, usage.ru_maxrss * 1024)


def _wait(process: "subprocess.Popen[bytes]") -> resource.struct_rusage:
    """Wait for a process; return what it alone used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _shown(value: object) -> object:
    if isinstance(value, dict):
        return f"{value['median']:,.3g} ({value['low']:,.3g} to {value['high']:,.3g})"
    return float(value) if isinstance(value, float) else value
