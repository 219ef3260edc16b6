"""What this machine has for the GPU check, and for each part that is missing: why."""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from corom.runtime.errors import CoromError
from corom.runtime.gpu_machine import this_machine
from corom.runtime.sidecar import Flavour


class Component(NamedTuple):
    """One part: what was found, or why it is missing."""

    name: str
    found: str | None
    missing: str | None


def inventory() -> list[Component]:
    """Return every part that the check can use, whether it is here or not."""
    return [component(name, probe) for name, probe in PROBES.items()]


def component(name: str, probe: Callable[[], str]) -> Component:
    """Return what ``probe`` finds; whatever it raises is the reason why the part is missing."""
    try:
        return Component(name, probe(), None)
    except Exception as error:  # a probe must not end the check, however its library fails
        return Component(name, None, f"{error}" or type(error).__name__)


def _driver() -> str:
    if (version := this_machine().driver) is None:
        raise CoromError("the kernel module nvidia is not loaded (no /proc/driver/nvidia/version)")
    return version


def _libcuda() -> str:
    machine = this_machine()
    if machine.cuda is None:
        raise CoromError("; ".join(machine.missing))
    return f"CUDA {machine.cuda}"


def _gpu() -> str:
    machine = this_machine()
    if machine.gpu is None:
        raise CoromError("; ".join(machine.missing))
    return f"{machine.gpu}, compute capability {machine.compute_capability}"


def _tensorrt(flavour: Flavour) -> str:
    from corom.runtime.engine_tensorrt import import_tensorrt

    return str(import_tensorrt(flavour).__version__)


def _onnxruntime() -> str:
    from corom.runtime.backend_onnxruntime_cuda import require_cuda_provider
    from corom.runtime.onnx_runtime import onnxruntime

    require_cuda_provider()
    return str(onnxruntime.__version__)


def _torch() -> str:
    from .gpu_checks import require_torch_cuda

    return str(require_torch_cuda().__version__)


def _pycuda() -> str:
    version = import_module("pycuda").VERSION_TEXT
    import_module("corom.runtime.cuda_pycuda").import_pycuda()
    return str(version)


def _cuda_bindings() -> str:
    import_module("cuda.bindings.driver")
    return str(import_module("cuda.bindings").__version__)


PROBES: dict[str, Callable[[], str]] = {
    "NVIDIA driver": _driver,
    "libcuda.so.1": _libcuda,
    "GPU": _gpu,
    "cuda-bindings": _cuda_bindings,
    "pycuda": _pycuda,
    "tensorrt": lambda: _tensorrt("tensorrt"),
    "tensorrt_rtx": lambda: _tensorrt("tensorrt-rtx"),
    "onnxruntime-gpu": _onnxruntime,
    "torch with CUDA": _torch,
}
