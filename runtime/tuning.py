"""What `corom tune` found to be fastest on this machine: kept outside the bundle, read by "auto".

Measuring is done by corom.benchmarks; this only keeps, finds and checks what came of it.
"""

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from itertools import compress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .cache import cache_root
from .cpus import available_cpus, cpu_kind
from .engine_cache import file_lock
from .errors import InputError, UnavailableError
from .manifest import Manifest, Precision, manifest_sha256
from .native_library import native_executes
from .packages import installed_version
from .whole_file import whole_file

Goal = Literal["throughput", "latency"]
TUNING_VERSION = 2
_PACKAGES = ("corom", "onnxruntime", "onnxruntime-gpu", "openvino")

logger = logging.getLogger("corom")


Count = Annotated[int, msgspec.Meta(ge=1)]


class Winner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What executes fastest, and what was measured of it.

    ``cpus``: as many could be taken when it was found.
    """

    backend: str
    precision: Precision
    threads: Count
    workers: Count
    cpus: Count
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


def leaves_open(asked: Mapping[str, Any]) -> bool:
    """Return whether the options of an ``Encoder`` leave what executes to what was tuned."""
    named = any(asked.get(name, "auto") != "auto" for name in ("backend", "precision"))
    counted = any(asked.get(name) is not None for name in ("threads", "workers"))
    return not named and not counted and asked.get("tuned", "throughput") != "off"


def this_machine() -> str:
    """Return what the speed of a backend depends on here, corom's own version included."""
    found = [f"{name} {version}" for name in _PACKAGES if (version := installed_version(name))]
    if native_executes("fp32"):
        found.append("native")
    return ", ".join([cpu_kind(), f"{available_cpus()} CPUs", *found])


def tuning_file(manifest: Manifest) -> Path:
    """Return where the winners of bundles made of these weights are kept."""
    weights = hashlib.sha256(manifest.source.weights_sha256.encode()).hexdigest()
    return cache_root() / "tuning" / f"{weights[:32]}.json"


def save_tuning(manifest: Manifest, tuning: Tuning) -> Path:
    """Keep the winners, in place of those of the same bundle and machine; return the file."""
    file = tuning_file(manifest)
    file.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as alone:
        with suppress(ImportError):  # Windows has no such locks
            alone.enter_context(file_lock(file.with_suffix(".lock")))
        known, of_other_versions = _read(file)
        others = [
            kept for kept in known if (kept.bundle, kept.machine) != (tuning.bundle, tuning.machine)
        ]
        with whole_file(file) as new:
            content = msgspec.json.encode([*of_other_versions, *others, tuning])
            new.write(msgspec.json.format(content, indent=1))
    return file


def refuse_unless_writable(manifest: Manifest) -> None:
    """Raise ``OSError`` or ``UnavailableError`` if winners could not be kept here."""
    folder = tuning_file(manifest).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def find_winner(bundle: Path, manifest: Manifest, goal: Goal) -> Winner | None:
    """Return the winner for this bundle on this machine; says why what is kept is not used."""
    try:
        file = tuning_file(manifest)
    except UnavailableError as error:  # no place, so nothing was kept there
        logger.info("%s", error)
        return None
    kept, of_other_versions = _read(file)
    if not kept:
        if of_other_versions:
            logger.warning("'%s' is of another version of corom: ignored. Run: corom tune", file)
        elif goal == "latency":  # nobody asks for it who has not tuned
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


class _Versioned(msgspec.Struct):
    version: int


def _read(file: Path) -> tuple[list[Tuning], list[msgspec.Raw]]:
    """Return what is kept, and what other versions of corom keep there."""
    try:
        content = file.read_bytes()
        entries = msgspec.json.decode(content, type=list[msgspec.Raw])
        versions = [msgspec.json.decode(entry, type=_Versioned).version for entry in entries]
        own = [version == TUNING_VERSION for version in versions]
        known = [msgspec.json.decode(e, type=Tuning) for e in compress(entries, own)]
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        logger.warning("'%s' cannot be read and is ignored: %s. Run: corom tune", file, error)
        return [], []
    return known, [entry for entry, mine in zip(entries, own, strict=True) if not mine]
