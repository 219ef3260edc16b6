"""Checkpoint to bundle: the whole of `corom export`, one line a stage."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from corom.runtime.golden import GOLDEN_NAME, Golden, save_golden
from corom.runtime.gpu_machine import this_machine
from corom.runtime.manifest import (
    SCHEMA_VERSION,
    Manifest,
    Precision,
    Source,
    Variant,
    describe_files,
    save_manifest,
)
from corom.runtime.packages import installed_version
from corom.runtime.sidecar import Flavour, mismatches, sidecar_path
from corom.runtime.staging import staged

from .calibration import BETTER_YOUR_OWN, read_calibration_texts
from .checkpoint import Checkpoint, load_checkpoint
from .encoder import TorchEncoder
from .engine import (
    BuiltEngine,
    Progress,
    build_engine,
    require_builder,
    save_engine,
    save_sidecar,
)
from .errors import RungError
from .graph import export_graph
from .native_index import export_native_index, fits_native
from .parity import (
    choose_golden,
    pass_gate,
    read_texts,
    reference_golden,
)
from .precision import ENGINE_GRAPH
from .profiles import chosen_profiles, profile_code
from .readme import bundle_readme
from .recipe import Recipe
from .reference import Reference
from .rungs import GRAPHS, make_rungs, prove_variants, require_rungs
from .sources import resolve_source

TOOLS = ("corom", "onnx", "onnxruntime", "openvino", "tokenizers", "torch", "transformers")


def export_bundle(
    source: str,
    output: Path,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    engines: Sequence[Flavour] = (),
    parity_texts: Path | None = None,
    calibration_texts: Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _stage: None,
    progress: Progress = lambda _phase, _done, _steps: None,
    **overrides: Any,  # noqa: ANN401  # typed by Recipe
) -> Manifest:
    """Turn a checkpoint into a bundle at ``output`` and return its manifest.

    ``source``: a folder, a recipe name or .toml file, ``modelscope:ID`` or ``hf:ID``.
    ``precisions``: fp32 is always there, engines bring fp16. ``calibration_texts``: a file of texts
    that int8's scales are chosen on; None takes the parity texts. ``overrides``: fields of
    ``Recipe`` that replace what the recipe and the checkpoint say; None replaces nothing. ``say``
    is told each stage as it begins, ``progress`` each step of building an engine.

    Raises ``ParityError`` if vectors differ from torch by more than the recipe allows, and
    ``InputError`` for a source, option or folder that cannot be used, and ``UnavailableError`` if
    a precision or an engine cannot be had on this machine. Nothing is published then. Raises
    ``RungError`` if lower precisions fail and the bundle was published without them.
    """
    for flavour in engines:
        require_builder(flavour)
    require_rungs(precisions)
    texts = read_texts(parity_texts, "parity")
    calibration = read_calibration_texts(calibration_texts, precisions)
    with staged(output, overwrite=overwrite) as staging:
        say("Reading the checkpoint")
        resolved = resolve_source(source, revision=revision, offline=offline)
        recipe = _overridden(resolved.recipe or Recipe(source=source), overrides)
        checkpoint = load_checkpoint(resolved, recipe)
        require_rungs(precisions, checkpoint.config)
        (staging / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
        say("Computing the torch reference")
        reference = Reference(checkpoint)
        golden = reference_golden(checkpoint, reference, texts)
        save_golden(staging / GOLDEN_NAME, choose_golden(golden))
        say("Exporting the ONNX graph")
        export_graph(TorchEncoder(checkpoint, flat=True), staging / GRAPHS["fp32"], recipe.opset)
        encoder = TorchEncoder(checkpoint)
        if fits_native(checkpoint.config):
            export_native_index(staging, encoder, checkpoint)
        required: set[Precision] = {"fp32", "fp16"} if engines else {"fp32"}
        wanted = required | set(precisions)
        if "int8" in wanted and calibration_texts is None:
            say(BETTER_YOUR_OWN)
        made, failures = make_rungs(
            wanted,
            bool(engines),
            staging,
            encoder,
            reference,
            golden,
            checkpoint,
            recipe,
            calibration,
            say,
        )
        built_engines = []
        for flavour in engines:
            profiles = chosen_profiles(recipe.engine, checkpoint.max_length)
            say("\n".join([f"Building the {flavour} engine", *map(profile_code, profiles)]))
            built = build_engine(staging / ENGINE_GRAPH, flavour, profiles, recipe.engine, progress)
            save_engine(built, staging / "engines" / built.name)
            built_engines.append(built)
        say("Measuring parity with torch")
        manifest = _stage_manifest(staging, checkpoint, recipe, output.resolve().name, made)
        ladder = prove_variants(staging, manifest.variants, golden, reference, required)
        failures += ladder.failures
        for built in built_engines:
            if not mismatches(built.sidecar, this_machine()):
                say(f"Measuring parity of {built.name} with torch")
                fp16 = next(v for v in manifest.variants if v.precision == "fp16")
                _prove_engine(staging, manifest, built, fp16, golden, reference)
        say("Publishing")
        manifest = msgspec.structs.replace(manifest, variants=ladder.variants)
        (staging / "README.md").write_text(bundle_readme(manifest, recipe), encoding="utf-8")
        manifest = msgspec.structs.replace(manifest, files=describe_files(staging))
        save_manifest(manifest, staging)
    if failures:
        raise RungError(failures, output, manifest)
    return manifest


def _prove_engine(
    staging: Path,
    manifest: Manifest,
    built: BuiltEngine,
    variant: Variant,
    golden: Golden,
    reference: Reference,
) -> None:
    """Note an engine's parity in its sidecar; raises ``ParityError`` if it is out of tolerance."""
    own = staging / "engines" / built.name
    kept = {f"engines/{path.name}" for path in (own, sidecar_path(own))}
    # The only one in the manifest, or the runtime might open another that fits this machine too.
    files = tuple(
        entry
        for entry in manifest.files
        if not entry.path.startswith("engines/") or entry.path in kept
    )
    save_manifest(msgspec.structs.replace(manifest, files=files), staging)
    parity = pass_gate(staging, variant, golden, reference, backend="tensorrt")
    save_sidecar(msgspec.structs.replace(built.sidecar, parity=parity), own)


def _overridden(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    given = {name: value for name, value in overrides.items() if value is not None}
    return msgspec.structs.replace(recipe, **given)


def _stage_manifest(
    staging: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    output_name: str,
    precisions: list[Precision],
) -> Manifest:
    """Write and return a manifest without parity, with which the runtime can open the folder."""
    variants = tuple(
        Variant(precision=p, file=GRAPHS[p], tolerance=recipe.tolerance_for(p), parity={})
        for p in precisions
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=recipe.name or output_name,
        source=Source(
            uri=checkpoint.uri,
            revision=checkpoint.revision,
            weights_sha256=checkpoint.weights_sha256,
            architecture=checkpoint.config.architecture,
            license=checkpoint.license,
        ),
        dimension=checkpoint.config.hidden,
        max_length=checkpoint.max_length,
        max_positions=checkpoint.config.max_positions,
        pooling=checkpoint.pooling,
        normalize=checkpoint.normalize,
        similarity=checkpoint.similarity,
        prompts=checkpoint.prompts,
        default_prompt_name=checkpoint.default_prompt_name,
        files=describe_files(staging),
        variants=variants,
        tools={tool: version for tool in TOOLS if (version := installed_version(tool))},
    )
    save_manifest(manifest, staging)
    return manifest
