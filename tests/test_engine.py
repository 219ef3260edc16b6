"""Engines, really built by TensorRT-RTX's compiler, which needs no GPU."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from random_checkpoint import HIDDEN, random_checkpoint

from corom.export import bundle as bundle_module
from corom.export import engine as engine_module
from corom.export import readback
from corom.export.cli import export
from corom.export.encoder import TorchEncoder
from corom.export.engine import (
    BuiltEngine,
    build_engine,
    rebuild_engine,
    require_builder,
    save_engine,
)
from corom.export.graph import ENGINE_INPUTS, export_graph
from corom.export.parity import read_texts
from corom.export.precision import ENGINE_GRAPH, HALF_GRAPH, EngineEncoder
from corom.export.profiles import EngineOptions, chosen_profiles, default_profiles, profile_code
from corom.export.readback import Products, read_back
from corom.export.recipe import load_recipe
from corom.export.sources import resolve_source
from corom.runtime.engine_cache import ShippedEngine
from corom.runtime.engine_table import engine_table
from corom.runtime.engine_tensorrt import tensorrt_log
from corom.runtime.errors import EngineError, InputError, UnavailableError
from corom.runtime.manifest import checked_file, describe_files, load_manifest, sha256_of
from corom.runtime.sidecar import Machine, Profile, load_sidecar, mismatches

RTX = "tensorrt-rtx"
PROFILES = default_profiles(128)
Built = tuple[BuiltEngine, list[tuple[str, int, int]]]


@pytest.fixture(scope="module")
def rtx() -> Any:
    """The module tensorrt_rtx; skips where it is not installed."""
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


@pytest.fixture(scope="module")
def graph(half_graphs_once: Callable[[str], Path]) -> Path:
    """The graph that engines are built from, of a small random encoder."""
    return half_graphs_once("cls") / ENGINE_GRAPH


@pytest.fixture(scope="module")
def wide_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph in fp32, of one layer."""
    checkpoint = random_checkpoint()
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, layers=1))
    path = tmp_path_factory.mktemp("wide") / ENGINE_GRAPH
    export_graph(EngineEncoder(TorchEncoder(checkpoint)), path, 20, ENGINE_INPUTS)
    return path


@pytest.fixture(scope="module")
def built(rtx: Any, graph: Path) -> Built:  # noqa: ARG001
    """An engine of the small random encoder, and the progress that was told."""
    told: list[tuple[str, int, int]] = []
    made = build_engine(graph, RTX, PROFILES, EngineOptions(), lambda *step: told.append(step))
    return made, told


def test_engine_and_sidecar(rtx: Any, graph: Path, built: Built) -> None:
    made, _ = built
    sidecar = made.sidecar
    assert made.name == f"rtx-any-{rtx.__version__}-fp16.engine"
    assert len(made.plan) > 50_000
    assert (sidecar.flavour, sidecar.version, sidecar.precision) == (RTX, rtx.__version__, "fp16")
    assert (sidecar.graph, sidecar.graph_sha256) == (ENGINE_GRAPH, sha256_of(graph))
    assert (sidecar.dimension, sidecar.profiles) == (HIDDEN, PROFILES)
    assert sidecar.gpu is sidecar.compute_capability is sidecar.driver is sidecar.cuda is None


def test_precisions_are_read_back(built: Built) -> None:
    options = built[0].sidecar.options
    assert options["fp16_products"] == 2 * (6 + 2)  # six weights and two products of attention
    assert options["fp16_weights_in_plan"] == "12 of 12"


def test_progress_is_told(built: Built) -> None:
    told = built[1]
    assert {phase for phase, _, _ in told} >= {"Building engine"}
    assert all(done >= 0 for _, done, _ in told)


def test_saved_engine_is_what_the_runtime_reads(built: Built, tmp_path: Path) -> None:
    path = tmp_path / "engines" / built[0].name
    save_engine(built[0], path)
    assert load_sidecar(path) == built[0].sidecar
    assert sha256_of(path) == built[0].sidecar.engine_sha256
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.json"]
    machine = Machine(
        gpu="NVIDIA A100", compute_capability="8.0", tensorrt={RTX: built[0].sidecar.version}
    )
    assert mismatches(load_sidecar(path), machine, built[0].sidecar.graph_sha256) == []


