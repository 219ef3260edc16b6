"""What a Triton model repository is made of: what was asked for, checked against the bundle."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec

from .backend import BACKENDS, choose_variant, require_execution
from .engine_cache import ShippedEngine, shipped_engines
from .errors import InputError, UnavailableError
from .manifest import Manifest, Variant
from .options import not_negative, positive
from .shapes import WIDTHS, Buckets
from .sidecar import Machine, Profile

TritonEncoder = Literal["python", "onnxruntime", "tensorrt"]
TRITON_ENCODERS: tuple[TritonEncoder, ...] = get_args(TritonEncoder)
DEVICES: dict[TritonEncoder, tuple[str, ...]] = {
    "python": ("cpu", "cuda"),
    "onnxruntime": ("cpu", "cuda"),
    "tensorrt": ("cuda",),
}
"""Triton's backends that can execute the encoder, and where; the first device is the default."""
MAX_BATCH_SIZE: dict[TritonEncoder, int] = {"python": 256, "onnxruntime": 64, "tensorrt": 256}
PREFERRED_BATCH_SIZES = (8, 16, 32, 64)


class TritonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a bundle is served. None: what suits the encoder.

    ``encoder``: the backend of Triton that executes it. ``backend``: what executes inside the
    Python backend. ``engine``: path of one engine of several, as `corom inspect` shows it.
    ``truncate``: cut texts longer than ``max_length`` tokens, or answer them with an error.
    ``instances``: copies of the encoder. ``threads``: CPU threads of each.
    ``queue_delay_us``: microseconds that a request may wait for others while an instance is idle.
    """

    name: str | None = None
    encoder: TritonEncoder = "python"
    backend: str = "auto"
    device: str | None = None
    precision: str = "auto"
    engine: str | None = None
    threads: int | None = None
    instances: int = 1
    max_length: int | None = None
    truncate: bool = True
    max_batch_size: int | None = None
    preferred_batch_sizes: tuple[int, ...] | None = None
    queue_delay_us: int = 0


class Serving(NamedTuple):
    """Options that the bundle can fulfil, nothing left open."""

    name: str
    manifest: Manifest
    asked: TritonOptions
    device: str
    variant: Variant
    engine: ShippedEngine | None
    max_length: int
    widths: tuple[int, ...]
    """Tokens that requests are padded to, so that they have equal shapes; empty: to the longest."""
    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...]


def check_triton(bundle: Path, manifest: Manifest, asked: TritonOptions) -> Serving:
    """Return what will be served.

    Raises ``InputError`` for an option that cannot be, ``UnavailableError`` for what the bundle
    lacks.
    """
    positive("instances", asked.instances)
    not_negative("queue_delay_us", asked.queue_delay_us)
    if asked.threads is not None:
        positive("threads", asked.threads)
    device = _device(asked)
    max_length = _max_length(manifest, asked.max_length)
    engine = None
    if asked.encoder == "tensorrt":
        engine = _engine(bundle, manifest, asked)
        variant = choose_variant(manifest, engine.sidecar.precision)
    else:
        variant = _variant(manifest, asked, device)
    widths, most = _shapes(asked, engine, max_length)
    max_batch_size = _max_batch_size(asked, engine, most)
    return Serving(
        name=_name(manifest, asked.name),
        manifest=manifest,
        asked=asked,
        device=device,
        variant=variant,
        engine=engine,
        max_length=max_length,
        widths=widths,
        max_batch_size=max_batch_size,
        preferred_batch_sizes=_preferred(asked, engine, max_batch_size),
    )


def rows_held(profiles: Sequence[Profile], width: int) -> int:
    """Return the most rows so that every number from 1 to it fits a profile at this width."""
    ranges = [p.batch for p in profiles if p.length[0] <= width <= p.length[2]]
    rows = 0
    while any(low <= rows + 1 <= high for low, _, high in ranges):
        rows += 1
    return rows


def widths_for(max_length: int) -> tuple[int, ...]:
    """Return the usual widths below ``max_length``, and that."""
    return (*(width for width in WIDTHS if width < max_length), max_length)


def _name(manifest: Manifest, name: str | None) -> str:
    chosen = manifest.name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", chosen):
        raise InputError(
            f"'{chosen}' cannot be the name of a model in Triton: letters, digits, '.', '_' and "
            "'-' only. Choose one with --name."
        )
    return chosen


def _device(asked: TritonOptions) -> str:
    if asked.encoder not in DEVICES:
        raise InputError(
            f"there is no encoder '{asked.encoder}'. Encoders: {', '.join(TRITON_ENCODERS)}."
        )
    if asked.encoder != "python" and asked.backend != "auto":
        raise InputError(
            f"--backend {asked.backend} is for --encoder python; with --encoder {asked.encoder} "
            "Triton's own backend executes. Leave one of them out."
        )
    if asked.encoder == "tensorrt" and asked.threads is not None:
        raise InputError("--threads is for CPUs; --encoder tensorrt runs on a GPU. Leave it out.")
    if asked.engine is not None and asked.encoder != "tensorrt":
        raise InputError(f"--engine is for --encoder tensorrt, not {asked.encoder}.")
    allowed = DEVICES[asked.encoder]
    if asked.encoder == "python" and asked.backend != "auto":
        if asked.backend not in BACKENDS:
            raise InputError(
                f"there is no backend '{asked.backend}'. Backends: auto, {', '.join(BACKENDS)}."
            )
        allowed = BACKENDS[asked.backend][::-1]  # the CPU, if it runs there
    device = allowed[0] if asked.device is None else asked.device
    if device not in allowed:
        what = asked.encoder if asked.backend == "auto" else f"python --backend {asked.backend}"
        raise InputError(
            f"--encoder {what} does not run on device '{device}', only on: {', '.join(allowed)}."
        )
    return device


def _max_length(manifest: Manifest, asked: int | None) -> int:
    if asked is None:
        return manifest.max_length
    if positive("max_length", asked) > manifest.max_positions:
        raise InputError(
            f"max_length is {asked}; the model has {manifest.max_positions} positions."
        )
    return asked


def _variant(manifest: Manifest, asked: TritonOptions, device: str) -> Variant:
    """Return the variant that Triton's encoder executes."""
    if asked.encoder == "onnxruntime":
        variant = choose_variant(manifest, asked.precision)
        require_execution("onnxruntime", variant.precision)
        if device == "cuda" and variant.precision == "int8":
            raise InputError(
                "int8 graphs are proven on CPUs only. Take --precision fp16 or fp32 with --device "
                "cuda, or --device cpu."
            )
        return variant
    variant = choose_variant(manifest, asked.precision, asked.backend)
    if asked.backend != "auto":
        require_execution(asked.backend, variant.precision)
    return variant


