"""A real Triton server on a model repository, from nvidia-pytriton's wheel: no GPU, no container.

It holds `tritonserver` and its Python backend alone, so encoders in Python can be served here, ONNX
graphs and plans cannot. It gets an environment of its own, as it needs an older NumPy.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from corom.benchmarks.peer_environment import ensure_environment

ROOT = Path(__file__).parents[1]
REQUIREMENTS = Path(__file__).with_name("triton_requirements.txt")
START_SECONDS = 90


class Server(NamedTuple):
    """A running server: where it listens, its process and its log."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> bool:
        """Return whether it is ready to answer, all models loaded."""
        return self.process.poll() is None and _ready(self.http)

    def counter(self, name: str) -> float:
        """Return the sum of a counter of its metrics."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def triton_python() -> Path:
    """Return the interpreter of the environment, installed first unless it is there.

    Raises ``PeerError`` if it cannot be installed.
    """
    return ensure_environment("triton", REQUIREMENTS.read_text("utf-8"))


@contextmanager
def triton_server(
    repositories: list[Path], place: Path, python: Path, *, packages: Path | None = None
) -> Iterator[Server]:
    """Yield a server on ``repositories``; ``place`` is an empty folder for what it writes.

    ``packages``: site-packages that its models see; None are those beside it. Raises
    ``RuntimeError`` with the end of its log if it does not become ready.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    site = python.parents[1] / "lib" / f"python{version}" / "site-packages"
    home = site / "pytriton" / "tritonserver"
    backend = place / "backends" / "python"
    shutil.copytree(home / "backends" / "python", backend)
    stub = "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / version / stub, backend)
    for program in (backend / stub, home / "bin" / "tritonserver"):
        program.chmod(0o755)
    http, grpc, metrics = _free_ports(3)
    libraries = [site / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PATH": f"{_environment(place, packages or site)}{os.pathsep}{os.environ['PATH']}",
    }
    command = [home / "bin" / "tritonserver", "--disable-auto-complete-config"]
    command += [f"--backend-directory={backend.parent}", "--exit-timeout-secs=5"]
    command += [f"--model-repository={repository}" for repository in repositories]
    for kind, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{kind}-port={port}", f"--{kind}-address=127.0.0.1"]
    log = place / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process,
    ):
        try:
            server = Server(*(f"127.0.0.1:{p}" for p in (http, grpc, metrics)), process, log)
            _await_ready(server)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _environment(place: Path, packages: Path) -> Path:
    """Return the bin of an environment with these packages and corom's source.

    The backend's stub is the Python of the first environment on the PATH; it reads no PYTHONPATH.
    """
    folder = place / "environment"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "corom.pth").write_text(f"{packages}\n{ROOT / '.typing'}\n", "utf-8")
    return folder / "bin"


def _await_ready(server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while not server.alive():
        if server.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"not ready:\n{server.log.read_text(errors='replace')[-20000:]}")
        time.sleep(0.1)


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
