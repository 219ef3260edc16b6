"""`corom bench throughput`: texts a second when many are given at once."""

import time
from pathlib import Path
from typing import Any

import click

from corom.runtime import Encoder
from corom.runtime.cli_options import bundle_argument, encoder_options, json_option

from .cli_options import rounds_option
from .figures import Spread, spread, text_table
from .report import output_option, say_if_cut, say_if_equal, say_what_executes, show
from .texts import MIXES, Mix, made_texts, read_texts


@click.command()
@bundle_argument
@encoder_options
@click.option("--mix", "mixes", type=click.Choice(MIXES), multiple=True, help="Default: all.")
@click.option(
    "--count", type=click.IntRange(1), default=2000, show_default=True, help="Texts made."
)
@click.option("--texts", "file", type=click.Path(path_type=Path), help="One text a line.")
@rounds_option(default=5)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(1),
    default=16384,
    show_default=True,
    help="Padded tokens of one execution; a backend that is faster with less takes less.",
)
@output_option
@json_option
def throughput(
    bundle: Path,
    mixes: tuple[Mix, ...],
    count: int,
    file: Path | None,
    rounds: int,
    output: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Measure texts a second through Encoder.encode, which sorts by length; tokenizing included.

    The mixes take turns, round by round. Texts, unless a file is given, are made: queries of 47
    characters and passages of 120 on average.
    """
    if file is not None and mixes:
        raise click.UsageError("--texts are measured as they are; leave --mix out.")
    if file is None:
        sets = {str(mix): made_texts(mix, count) for mix in mixes or MIXES}
    else:
        sets = {file.name: read_texts(file)}
    with Encoder(bundle, **options) as encoder:
        say_what_executes(encoder)
        for name, texts in sets.items():
            say_if_equal(name, texts)
        tokens = {name: sum(map(len, encoder.token_ids(texts))) for name, texts in sets.items()}
        rates = measured(encoder, sets, rounds)
        say_if_cut(encoder)
        report = {
            "benchmark": "throughput",
            "bundle": encoder.manifest.name,
            "choice": encoder.choice,
        }
    found = {
        name: {
            "texts": len(texts),
            "tokens_per_text": tokens[name] / len(texts),
            "texts_per_second": rates[name]._asdict(),
            "tokens_per_second": rates[name].median * tokens[name] / len(texts),
        }
        for name, texts in sets.items()
    }
    rows = [
        [name, f["texts"], f["tokens_per_text"], rates[name], f["tokens_per_second"]]
        for name, f in found.items()
    ]
    header = ("texts", "number", "tokens a text", "texts/s (lowest to highest)", "tokens/s")
    show(
        report | {"rounds": rounds, "mixes": found},
        text_table(header, rows),
        output,
        as_json=as_json,
    )


def measured(encoder: Encoder, sets: dict[str, list[str]], rounds: int) -> dict[str, Spread]:
    """Return texts a second of each set over the rounds; a round that warms up is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(1 + rounds):
        for name, texts in sets.items():
            start = time.perf_counter()
            encoder.encode(texts)
            rates[name].append(len(texts) / (time.perf_counter() - start))
    return {name: spread(found[1:]) for name, found in rates.items()}
