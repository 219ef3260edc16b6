"""Which engine is run, when one is built, and that two processes build it once."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from corom.runtime.backend import EXECUTES, choose_backend, choose_variant
from corom.runtime.engine_cache import cached_engine, find_engine, shipped_engines
from corom.runtime.engine_table import engine_table
from corom.runtime.errors import (
    BundleError,
    EngineError,
    EngineMismatchError,
    InputError,
    UnavailableError,
)
from corom.runtime.manifest import (
    Manifest,
    Source,
    Tolerance,
    Variant,
    describe_files,
    sha256_of,
)
from corom.runtime.sidecar import Machine, Profile, Sidecar, sidecar_path

GRAPH = "onnx/engine_fp16.onnx"
H100 = Machine(
    gpu="NVIDIA H100",
    compute_capability="9.0",
    driver="580.95.05",
    cuda="13.0",
    tensorrt={"tensorrt": "11.4.0.106"},
)
L4 = msgspec.structs.replace(H100, gpu="NVIDIA L4", compute_capability="8.9")
NO_GPU = Machine(missing=("no NVIDIA driver",))


def sidecar_for(machine: Machine, graph: Path, engine: Path) -> Sidecar:
    return Sidecar(
        flavour="tensorrt",
        version=machine.tensorrt["tensorrt"],
        precision="fp16",
        gpu=machine.gpu,
        compute_capability=machine.compute_capability,
        driver=machine.driver,
        cuda=machine.cuda,
        graph=GRAPH,
        graph_sha256=sha256_of(graph),
        engine_sha256=sha256_of(engine),
        dimension=4,
        profiles=(Profile(name="only", batch=(1, 1, 4), length=(1, 8, 16)),),
        options={"builder_optimization_level": 3},
    )


def write_engine(machine: Machine, graph: Path, engine: Path, content: bytes = b"plan") -> None:
    engine.write_bytes(content)
    sidecar_path(engine).write_bytes(msgspec.json.encode(sidecar_for(machine, graph, engine)))


def manifest_of(bundle: Path) -> Manifest:
    tolerance = Tolerance(cosine_min=0.99)
    files = {"fp32": "onnx/model.onnx", "fp16": "onnx/model_fp16.onnx"}
    return Manifest(
        schema_version=1,
        name="made",
        source=Source(uri="demo", revision=None, weights_sha256="0", architecture="bert"),
        dimension=4,
        max_length=16,
        max_positions=16,
        pooling="cls",
        normalize=False,
        similarity="dot",
        prompts={},
        default_prompt_name=None,
        files=describe_files(bundle),
        variants=tuple(
            Variant(precision=p, file=f, tolerance=tolerance, parity=None)  # type: ignore[arg-type]
            for p, f in files.items()
        ),
        tools={},
    )


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COROM_CACHE", str(tmp_path / "cache"))
    bundle = tmp_path / "bundle"
    (bundle / "onnx").mkdir(parents=True)
    (bundle / "engines").mkdir()
    for name in (GRAPH, "onnx/model.onnx", "onnx/model_fp16.onnx"):
        (bundle / name).write_bytes(name.encode())
    write_engine(H100, bundle / GRAPH, bundle / "engines/h100.engine")
    return bundle


def refuse(*_: object) -> None:
    raise AssertionError("nothing must be built")


def build_for(machine: Machine, calls: list[Path]) -> object:
    def build(graph: Path, _sidecar: Sidecar, engine: Path) -> None:
        calls.append(engine)
        write_engine(machine, graph, engine, b"built here")

    return build


def test_the_bundles_engine_is_taken_where_it_fits(bundle: Path) -> None:
    path, sidecar = find_engine(bundle, manifest_of(bundle), "fp16", H100, "auto", refuse)
    assert path == bundle / "engines/h100.engine"
    assert sidecar.gpu == "NVIDIA H100"


def test_another_gpu_is_told_found_expected_and_the_command(bundle: Path) -> None:
    with pytest.raises(EngineError) as caught:
        find_engine(bundle, manifest_of(bundle), "fp16", L4, "off", refuse)
    message = str(caught.value)
    assert "GPU: found NVIDIA L4, expected NVIDIA H100" in message
    assert "--rebuild" in message
    assert "corom export demo -o NEW_BUNDLE --engine tensorrt" in message
    assert caught.value.exit_code == 3


def test_rebuilding_happens_once_and_is_found_again(bundle: Path) -> None:
    calls: list[Path] = []
    manifest = manifest_of(bundle)
    build = build_for(L4, calls)
    path, sidecar = find_engine(bundle, manifest, "fp16", L4, "auto", build)  # type: ignore[arg-type]
    assert path == cached_engine(sidecar, L4)
    assert path.read_bytes() == b"built here"
    assert [p for p in path.parent.iterdir() if p.name.startswith(".build-")] == []
    assert find_engine(bundle, manifest, "fp16", L4, "auto", refuse)[0] == path
    assert find_engine(bundle, manifest, "fp16", L4, "off", refuse)[0] == path
    assert len(calls) == 1


def test_an_engine_of_another_graph_is_not_taken_from_the_cache(bundle: Path) -> None:
    calls: list[Path] = []
    build = build_for(L4, calls)
    path, _ = find_engine(bundle, manifest_of(bundle), "fp16", L4, "auto", build)  # type: ignore[arg-type]
    sidecar_path(path).write_bytes(
        sidecar_path(path).read_bytes().replace(sha256_of(bundle / GRAPH).encode(), b"f" * 64)
    )
    find_engine(bundle, manifest_of(bundle), "fp16", L4, "auto", build)  # type: ignore[arg-type]
    assert len(calls) == 2


def test_a_failed_build_leaves_nothing_and_gives_the_lock_back(bundle: Path) -> None:
    def fail(*_: object) -> None:
        raise EngineError("out of memory")

    manifest = manifest_of(bundle)
    with pytest.raises(EngineError, match="out of memory"):
        find_engine(bundle, manifest, "fp16", L4, "auto", fail)
    calls: list[Path] = []
    find_engine(bundle, manifest, "fp16", L4, "auto", build_for(L4, calls))  # type: ignore[arg-type]
    assert len(calls) == 1


def test_without_a_gpu_nothing_is_built(bundle: Path) -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        find_engine(bundle, manifest_of(bundle), "fp16", NO_GPU, "auto", refuse)


def test_no_engine_of_the_precision_names_the_export_command(bundle: Path) -> None:
    with pytest.raises(EngineError, match="no engine of precision fp32.*--engine tensorrt"):
        find_engine(bundle, manifest_of(bundle), "fp32", H100)


def test_an_altered_engine_is_refused(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    (bundle / "engines/h100.engine").write_bytes(b"evil")
    with pytest.raises(BundleError, match="altered"):
        find_engine(bundle, manifest, "fp16", H100)


def test_an_engine_that_the_manifest_does_not_list_is_never_opened(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    write_engine(L4, bundle / GRAPH, bundle / "engines/l4.engine")
    assert [e.path for e in shipped_engines(bundle, manifest, L4)] == ["engines/h100.engine"]


CHILD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_engine_cache import L4, find_engine, manifest_of, write_engine
    bundle = Path({bundle!r})
    def build(graph, sidecar, engine):
        with open({log!r}, "a") as log:
            log.write("built\\n")
        time.sleep(0.8)
        write_engine(L4, graph, engine)
    manifest = manifest_of(bundle)
    print("ready", flush=True)
    sys.stdin.readline()
    print(find_engine(bundle, manifest, "fp16", L4, "auto", build)[0])
""")


