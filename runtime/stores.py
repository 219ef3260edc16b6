"""Where a folder of shards lies: on a disk of this machine, or behind a URL through fsspec.

A file is there whole or not at all. Knows names and bytes, no shards and no manifest.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, NamedTuple, Protocol

from .cache import cache_root
from .errors import InputError
from .manifest import sha256_of
from .urls import errors_of, filesystem, is_url
from .whole_file import sync_folder, whole_file

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


def place_of(name: str | Path) -> str | Path:
    """Return a URL as it is and everything else as a path; what file:// names is a path."""
    if isinstance(name, Path):
        return name
    for local in ("file://localhost/", "file:///", "local:///"):
        if name.startswith(local):
            return Path("/", name.removeprefix(local))
    if is_url(name) and not name.partition("://")[2].strip("/"):
        raise InputError(
            f"'{name}' names no place. Give a bucket and a folder: s3://bucket/folder."
        )
    return name if is_url(name) else Path(name)


def open_store(name: str | Path) -> Store:
    """Return the store of a path or a URL."""
    place = place_of(name)
    return UrlStore(place) if isinstance(place, str) else DiskStore(place)


class DiskStore:
    """A folder, made when it is held, removed again if nothing came of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder by a lock on itself, which leaves no file behind."""
        handle = self._lock()
        try:
            yield
        finally:
            # While the lock is held: an empty folder may be another job's that has just begun.
            if not any(self.path.iterdir()):
                self.path.rmdir()
            os.close(handle)

    def _lock(self) -> int:
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _lock_or_refuse(handle, self.name)
            except InputError:
                os.close(handle)
                raise
            # A job that ended in between may have removed the folder that was opened.
            if self.path.exists() and os.fstat(handle).st_ino == self.path.stat().st_ino:
                return handle
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


class UrlStore:
    """What a URL names, s3:// say: where a file that is written appears whole.

    That is so for object stores. They cannot be locked: this machine's processes keep out of each
    other's way, those of others do not. A bucket is never made.
    """

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        with errors_of(self.name):
            self._files, root = filesystem(self.name)
            self._root = root.rstrip("/")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the URL by a lock in corom's cache."""
        locks = cache_root() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / hashlib.sha256(self.name.encode()).hexdigest()[:32]).open("a") as file:
            _lock_or_refuse(file.fileno(), self.name)
            yield

    def names(self) -> list[str]:
        """Return the names of all files and folders, sorted."""
        with errors_of(self.name):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            # Some stores keep an empty object in place of the folder: it is no file in it.
            names = {path.rstrip("/").removeprefix(f"{self._root}/") for path in found}
            return sorted(names - {self._root})

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it is not there."""
        with errors_of(f"{self.name}/{name}"):
            try:
                content: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def holds(self, name: str, size_bytes: int, _sha256: str, /) -> bool:
        """Return whether a file has this size; its content is checked by who reads it."""
        with errors_of(f"{self.name}/{name}"):
            self._files.invalidate_cache()
            try:
                return bool(self._files.size(self._path(name)) == size_bytes)
            except FileNotFoundError:
                return False

    def put(self, name: str, data: bytes) -> None:
        """Write a small file, or replace it."""
        with errors_of(f"{self.name}/{name}", "written"):
            self._files.pipe_file(self._path(name), data)

    def write(self, name: str, fill: Fill) -> Written:
        """Write a file, or replace it, with what ``fill`` puts into it, by way of ``TMPDIR``."""
        with NamedTemporaryFile(prefix="corom-") as made:
            fill(made)
            made.flush()
            path = Path(made.name)
            with errors_of(f"{self.name}/{name}", "written"):
                self._files.put_file(str(path), self._path(name))
            return Written(name, path.stat().st_size, sha256_of(path))

    def rename(self, name: str, new: str) -> None:
        """Copy a file, then remove it: the new one appears whole."""
        content = self.read(name)
        if content is not None:
            self.put(new, content)
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with errors_of(f"{self.name}/{name}", "removed"):
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _lock_or_refuse(handle: int, name: str) -> None:
    """Lock an open file until it is closed, or its process dies."""
    import fcntl  # only where folders are written: Windows has none

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another process writes to '{name}' now.") from None
