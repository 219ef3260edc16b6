"""`corom score`: how close sentences are to one sentence."""

from pathlib import Path
from typing import Any

import click
import msgspec

from .cli_options import bundle_argument, encoder_options, json_option, say_cut
from .encoder import Encoder


@click.command()
@bundle_argument
@click.argument("sentence")
@click.argument("others", nargs=-1, required=True, metavar="OTHER...")
@encoder_options
@json_option
def score(
    bundle: Path,
    sentence: str,
    others: tuple[str, ...],
    as_json: bool,
    **encoder_options: Any,  # noqa: ANN401
) -> None:
    """Print the score of each OTHER against SENTENCE, dot or cosine as the manifest says."""
    with Encoder(bundle, **encoder_options) as encoder:
        query = encoder.encode_query([sentence])
        scores = encoder.similarity(query, encoder.encode_document(list(others)))[0].tolist()
        kind = encoder.manifest.similarity
        say_cut(encoder.truncated_texts, encoder.max_length)
    if as_json:
        rows = [{"text": text, "score": value} for text, value in zip(others, scores, strict=True)]
        result = {"sentence": sentence, "similarity": kind, "scores": rows}
        click.echo(msgspec.json.encode(result).decode())
        return
    click.echo(f"{kind} similarity to: {sentence}", err=True)
    for text, value in zip(others, scores, strict=True):
        click.echo(f"{value:.4f}\t{text}")
