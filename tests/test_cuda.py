"""The device adapters: real bindings on a stand-in driver, and real GPUs where there is one."""

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from driver import build_fake_driver

from corom.runtime.cuda import Device, open_device
from corom.runtime.errors import UnavailableError
from corom.runtime.gpu_machine import this_machine

TESTS = Path(__file__).parent
RUNTIME = TESTS.parent / "runtime"

needs_gpu = pytest.mark.skipif(
    this_machine().gpu is None, reason="no NVIDIA GPU here; run `make gpu-check` where one is"
)


def on_fake_driver(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed")
@pytest.mark.parametrize("adapter", ["cuda-bindings", "pycuda"])
def test_stand_in_driver_takes_every_call_of_the_adapter(tmp_path: Path, adapter: str) -> None:
    if adapter == "pycuda" and find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed (it is built from source, see `make gpu-check`)")
    result = on_fake_driver(build_fake_driver(tmp_path), str(TESTS / "on_fake_driver.py"), adapter)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("failed")] == []
    assert result.stdout.count("passed") >= 12


@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed")
@pytest.mark.skipif(this_machine().cuda is not None, reason="this machine has a driver")
def test_no_driver_is_said_with_what_to_do() -> None:
    with pytest.raises(UnavailableError, match=r"no NVIDIA driver.*--device cpu"):
        open_device(0, "cuda-bindings")


@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed")
def test_every_driver_function_that_is_called_exists() -> None:
    from cuda.bindings import driver

    names = set()
    for file in ("runtime/cuda_driver.py", "runtime/cuda_pycuda.py", "benchmarks/gpu_standin.py"):
        for node in ast.walk(ast.parse((TESTS.parent / file).read_text())):
            if isinstance(node, ast.Constant) and str(node.value).startswith("cu"):
                names.add(str(node.value))
            if isinstance(node, ast.Attribute) and node.attr.startswith("cu"):
                names.add(node.attr)
    names = {name for name in names if name.startswith("cu") and name[2:3].isupper()}
    assert len(names) > 20
    assert [name for name in names if not hasattr(driver, name)] == []


def test_a_missing_adapter_names_the_package() -> None:
    if find_spec("pycuda") is not None or find_spec("cuda") is None:
        pytest.skip("needs cuda-bindings without pycuda")
    with pytest.raises(UnavailableError, match="pip install pycuda"):
        open_device(0, "pycuda")


def test_the_adapters_fill_the_protocol() -> None:
    wanted = {name for name in vars(Device) if not name.startswith("_")}
    tree = ast.parse((RUNTIME / "cuda_driver.py").read_text())
    (device,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "DriverDevice"]
    found = {n.name for n in device.body if isinstance(n, ast.FunctionDef)}
    assert wanted - {"adapter"} <= found


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("adapter", ["pycuda", "cuda-bindings"])
def test_device_layer_on_the_gpu(adapter: str) -> None:
    from corom.benchmarks.gpu_checks import device_checks

    for check in device_checks(adapter):  # type: ignore[arg-type]
        if check.outcome == "missing":
            pytest.skip(check.detail)
        assert check.outcome == "passed", check.detail
