"""`corom triton`: a bundle to a model repository for NVIDIA Triton."""

from pathlib import Path
from typing import Any

import click
import msgspec

from .backend import BACKENDS, PRECISIONS
from .cli_options import bundle_argument, json_option
from .triton_options import TRITON_ENCODERS, Serving, TritonOptions
from .triton_repository import write_repository


@click.command()
@bundle_argument
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="REPO",
    help="Folder to make, Triton's --model-repository.",
)
@click.option("--name", help="Name of the model; default: the bundle's.")
@click.option(
    "--encoder",
    type=click.Choice(TRITON_ENCODERS),
    default="python",
    show_default=True,
    help="Triton's backend that executes the encoder: Python (corom.runtime), ONNX Runtime on an "
    "ONNX graph, or TensorRT on an engine of the bundle.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", *BACKENDS]),
    default="auto",
    help="What executes inside --encoder python.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda for tensorrt, else cpu."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", *PRECISIONS]),
    default="auto",
    show_default=True,
    help="Of those in the bundle; auto: the most exact, or the engine's; fp16 for a GPU's python.",
)
@click.option("--engine", metavar="PATH", help="Which engine, if the bundle has several.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of an instance.")
@click.option(
    "--instances", type=click.IntRange(1), default=1, help="Copies of the encoder; default: 1."
)
@click.option("--max-length", type=click.IntRange(1), help="Tokens a text is cut to.")
@click.option(
    "--truncate/--error-on-truncate",
    default=True,
    help="What is done with longer texts unless a request says so; default: cut, and flagged.",
)
@click.option("--max-batch-size", type=click.IntRange(1), help="Most texts of a request or batch.")
@click.option(
    "--preferred-batch-size",
    "preferred_batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="Batch that Triton forms first, may be repeated; default: what suits the encoder.",
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(0),
    default=0,
    help="Microseconds that a request may wait for others while an instance is idle; default: 0.",
)
@click.option("--overwrite", is_flag=True, help="Replace the repository at REPO.")
@json_option
def triton(
    bundle: Path,
    output: Path,
    preferred_batch_sizes: tuple[int, ...],
    overwrite: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401  # typed by TritonOptions
) -> None:
    """Write a model repository that NVIDIA Triton serves BUNDLE from."""
    asked = TritonOptions(preferred_batch_sizes=preferred_batch_sizes or None, **options)
    serving = write_repository(bundle, output, asked, overwrite=overwrite)
    if as_json:
        record = {"repository": str(output), **msgspec.to_builtins(_record(serving))}
        click.echo(msgspec.json.encode(record).decode())
    say_written(serving, output)


def say_written(serving: Serving, repository: Path) -> None:
    """Say on stderr what was written and how it is started."""
    click.echo(
        f"Published {repository}: model '{serving.name}', encoder by Triton's "
        f"{serving.asked.encoder} backend on {serving.device}. {repository / 'README.md'} says how "
        "to start and to call it.",
        err=True,
    )


def _record(serving: Serving) -> dict[str, object]:
    return {
        "model": serving.name,
        "encoder": serving.asked.encoder,
        "device": serving.device,
        "precision": serving.precision,
        "engine": serving.engine.path if serving.engine else None,
        "max_length": serving.max_length,
        "widths": serving.widths,
        "max_batch_size": serving.max_batch_size,
        "preferred_batch_sizes": serving.preferred_batch_sizes,
    }