@pytest.mark.usefixtures("rtx")
def test_rebuilding_follows_the_sidecar(graph: Path, built: Built, tmp_path: Path) -> None:
    profile = Profile(name="only", batch=(1, 2, 2), length=(4, 8, 16))
    like = msgspec.structs.replace(
        built[0].sidecar,
        profiles=(profile,),
        options=built[0].sidecar.options | {"builder_optimization_level": 0},
    )
    rebuild_engine(graph, like, tmp_path / "cached.engine")
    sidecar = load_sidecar(tmp_path / "cached.engine")
    assert sidecar.profiles == (profile,)
    assert sidecar.options["builder_optimization_level"] == 0
    assert sidecar.engine_sha256 == sha256_of(tmp_path / "cached.engine")


@pytest.mark.usefixtures("rtx")
def test_fp32_products_are_refused(wide_graph: Path) -> None:
    with pytest.raises(EngineError, match=r"must be fp16; found: 8 of 8 .*\(FLOAT\)"):
        build_engine(wide_graph, RTX, PROFILES, EngineOptions())


def test_fp32_weights_in_a_plan_are_refused(rtx: Any) -> None:
    sample = np.linspace(0.1, 0.9, 32).astype(np.float16)
    log = tensorrt_log(RTX)
    wide = b"head" + sample.astype(np.float32).tobytes() + b"tail"
    with pytest.raises(EngineError, match="1 of 1 weights are fp32"):
        read_back(rtx, wide, Products(1, [sample]), log)
    half = read_back(rtx, b"head" + sample.tobytes(), Products(1, [sample]), log)
    assert half["fp16_weights_in_plan"] == "1 of 1"
    packed = b"packed in some other way"
    with pytest.raises(EngineError, match="0 are fp16"):
        read_back(rtx, packed, Products(1, [sample]), log)
    full_tensorrt = SimpleNamespace(__name__="tensorrt")
    neither = read_back(full_tensorrt, packed, Products(1, [sample]), log)
    assert neither["fp16_weights_in_plan"] == "0 of 1"


def test_layers_of_an_opened_engine() -> None:
    def layer(name: str, datatype: str) -> dict[str, Any]:
        return {"Name": name, "Inputs": [{"Format/Datatype": datatype}]}

    norm = layer("__myl_Norm", "Float")
    assert readback._half_layers([norm, layer("__myl_gemm_mha_v2", "Half")]) == "1 of 1"
    assert readback._half_layers([norm, layer("gemm", "Row major linear FP16 format")]) == "1 of 1"
    assert readback._half_layers([norm]) == "0 of 0"
    with pytest.raises(EngineError, match="none of the 1 matrix products"):
        readback._half_layers([layer("gemm", "Float")])


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot parse"), (b"", "cannot parse|has the tensors"), (b"no graph", "cannot parse")],
)
def test_a_graph_that_cannot_be_parsed(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=message):
        build_engine(path, RTX, PROFILES, EngineOptions())


@pytest.mark.usefixtures("rtx")
def test_the_portable_graph_is_refused(half_graphs_once: Callable[[str], Path]) -> None:
    portable = half_graphs_once("cls") / HALF_GRAPH
    with pytest.raises(EngineError, match="attention_mask INT64.*an engine needs input_ids INT32"):
        build_engine(portable, RTX, PROFILES, EngineOptions())


@pytest.mark.usefixtures("rtx")
def test_too_little_workspace(graph: Path) -> None:
    with pytest.raises(EngineError, match=r"(workspace limit|OutOfMemory).*raise workspace_bytes"):
        build_engine(graph, RTX, PROFILES, EngineOptions(workspace_bytes=1))


@pytest.mark.usefixtures("rtx")
@pytest.mark.usefixtures("rtx")
def test_an_option_that_the_flavour_does_not_have_is_refused(graph: Path) -> None:
    options = EngineOptions(hardware_compatibility="ampere_plus")
    with pytest.raises(InputError, match="hardware_compatibility is 'ampere_plus'.*recipe"):
        build_engine(graph, RTX, PROFILES, options)


def test_a_refused_profile(graph: Path) -> None:
    upside_down = Profile(name="odd", batch=(4, 2, 1), length=(8, 8, 8))
    with pytest.raises(EngineError, match="odd|no engine could be built"):
        build_engine(graph, RTX, (upside_down,), EngineOptions())


