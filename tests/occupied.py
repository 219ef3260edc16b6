"""A server that has work for seconds, whatever the machine: what comes meanwhile has to wait."""

import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

TEXTS = ["头痛" * 60] * 6400
"""Texts that take the tiny bundle about four seconds on two cores."""
BODY = json.dumps({"inputs": TEXTS}).encode()
ROOM = ("--payload-limit", str(2**25))
"""What `corom serve` must be told to take them in one body."""


@contextmanager
def occupied(url: str) -> Iterator[None]:
    """Have the server compute one long call; on leaving, its client goes away, which ends it."""
    split = urlsplit(url)
    head = (
        "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n\r\n"
    )
    with socket.create_connection((split.hostname, split.port)) as connection:
        connection.sendall(head.encode() + BODY)
        until_busy(url)
        yield


def until_busy(url: str) -> None:
    until(lambda: metric(url, "corom_running_texts") > 0)


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as reply:
        found = re.search(rf"^{name} (.*)$", reply.read().decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
