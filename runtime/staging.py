"""A folder appears whole or not at all: built in a temporary one, published by one rename."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .errors import InputError
from .manifest import MANIFEST_NAME
from .whole_file import share_as_usual


class Kind(NamedTuple):
    """What is published: what a message calls it, and how one is known.

    That is a file, and what is in it: others have a file of that name too.
    """

    noun: str
    marker: str
    sign: bytes = b""

    def is_at(self, folder: Path) -> bool:
        """Return whether a folder is of this kind, be it a damaged one."""
        marker = folder / self.marker
        return marker.is_file() and self.sign in marker.read_bytes()


BUNDLE = Kind("bundle", MANIFEST_NAME, b'"schema_version"')


@contextmanager
def staged(output: Path, *, overwrite: bool, kind: Kind = BUNDLE) -> Iterator[Path]:
    """Yield a temporary folder beside ``output`` that becomes ``output`` if the block succeeds.

    If the block fails, or is interrupted, nothing is left behind. Raises ``InputError`` if there
    is something at ``output``, before the work and again if another process came first;
    ``overwrite`` replaces what is of this ``kind``, nothing else.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100  # resolve() would follow a link
    refuse_occupied(output, overwrite=overwrite, kind=kind)
    file = next((folder for folder in output.parents if folder.is_file()), None)
    if file is not None:
        raise InputError(f"'{file}' is a file; '{output.name}' needs a folder to be in.")
    created = [folder for folder in output.parents if not folder.exists()]
    staging = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(
            tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent)
        )
        yield staging
        if overwrite:  # whose place it takes may have come while the work was done
            refuse_occupied(output, overwrite=True, kind=kind)
        share_as_usual(staging)
        _publish(staging, output, overwrite=overwrite)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if not output.exists():
            _remove_empty(created)


def refuse_occupied(output: Path, *, overwrite: bool, kind: Kind = BUNDLE) -> None:
    """Raise ``InputError`` if there is something at ``output`` that may not be replaced."""
    if os.path.ismount(output):
        raise InputError(
            f"'{output}' is a mount point, which no finished folder can take the place of. Give a "
            f"folder in it: '{output / kind.noun.split()[0].lower()}'."
        )
    if not output.is_symlink() and (not output.exists() or _is_empty_folder(output)):
        return
    if not overwrite:
        raise InputError(
            f"'{output}' exists. Choose another folder, or replace it with --overwrite."
        )
    if not kind.is_at(output):
        raise InputError(
            f"'{output}' is not a {kind.noun}, and --overwrite replaces nothing else. Choose "
            "another folder, or remove it first."
        )


def _publish(staging: Path, output: Path, *, overwrite: bool) -> None:
    try:
        if overwrite and output.exists():
            _replace(staging, output)
        else:
            staging.rename(output)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise InputError(
                f"another process published '{output}' first; this one was discarded."
            ) from None
        raise


def _replace(staging: Path, output: Path) -> None:
    """Two renames: between them there is no bundle, but never half of one."""
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
    kept = old / output.name
    try:
        output.rename(kept)
        staging.rename(output)
    finally:
        if kept.exists() and not output.exists():
            kept.rename(output)
        shutil.rmtree(old, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if _is_empty_folder(folder):
            folder.rmdir()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
