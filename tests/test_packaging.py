"""The package: what the wheel holds, what importing loads, what the base install can do."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module, metadata
from pathlib import Path
from time import process_time

import pytest

from corom.runtime.native_library import BUILDS

ROOT = Path(__file__).parents[1]
HALVES = ("benchmarks", "export", "models", "runtime")
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "rich", "pyarrow", "corom.export"}


# --- Importing


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout.strip()


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    program = f"import sys, corom.runtime; print(sorted({HEAVY!r} & set(sys.modules)))"
    assert run(program) == "[]"


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    program = f"import sys, corom.runtime.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    assert run(program) == "[]"


def test_onnxruntime_is_loaded_when_a_bundle_is_opened(tiny_bundle: Path) -> None:
    program = (
        f"import sys; from corom.runtime import Encoder; Encoder({str(tiny_bundle)!r})\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    assert run(program) == "['onnxruntime']"


def test_importing_the_runtime_is_quick() -> None:
    program = (
        "from time import process_time as now; start = now(); import corom.runtime\n"
        "print(now() - start)"
    )
    assert min(float(run(program)) for _ in range(5)) < 0.5


def test_opening_the_demo_bundle_takes_less_than_a_second(demo_bundle: Path) -> None:
    from corom.runtime import Encoder

    def seconds() -> float:
        start = process_time()
        Encoder(demo_bundle).close()
        return process_time() - start

    assert min(seconds() for _ in range(5)) < 1


@pytest.mark.parametrize("name", ["corom.runtime", "corom.export", "corom.benchmarks"])
def test_all_is_sorted_and_complete(name: str) -> None:
    module = import_module(name)
    names = getattr(module, "__all__", [])
    public = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", name).startswith("corom")
        and not isinstance(value, type(sys))
    ]  # fmt: skip
    assert list(names) == sorted(names)
    assert sorted(public) == list(names)


# --- The wheel

COMPILED = (
    sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("g++") is not None
)
"""Whether the kernels of backend native can be compiled here."""


CHECKING = """#!/bin/sh
case " $* " in *" -c "*)
    g++ "$@" -fsyntax-only || exit
    for word; do test "$last" = -o && object=$word; last=$word; done
    exec g++ -x c++ -fPIC -c /dev/null -o "$object"
esac
exec g++ "$@"
"""
"""A g++ that reads all there is to compile and makes objects of nothing: the kernels take minutes.

Whether what is compiled is there and means something is seen so; what it computes, elsewhere.
"""


def build(folder: Path, **environment: str) -> Path:
    """Build the wheel from a copy in ``folder``, so that nothing is left in the working tree."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so")
    for half in (*HALVES, "tests"):
        shutil.copytree(ROOT / half, folder / half, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    # As users get it: the source archive first, the wheel from what that holds.
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, its kernels only read."""
    compiler = tmp_path_factory.mktemp("compiler") / "g++"
    compiler.write_text(CHECKING, "utf-8")
    compiler.chmod(0o755)
    environment = dict.fromkeys(("CC", "CXX"), str(compiler)) if COMPILED else {}
    return build(tmp_path_factory.mktemp("source"), **environment)


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"corom/{half}/{path.name}"
        for half in HALVES
        for path in (ROOT / half).iterdir()
        if path.suffix in {".py", ".toml", ".txt"} or path.name == "py.typed"
    }
    if COMPILED:
        expected |= {f"corom/runtime/_native_{build}.abi3.so" for build in BUILDS}
    assert names == expected
    for must in (
        "corom/export/parity_texts.txt",
        "corom/models/demo.toml",
        "corom/models/corom-tiny-medical.toml",
        "corom/runtime/py.typed",
        "corom/export/py.typed",
        "corom/runtime/cli.py",
    ):
        assert must in names
    assert "corom/__init__.py" not in names


@pytest.mark.skipif(not COMPILED, reason="run it on Linux on x86-64 with g++")
def test_the_wheel_is_for_this_platform_and_every_python_from_3_11_on(wheel: Path) -> None:
    assert wheel.name.endswith("-cp311-abi3-linux_x86_64.whl")


def test_the_wheel_names_its_licence_script_and_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {name.split("/", 1)[1]: name for name in archive.namelist() if ".dist-info/" in name}
        described = archive.read(info["METADATA"]).decode()
        scripts = archive.read(info["entry_points.txt"]).decode()
    assert "licenses/LICENSE" in info
    assert "License-Expression: Apache-2.0" in described
    assert "corom = corom.runtime.cli:main" in scripts
    for extra in ("export", "parquet", "dev"):
        assert f"Provides-Extra: {extra}" in described
    base = [
        re.split(r"[><=]", line.removeprefix("Requires-Dist: "))[0]
        for line in described.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert sorted(base) == ["click", "msgspec", "numpy", "onnxruntime", "rich", "tokenizers"]


def test_the_page_of_the_package_has_no_link_that_leads_nowhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers, _, page = archive.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in headers
    assert page.startswith("# corom\n")
    assert "(`docs/operate.md`)" in page
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert target.startswith("https:"), target


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert metadata.version("corom") == project["version"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_base_install_opens_a_bundle_and_embeds(tiny_bundle: Path, tmp_path: Path) -> None:
    """A fresh environment with the wheel and its base dependencies only, from the package index."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    (tmp_path / "source").mkdir()
    wheel = build(tmp_path / "source")
    subprocess.run([python, *install, *constraints, str(wheel)], check=True)
    script = python.with_name("corom")

    def corom(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    for package in ("torch", "transformers", "onnx", "pyarrow"):
        missing = subprocess.run([python, "-c", f"import {package}"], stderr=-3, check=False)
        assert missing.returncode == 1, package
    assert corom("embed", tiny_bundle, "头痛", "-o", "v.npy").returncode == 0
    assert (tmp_path / "v.npy").stat().st_size == 128 + 48 * 4
    for command in (["verify"], ["inspect"]):
        assert corom(*command, tiny_bundle).returncode == 0
    assert corom("score", tiny_bundle, "头痛", "发烧").returncode == 0
    done = corom("embed", tiny_bundle, "头痛", "-o", "v.parquet")
    assert (done.returncode, "pip install 'corom[parquet]'" in done.stderr) == (3, True)
    done = corom("serve", tiny_bundle)
    assert (done.returncode, "pip install 'corom[serve]'" in done.stderr) == (3, True)
    done = corom("export", "demo", "-o", "bundle")
    assert (done.returncode, "pip install 'corom[export]'" in done.stderr) == (3, True)
