"""SOURCE of `corom bench peers`: the checkpoint that all get, its reference vectors, its bundle."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from corom.export.checkpoint import Checkpoint, load_checkpoint
from corom.export.recipe import Recipe
from corom.export.reference import Reference
from corom.export.rungs import require_rungs
from corom.export.sources import ResolvedSource, resolve_source
from corom.export.tokenizer import reference_token_ids, reference_tokenizer
from corom.runtime.errors import CoromError, InputError, ParityError, UnavailableError
from corom.runtime.manifest import MANIFEST_NAME, Manifest, Pooling, Precision, load_manifest
from corom.runtime.vectors import Vectors

from .gpu_models import SHAPES, random_checkpoint

DEMO = "demo"


def peer_checkpoint(source: str, pooling: Pooling, work: Path | None = None) -> Checkpoint:
    """Return the checkpoint of SOURCE with this pooling; a name of ``SHAPES`` is made in ``work``.

    Random weights get the demo's vocabulary, so that texts have as many tokens as there.
    """
    if work is not None and source in SHAPES:
        folder = work / source
        if not (folder / "config.json").exists():
            random_checkpoint(folder, SHAPES[source], resolve_source(DEMO).folder)
        resolved = ResolvedSource(folder, f"{source}, seeded random weights")
    else:
        resolved = resolve_source(source)
    recipe = resolved.recipe or Recipe(source=source)
    changed = msgspec.structs.replace(recipe, pooling=pooling, normalize=False)
    return load_checkpoint(resolved, changed)


def reference_vectors(checkpoint: Checkpoint, texts: list[str], max_length: int) -> Vectors:
    """Return what transformers gives the texts, tokenizing by itself."""
    return Reference(checkpoint).vectors(token_ids(checkpoint, texts, max_length))


def token_ids(checkpoint: Checkpoint, texts: list[str], max_length: int) -> list[list[int]]:
    """Return the ids of the texts, cut to ``max_length``, special tokens included."""
    return reference_token_ids(reference_tokenizer(checkpoint.folder), texts, max_length)


def default_precisions(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the precisions that this CPU executes of this model."""

    def here(precision: Precision) -> bool:
        try:
            require_rungs([precision], checkpoint.config)
        except (InputError, UnavailableError):
            return False
        return True

    ladder: tuple[Precision, ...] = ("fp32", "bf16", "int8-per-token", "int8")
    return tuple(precision for precision in ladder if here(precision))


def peer_bundle(
    checkpoint: Checkpoint, bundle: Path, max_length: int, precisions: Sequence[str]
) -> Path:
    """Export the checkpoint in a process of its own, where torch's memory ends with it.

    A rung that fails parity is told on stderr; the others are compared. Raises ``CoromError`` with
    the exporter's own words if it fails.
    """
    # What an earlier run made must not pass for this one's.
    shutil.rmtree(bundle, ignore_errors=True)
    # corom's main reads the command line, so nothing has to be on the PATH.
    program = "from corom.runtime.cli import main; main()"
    command = [sys.executable, "-c", program, "export", str(checkpoint.folder), "-o", str(bundle)]
    command += ["--pooling", checkpoint.pooling, "--no-normalize", "--overwrite"]
    command += ["--max-length", str(max_length)]
    for precision in precisions:
        command += ["--precision", precision]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == ParityError.exit_code and (bundle / MANIFEST_NAME).exists():
        click.echo(result.stderr.strip(), err=True)
    elif result.returncode:
        raise CoromError(f"corom export ended with {result.returncode}: {result.stderr}")
    return bundle


def require_same(bundle: Path, checkpoint: Checkpoint) -> Path:
    """Return the bundle; raises ``InputError`` unless it was made of the checkpoint."""
    manifest = load_manifest(bundle)
    require_weights(manifest, checkpoint)
    if manifest.pooling != checkpoint.pooling:
        raise InputError(
            f"'{bundle}' has pooling '{manifest.pooling}', but '{checkpoint.pooling}' is compared. "
            f"Say --pooling {manifest.pooling}, or leave --bundle out."
        )
    return bundle


def require_weights(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise ``InputError`` unless a bundle was made of the checkpoint's weights."""
    if manifest.source.weights_sha256 != checkpoint.weights_sha256:
        raise InputError(
            f"bundle '{manifest.name}' was made of {manifest.source.uri}, which has other weights "
            f"than {checkpoint.uri}. Name what the bundle was made of."
        )
