"""From a bundle to a TensorRT backend: the engine that fits, the device, the lanes."""

import logging
from pathlib import Path

from .backend_lanes import LaneBackend
from .cuda import open_device
from .engine_cache import EngineCache, find_engine
from .engine_tensorrt import TensorRTEngine
from .errors import UnavailableError
from .gpu_machine import this_machine
from .manifest import Manifest, Precision

logger = logging.getLogger("corom")


def open_tensorrt(
    bundle: Path,
    manifest: Manifest,
    precision: Precision,
    engine_cache: EngineCache = "off",
    *,
    graphs: bool = True,
) -> LaneBackend:
    """Open the engine of a bundle that fits this machine.

    The sidecar is compared before anything of TensorRT is loaded. Raises ``EngineError`` with
    found, expected and the command to run if no engine fits.
    """
    machine = this_machine()
    if machine.missing:
        raise UnavailableError(
            f"TensorRT cannot run here: {'; '.join(machine.missing)}. Use --backend onnxruntime."
        )
    path, sidecar = find_engine(bundle, manifest, precision, machine, engine_cache)
    device = open_device()
    try:
        engine = TensorRTEngine(path, sidecar, device)
    except BaseException:
        device.close()
        raise
    logger.info("engine %s by %s %s on %s", path, sidecar.flavour, sidecar.version, device.adapter)
    return LaneBackend(device, engine, graphs=graphs)
