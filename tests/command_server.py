"""Runs `corom` in forks of a process that has imported what commands need: `conftest.py` starts it.

Each command is a process of its own, with its own pipes, folder and exit code, that ends as any
other: only the second in which a new one imports the same modules again is spared. What the time
of a start, signals or the environment do is tested with processes that are new.
"""

import gc
import json
import os
import socket
import sys
from contextlib import suppress
from importlib import import_module

from corom.runtime.cli import COMMANDS, main

BEFORE = [
    *(module for module, _ in COMMANDS.values()),
    "corom.runtime.encoder",
    "corom.runtime.onnx_runtime",
    "corom.runtime.verify",
    "pyarrow.parquet",
    "rich.table",
]


def serve(connection: socket.socket) -> bool:
    """Answer each request with the id of its process, then with its exit code.

    Returns in the fork of a request, with True; in this process at the end of requests.

    A request is three descriptors and a JSON object of ``arguments``, ``folder`` and
    ``environment``, which is added to the usual one.
    """
    while True:
        request, descriptors, *_ = socket.recv_fds(connection, 2**16, 3)
        if not request:
            return False
        process = os.fork()
        if process == 0:
            connection.close()
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            command = json.loads(request)
            os.chdir(command["folder"])
            os.environ |= command["environment"]
            sys.argv = command["arguments"]
            return True
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(process).encode())
        _, status = os.waitpid(process, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    for name in (*BEFORE, *sys.argv[2:]):
        with suppress(ModuleNotFoundError):  # of an extra: its commands say so
            import_module(name)
    gc.freeze()  # or each fork, at its end, goes through all of it, and has to copy it first
    if serve(socket.socket(fileno=int(sys.argv[1]))):
        main()
