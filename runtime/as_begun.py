"""What goes on with a folder: what it was begun with, wherever "auto" leaves that open."""

from pathlib import Path
from typing import Any

from .manifest import load_manifest, manifest_sha256
from .shard_manifest import Job
from .tuning import find_winner, leaves_open

LEFT_TO_AUTO = ("backend", "device", "precision")


def as_begun(
    bundle: Path, asked: dict[str, Any], begun: Job, *, local: bool
) -> tuple[dict[str, Any], int | None]:
    """Return the options of an encoder as a folder was begun, and its batch budget.

    ``asked``: the options of ``Encoder``; what they name stays. The budget is None where
    ``max_batch_tokens`` does not allow that of the folder. The folder of another bundle changes
    nothing: it is refused later, with all that differs.
    """
    if begun.bundle_sha256 != manifest_sha256(bundle):
        return asked, None
    fits = begun.batch_tokens <= asked["max_batch_tokens"]
    budget = begun.batch_tokens if fits else None
    if local and _by_winner(bundle, asked, begun):
        return asked, budget  # with the winner's threads, as it was begun
    taken = {name: getattr(begun, name) for name in LEFT_TO_AUTO if asked[name] == "auto"}
    return asked | taken, budget


def _by_winner(bundle: Path, asked: dict[str, Any], begun: Job) -> bool:
    """Return whether "auto" takes what was tuned here, and that is what the folder has."""
    if not leaves_open(asked) or begun.device != "cpu":
        return False
    winner = find_winner(bundle, load_manifest(bundle), asked["tuned"])
    return winner is not None and (winner.backend, winner.precision) == (
        begun.backend,
        begun.precision,
    )