@pytest.mark.usefixtures("rtx")
def test_interruption_ends_the_build_and_the_next_one_works(graph: Path) -> None:
    def interrupt(_phase: str, _done: int, _steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(graph, RTX, PROFILES, EngineOptions(), interrupt)
    assert build_engine(graph, RTX, PROFILES[:1], EngineOptions()).plan


def test_tensorrt_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(missing=("no NVIDIA driver (libcuda.so.1)",))
    monkeypatch.setattr(engine_module, "this_machine", lambda: machine)
    with pytest.raises(UnavailableError, match=r"no NVIDIA driver.*--engine tensorrt-rtx") as error:
        require_builder("tensorrt")
    assert error.value.exit_code == 3


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UnavailableError, match=r"pip install 'corom\[tensorrt-rtx\]'"):
        require_builder(RTX)


def test_engine_names_say_the_gpu(built: Built) -> None:
    sidecar = msgspec.structs.replace(
        built[0].sidecar,
        flavour="tensorrt",
        version="11.4.0.106",
        gpu="NVIDIA H100 80GB HBM3",
        compute_capability="9.0",
    )
    made = built[0]._replace(sidecar=sidecar)
    assert made.name == "nvidia-h100-80gb-hbm3-sm90-11.4.0.106-fp16.engine"