def test_two_processes_build_it_once(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = CHILD.format(tests=str(Path(__file__).parent), bundle=str(bundle), log=str(log))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:  # both are told before either is waited for
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=60)[0].strip() for child in children]
    assert outputs[0] == outputs[1]
    assert Path(outputs[0]).is_file()
    assert log.read_text() == "built\n"


def test_the_table_says_profiles_and_why_it_does_not_run(bundle: Path) -> None:
    console = Console(width=80, record=True)
    for machine in (H100, L4):
        for engine in shipped_engines(bundle, manifest_of(bundle), machine):
            console.print(engine_table(engine))
    text = " ".join(console.export_text().split())
    for part in ("1, 8, 16", "Runs on this machine.", "found NVIDIA L4, expected", "CUDA graph"):
        assert part in text


def test_auto_takes_the_first_that_can_run() -> None:
    def nothing_but(*pairs: tuple[str, str]):  # noqa: ANN202
        return lambda name, device: None if (name, device) in pairs else f"no {name}"

    cpu, cuda, trt = ("onnxruntime", "cpu"), ("onnxruntime", "cuda"), ("tensorrt", "cuda")
    assert choose_backend("auto", "auto", nothing_but(cpu)) == cpu
    assert choose_backend("auto", "auto", nothing_but(cpu, cuda)) == cuda
    assert choose_backend("auto", "cuda", nothing_but(cuda)) == cuda
    assert choose_backend("auto", "auto", nothing_but(cpu, cuda, trt)) == trt
    assert choose_backend("tensorrt", "auto", nothing_but()) == trt
    with pytest.raises(
        UnavailableError, match=r"tensorrt on cuda: no tensorrt\nonnxruntime on cuda"
    ):
        choose_backend("auto", "cuda", nothing_but(cpu))
    with pytest.raises(InputError, match="does not run on device 'cpu'"):
        choose_backend("tensorrt", "cpu", nothing_but())


