"""What GPU, driver, CUDA and TensorRT this machine has. Never raises: what is missing is said."""

import ctypes
import re
from functools import lru_cache
from pathlib import Path

import msgspec

from .packages import installed_version
from .sidecar import Flavour, Machine

DISTRIBUTIONS: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
}
"""Flavour → the packages that hold it; the first also names its module."""

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_DRIVER_VERSION_FILES = (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version"))


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Return what this machine has; device 0 stands for the GPU."""
    tensorrt = _installed_flavours()
    driver = _driver_version()
    try:
        libcuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        why = f"no NVIDIA driver (libcuda.so.1 cannot be loaded: {error})"
        return Machine(driver=driver, tensorrt=tensorrt, missing=(why,))
    number = ctypes.c_int()
    libcuda.cuDriverGetVersion(ctypes.byref(number))
    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    here = Machine(driver=driver, cuda=cuda, tensorrt=tensorrt)
    if code := libcuda.cuInit(0):
        why = f"the NVIDIA driver finds no usable GPU (cuInit gives CUDA error {code})"
        return msgspec.structs.replace(here, missing=(why,))
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if code := libcuda.cuDeviceGet(ctypes.byref(device), 0):
        why = f"the NVIDIA driver lists no GPU (cuDeviceGet gives CUDA error {code})"
        return msgspec.structs.replace(here, missing=(why,))
    libcuda.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        libcuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    return msgspec.structs.replace(
        here, gpu=name.value.decode(), compute_capability=".".join(capability)
    )


def driver_version(text: str) -> str | None:
    """Return the version in what the NVIDIA kernel module says of itself, such as "580.95.05"."""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return found[0] if found else None


def _driver_version() -> str | None:
    for path in _DRIVER_VERSION_FILES:
        try:
            return driver_version(path.read_text(encoding="utf-8"))
        except OSError:
            continue
    return None


def _installed_flavours() -> dict[Flavour, str]:
    versions: dict[Flavour, str] = {}
    for flavour, packages in DISTRIBUTIONS.items():
        for package in packages:
            if (version := installed_version(package)) is not None:
                versions.setdefault(flavour, version)
    return versions
