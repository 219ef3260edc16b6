"""Every TensorRT name that corom uses exists in NVIDIA's own bindings: 10.16, 11.4 and RTX.

The bindings' wheels hold Python classes and no libraries; with empty libraries of the right names
they load on any Linux, and every class can be looked into without a GPU.
"""

import ast
import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import get_args, get_type_hints

import pytest

from corom.export import engine, profiles, readback
from corom.runtime import engine_tensorrt
from corom.runtime.cache import cache_root

SOURCES = [engine, readback, engine_tensorrt]
CLASSES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "made": "IOptimizationProfile",
    "maker": "IConstantLayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "tensor": "ITensor",
}
"""What the variables of these names are, wherever they stand in ``SOURCES``."""
ON_RESULTS = {
    "IProgressMonitor.phase_finish",
    "IProgressMonitor.phase_start",
    "IProgressMonitor.step_complete",
    "ITensor.shape",
    "ITimingCache.serialize",
    "ParserError.desc",
}
"""Names used on what a call returns, or overridden, which have no variable to go by."""

WHEELS = ("10.16.1.11", "11.4.0.106")
FUNCTIONS = [
    f"create{name}_INTERNAL"
    for name in ("InferBuilder", "InferRefitter", "InferRuntime", "NvOnnxParser")
] + [
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
]
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")

LOOK = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
module = importlib.import_module(sys.argv[1])
missing = []
for name in json.load(sys.stdin):
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            missing.append(name)
            break
        value = getattr(value, part)
print(json.dumps(missing))
"""


def used_names() -> set[str]:
    """Return the names that the sources use, such as ``BuilderFlag.TF32``, below the module."""
    levels = get_args(get_type_hints(profiles.EngineOptions)["hardware_compatibility"])
    names = ON_RESULTS | {f"HardwareCompatibilityLevel.{level.upper()}" for level in levels}
    for module in SOURCES:
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                names |= set(_name(ast.unparse(node)))
    return names


def _name(chain: str) -> list[str]:
    first, _, rest = chain.removeprefix("self.").partition(".")
    if not rest.replace(".", "").replace("_", "").isalnum():
        return []
    if first in {"trt", "_trt"}:
        return [rest]
    attribute = rest.partition(".")[0]
    return [f"{CLASSES[first]}.{attribute}"] if first in CLASSES else []


def missing_names(module: str, names: set[str], path: Path | None = None) -> list[str]:
    """Return the names that a module lacks; it is imported in a process of its own."""
    environment = {"PYTHONPATH": str(path or ""), "LD_LIBRARY_PATH": str(path or "")}
    found = subprocess.run(
        [sys.executable, "-c", LOOK, module],
        input=json.dumps(sorted(names)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    missing: list[str] = json.loads(found.stdout)
    return missing


@pytest.fixture(scope="module", params=WHEELS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bindings of one TensorRT and empty libraries; skips if it cannot be."""
    version = request.param
    if sys.version_info[:2] not in {(3, 11), (3, 12)} or not sys.platform.startswith("linux"):
        pytest.skip("NVIDIA's bindings are built for Python 3.11 and 3.12 on Linux")
    if (compiler := which("cc")) is None:
        pytest.skip("no C compiler to make the empty libraries with")
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(_wheel(version)) as wheel:
        wheel.extractall(folder)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{version.partition('.')[0]}"
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name]
        subprocess.run([compiler, *flags, source], check=True)
    return folder


def _wheel(version: str) -> Path:
    folder = cache_root() / "bindings" / version
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    if not list(folder.glob(f"*{tag}*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        fetched = subprocess.run(
            [*command, f"tensorrt_cu13_bindings=={version}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if fetched.returncode:
            reason = fetched.stderr.strip().rpartition("\n")[2]
            pytest.skip(f"the bindings of TensorRT {version} cannot be fetched: {reason}")
    return next(folder.glob(f"*{tag}*.whl"))


def test_names_are_found_in_the_sources() -> None:
    names = used_names()
    for known in (
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "Builder.build_serialized_network",
        "IBuilderConfig.progress_monitor",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.get_tensor_profile_shape",
        "OnnxParser.parse_from_file",
        "IConstantLayer.weights",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
    ):
        assert known in names
    assert len(names) > 50


def test_tensorrt_has_every_name(bindings: Path) -> None:
    assert missing_names("tensorrt_bindings", used_names(), bindings) == []


def test_what_tensorrt_lacks_is_noticed(bindings: Path) -> None:
    gone = {"BuilderFlag.FP16_", "IBuilderConfig.fp16_mode", "NoSuchClass"}
    assert set(missing_names("tensorrt_bindings", gone, bindings)) == gone


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_rtx_has_every_name() -> None:
    assert missing_names("tensorrt_rtx", used_names()) == []