@pytest.mark.parametrize(
    ("precision", "saturates", "first", "second"),
    [
        ("int8", False, "openvino", "onnxruntime"),
        ("int8", True, "onnxruntime", "openvino"),
        ("int8-per-token", False, "native", "openvino"),
        ("bf16", False, "native", "openvino"),
        ("fp32", False, "native", "onnxruntime"),
    ],
)
def test_auto_takes_what_is_fastest_on_a_cpu_for_a_precision_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    saturates: bool,
    first: str,
    second: str,
) -> None:
    monkeypatch.setattr("corom.runtime.backend.int8_saturates", lambda: saturates)

    def why_not(backend: str, _device: str) -> str | None:
        return None if precision in EXECUTES[backend] else "it does not execute that"

    def why_not_the_first(backend: str, device: str) -> str | None:
        return "it is missing" if backend == first else why_not(backend, device)

    assert choose_backend("auto", "cpu", why_not, precision) == (first, "cpu")
    assert choose_backend("auto", "cpu", why_not_the_first, precision) == (second, "cpu")


def test_auto_precision_is_fp16_on_gpus_only(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    assert choose_variant(manifest, "auto", "tensorrt", "cuda").precision == "fp16"
    assert choose_variant(manifest, "auto", "onnxruntime", "cuda").precision == "fp16"
    assert choose_variant(manifest, "auto", "onnxruntime", "cpu").precision == "fp32"


def test_a_damaged_engine_of_the_cache_is_built_anew(bundle: Path) -> None:
    calls: list[Path] = []
    manifest, build = manifest_of(bundle), build_for(L4, calls)
    path, _ = find_engine(bundle, manifest, "fp16", L4, "auto", build)  # type: ignore[arg-type]
    path.write_bytes(b"built herE")
    with pytest.raises(EngineMismatchError):
        find_engine(bundle, manifest, "fp16", L4, "off", refuse)
    again, _ = find_engine(bundle, manifest, "fp16", L4, "auto", build)  # type: ignore[arg-type]
    assert (again, len(calls), path.read_bytes()) == (path, 2, b"built here")


def test_engines_of_other_profiles_or_options_lie_apart(bundle: Path) -> None:
    (engine,) = shipped_engines(bundle, manifest_of(bundle), L4)
    other = Profile(name="only", batch=(1, 1, 8), length=(1, 8, 16))
    paths = {
        cached_engine(sidecar, L4)
        for sidecar in (
            engine.sidecar,
            msgspec.structs.replace(engine.sidecar, profiles=(other,)),
            msgspec.structs.replace(engine.sidecar, options={"builder_optimization_level": 5}),
        )
    }
    assert len(paths) == 3
    read_back = engine.sidecar.options | {"fp16_weights_in_plan": "4 of 4"}
    same = msgspec.structs.replace(engine.sidecar, options=read_back)
    assert cached_engine(same, L4) in paths
