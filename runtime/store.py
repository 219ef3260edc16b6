"""What a store of files is: names and bytes, no shards and no manifest.

A file is there whole or not at all.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO, NamedTuple, Protocol

from .errors import InputError

Fill = Callable[[IO[bytes]], None]


class Written(NamedTuple):
    """A file as it was written."""

    file: str
    size_bytes: int
    sha256: str


class Store(Protocol):
    """Files by name. ``name``: what the place is called, in messages and as a key."""

    name: str

    def held(self) -> AbstractContextManager[None]:
        """Hold the place for this process; raises ``InputError`` if another process has it."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted; none where the place does not exist."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it is not there."""

    def holds(self, name: str, size_bytes: int, sha256: str, /) -> bool:
        """Return whether a file is there as it was put."""

    def put(self, name: str, data: bytes) -> None:
        """Write a small file, or replace it."""

    def write(self, name: str, fill: Fill) -> Written:
        """Write a file, or replace it, with what ``fill`` puts into it."""

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, replacing what has it."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


def lock_or_refuse(handle: int, name: str) -> None:
    """Lock an open file until it is closed, or its process dies."""
    import fcntl  # only where folders are written: Windows has none

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another process writes to '{name}' now.") from None
