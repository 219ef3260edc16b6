"""Where corom keeps what it can make or fetch again: wheels, engines, timing caches."""

import os
from pathlib import Path

from .errors import UnavailableError


def cache_root() -> Path:
    """Return corom's own cache: COROM_CACHE, else corom in XDG_CACHE_HOME or ~/.cache.

    Raises ``UnavailableError`` where it would be in a home directory and the user has none.
    """
    try:
        if own := os.environ.get("COROM_CACHE"):
            return Path(own).expanduser()
        shared = os.environ.get("XDG_CACHE_HOME")
        return (Path(shared) if shared else Path.home() / ".cache") / "corom"
    except RuntimeError as error:
        raise UnavailableError(
            f"corom's cache has no place: {error} Name a folder: COROM_CACHE=FOLDER."
        ) from None
