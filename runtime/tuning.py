"""What `corom tune` found to be fastest on this machine: kept outside the bundle, read by "auto".

Measuring is done by corom.benchmarks; this only keeps, finds and checks what came of it.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from .cache import cache_root
from .cpus import available_cpus, cpu_model
from .errors import InputError
from .manifest import Manifest, Precision, manifest_sha256
from .native_library import native_executes
from .packages import installed_version
from .whole_file import whole_file

Goal = Literal["throughput", "latency"]
TUNING_VERSION = 1
_PACKAGES = ("onnxruntime", "openvino")

logger = logging.getLogger("corom")


Count = Annotated[int, msgspec.Meta(ge=1)]


class Winner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What executes fastest, and what was measured of it."""

    backend: str
    precision: Precision
    threads: Count
    workers: Count
    batch_tokens: Count
    cosine_min: float
    p50_ms: float
    texts_per_second: float


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The winners for one bundle on one machine.

    ``bundle``: sha256 of its manifest. ``machine``: processor, CPUs and versions of the backends.
    """

    version: int
    bundle: str
    machine: str
    min_cosine: float
    latency: Winner
    throughput: Winner


def check_tuned(tuned: object) -> None:
    """Raise ``InputError`` unless this is a value of ``Encoder``'s ``tuned``."""
    if tuned not in ("throughput", "latency", "off"):
        raise InputError(f"tuned is {tuned!r}; allowed: 'throughput', 'latency', 'off'.")


def this_machine() -> str:
    """Return what the speed of a backend depends on here."""
    found = [f"{name} {version}" for name in _PACKAGES if (version := installed_version(name))]
    if native_executes("fp32"):
        found.append("native")
    return ", ".join([cpu_model(), f"{available_cpus()} CPUs", *found])


def tuning_file(manifest: Manifest) -> Path:
    """Return where the winners of bundles made of these weights are kept."""
    return cache_root() / "tuning" / f"{manifest.source.weights_sha256[:32]}.json"


def save_tuning(manifest: Manifest, tuning: Tuning) -> Path:
    """Keep the winners, in place of those of the same bundle and machine; return the file."""
    file = tuning_file(manifest)
    others = [
        kept
        for kept in _read(file)
        if (kept.bundle, kept.machine) != (tuning.bundle, tuning.machine)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as new:
        new.write(msgspec.json.format(msgspec.json.encode([*others, tuning]), indent=1))
    return file


def find_winner(bundle: Path, manifest: Manifest, goal: Goal) -> Winner | None:
    """Return the winner for this bundle on this machine; says why what is kept is not used."""
    file = tuning_file(manifest)
    kept = _read(file)
    if not kept:
        if goal == "latency":  # nobody asks for it who has not tuned
            logger.warning("%s was not tuned here. Run: corom tune %s", manifest.name, bundle)
        return None
    sha256, machine = manifest_sha256(bundle), this_machine()
    for tuning in kept:
        if (tuning.bundle, tuning.machine) == (sha256, machine):
            winner: Winner = getattr(tuning, goal)
            return winner
    same = [tuning.machine for tuning in kept if tuning.bundle == sha256]
    why = f"another machine ({same[0]}; this is {machine})" if same else "another export of it"
    logger.warning("%s was tuned for %s: ignored. Run: corom tune %s", manifest.name, why, bundle)
    return None


def _read(file: Path) -> list[Tuning]:
    try:
        content = file.read_bytes()
    except OSError:
        return []
    try:
        kept = msgspec.json.decode(content, type=list[Tuning])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        logger.warning("'%s' cannot be read and is ignored: %s. Run: corom tune", file, error)
        return []
    known = [tuning for tuning in kept if tuning.version == TUNING_VERSION]
    if len(known) < len(kept):
        logger.warning("'%s' was tuned by another version of corom: ignored. Run: corom tune", file)
    return known