def test_timing_cache_is_kept_and_given_back(
    rtx: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TensorRT-RTX measures nothing, so a stand-in for the configuration must do."""
    monkeypatch.setenv("COROM_CACHE", str(tmp_path))
    given: list[bytes] = []
    config = SimpleNamespace(
        create_timing_cache=lambda known: given.append(known) or [known],
        set_timing_cache=lambda cache, _ignore: cache != [b"of another version"],
    )
    machine = Machine(gpu="NVIDIA H100", compute_capability="9.0")
    cache = engine_module._timing_cache(rtx, config, machine)
    assert cache.path.parent == tmp_path / "timing"
    for content, expected in ((b"measured", b"measured"), (b"of another version", b"")):
        engine_module._save(cache.path, content)
        assert engine_module._timing_cache(rtx, config, machine) == (cache.path, [expected])
    assert given == [b"", b"measured", b"of another version", b""]


@pytest.mark.parametrize("max_length", [3, 16, 100, 128, 129, 512])
def test_default_profiles_hold_every_length(max_length: int) -> None:
    profiles = default_profiles(max_length)
    assert chosen_profiles(EngineOptions(), max_length) == profiles
    for length in range(min(8, max_length), max_length + 1):
        assert any(p.length[0] <= length <= p.length[2] and p.batch[0] == 1 for p in profiles)


def test_profile_prints_as_code(rtx: Any) -> None:
    code = profile_code(PROFILES[0])
    assert 'profile.set_shape("input_ids", (1, 8), (1, 32), (4, 128))' in code
    builder = rtx.Builder(tensorrt_log(RTX))
    names = {"builder": builder}
    exec(code, names)  # noqa: S102
    assert [tuple(s) for s in names["profile"].get_shape("lengths")] == [(1,), (1,), (4,)]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Profile(name="p", batch=(2, 1, 4), length=(1, 2, 3)), r"'p' has batch \(2, 1, 4\)"),
        (Profile(name="p", batch=(1, 1, 1), length=(0, 2, 3)), r"'p' has length \(0, 2, 3\)"),
        (Profile(name="p", batch=(1, 1, 1), length=(1, 2, 300)), "up to 300 tokens.*is 128"),
    ],
)
def test_profiles_that_make_no_sense(profile: Profile, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen_profiles(EngineOptions(profiles=(profile,)), 128)


def test_options_come_from_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'source = "hf:a/b"\n[engine]\nbuilder_optimization_level = 5\nworkspace_bytes = 1000\n'
        'hardware_compatibility = "ampere_plus"\n[[engine.profiles]]\nname = "one"\n'
        "batch = [1, 1, 1]\nlength = [8, 16, 32]\n"
    )
    options = load_recipe(str(recipe)).engine
    assert options.profiles == (Profile(name="one", batch=(1, 1, 1), length=(8, 16, 32)),)
    assert (options.builder_optimization_level, options.workspace_bytes) == (5, 1000)
    for wrong in ("builder_optimization_level = 9", "workspace_bytes = 0", "fp16 = true"):
        recipe.write_text(f'source = "hf:a/b"\n[engine]\n{wrong}\n')
        with pytest.raises(InputError, match=wrong.partition(" ")[0]):
            load_recipe(str(recipe))


def test_engine_modules_need_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, corom.export.engine; "
        "print([m for m in ('torch', 'onnx', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def demo_bundle(rtx: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:  # noqa: ARG001
    """`corom export demo --engine tensorrt-rtx`, on real weights; skips if they are not cached."""
    try:
        resolve_source("demo", offline=True)
    except UnavailableError:
        pytest.skip("m3e-small is not in the cache; fetch it with: make weights")
    folder = tmp_path_factory.mktemp("demo")
    texts = folder / "texts.txt"
    texts.write_text("\n".join(read_texts(None, "parity")[::12]), "utf-8")
    options = ["--engine", RTX, "--offline", "--json", "--parity-texts", str(texts)]
    result = CliRunner().invoke(export, ["demo", "-o", str(folder / "bundle"), *options])
    assert result.exit_code == 0, result.output
    return folder / "bundle", json.loads(result.stdout)


@pytest.mark.slow
def test_demo_bundle_has_a_proven_fp16_variant_and_an_engine(
    rtx: Any, demo_bundle: tuple[Path, Any]
) -> None:
    bundle, printed = demo_bundle
    assert [v["precision"] for v in printed["variants"]] == ["fp32", "fp16"]
    manifest = load_manifest(bundle)
    fp16 = manifest.variant("fp16")
    assert fp16.parity["onnxruntime"].cosine_min >= fp16.tolerance.cosine_min == 0.9995
    engine = f"engines/rtx-any-{rtx.__version__}-fp16.engine"
    for path in (engine, f"{engine}.json", ENGINE_GRAPH, fp16.file):
        assert checked_file(bundle, manifest.entry(path)).stat().st_mode & 0o444 == 0o444
    sidecar = load_sidecar(bundle / engine)
    assert sidecar.graph_sha256 == manifest.entry(ENGINE_GRAPH).sha256
    assert sidecar.engine_sha256 == manifest.entry(engine).sha256
    assert sidecar.dimension == manifest.dimension
    assert sidecar.profiles == default_profiles(manifest.max_length)
    assert sidecar.options["fp16_weights_in_plan"] == "24 of 24"
    fp32_bytes = manifest.entry(manifest.variant("fp32").file).size_bytes
    assert (bundle / engine).stat().st_size < 0.75 * fp32_bytes


@pytest.mark.slow
def test_each_engine_is_measured_alone_and_its_sidecar_says_so(
    built: Built, demo_bundle: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No engine runs here: what is measured must be replaced, what is opened can be seen."""
    folder = shutil.copytree(demo_bundle[0], tmp_path / "staged")
    other = msgspec.structs.replace(built[0].sidecar, version="11.4.0", flavour="tensorrt")
    second = built[0]._replace(sidecar=other)
    save_engine(second, folder / "engines" / second.name)
    manifest = msgspec.structs.replace(load_manifest(folder), files=describe_files(folder))
    parity = manifest.variants[0].parity["onnxruntime"]
    seen: list[list[str]] = []

    def gate(staging: Path, *_: Any, backend: str) -> Any:
        assert backend == "tensorrt"
        entries = load_manifest(staging).files
        seen.append([entry.path for entry in entries if entry.path.endswith(".engine")])
        return parity

    monkeypatch.setattr(bundle_module, "pass_gate", gate)
    golden: Any = None
    bundle_module._prove_engine(folder, manifest, second, manifest.variants[1], golden, golden)
    assert seen == [[f"engines/{second.name}"]]
    assert load_sidecar(folder / "engines" / second.name).parity == parity
    shown = engine_table(
        ShippedEngine(second.name, msgspec.structs.replace(other, parity=parity), [])
    )
    assert "Measured where it was built: cosine min 1.00" in str(shown.caption)
    unmeasured = engine_table(ShippedEngine(second.name, other, ["no GPU"]))
    assert "not measured when it was built" in str(unmeasured.caption)


def test_an_engine_that_cannot_be_built_publishes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(missing=("no NVIDIA driver",))
    monkeypatch.setattr(engine_module, "this_machine", lambda: machine)
    result = CliRunner().invoke(
        export, ["demo", "-o", str(tmp_path / "b"), "--engine", "tensorrt", "--offline"]
    )
    assert isinstance(result.exception, UnavailableError)
    assert not list(tmp_path.iterdir())
