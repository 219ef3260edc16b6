"""A folder of this machine as a store."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import InputError
from .manifest import sha256_of
from .store import Fill, Written, lock_or_refuse
from .whole_file import sync_folder, whole_file


class DiskStore:
    """A folder, made when it is held if it is not there; then removed if nothing came of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder by a lock on itself, which leaves no file behind."""
        handle, made = self._lock()
        try:
            yield
        finally:
            try:
                # While the lock is held: an empty folder may be another job's that has just begun.
                with suppress(OSError):  # it has files, or may stay
                    if made:
                        self.path.rmdir()
            finally:
                os.close(handle)

    def _lock(self) -> tuple[int, bool]:
        """Return the locked folder, and whether it was made for this."""
        while True:
            made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                lock_or_refuse(handle, self.name)
            except InputError:
                os.close(handle)
                raise
            # A job that ended in between may have removed the folder that was opened.
            if self.path.exists() and os.fstat(handle).st_ino == self.path.stat().st_ino:
                return handle, made
            os.close(handle)

    def names(self) -> list[str]:
        """Return the names of all files and folders, sorted."""
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it is not there."""
        path = self.path / name
        try:
            return path.read_bytes() if path.exists() else None
        except OSError as error:
            raise InputError(f"'{path}' cannot be read: {error.strerror}.") from None

    def holds(self, name: str, size_bytes: int, sha256: str, /) -> bool:
        """Return whether a file has this content."""
        path = self.path / name
        try:
            return path.stat().st_size == size_bytes and sha256_of(path) == sha256
        except OSError:
            return False

    def put(self, name: str, data: bytes) -> None:
        """Write a small file, or replace it."""
        with self._new(name) as file:
            file.write(data)

    def write(self, name: str, fill: Fill) -> Written:
        """Write a file, or replace it, with what ``fill`` puts into it."""
        with self._new(name) as file:
            fill(file)
        path = self.path / name
        return Written(name, path.stat().st_size, sha256_of(path))

    def _new(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Return a file to write; the lock keeps others from its temporary name."""
        return whole_file(self.path / name, partial=self.path / f".{name}.tmp", sync=True)

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, on the disk when this returns."""
        (self.path / name).replace(self.path / new)
        sync_folder(self.path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)
