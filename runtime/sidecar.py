"""The JSON beside an engine: what it was built from, by and for, compared before it is opened.

Knows no TensorRT: it can be read, compared and shown on any machine.
"""

from pathlib import Path
from typing import Literal

import msgspec

from .errors import BundleError
from .manifest import Parity, Precision

Flavour = Literal["tensorrt", "tensorrt-rtx"]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One optimization profile: (min, opt, max) of rows and of padded tokens."""

    name: str
    batch: tuple[int, int, int]
    length: tuple[int, int, int]


class Sidecar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine file is; None for what does not apply (an engine built without a GPU).

    ``parity``: of the engine itself, on the GPU it was built on; None if it was not run there.
    """

    flavour: Flavour
    version: str
    precision: Precision
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    cuda: str | None
    graph: str
    graph_sha256: str
    engine_sha256: str
    dimension: int
    profiles: tuple[Profile, ...]
    options: dict[str, str | int]
    parity: Parity | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as an engine sees it; None for what is not there, ``missing`` says why.

    ``cuda``: the newest CUDA version the driver speaks, such as "13.0". ``tensorrt``: version of
    each installed flavour.
    """

    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: dict[Flavour, str] = {}
    missing: tuple[str, ...] = ()


RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX builds for when it is told none."""


def mismatches(sidecar: Sidecar, machine: Machine, graph_sha256: str | None = None) -> list[str]:
    """Return why this machine cannot run the engine, one line a reason; empty: it can.

    ``graph_sha256``: of the graph the engine should have been built from; None skips that.
    """
    reasons = list(machine.missing)
    version = machine.tensorrt.get(sidecar.flavour)
    if version is None:
        reasons.append(
            f"{sidecar.flavour} is not installed (expected {sidecar.version}). "
            f"Run: pip install 'corom[{sidecar.flavour}]'"
        )
    elif version != sidecar.version:
        reasons.append(_found_expected(sidecar.flavour, version, sidecar.version))
    if machine.gpu is not None:
        reasons += _gpu_mismatches(sidecar, machine)
    for what, found, expected in (
        ("driver", machine.driver, sidecar.driver),
        ("CUDA of the driver", machine.cuda, sidecar.cuda),
    ):
        # A newer driver runs what an older one built; the other way round it may lack a feature.
        if found is not None and expected is not None and _older(found, expected):
            reasons.append(_found_expected(what, found, f"{expected} or newer"))
    if graph_sha256 is not None and graph_sha256 != sidecar.graph_sha256:
        reasons.append(
            _found_expected(f"sha256 of {sidecar.graph}", graph_sha256, sidecar.graph_sha256)
        )
    return reasons


def rebuild_advice(source_uri: str, flavour: Flavour) -> str:
    """Return what to do about an engine that does not fit this machine."""
    return (
        "Build one for this machine once: run the same command with --rebuild, or open "
        'Encoder(..., engine_cache="auto"). Or export again: '
        f"corom export {source_uri} -o NEW_BUNDLE --engine {flavour}"
    )


def _gpu_mismatches(sidecar: Sidecar, machine: Machine) -> list[str]:
    capability = machine.compute_capability
    if sidecar.flavour == "tensorrt-rtx":
        if capability in RTX_CAPABILITIES:
            return []
        return [
            f"TensorRT-RTX does not run on compute capability {capability} ({machine.gpu}), only "
            f"on {', '.join(RTX_CAPABILITIES)}; use the engine kind tensorrt there."
        ]
    level = sidecar.options.get("hardware_compatibility", "none")
    if level == "ampere_plus" and not _older(capability or "0", "8.0"):
        return []
    pairs = [("compute capability", capability, sidecar.compute_capability)]
    if level != "same_compute_capability":
        pairs.append(("GPU", machine.gpu, sidecar.gpu))
    return [
        _found_expected(what, got, want) for what, got, want in pairs if want not in {None, got}
    ]


def _found_expected(what: str, found: object, expected: object) -> str:
    return f"{what}: found {found}, expected {expected}"


def _older(found: str, expected: str) -> bool:
    return _numbers(found) < _numbers(expected)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def sidecar_path(engine: Path) -> Path:
    """Return where the sidecar of an engine file lies."""
    return engine.with_suffix(".engine.json")


def load_sidecar(engine: Path) -> Sidecar:
    """Read the sidecar of an engine; raises ``BundleError`` if it is missing or malformed."""
    path = sidecar_path(engine)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sidecar)
    except OSError as error:
        raise BundleError(f"'{path}' cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"'{path}' is not a valid sidecar: {error}.") from None
