"""Files behind URLs (s3://, gs://, hdfs://, https://, file://, …), through fsspec."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from .errors import CoromError, InputError, UnavailableError, missing_extra


def is_url(name: str) -> bool:
    """Return whether this names a place that fsspec reads, and no path."""
    return "://" in name


def without_secrets(name: str) -> str:
    """Return a URL without who asks and, of HTTP, what is asked with, such as a signature."""
    scheme = name.partition("://")[0]
    name = re.sub("://[^/@]*@", "://", name)
    return name.partition("?")[0] if scheme.endswith(("http", "https")) else name


def matching_urls(pattern: str) -> list[str]:
    """Return the files that a URL or a glob pattern of one stands for, sorted."""
    with errors_of(pattern):
        files, path = filesystem(pattern)
        paths = sorted(files.glob(path)) if "*" in path else [path]
        found = [str(files.unstrip_protocol(p)) for p in paths if files.isfile(p)]
    if not found:
        raise InputError(
            f"{'no file matches' if '*' in pattern else 'there is no file'} '{pattern}'."
        )
    return found


def open_url(name: str) -> BinaryIO:
    """Open a file to read."""
    with errors_of(name):
        files, path = filesystem(name)
        return cast("BinaryIO", files.open(path, "rb"))


def measure_url(name: str) -> tuple[str, int]:
    """Return the sha256 and the size of a file, which is read for it."""
    with errors_of(name), open_url(name) as file:
        digest, size = hashlib.sha256(), 0
        while part := file.read(1 << 20):  # file_digest wants more of a file than all of them have
            digest.update(part)
            size += len(part)
        return digest.hexdigest(), size


def filesystem(name: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise missing_extra("fsspec", "ray", "What lies behind a URL") from None
    files, path = url_to_fs(name)
    return files, str(path)


@contextmanager
def errors_of(name: str, done: str = "read") -> Iterator[None]:
    """Raise this library's errors for those of fsspec and of the drivers that it uses."""
    try:
        yield
    except CoromError:
        raise
    except (FileNotFoundError, FileExistsError, NotADirectoryError, ValueError) as error:
        raise InputError(f"'{name}' cannot be {done}: {_said(error)}.") from None
    except (AssertionError, AttributeError, LookupError, NameError, TypeError):
        raise  # a bug
    except Exception as error:  # no package for this kind of URL, no credentials, no connection
        raise UnavailableError(f"'{name}' cannot be {done}: {_said(error)}.") from None


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
