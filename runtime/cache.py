"""Where corom keeps what it can make or fetch again: wheels, engines, timing caches."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Return corom's own cache: COROM_CACHE, else corom in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("COROM_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "corom"
