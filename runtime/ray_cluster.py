"""A Ray cluster: the one that there is, or one that is started on this machine."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .cpus import available_cpus
from .embedder import Say
from .errors import UnavailableError, missing_extra
from .ray_team import Machine

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # of 40 s each, for a cluster that crashed here
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # there is one of rows
}
"""What Ray reads when it is imported; what a user has set stays."""


@contextmanager
def connected(say: Say) -> Iterator[list[Machine]]:
    """Join the cluster that there is, or start one; yields its machines."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if find_spec("ray") is None:
        raise missing_extra("ray", "ray", "--engine ray")
    ray: Any = import_module("ray")
    terminate = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        # Ray notes every death there, at length, where results would go.
        stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        stack.callback(ray.shutdown)
        _join_or_start(ray, say)
        signal.signal(signal.SIGTERM, terminate)  # Ray put its own in place
        yield [
            Machine(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
            for node in ray.nodes()
            if node["Alive"]
        ]


@contextmanager
def quiet_start() -> Iterator[None]:
    """Keep from stderr what Ray's C++ says of every actor of Ray Data; Python writes there still.

    The message: such actors cannot be restarted once their arguments are gone, which are this
    process's. No option leaves it out, but it comes from below ``sys.stderr``.
    """
    shown = os.dup(2)
    with (
        Path(os.devnull).open("w") as nowhere,
        open(shown, "w", encoding="utf-8", errors="backslashreplace") as stderr,  # noqa: PTH123
        redirect_stderr(stderr),
    ):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown, 2)


def _join_or_start(ray: Any, say: Say) -> None:  # noqa: ANN401
    """Join the cluster of RAY_ADDRESS or of `ray start`; start one if there is neither.

    Not address="auto": it would also join what another job started for itself, and end with it.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(address)
        try:
            ray.init(num_cpus=available_cpus(), include_dashboard=False, **quiet)
        except ValueError:  # there is a cluster: it has the CPUs it has
            ray.init(**quiet)
        else:
            say("There is no Ray cluster; one was started on this machine.")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UnavailableError(
            f"the Ray cluster{' at RAY_ADDRESS=' * bool(address)}{address} cannot be reached: "
            f"{error}. If it asks for a token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN as Ray's "
            "documentation says. Without RAY_ADDRESS one is started on this machine (after a "
            "`ray stop` if one crashed here)."
        ) from None


def _knock(address: str) -> None:
    """Raise ``OSError`` if nobody answers there: Ray would try for a quarter of an hour."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
