"""Files that appear under their name when they are whole, or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def whole_file(
    path: Path, *, partial: Path | None = None, sync: bool = False
) -> Iterator[IO[bytes]]:
    """Yield a file to write; it gets its name when the block ends without an error.

    What a link leads to is replaced, and a device or pipe is written as it is. ``partial``: what
    the file is called until then, for one writer at a time, who then finds and replaces what it
    left when it was killed; None takes a name that nobody else has. ``sync``: have content and name
    on the disk when this returns.
    """
    if is_device(path):
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve() if path.is_symlink() else path
    try:
        partial = _new_name(path) if partial is None else partial
        try:  # before the file is made: whoever ends this process may do so at any moment
            with partial.open("wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
            if sync:
                sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in NO_ROOM:  # such an error names no file
            error.filename = error.filename or str(path)
        raise


def is_device(path: Path) -> bool:
    """Return whether this is a device or pipe, such as /dev/stdout, whose link leads to no name."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _new_name(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    share_as_usual(Path(name))
    return Path(name)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share_as_usual(path: Path) -> None:
    """Give a temporary file or folder, which only its owner may read, the mode of a new one."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
