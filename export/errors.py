"""The error that only the exporter raises; see corom.runtime.errors for the tree."""

from corom.runtime.errors import InputError


class CheckpointError(InputError):
    """A checkpoint that is incomplete, damaged or of a kind that corom does not export."""


def listed(names: list[str], limit: int = 12) -> str:
    """Return ``names`` joined by commas; past ``limit`` only how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
