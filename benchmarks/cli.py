"""`corom bench`: the table of its sub-commands."""

import click

from corom.runtime.cli import LateGroup

BENCHMARKS = {
    "latency": ("corom.benchmarks.cli_latency", "Time from text to vector, one request at a time."),
    "throughput": ("corom.benchmarks.cli_throughput", "Texts a second, many at once."),
    "corpus": ("corom.benchmarks.cli_corpus", "What the job of a corpus costs, and its memory."),
    "serve": ("corom.benchmarks.cli_serve", "The HTTP server under load, beside infinity's."),
    "peers": ("corom.benchmarks.cli_peers", "The same checkpoint by other libraries, in turns."),
    "retrieval": ("corom.benchmarks.cli_retrieval", "Does a variant still find what it should?"),
}


@click.group(cls=LateGroup, table=BENCHMARKS)
def bench() -> None:
    """Measure latency, throughput, retrieval quality, and peers side by side."""
