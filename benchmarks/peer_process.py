"""A worker process and the pipes to it: asks, waits no longer than allowed, ends it for good."""

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from corom.runtime.errors import CoromError
from corom.runtime.vectors import Vectors

WORKER = Path(__file__).with_name("peer_worker.py")
ANSWER_SECONDS = 600.0
ERROR_CHARACTERS = 300
"""Libraries' errors may list all they know."""


class PeerError(CoromError):
    """A peer could not be installed, failed, or gives other vectors; the others go on."""

    exit_code = 3


class PeerProcess:
    """One library behind pipes. ``command`` speaks what `peer_worker.py` documents."""

    def __init__(self, command: Sequence[str | Path], threads: int) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
            "ORT_DISABLE_TELEMETRY": "1",
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env=environment,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, do: str, *, timeout: float = ANSWER_SECONDS, **fields: object) -> dict[str, Any]:
        """Return the answer; raises ``PeerError`` if that failed, or took longer than allowed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do} | fields) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise PeerError(f"no answer to '{do}' within {timeout:.0f} s.") from None
        except OSError:
            line = ""
        if not line:
            code = self._process.wait()
            raise PeerError(f"the process ended with {code}: {self._last_words()}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            raise PeerError(f"'{do}' was answered by no JSON: {line[:200]!r}") from None
        if "error" in answer:
            why = textwrap.shorten(str(answer["error"]), ERROR_CHARACTERS, placeholder=" …")
            raise PeerError(f"'{do}' failed: {why}")
        return answer

    def vectors(self, texts: list[str]) -> Vectors:
        """Return the vectors (N, H) that the library gives the texts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vectors.npy"
            self.ask("vectors", texts=texts, file=str(file))
            found: Vectors = np.load(file)
        return found

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._errors):
            if pipe is not None:
                # It may have ended before it read the last of what was asked.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        self._errors.seek(0)
        words = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        return " ".join(words[-3:])


def worker_command(python: str | Path) -> list[str | Path]:
    """Return the command that runs a peer's worker with the interpreter of its environment.

    Isolated, so that nothing of corom's environment is in reach of the peer's imports.
    """
    return [python, "-I", WORKER]
