"""CPUs: affinity and the cgroup's quota, not the host's count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from corom.runtime.cpus import available_cpus, cgroup_quota, cpu_kind, int8_saturates


def group(tmp_path: Path, membership: str, files: dict[str, str]) -> float | None:
    """Return the quota read from a made-up cgroup file system."""
    root = tmp_path / "cgroup"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "membership").write_text(membership)
    return cgroup_quota(tmp_path / "membership", root)


V1 = "12:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="v2, root"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, None, id="v2, no limit"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"},
            2.0,
            id="v2, the parent is stricter",
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "50000 100000\n", "cpu.max": "max 100000\n"},
            0.5,
            id="v2, less than one",
        ),
        pytest.param("0::/../elsewhere\n", {}, None, id="v2, outside the namespace"),
        pytest.param(
            V1,
            {
                "cpu/docker/a/cpu.cfs_quota_us": "300000\n",
                "cpu/docker/a/cpu.cfs_period_us": "100000\n",
            },
            3.0,
            id="v1, own path",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2.5,
            id="v1, mounted as root",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
            id="v1, no limit",
        ),
        pytest.param("", {}, None, id="nothing"),
    ],
)
def test_the_quota_of_a_cgroup(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    assert group(tmp_path, membership, files) == expected


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "absent", tmp_path) is None


def test_this_process_may_use_at_least_one_cpu() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity_is_respected() -> None:
    program = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from corom.runtime.cpus import available_cpus; print(available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"1"


@pytest.mark.parametrize(
    ("content", "saturates"),
    [
        ("flags : fpu avx2 avx512_vnni\n", False),
        ("flags : avx2 avx_vnni\n", False),
        ("processor : 0\nflags : avx2 avx512f\n", True),
        ("Features : fp asimd asimddp\n", False),
        ("", False),
    ],
)
def test_processors_without_vnni_are_known(tmp_path: Path, content: str, saturates: bool) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    assert int8_saturates(tmp_path / "cpuinfo") == saturates


ZEN_3 = """processor : 0
cpu family : 25
model : 1
model name : AMD EPYC
stepping : 1
flags : fpu avx avx2 fma

processor : 1
"""


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("fpu avx", "fpu avx", True),
        ("fpu avx", "avx fpu ibrs", True),  # a newer kernel tells more
        ("model : 1", "model : 17", False),
        ("avx2 fma", "avx2 fma avx512f avx512_vnni", False),
        ("AMD EPYC", "AMD EPYC 9R14", False),
        ("flags : fpu avx avx2 fma", "Features : fp asimd asimddp", False),
    ],
)
def test_processors_of_one_name_are_told_apart(
    tmp_path: Path, before: str, after: str, same: bool
) -> None:
    kinds = []
    for content in (ZEN_3, ZEN_3.replace(before, after)):
        (tmp_path / "cpuinfo").write_text(content)
        kinds.append(cpu_kind(tmp_path / "cpuinfo"))
    assert (kinds[0] == kinds[1]) == same
    assert kinds[0].startswith("AMD EPYC 25.1.1, instructions ")
