"""`corom export`: the command that turns a checkpoint into a bundle."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape

from corom.runtime.backend import PRECISIONS
from corom.runtime.cli_options import json_option
from corom.runtime.cli_triton import say_written
from corom.runtime.errors import missing_extra
from corom.runtime.manifest import Manifest
from corom.runtime.parity_table import parity_table, variant_rows
from corom.runtime.triton_options import TritonEncoder, TritonOptions
from corom.runtime.triton_repository import require_place, write_repository


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Folder to make.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Precisions to prove, may be repeated; fp32 always is. bf16 needs a CPU that has it, "
    "int8-per-token one with AVX2.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="fp16 TensorRT engines to build, may be repeated. tensorrt: for the GPU of this machine; "
    "tensorrt-rtx: without a GPU, for RTX GPUs.",
)
@click.option(
    "--pooling",
    type=click.Choice(["auto", "cls", "mean"]),
    default="auto",
    help="auto: as the recipe or the checkpoint says.",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Whether vectors are scaled to length 1; default: as the checkpoint says.",
)
@click.option("--max-length", type=click.IntRange(1), help="Tokens a text is cut to.")
@click.option("--opset", type=click.IntRange(18, 20), help="ONNX opset; default: 20.")
@click.option(
    "--parity-texts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Texts for the parity gate, one a line; up to 63 of them go into the bundle. Default: "
    "those that come with corom.",
)
@click.option(
    "--calibration-texts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Texts like those to come, one a line, that int8 is fitted to; default: those that come "
    "with corom.",
)
@click.option(
    "--triton",
    type=click.Path(path_type=Path),
    metavar="REPO",
    help="Write a model repository for NVIDIA Triton too, of the TensorRT engine if one is built, "
    "else for its Python backend; `corom triton` has the choices.",
)
@click.option("--revision", help="Revision of a modelscope: or hf: source.")
@click.option("--offline", is_flag=True, help="Use only what was fetched before.")
@click.option("--overwrite", is_flag=True, help="Replace what is at BUNDLE and REPO.")
@json_option
def export(
    source: str,
    output: Path,
    pooling: str,
    triton: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401  # typed by export_bundle
) -> None:
    """Turn SOURCE into a bundle that is proven equal to torch before it is published.

    SOURCE: a folder, a recipe name or .toml file, modelscope:ID or hf:ID.
    """
    _require_packages()
    if triton is not None:  # before minutes of work
        require_place(output, triton, overwrite=options["overwrite"])
    from .bundle import export_bundle
    from .errors import RungError

    console = Console(stderr=True)
    with console.status("Starting") as status:

        def say(stage: str) -> None:
            # An engine's stage brings the code of its profiles.
            title, _, code = stage.partition("\n")
            console.print(f"{title} …{code and chr(10) + code}", highlight=False, markup=False)
            status.update(title)

        def progress(phase: str, done: int, steps: int) -> None:
            status.update(f"TensorRT: {phase} {done}/{steps}")

        chosen = None if pooling == "auto" else pooling
        failed: RungError | None = None
        try:
            manifest = export_bundle(
                source, output, pooling=chosen, say=say, progress=progress, **options
            )
        except RungError as error:
            failed, manifest = error, error.manifest
    _report(manifest, output, as_json=as_json)
    if triton is not None:
        encoder: TritonEncoder = "tensorrt" if "tensorrt" in options["engines"] else "python"
        serving = write_repository(
            output, triton, TritonOptions(encoder=encoder), overwrite=options["overwrite"]
        )
        say_written(serving, triton)
    if failed is not None:
        raise failed


def _require_packages() -> None:
    for package in ("torch", "transformers", "onnx", "onnxscript", "safetensors"):
        if find_spec(package) is None:
            raise missing_extra(package, "export", "Exporting")


def _report(manifest: Manifest, output: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(manifest).decode())
        return
    rows = variant_rows(manifest.variants)
    Console().print(parity_table(rows, f"{escape(manifest.name)}: parity with the torch reference"))
    if manifest.source.license:
        click.echo(f"Licence of the weights: {manifest.source.license}", err=True)
    click.echo(f"Published {output}. Try: corom embed {output} 一句话", err=True)