def _engine(bundle: Path, manifest: Manifest, asked: TritonOptions) -> ShippedEngine:
    """Return the one TensorRT engine that is meant."""
    shipped = shipped_engines(bundle, manifest, Machine())
    fitting = [
        engine
        for engine in shipped
        if engine.sidecar.flavour == "tensorrt"
        and asked.precision in {"auto", engine.sidecar.precision}
        and asked.engine in {None, engine.path}
    ]
    if len(fitting) == 1:
        return fitting[0]
    present = "; ".join(f"'{e.path}' ({e.sidecar.flavour} {e.sidecar.precision})" for e in shipped)
    if fitting:
        raise InputError(
            f"bundle '{manifest.name}' has several engines that fit: {present}. Choose one with "
            "--engine PATH."
        )
    wish = f" at '{asked.engine}'" if asked.engine else ""
    precision = "" if asked.precision == "auto" else f" of precision {asked.precision}"
    raise UnavailableError(
        f"bundle '{manifest.name}' has no TensorRT engine{precision}{wish} that Triton can load; "
        f"it has: {present or 'none'} (Triton loads those of tensorrt, not of tensorrt-rtx). Build "
        f"one on the GPU it is for: corom export {manifest.source.uri} -o NEW_BUNDLE --engine "
        "tensorrt. Or take --encoder python or onnxruntime."
    )


def _shapes(
    asked: TritonOptions, engine: ShippedEngine | None, max_length: int
) -> tuple[tuple[int, ...], int]:
    """Return the widths that requests are padded to, and how many rows fit at each of them."""
    if asked.encoder == "python":
        return (), MAX_BATCH_SIZE["python"]  # takes requests of unlike shapes together
    if engine is None:
        return widths_for(max_length), MAX_BATCH_SIZE["onnxruntime"]
    profiles = engine.sidecar.profiles
    known = sorted({bucket.width for bucket in Buckets(profiles)})
    if max_length > known[-1]:
        raise InputError(
            f"'{engine.path}' takes texts of up to {known[-1]} tokens, and texts are cut to "
            f"{max_length}. Add --max-length {known[-1]}, or export with a longer profile."
        )
    holds_longest = next(width for width in known if width >= max_length)
    widths = tuple(width for width in known if width <= holds_longest)
    rows = min(rows_held(profiles, width) for width in widths)
    if rows < 1:
        raise InputError(
            f"'{engine.path}' has no profile for one text alone at every length. Export again with "
            "profiles whose batch begins at 1."
        )
    return widths, min(rows, MAX_BATCH_SIZE["tensorrt"])


def _max_batch_size(asked: TritonOptions, engine: ShippedEngine | None, most: int) -> int:
    size = asked.max_batch_size
    if size is None:
        return most
    if positive("max_batch_size", size) > most and engine is not None:
        raise InputError(
            f"max_batch_size is {size}; the profiles of '{engine.path}' hold up to {most} texts at "
            "every length."
        )
    return size


def _preferred(
    asked: TritonOptions, engine: ShippedEngine | None, max_batch_size: int
) -> tuple[int, ...]:
    """Return the batch sizes that Triton forms first where it can."""
    if asked.preferred_batch_sizes is not None:
        for size in asked.preferred_batch_sizes:
            if positive("preferred_batch_sizes", size) > max_batch_size:
                raise InputError(
                    f"preferred batch size {size} is above max_batch_size {max_batch_size}."
                )
        return tuple(sorted(set(asked.preferred_batch_sizes)))
    if asked.encoder == "python":
        return ()  # corom cuts a batch by tokens itself: every size is as good as another
    sizes: Sequence[int] = PREFERRED_BATCH_SIZES
    if engine is not None:  # what its kernels were chosen for
        sizes = sorted({p.batch[1] for p in engine.sidecar.profiles if p.batch[1] > 1})
    return tuple(size for size in sizes if size <= max_batch_size)
