"""An engine's sidecar against a machine: found, expected and what to do."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from corom.runtime.errors import BundleError, CudaError, DeviceMemoryError, UnavailableError
from corom.runtime.gpu_machine import driver_version, this_machine
from corom.runtime.sidecar import (
    Machine,
    Profile,
    Sidecar,
    load_sidecar,
    mismatches,
    rebuild_advice,
    sidecar_path,
)

SIDECAR = Sidecar(
    flavour="tensorrt",
    version="11.4.0.106",
    precision="fp16",
    gpu="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    driver="580.95.05",
    cuda="13.0",
    graph="onnx/engine_fp16.onnx",
    graph_sha256="a" * 64,
    engine_sha256="b" * 64,
    dimension=256,
    profiles=(Profile(name="single", batch=(1, 1, 4), length=(8, 32, 128)),),
    options={"level": 5},
)
MACHINE = Machine(
    gpu="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    driver="580.95.05",
    cuda="13.0",
    tensorrt={"tensorrt": "11.4.0.106"},
)


def changed(**fields: Any) -> Machine:
    return msgspec.structs.replace(MACHINE, **fields)


def test_the_machine_it_was_built_on_can_run_it() -> None:
    assert mismatches(SIDECAR, MACHINE, "a" * 64) == []


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        (changed(gpu="NVIDIA L4"), "GPU: found NVIDIA L4, expected NVIDIA H100 80GB HBM3"),
        (changed(compute_capability="8.9"), "compute capability: found 8.9, expected 9.0"),
        (changed(tensorrt={"tensorrt": "10.16.1.11"}), "found 10.16.1.11, expected 11.4.0.106"),
        (changed(tensorrt={}), "tensorrt is not installed"),
        (changed(driver="575.51.03"), "driver: found 575.51.03, expected 580.95.05 or newer"),
        (changed(cuda="12.9"), "CUDA of the driver: found 12.9, expected 13.0 or newer"),
        (Machine(missing=("no NVIDIA driver",)), "no NVIDIA driver"),
    ],
)
def test_another_machine_is_told_why(machine: Machine, line: str) -> None:
    assert any(line in reason for reason in mismatches(SIDECAR, machine))


def test_another_graph_is_told() -> None:
    (reason,) = mismatches(SIDECAR, MACHINE, "c" * 64)
    assert "sha256 of onnx/engine_fp16.onnx: found ccc" in reason


def test_a_newer_driver_is_fine() -> None:
    assert mismatches(SIDECAR, changed(driver="590.10", cuda="13.2")) == []


def test_versions_compare_as_numbers() -> None:
    sidecar = msgspec.structs.replace(SIDECAR, driver="580.9.1")
    assert mismatches(sidecar, changed(driver="580.10.1")) == []


@pytest.mark.parametrize(
    ("level", "gpu", "capability", "problems"),
    [
        ("none", "NVIDIA H200", "9.0", 1),
        ("same_compute_capability", "NVIDIA H200", "9.0", 0),
        ("same_compute_capability", "NVIDIA L4", "8.9", 1),
        ("ampere_plus", "NVIDIA L4", "8.9", 0),
        ("ampere_plus", "Tesla T4", "7.5", 2),
    ],
)
def test_hardware_compatibility_widens_what_fits(
    level: str, gpu: str, capability: str, problems: int
) -> None:
    sidecar = msgspec.structs.replace(SIDECAR, options={"hardware_compatibility": level})
    machine = changed(gpu=gpu, compute_capability=capability)
    assert len(mismatches(sidecar, machine)) == problems


def test_rtx_engines_name_the_capabilities_they_run_on() -> None:
    rtx = msgspec.structs.replace(
        SIDECAR, flavour="tensorrt-rtx", version="1.7.1.116", gpu=None, compute_capability=None
    )
    here = {"tensorrt-rtx": "1.7.1.116"}
    (reason,) = mismatches(rtx, changed(tensorrt=here))
    assert "does not run on compute capability 9.0" in reason
    assert "use the engine kind tensorrt" in reason
    assert mismatches(rtx, changed(tensorrt=here, compute_capability="8.9", gpu="L4")) == []


def test_advice_names_the_commands() -> None:
    advice = rebuild_advice("demo", "tensorrt")
    assert "--rebuild" in advice
    assert "corom export demo -o NEW_BUNDLE --engine tensorrt" in advice


def test_sidecar_round_trip_and_its_errors(tmp_path: Path) -> None:
    engine = tmp_path / "x.engine"
    with pytest.raises(BundleError, match="cannot be read"):
        load_sidecar(engine)
    sidecar_path(engine).write_bytes(msgspec.json.encode(SIDECAR))
    assert load_sidecar(engine) == SIDECAR
    sidecar_path(engine).write_bytes(b'{"flavour": "tensorrt"')
    with pytest.raises(BundleError, match="not a valid sidecar"):
        load_sidecar(engine)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("580.95.05\n", "580.95.05"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release",
            "580.95.05",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.127  Tue Oct", "550.127"),
        ("", None),
    ],
)
def test_driver_version(text: str, version: str | None) -> None:
    assert driver_version(text) == version


def test_this_machine_never_raises_and_says_what_is_missing() -> None:
    machine = this_machine()
    assert machine.gpu is not None or machine.missing


def test_cuda_errors_are_unavailable_errors() -> None:
    assert issubclass(DeviceMemoryError, CudaError)
    assert issubclass(CudaError, UnavailableError)
    assert CudaError("x").exit_code == 3
    assert not CudaError("x").fatal
