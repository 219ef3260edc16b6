"""Why a backend cannot run here, found without opening it; "auto" goes by this."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from .backend import EXECUTES, choose_variant
from .engine_cache import EngineCache, cached_sidecar, shipped_engines
from .errors import CoromError
from .gpu_machine import this_machine
from .graph_interface import FUSED_GRAPH
from .manifest import Manifest, Variant
from .native_weights import require_index


def why_not(
    bundle: Path,
    manifest: Manifest,
    precision: str,
    engine_cache: EngineCache,
    backend: str,
    device: str,
) -> str | None:
    """Return why this backend cannot run a precision of a bundle here; None: it can.

    ``precision``: "auto" for any that the bundle has.
    """
    if precision != "auto" and precision not in EXECUTES[backend]:
        return f"it does not execute {precision}"
    if device == "cpu":
        if backend == "native":
            return _message(lambda: _require_native(manifest, precision))
        return why_not_openvino(precision) if backend == "openvino" else None
    machine = this_machine()
    missing = list(machine.missing)
    if not _installed("cuda.bindings"):
        wanted = precision
        if precision == "auto":
            wanted = choose_variant(manifest, "auto", backend, device).precision
        if backend == "tensorrt" or (wanted == "fp16" and manifest.has(FUSED_GRAPH)):
            extra = "tensorrt" if backend == "tensorrt" else "gpu"
            missing.append(
                f"the package cuda-bindings is not installed. Run: pip install 'corom[{extra}]'"
            )
    if missing:
        return "; ".join(missing)
    if backend == "onnxruntime":
        from .backend_onnxruntime_cuda import require_cuda_provider

        return _message(require_cuda_provider)
    return _why_no_engine(bundle, manifest, precision, engine_cache)


def _why_no_engine(
    bundle: Path, manifest: Manifest, precision: str, engine_cache: EngineCache
) -> str | None:
    machine = this_machine()
    shipped = shipped_engines(bundle, manifest, machine)
    engines = [engine for engine in shipped if precision in {"auto", engine.sidecar.precision}]
    if not engines:
        return f"the bundle has no engine of precision {precision}"
    for _, sidecar, problems in engines:
        can_build = engine_cache == "auto" and sidecar.flavour in machine.tensorrt
        if not problems or can_build or cached_sidecar(sidecar, machine) is not None:
            return None
    return "; ".join(engines[0].problems)


def why_not_auto(
    bundle: Path,
    manifest: Manifest,
    precision: str,
    engine_cache: EngineCache,
    backend: str,
    device: str,
) -> str | None:
    """Return why "auto" does not take this backend: it cannot run, or was not proven at export."""
    if precision == "auto":
        variant: Variant | None = choose_variant(manifest, "auto", backend, device)
    else:
        variant = next((v for v in manifest.variants if v.precision == precision), None)
    if device == "cpu" and variant is not None and backend not in variant.parity:
        proven = ", ".join(variant.parity) or "none"
        return f"the bundle's {variant.precision} was proven on: {proven}; ask for another by name"
    return why_not(bundle, manifest, precision, engine_cache, backend, device)


def why_not_openvino(precision: str) -> str | None:
    """Return why OpenVINO cannot execute a precision here; None: it can."""
    if not _installed("openvino"):
        return "the package openvino is not installed"
    from .backend_openvino import open_core, require_precision

    return _message(lambda: require_precision(open_core(), precision))


def _require_native(manifest: Manifest, precision: str) -> None:
    from .native_library import require_native

    require_native(choose_variant(manifest, precision, "native").precision)
    require_index(manifest)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False


def _message(check: Callable[[], None]) -> str | None:
    try:
        check()
    except CoromError as error:
        return str(error)
    return None
