"""Which engine file this machine runs: the bundle's own, or one built here once, under a lock.

An engine holds code. So only two places are trusted: files that the bundle's manifest hashes, and
the user's own cache. Knows no TensorRT; the build is the exporter's.
"""

import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from .cache import cache_root
from .errors import BundleError, EngineError, EngineMismatchError, missing_extra
from .manifest import Manifest, Precision, checked_file, sha256_of
from .sidecar import (
    Machine,
    Sidecar,
    load_sidecar,
    mismatches,
    rebuild_advice,
    sidecar_path,
)

EngineCache = Literal["off", "auto"]
Rebuild = Callable[[Path, Sidecar, Path], None]
"""(graph, the sidecar to follow, engine file to write): builds an engine and its sidecar."""

logger = logging.getLogger("corom")


class ShippedEngine(NamedTuple):
    """An engine that the manifest lists, and why this machine cannot run it."""

    path: str
    sidecar: Sidecar
    problems: list[str]


def shipped_engines(bundle: Path, manifest: Manifest, machine: Machine) -> list[ShippedEngine]:
    """Return the engines of a bundle; their sidecars are checked, the engines not yet opened."""
    hashes = {entry.path: entry.sha256 for entry in manifest.files}
    engines = []
    for entry in manifest.files:
        if entry.path.endswith(".engine"):
            path = bundle / entry.path
            checked_file(bundle, manifest.entry(f"{entry.path}.json"))
            sidecar = load_sidecar(path)
            problems = mismatches(sidecar, machine, hashes.get(sidecar.graph))
            engines.append(ShippedEngine(entry.path, sidecar, problems))
    return engines


def find_engine(
    bundle: Path,
    manifest: Manifest,
    precision: Precision,
    machine: Machine,
    engine_cache: EngineCache = "off",
    rebuild: Rebuild | None = None,
) -> tuple[Path, Sidecar]:
    """Return an engine file that this machine can run, and its sidecar.

    First the bundle's, then what was built here before. ``engine_cache`` "auto" builds one if there
    is neither, once however many processes ask; "off" raises ``EngineError`` with found, expected
    and the command to run.
    """
    shipped = shipped_engines(bundle, manifest, machine)
    engines = [engine for engine in shipped if engine.sidecar.precision == precision]
    if not engines:
        present = ", ".join(engine.path for engine in shipped) or "none"
        raise EngineMismatchError(
            f"bundle '{manifest.name}' has no engine of precision {precision}; it has: {present}. "
            f"Run: corom export {manifest.source.uri} -o NEW_BUNDLE --engine tensorrt"
        )
    for path, sidecar, problems in engines:
        if not problems:
            return checked_file(bundle, manifest.entry(path)), sidecar
    for _, sidecar, _ in engines:
        built = cached_engine(sidecar, machine)
        if (found := _usable(built, sidecar, machine)) is not None:
            return built, found
    buildable = [e for e in engines if e.sidecar.flavour in machine.tensorrt and machine.gpu]
    if engine_cache == "off" or not buildable:
        lines = [f"'{e.path}': {'; '.join(e.problems)}" for e in engines]
        advice = rebuild_advice(manifest.source.uri, engines[0].sidecar.flavour)
        raise EngineMismatchError(
            "\n".join(["no engine of this bundle fits this machine.", *lines, advice])
        )
    sidecar = buildable[0].sidecar
    graph = checked_file(bundle, manifest.entry(sidecar.graph))
    return build_once(graph, sidecar, machine, rebuild or _exporters_rebuild)


def cached_engine(sidecar: Sidecar, machine: Machine) -> Path:
    """Return where in the user's cache an engine like ``sidecar``'s built here would lie."""
    version = machine.tensorrt.get(sidecar.flavour, "none")
    parts = (machine.gpu or "no-gpu", machine.compute_capability, sidecar.flavour, version)
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", str(part)) for part in parts)
    shape = hashlib.sha256(msgspec.json.encode(_build(sidecar), order="sorted")).hexdigest()
    folder = cache_root() / "engines" / sidecar.graph_sha256[:16]
    return folder / f"{name}-{sidecar.precision}-{shape[:12]}.engine"


def _build(sidecar: Sidecar) -> tuple[object, ...]:
    """Return what an engine is built by, beside the graph and the machine."""
    asked = {k: v for k, v in sidecar.options.items() if not k.startswith("fp16_")}
    return sidecar.profiles, asked


def cached_sidecar(sidecar: Sidecar, machine: Machine) -> Sidecar | None:
    """Return the sidecar of the engine like ``sidecar``'s in the cache, if it can be used here."""
    return _usable(cached_engine(sidecar, machine), sidecar, machine)


def build_once(
    graph: Path, sidecar: Sidecar, machine: Machine, rebuild: Rebuild
) -> tuple[Path, Sidecar]:
    """Build the engine for this machine, unless another process does: then wait for its result."""
    engine = cached_engine(sidecar, machine)
    engine.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(engine.with_suffix(".lock")):
        if (found := _usable(engine, sidecar, machine)) is not None:
            return engine, found
        logger.warning("building an engine for %s once (minutes): %s", machine.gpu, engine)
        with tempfile.TemporaryDirectory(dir=engine.parent, prefix=".build-") as folder:
            built = Path(folder) / engine.name
            rebuild(graph, sidecar, built)
            built.replace(engine)
            # The sidecar last: without it the engine counts as not there.
            sidecar_path(built).replace(sidecar_path(engine))
        logger.warning("built %s", engine)
    found = _usable(engine, sidecar, machine)
    if found is None:
        problems = mismatches(load_sidecar(engine), machine, sidecar.graph_sha256)
        raise EngineError(
            f"the engine just built does not fit this machine: {'; '.join(problems)}."
        )
    return engine, found


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes; a process that dies gives it back."""
    import fcntl  # only where engines are built: Windows has none

    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another process holds %s; waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _usable(engine: Path, like: Sidecar, machine: Machine) -> Sidecar | None:
    """Return the sidecar of an engine of the cache if it is complete and fits."""
    if not engine.exists():
        return None
    try:
        sidecar = load_sidecar(engine)
    except BundleError:
        return None
    if mismatches(sidecar, machine, like.graph_sha256) or _build(sidecar) != _build(like):
        return None
    # A damaged file counts as not there, so that it is built anew instead of refused for ever.
    return sidecar if sha256_of(engine) == sidecar.engine_sha256 else None


def _exporters_rebuild(graph: Path, sidecar: Sidecar, engine: Path) -> None:
    try:
        # By name: the runtime must not depend on the exporter.
        exporter = import_module("corom.export.engine")
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "onnx", "export", "building an engine") from None
    exporter.rebuild_engine(graph, sidecar, engine)
