"""What a Triton model repository is made of: what was asked for, checked against the bundle."""

import re
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec

from .backend import BACKENDS, EXECUTES, choose_variant, require_execution
from .engine_cache import ShippedEngine, shipped_engines
from .errors import InputError, UnavailableError
from .manifest import Manifest, Variant
from .options import cpu_count, not_negative, positive
from .sidecar import Machine
from .triton_shapes import max_batch_size_for, preferred_for, shapes_for

TritonEncoder = Literal["python", "onnxruntime", "tensorrt"]
TRITON_ENCODERS: tuple[TritonEncoder, ...] = get_args(TritonEncoder)
DEVICES: dict[TritonEncoder, tuple[str, ...]] = {
    "python": ("cpu", "cuda"),
    "onnxruntime": ("cpu", "cuda"),
    "tensorrt": ("cuda",),
}
"""Triton's backends that can execute the encoder, and where; the first device is the default."""


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

    @property
    def precision(self) -> str:
        """What is executed; "auto" is chosen where it is served, as ``Encoder`` chooses."""
        return self.asked.precision if self.asked.encoder == "python" else self.variant.precision


def check_triton(bundle: Path, manifest: Manifest, asked: TritonOptions) -> Serving:
    """Return what will be served.

    Raises ``InputError`` for an option that cannot be, ``UnavailableError`` for what the bundle
    lacks.
    """
    positive("instances", asked.instances)
    not_negative("queue_delay_us", asked.queue_delay_us)
    if asked.threads is not None:
        cpu_count("threads", asked.threads)
    device = _device(asked)
    max_length = _max_length(manifest, asked.max_length)
    engine = None
    if asked.encoder == "tensorrt":
        engine = _engine(bundle, manifest, asked)
        variant = choose_variant(manifest, engine.sidecar.precision)
    else:
        variant = _variant(manifest, asked, device)
    widths, most = shapes_for(asked.encoder, engine, max_length)
    max_batch_size = max_batch_size_for(asked.max_batch_size, engine, most)
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
        preferred_batch_sizes=preferred_for(
            asked.preferred_batch_sizes, asked.encoder, engine, max_batch_size
        ),
    )


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
    variant = choose_variant(manifest, asked.precision, asked.backend, device)
    if asked.backend != "auto":
        require_execution(asked.backend, variant.precision)
    here = [name for name, devices in BACKENDS.items() if device in devices]
    if not any(variant.precision in EXECUTES[name] for name in here):
        raise InputError(f"no backend executes {variant.precision} on device '{device}'.")
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
