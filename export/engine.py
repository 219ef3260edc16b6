"""fp16 graph to TensorRT engine, with the sidecar that says what the engine is.

One code path for `tensorrt` and `tensorrt_rtx`; knows no torch and no ONNX package, so that an
engine can be built again where neither is installed.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from corom.runtime.cache import cache_root
from corom.runtime.engine_tensorrt import IDS, LENGTHS, VECTORS, import_tensorrt, tensorrt_log
from corom.runtime.errors import EngineError, InputError, UnavailableError
from corom.runtime.gpu_machine import this_machine
from corom.runtime.manifest import sha256_of
from corom.runtime.sidecar import Flavour, Machine, Profile, Sidecar, sidecar_path
from corom.runtime.whole_file import whole_file

from .profiles import EngineOptions, profile_shapes
from .readback import half_products, read_back

Progress = Callable[[str, int, int], None]
"""Told a phase of the builder, the steps done and all its steps; any thread may call it."""

_ONE_AT_A_TIME = threading.Lock()  # TensorRT has one log, and a build takes the whole machine


class BuiltEngine(NamedTuple):
    """A serialized engine and what it is."""

    plan: bytes
    sidecar: Sidecar

    @property
    def name(self) -> str:
        """File name: <gpu>-<sm>-<version>-<precision>.engine."""
        of = self.sidecar
        gpu = "rtx-any" if of.gpu is None else _slug(f"{of.gpu} sm{of.compute_capability}")
        return f"{gpu}-{of.version}-{of.precision}.engine"


class TimingCache(NamedTuple):
    """What builds for one GPU measured, held for TensorRT while it builds, and where it is kept."""

    path: Path
    held: Any


def require_builder(flavour: Flavour) -> None:
    """Raise ``UnavailableError`` unless engines of this flavour can be built on this machine."""
    machine = this_machine()
    if flavour == "tensorrt" and machine.gpu is None:
        raise UnavailableError(
            "a tensorrt engine is built on the GPU that it is for, and this machine has none: "
            f"{'; '.join(machine.missing)}. Run this where the GPU is, or build a tensorrt-rtx "
            "engine, which needs no GPU: --engine tensorrt-rtx"
        )
    import_tensorrt(flavour)


def build_engine(
    graph: Path,
    flavour: Flavour,
    profiles: tuple[Profile, ...],
    options: EngineOptions,
    progress: Progress = lambda _phase, _done, _steps: None,
) -> BuiltEngine:
    """Return an fp16 engine built from an fp16 graph that takes ids and lengths.

    ``tensorrt`` builds for this machine's GPU; ``tensorrt-rtx`` needs none and builds for every GPU
    it knows.

    Raises ``UnavailableError`` if the package or the GPU is not here, ``EngineError`` with
    TensorRT's own words if the graph cannot be parsed or built, or is not fp16, and ``InputError``
    for an option that the flavour does not have.
    """
    require_builder(flavour)
    if flavour == "tensorrt-rtx" and options.hardware_compatibility != "none":
        raise InputError(
            f"hardware_compatibility is '{options.hardware_compatibility}', which is for tensorrt "
            "engines; a tensorrt-rtx engine is for every RTX GPU anyway. Take it out of the "
            "recipe's [engine] table."
        )
    trt, log, machine = import_tensorrt(flavour), tensorrt_log(flavour), this_machine()
    with _ONE_AT_A_TIME:
        log.explain()  # what an earlier build left there
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)  # it owns weights of the network until the end
        _parse(trt, parser, network, graph, log)
        products = half_products(trt, network)
        config = _config(trt, builder, options)
        for profile in profiles:
            _add_profile(builder, config, profile, log)
        # TensorRT-RTX measures nothing while it builds.
        cache = None if flavour == "tensorrt-rtx" else _timing_cache(trt, config, machine)
        monitor = _monitor(trt, progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.interruption is not None:
            raise monitor.interruption
        if plan is None:
            raise _build_failure(graph, log.explain())
        if cache is not None:
            _save(cache.path, bytes(cache.held.serialize()))
        content = bytes(plan)
        evidence = read_back(trt, content, products, log)
    rtx = flavour == "tensorrt-rtx"
    sidecar = Sidecar(
        flavour=flavour,
        version=trt.__version__,
        precision="fp16",
        gpu=None if rtx else machine.gpu,
        compute_capability=None if rtx else machine.compute_capability,
        driver=None if rtx else machine.driver,
        cuda=None if rtx else machine.cuda,
        graph=f"{graph.parent.name}/{graph.name}",  # as it is called in a bundle
        graph_sha256=sha256_of(graph),
        engine_sha256=hashlib.sha256(content).hexdigest(),
        dimension=int(network.get_output(0).shape[-1]),
        profiles=profiles,
        options=_described(options, flavour) | evidence,
    )
    return BuiltEngine(content, sidecar)


def save_engine(built: BuiltEngine, path: Path) -> None:
    """Write an engine and its sidecar."""
    _save(path, built.plan)
    # The sidecar last: without it an engine counts as not there.
    save_sidecar(built.sidecar, path)


def save_sidecar(sidecar: Sidecar, engine: Path) -> None:
    """Write the sidecar of an engine file."""
    encoded = msgspec.json.format(msgspec.json.encode(sidecar), indent=2)
    _save(sidecar_path(engine), encoded + b"\n")


def rebuild_engine(graph: Path, sidecar: Sidecar, path: Path) -> None:
    """Write an engine for this machine, and its sidecar, like the one that ``sidecar`` describes.

    Raises as ``build_engine``.
    """
    known = EngineOptions.__struct_fields__
    options = {name: value for name, value in sidecar.options.items() if name in known}
    built = build_engine(
        graph, sidecar.flavour, sidecar.profiles, msgspec.convert(options, EngineOptions)
    )
    save_engine(built, path)


def _parse(trt: Any, parser: Any, network: Any, graph: Path, log: Any) -> None:  # noqa: ANN401
    """Read the graph into the network, and check what goes in and out."""
    if not parser.parse_from_file(str(graph)):
        messages = [parser.get_error(k).desc() for k in range(parser.num_errors)]
        raise EngineError(
            f"TensorRT {trt.__version__} cannot parse '{graph}': "
            f"{' · '.join(messages) or log.explain()}. Export the bundle again."
        )
    inputs = [network.get_input(k) for k in range(network.num_inputs)]
    outputs = [network.get_output(k) for k in range(network.num_outputs)]
    found = [f"{tensor.name} {tensor.dtype.name}" for tensor in [*inputs, *outputs]]
    expected = [f"{IDS} INT32", f"{LENGTHS} INT32", f"{VECTORS} FLOAT"]
    if found != expected:
        raise EngineError(
            f"'{graph}' has the tensors {', '.join(found)}; an engine needs {', '.join(expected)}. "
            "Build from the graph that corom export --engine writes."
        )


def _config(trt: Any, builder: Any, options: EngineOptions) -> Any:  # noqa: ANN401
    config = builder.create_builder_config()
    config.builder_optimization_level = options.builder_optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    return config


def _add_profile(builder: Any, config: Any, profile: Profile, log: Any) -> None:  # noqa: ANN401
    made = builder.create_optimization_profile()
    for name, shapes in profile_shapes(profile).items():
        made.set_shape(name, *shapes)
    if config.add_optimization_profile(made) < 0:
        raise EngineError(f"TensorRT refuses profile '{profile.name}': {log.explain()}.")


def _timing_cache(trt: Any, config: Any, machine: Machine) -> TimingCache | None:  # noqa: ANN401
    """Let the builder use what earlier builds for this GPU measured; None if it refuses."""
    name = _slug(f"{machine.gpu} sm{machine.compute_capability} {trt.__version__}")
    path = cache_root() / "timing" / f"{name}.cache"
    for known in (path.read_bytes() if path.is_file() else b"", b""):
        held = config.create_timing_cache(known)
        if held and config.set_timing_cache(held, False):
            return TimingCache(path, held)
    return None


def _monitor(trt: Any, progress: Progress) -> Any:  # noqa: ANN401
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # found at run time
        """Passes phases on. An exception must not travel through C++: it ends the build first."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interruption: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self._tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step + 1)
            return self.interruption is None

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def _tell(self, phase: str, done: int) -> None:
            try:
                progress(phase, done, self._steps.get(phase, done))
            except BaseException as error:  # Ctrl-C comes this way too
                self.interruption = error

    return Monitor()


def _build_failure(graph: Path, reason: str) -> EngineError:
    advice = "Report this with the TensorRT version."
    if any(word in reason.lower() for word in ("workspace", "out of memory", "outofmemory")):
        advice = (
            "Free device memory, raise workspace_bytes in the recipe's [engine] table, or make "
            "its profiles smaller."
        )
    return EngineError(f"no engine could be built from '{graph}': {reason}. {advice}")


def _described(options: EngineOptions, flavour: Flavour) -> dict[str, str | int]:
    described: dict[str, str | int] = {
        "builder_optimization_level": options.builder_optimization_level
    }
    if flavour == "tensorrt":
        described["hardware_compatibility"] = options.hardware_compatibility
    if options.workspace_bytes is not None:
        described["workspace_bytes"] = options.workspace_bytes
    return described


def _save(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: two processes may build for the same GPU."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(content)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace(".", "")).strip("-")
