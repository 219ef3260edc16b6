"""Files that appear under their name when they are whole, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write; it gets its name when the block ends without an error."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        partial = Path(file.name)
        try:
            yield file
            file.close()
            share_as_usual(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def share_as_usual(path: Path) -> None:
    """Give a temporary file or folder, which only its owner may read, the mode of a new one."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
