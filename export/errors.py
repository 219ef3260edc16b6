"""The errors that only the exporter raises; see corom.runtime.errors for the tree."""

from pathlib import Path

from corom.runtime.errors import InputError, ParityError
from corom.runtime.manifest import Manifest


class CheckpointError(InputError):
    """A checkpoint that is incomplete, damaged or of a kind that corom does not export."""


class RungError(ParityError):
    """Lower precisions differ from torch by too much; the bundle was published without them."""

    def __init__(self, failures: list[str], output: Path, manifest: Manifest) -> None:
        published = ", ".join(
            f"{v.precision} by {' and '.join(v.parity)}" for v in manifest.variants
        )
        super().__init__("\n".join([*failures, f"Published '{output}' without that: {published}."]))
        self.manifest = manifest


def listed(names: list[str], limit: int = 12) -> str:
    """Return ``names`` joined by commas; past ``limit`` only how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
