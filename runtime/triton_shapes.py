"""Which shapes Triton executes: widths that requests are padded to, and batch sizes.

Triton's own backends put requests of equal shape into a batch, so requests are padded to few
widths; its Python backend takes any together. Pure functions.
"""

from collections.abc import Sequence

from .engine_cache import ShippedEngine
from .errors import InputError
from .options import positive
from .shapes import WIDTHS, Buckets
from .sidecar import Profile

MAX_BATCH_SIZE: dict[str, int] = {"python": 256, "onnxruntime": 64, "tensorrt": 256}
PREFERRED_BATCH_SIZES = (8, 16, 32, 64)


def rows_held(profiles: Sequence[Profile], width: int) -> int:
    """Return the most rows so that every number from 1 to it fits a profile at this width."""
    ranges = [p.batch for p in profiles if p.length[0] <= width <= p.length[2]]
    rows = 0
    while any(low <= rows + 1 <= high for low, _, high in ranges):
        rows += 1
    return rows


def widths_for(max_length: int) -> tuple[int, ...]:
    """Return the usual widths below ``max_length``, and that."""
    return (*(width for width in WIDTHS if width < max_length), max_length)


def shapes_for(
    encoder: str, engine: ShippedEngine | None, max_length: int
) -> tuple[tuple[int, ...], int]:
    """Return the widths that requests are padded to, and how many rows fit at each of them."""
    if encoder == "python":
        return (), MAX_BATCH_SIZE["python"]  # takes requests of unlike shapes together
    if engine is None:
        return widths_for(max_length), MAX_BATCH_SIZE["onnxruntime"]
    profiles = engine.sidecar.profiles
    known = sorted({bucket.width for bucket in Buckets(profiles)})
    if max_length > known[-1]:
        raise InputError(
            f"'{engine.path}' takes texts of up to {known[-1]} tokens, and texts are cut to "
            f"{max_length}. Add --max-length {known[-1]}, or export with a longer profile."
        )
    holds_longest = next(width for width in known if width >= max_length)
    widths = tuple(width for width in known if width <= holds_longest)
    rows = min(rows_held(profiles, width) for width in widths)
    if rows < 1:
        raise InputError(
            f"'{engine.path}' has no profile for one text alone at every length. Export again with "
            "profiles whose batch begins at 1."
        )
    return widths, min(rows, MAX_BATCH_SIZE["tensorrt"])


def max_batch_size_for(size: int | None, engine: ShippedEngine | None, most: int) -> int:
    """Return the most texts of a batch: ``size`` if it was asked for, else ``most``."""
    if size is None:
        return most
    if positive("max_batch_size", size) > most and engine is not None:
        raise InputError(
            f"max_batch_size is {size}; the profiles of '{engine.path}' hold up to {most} texts at "
            "every length."
        )
    return size


def preferred_for(
    asked: Sequence[int] | None, encoder: str, engine: ShippedEngine | None, max_batch_size: int
) -> tuple[int, ...]:
    """Return the batch sizes that Triton forms first where it can."""
    if asked is not None:
        for size in asked:
            if positive("preferred_batch_sizes", size) > max_batch_size:
                raise InputError(
                    f"preferred batch size {size} is above max_batch_size {max_batch_size}."
                )
        return tuple(sorted(set(asked)))
    if encoder == "python":
        return ()  # corom cuts a batch by tokens itself: every size is as good as another
    sizes: Sequence[int] = PREFERRED_BATCH_SIZES
    if engine is not None:  # what its kernels were chosen for
        sizes = sorted({p.batch[1] for p in engine.sidecar.profiles if p.batch[1] > 1})
    return tuple(size for size in sizes if size <= max_batch_size)
