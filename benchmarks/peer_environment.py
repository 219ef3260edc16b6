"""A virtual environment for each peer, made on demand from the pinned list beside this file.

Peers need other versions of the same packages than corom and each other, so none shares one.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from corom.runtime.cache import cache_root
from corom.runtime.engine_cache import file_lock

from .peer_process import PeerError

COMPLETE = "complete"
"""The file that says that an environment was installed to the end."""
INSTALL_SECONDS = 1800.0


def requirements_of(environment: str) -> str:
    """Return the pinned packages of an environment, as pip reads them."""
    return (
        resources.files("corom.benchmarks").joinpath(f"peer_{environment}.txt").read_text("utf-8")
    )


def environment_folder(environment: str, requirements: str) -> Path:
    """Return where the environment of these packages is, or will be."""
    key = hashlib.sha256(f"{platform.python_version()}\n{requirements}".encode()).hexdigest()
    return cache_root() / "peers" / f"{environment}-{key[:12]}"


def ensure_environment(environment: str, requirements: str | None = None) -> Path:
    """Return the interpreter of an environment, installed first unless it is there.

    Raises ``PeerError`` with pip's own last words if it cannot be installed.
    """
    wanted = requirements_of(environment) if requirements is None else requirements
    folder = environment_folder(environment, wanted)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_suffix(".lock")):
        if not (folder / COMPLETE).exists():
            _install(folder, python, wanted)
    return python


def _install(folder: Path, python: Path, wanted: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    base = Path(sys.base_prefix) / "bin" / "python3"
    interpreter = base if base.exists() else Path(sys.executable)
    _run([interpreter, "-m", "venv", folder])
    listed = folder / "requirements.txt"
    listed.write_text(wanted, "utf-8")
    # The list is complete, so nothing beside it is chosen.
    install = ["-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    _run([python, *install, "--no-deps", "-r", listed])
    (folder / COMPLETE).touch()


def _run(command: list[str | Path]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"not installed within {INSTALL_SECONDS:.0f} s.") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise PeerError(f"cannot be installed: {' '.join(errors[-2:])}")
