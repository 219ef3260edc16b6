"""The process that supervises: holds the listening socket, starts the worker again if it dies.

Loads nothing heavy, so that what kills a worker (memory above all) leaves it alone. While there is
no worker, new connections wait in the socket's backlog.
"""

import os
import select
import selectors
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import msgspec

from .errors import InputError, UnavailableError
from .json_lines import json_line
from .server_settings import CUT_OFF, Settings

BACKLOG = 2048
HUNG_S = 60.0
"""A worker whose event loop has not turned for so long is killed."""
PAUSED_S = 5.0
"""A supervisor that looks every second, and did not for so long, was paused with its machine."""
RESTARTS = 5
"""Workers that may be killed one after the other before they are ready."""
LINGER_S = 5.0
"""What a worker has after --shutdown-timeout to release its things."""
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def supervise(settings: Settings) -> int:
    """Serve until told to stop, and return the exit code of the command."""
    with listening(settings) as (listener, address), _signals() as signals:
        return Supervisor(settings, listener, address, signals).run()


class Supervisor:
    """One worker at a time, and what is done when it ends."""

    def __init__(
        self, settings: Settings, listener: socket.socket, address: str, signals: socket.socket
    ) -> None:
        self._settings, self._listener, self._address = settings, listener, address
        self._signals = signals
        self._stopped_by: int | None = None
        self._told = False
        self._kill_at: float | None = None

    def run(self) -> int:
        """Start workers until one ends as it should."""
        killed = 0
        while True:
            worker, report = self._start()
            with os.fdopen(report, "rb", buffering=0) as pipe:
                was_ready = self._watch(worker, pipe.fileno())
            code = worker.wait()
            if self._stopped_by is not None:
                return self._code_when_stopped(code, was_ready)
            if code >= 0 and not was_ready:
                return code or 3  # it has said why
            killed = 0 if was_ready else killed + 1
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            if not self._told or killed > RESTARTS:
                self._say(f"Error: the worker {how} before it was ready.", "ERROR")
                return 3
            self._say(f"The worker {how}; starting another.", "WARNING")
            if killed and self._stopped_within(min(2**killed, 10)):
                return self._code_when_stopped(0, was_ready=False)

    def _code_when_stopped(self, code: int, was_ready: bool) -> int:
        """Return the exit code of the command: 0, or that of the signal if something was lost."""
        if self._stopped_by == signal.SIGINT and code <= 0:
            return 128 + signal.SIGINT
        return CUT_OFF if code < 0 and was_ready else max(code, 0)

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        reads, writes = os.pipe()
        # -P: a file of the current folder must not stand in for a module.
        command = [sys.executable, "-P", "-m", "corom.runtime.server_worker"]
        descriptors = (self._listener.fileno(), writes)
        worker = subprocess.Popen(
            [*command, *map(str, descriptors)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            pass_fds=descriptors,
            process_group=0,  # Ctrl-C is for this process, which then tells the worker
        )
        os.close(writes)
        assert worker.stdin is not None
        with suppress(BrokenPipeError):
            worker.stdin.write(msgspec.json.encode(self._settings) + b"\n")
            worker.stdin.flush()  # and it stays open: its end tells the worker that we are gone
        return worker, reads

    def _watch(self, worker: subprocess.Popen[bytes], report: int) -> bool:
        """Return, once a worker has ended, whether it was ever ready."""
        was_ready = False
        beat = looked = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(report, selectors.EVENT_READ)
            selector.register(self._signals, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(timeout=1):
                    if key.fileobj is self._signals:
                        self._stop(worker)
                        continue
                    if not os.read(report, 4096):
                        return was_ready
                    beat = time.monotonic()
                    if not was_ready:
                        was_ready = True
                        self._say_ready()
                now = time.monotonic()
                if now - looked > PAUSED_S:  # then so was the worker
                    beat = now
                looked = now
                hung = was_ready and now - beat > HUNG_S
                if hung or (self._kill_at is not None and now > self._kill_at):
                    worker.kill()

    def _stopped_within(self, seconds: float) -> bool:
        """Wait so long, with no worker, or until told to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._signals], [], [], left)[0]:
                for number in self._stops():
                    self._stopped_by = number
                    return True
        return False

    def _say_ready(self) -> None:
        again = " again" if self._told else ""
        self._told = True
        self._say(f"Listening{again} on {self._address}", "INFO")

    def _say(self, message: str, level: str) -> None:
        if self._settings.json_output:
            message = json_line(time.time(), level, "corom.serve.supervisor", message)
        click.echo(message, err=True)

    def _stops(self) -> list[int]:
        """Return the signals to stop that came."""
        return [number for number in self._signals.recv(64) if number in STOP]

    def _stop(self, worker: subprocess.Popen[bytes]) -> None:
        for number in self._stops():
            if self._stopped_by is not None:
                worker.kill()  # asked twice
                return
            self._stopped_by = number
            self._kill_at = time.monotonic() + self._settings.shutdown_timeout + LINGER_S
            self._listener.close()  # the worker closes its own: from now on, connections fail
            with suppress(ProcessLookupError):
                worker.terminate()


@contextmanager
def listening(settings: Settings) -> Iterator[tuple[socket.socket, str]]:
    """Yield the listening socket and its address, as people write it."""
    if settings.uds_path is not None:
        path = Path(settings.uds_path)
        with _unix_socket(path) as listener:
            ours = _identity(path)
            try:
                yield listener, f"unix:{path}"
            finally:
                # While this one drained, another server may have put its own there.
                with suppress(FileNotFoundError):
                    if _identity(path) == ours:
                        path.unlink()
        return
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.hostname, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InputError(f"--hostname '{settings.hostname}': {error.strerror}.") from None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {settings.hostname}:{settings.port}: {error.strerror}. "
                "Choose another --port (0 takes a free one) or --hostname."
            ) from None
        listener.listen(BACKLOG)
        host, port = listener.getsockname()[:2]
        yield listener, f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _identity(path: Path) -> tuple[int, int, int]:
    """Return what tells a file from one that is put in its place, which may get its inode."""
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _unix_socket(path: Path) -> socket.socket:
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise InputError(f"--uds-path '{path}' is there and is no socket.")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise UnavailableError(f"another process listens on '{path}'.")
        path.unlink()  # left behind by a process that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        why = error.strerror or error  # one that is too long never reached the system
        raise InputError(f"cannot listen on --uds-path '{path}': {why}.") from None
    listener.listen(BACKLOG)
    return listener


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Yield a socket that the numbers of signals can be read from, which then interrupt nothing."""
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    # What whoever started this has it ignore, as nohup does, stays ignored.
    heard = [n for n in STOP if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in heard}
    wakeup = signal.set_wakeup_fd(writes.fileno())
    try:
        with reads, writes:
            yield reads
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
