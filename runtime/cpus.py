"""Which CPUs this process may use, and what they are: affinity and quota, not the host's count."""

import hashlib
import os
import platform
import re
from itertools import takewhile
from pathlib import Path


def available_cpus() -> int:
    """Return how many CPUs affinity and cgroup quota leave to this process, at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor calls itself, as far as the system tells."""
    return _told(cpuinfo).get("model name") or platform.processor() or platform.machine()


IDENTITY = (
    "cpu family",
    "model",
    "stepping",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
)
SPEEDS = re.compile("avx|fma|amx|sve|sme|i8mm|bf16|asimddp")
"""Instructions that products are made by."""


def cpu_kind(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the speed of a processor depends on: clouds give many kinds one name."""
    told = _told(cpuinfo)
    numbers = ".".join(told[name] for name in IDENTITY if name in told)
    flags = (told.get("flags") or told.get("Features", "")).split()
    fast = " ".join(sorted(flag for flag in flags if SPEEDS.search(flag)))
    sets = hashlib.sha256(fast.encode()).hexdigest()[:8]
    return f"{cpu_model(cpuinfo)} {numbers}, instructions {sets}"


VNNI = {"avx512_vnni", "avx_vnni"}


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Say whether this x86 processor sums 8-bit products in 32 bits by one instruction."""
    return bool(cpu_flags(cpuinfo) & VNNI)


def int8_saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Say whether this x86 processor has no VNNI: sums of two 8-bit products end at 16 bits then.

    False where it cannot be told.
    """
    flags = cpu_flags(cpuinfo)
    return bool(flags) and not flags & VNNI


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return what an x86 processor says it can do; empty where it cannot be told."""
    return set(_told(cpuinfo).get("flags", "").split())


SATURATION = (
    "This CPU has no VNNI: its 8-bit products saturate, which may be all of the difference. "
    "Take fp32 or int8-per-token here, or a CPU with VNNI."
)
"""What to say of int8 that fails where ``int8_saturates``."""


def cgroup_quota(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return the CPU quota of this process's cgroup in CPUs, or None without one.

    Reads cgroup v2 (``cpu.max``, the smallest on the way up) and v1 (``cpu.cfs_quota_us``).
    """
    quotas = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            group = root / path.lstrip("/")
            folders = [f for f in [group, *group.parents] if f.is_relative_to(root)]
            quotas += [_ratio(*limit.split()) for f in folders for limit in _lines(f / "cpu.max")]
        elif "cpu" in controllers.split(","):
            # Inside a container the group's own path is often mounted as the controller's root.
            for group in (root / "cpu" / path.lstrip("/"), root / "cpu"):
                pair = zip(
                    _lines(group / "cpu.cfs_quota_us"),
                    _lines(group / "cpu.cfs_period_us"),
                    strict=False,
                )
                quotas += [_ratio(quota, period) for quota, period in pair]
    limits = [quota for quota in quotas if quota is not None]
    return min(limits, default=None)


def _told(cpuinfo: Path) -> dict[str, str]:
    """Return what the system says of the first processor."""
    pairs = (line.partition(":") for line in takewhile(bool, _lines(cpuinfo)))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _ratio(quota: str, period: str) -> float | None:
    return None if quota in {"max", "-1"} else int(quota) / int(period)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
