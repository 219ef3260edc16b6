"""Where a folder of shards lies: on a disk of this machine, or behind a URL."""

from pathlib import Path

from .errors import InputError
from .store import Store
from .store_disk import DiskStore
from .store_url import UrlStore
from .urls import is_url


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
