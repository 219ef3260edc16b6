"""An engine as people see it: what it is built from and for, its profiles, and if it runs here."""

from rich.markup import escape
from rich.table import Table

from .engine_cache import ShippedEngine
from .shapes import Buckets
from .sidecar import Sidecar


def engine_table(engine: ShippedEngine) -> Table:
    """Return the profile table of an engine, for a terminal of 80 columns."""
    table = Table(
        "profile",
        "rows min, opt, max",
        "tokens min, opt, max",
        title=escape(f"Engine {engine.path}\n{_built(engine.sidecar)}"),
        title_justify="left",
        caption=escape(
            "\n".join([_shapes(engine.sidecar), _proof(engine.sidecar), _verdict(engine.problems)])
        ),
        caption_justify="left",
    )
    for profile in engine.sidecar.profiles:
        table.add_row(profile.name, _range(profile.batch), _range(profile.length))
    return table


def _built(sidecar: Sidecar) -> str:
    where = sidecar.gpu or "every GPU that TensorRT-RTX knows"
    parts = [f"{sidecar.precision} by {sidecar.flavour} {sidecar.version} for {where}"]
    if sidecar.compute_capability:
        parts.append(f"compute capability {sidecar.compute_capability}")
    if sidecar.driver:
        parts.append(f"driver {sidecar.driver}")
    if sidecar.cuda:
        parts.append(f"CUDA {sidecar.cuda}")
    parts += [f"{name} {value}" for name, value in sidecar.options.items()]
    return ", ".join(parts)


def _shapes(sidecar: Sidecar) -> str:
    buckets = list(Buckets(sidecar.profiles))
    return (
        f"Batches are padded to {len(buckets)} shapes, up to {max(b.rows for b in buckets)} rows "
        f"and {max(b.width for b in buckets)} tokens; each gets a CUDA graph at its third "
        "execution and runs by plain enqueue before that, or where it cannot be captured."
    )


def _proof(sidecar: Sidecar) -> str:
    if sidecar.parity is None:
        return (
            "Its vectors were not measured when it was built, on a machine that cannot run it; "
            "opening it compares them with the golden ones."
        )
    return (
        f"Measured where it was built: cosine min {sidecar.parity.cosine_min:.7f}, max abs "
        f"{sidecar.parity.max_abs_error:.0e} on {sidecar.parity.texts} texts."
    )


def _verdict(problems: list[str]) -> str:
    if not problems:
        return "Runs on this machine."
    return "Does not run on this machine: " + "; ".join(problems)


def _range(sizes: tuple[int, int, int]) -> str:
    return ", ".join(map(str, sizes))
