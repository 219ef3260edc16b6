"""A server in a process of its own: started, waited for, its memory and CPU time read, ended."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from corom.runtime.errors import UnavailableError

READY_SECONDS = 180.0
LISTENING = re.compile(r"Listening on (http://\S+)")
HOST = "127.0.0.1"


class Usage(NamedTuple):
    """What the server's processes have used: memory now, CPU time so far."""

    rss_bytes: int
    cpu_seconds: float


class Sample(NamedTuple):
    """Memory at a time of ``time.perf_counter``."""

    time: float
    rss_bytes: int


class Server:
    """A server that listens on loopback. ``url``: where.

    ``port``: where it was told to listen; None if it says so itself, as `corom serve` does.
    Raises ``UnavailableError`` with its last words if it ends, or is not ready in time.
    """

    def __init__(
        self, command: Sequence[str | Path], environment: dict[str, str], port: int | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="corom-bench-")
        self._said = Path(self._folder.name) / "said.txt"
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=os.environ | environment,
            )
        try:
            self.url = self._await_url(port)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process that was started; its children work for it."""
        return self._process.pid

    def usage(self) -> Usage:
        """Return the memory and CPU time of the process and its children."""
        rss, cpu = 0, 0.0
        parent = psutil.Process(self.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                with process.oneshot():
                    rss += process.memory_info().rss
                    times = process.cpu_times()
                cpu += times.user + times.system
        return Usage(rss, cpu)

    def wait(self, seconds: float) -> int:
        """Wait until it has ended, as it was told by someone else; return its exit code."""
        return self._process.wait(seconds)

    def close(self, seconds: float = 20.0) -> int:
        """End it with SIGTERM, which drains it; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                for process in psutil.Process(self.pid).children(recursive=True):
                    process.kill()
                self._process.kill()
        code = self._process.wait()
        self._folder.cleanup()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _await_url(self, port: int | None) -> str:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise UnavailableError(
                    f"the server ended with {self._process.returncode}: {self._last_words()}"
                )
            if port is not None and _answers(url := f"http://{HOST}:{port}"):
                return url
            if port is None and (found := LISTENING.search(self.said())):
                return found[1]
            time.sleep(0.1)
        raise UnavailableError(
            f"the server was not ready within {READY_SECONDS:.0f} s: {self._last_words()}"
        )

    def said(self) -> str:
        """Return what it has printed so far."""
        return self._said.read_text("utf-8", errors="replace")

    def _last_words(self) -> str:
        return " ".join(self.said().strip().splitlines()[-3:])


def corom_command(bundle: Path, words: Sequence[str]) -> list[str | Path]:
    """Return the command of `corom serve` on a free port, with more words of its command line."""
    program = "from corom.runtime.cli import main; main()"  # nothing has to be on the PATH
    return [sys.executable, "-c", program, "serve", bundle, "--port", "0", *words]


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


async def watch(server: Server, samples: list[Sample], every: float = 0.5) -> None:
    """Add the server's memory to ``samples`` until cancelled."""
    while True:
        samples.append(Sample(time.perf_counter(), server.usage().rss_bytes))
        await asyncio.sleep(every)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
