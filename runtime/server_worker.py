"""The process that serves: one event loop, one encoder. Started by `server_process.py`.

Settings come as the first line of stdin; stdin's end means that the supervisor is gone. A byte a
second on the report pipe, from readiness on, says that the event loop turns.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from typing import Any

import click
import msgspec
import uvicorn
import uvloop

from .cli import exit_codes
from .server import build_app
from .server_log import logger, set_up_log
from .server_metrics import Metrics
from .server_protocol import Connections, connection_class
from .server_service import Service
from .server_settings import CUT_OFF, Settings

HEARTBEAT_S = 1.0
SPARE_FILES = 256
"""File descriptors that are not connections: libraries, files, pipes."""
COLLECT_AFTER = 50_000
"""Objects made and not gone, after which cycles of them are looked for. Requests leave none, and to
look through all that is in hand under load holds the event loop for tens of milliseconds."""


class Server(uvicorn.Server):
    """uvicorn's server, whose signals and some of whose connections are ours."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, once all that was accepted is among the connections that are told to end."""
        await self._connections.accept_no_more()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:  # noqa: ANN401
        """Leave signals alone."""
        yield


class Worker:
    """Serves until told to end."""

    def __init__(self, settings: Settings, listener: socket.socket, report: int) -> None:
        self._settings, self._listener, self._report = settings, listener, report
        self._service = Service(settings)
        self._service.when_failed = self._end
        files = raise_file_limit()
        most = min(settings.max_connections, max(1, files - SPARE_FILES))
        listener.setblocking(False)
        self._connections = Connections(
            listener, most, settings.header_timeout, settings.body_timeout
        )
        metrics = Metrics(self._service)
        if settings.prometheus_port is not None:
            metrics.serve(settings.hostname, settings.prometheus_port)
        self._tracing = None
        if settings.otlp_endpoint is not None:
            from .server_tracing import Tracing

            self._tracing = Tracing(settings.otlp_endpoint, settings.otlp_service_name)
        config = uvicorn.Config(
            build_app(self._service, metrics, self._tracing),
            http=connection_class(self._connections),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_timeout,  # type: ignore[arg-type]
            timeout_graceful_shutdown=settings.shutdown_timeout,  # type: ignore[arg-type]
        )
        self._server = Server(config, self._connections)
        self._failure: BaseException | None = None

    async def run(self) -> int:
        """Serve; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        loop.add_reader(sys.stdin.fileno(), self._supervisor_gone)
        tasks = [
            loop.create_task(self._open()),
            loop.create_task(self._connections.sweep()),
            loop.create_task(self._service.lateness.watch()),
        ]
        await self._server.serve(sockets=[self._listener])
        for task in tasks:
            task.cancel()
        if self._failure is not None:
            raise self._failure
        if cancelled := self._server.server_state.tasks:
            await asyncio.wait(cancelled, timeout=1)
        if self._service.cut_off:
            count = self._service.cut_off
            logger.warning("%d requests were cut off by --shutdown-timeout.", count)
        await asyncio.to_thread(self._service.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        return CUT_OFF if self._service.cut_off else 0

    async def _open(self) -> None:
        try:
            await asyncio.to_thread(self._service.open)
        except BaseException as error:  # whatever it is, nothing can be served
            self._end(error)
            return
        gc.collect()
        gc.freeze()  # what is there now stays, and need not be looked through again
        gc.set_threshold(COLLECT_AFTER)
        if self._service.state == "starting":
            self._service.state = "ready"
        await self._beat()

    def _end(self, failure: BaseException) -> None:
        self._failure = failure
        self._server.should_exit = True

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a supervisor that is gone is noticed elsewhere
                os.write(self._report, b".")
            await asyncio.sleep(HEARTBEAT_S)

    def _drain(self) -> None:
        if self._service.state == "starting":
            sys.stderr.flush()
            os._exit(0)  # nothing was admitted yet, and a thread that loads cannot be stopped
        self._service.state = "draining"
        self._server.should_exit = True

    def _supervisor_gone(self) -> None:
        if not os.read(sys.stdin.fileno(), 1):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._drain()


def raise_file_limit() -> int:
    """Raise this process's soft limit of open files to the hard one, and return it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def main() -> None:
    """Serve on the socket and report to the pipe whose descriptors are the arguments."""
    listener, report = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    settings = msgspec.json.decode(_first_line(), type=Settings)
    set_up_log(as_json=settings.json_output)
    code = 70
    try:
        with exit_codes(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(Worker(settings, listener, report).run())
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Exit as end:
        code = end.exit_code
    sys.exit(code)


def _first_line() -> bytes:
    """Return the first line of stdin, and not a byte more: the rest is watched for its end."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(sys.stdin.fileno(), 1)
        if not piece:
            sys.exit(0)
        line += piece
    return line


if __name__ == "__main__":
    main()
