"""What lies behind a URL as a store, through fsspec."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from .cache import cache_root
from .manifest import sha256_of
from .store import Fill, Written, lock_or_refuse
from .urls import errors_of, filesystem


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
            lock_or_refuse(file.fileno(), self.name)
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
