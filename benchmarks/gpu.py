"""`make gpu-check`: everything that can be shown on this machine's GPU, in one run.

Exit codes: 0 all that is here passed · 1 a check failed · 3 no GPU to check, said what is missing.
Without TensorRT the device layer runs with a stand-in for the engine, labelled so. What is missing
is reported as missing. Writes one JSON document; the tables go to standard output.
"""

import json
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from corom.runtime.cuda import open_device
from corom.runtime.encoder import Encoder
from corom.runtime.errors import CoromError, UnavailableError
from corom.runtime.golden import GOLDEN_NAME, load_golden
from corom.runtime.manifest import Precision, load_manifest
from corom.runtime.sidecar import Flavour
from corom.runtime.verify import measure

from .gpu_checks import Check, device_checks, run_check, soak
from .gpu_figures import ROWS, WIDTHS, measured
from .gpu_inventory import Component, inventory
from .gpu_measure import (
    copy_floors,
    gemm_floor,
    stages,
)
from .gpu_models import SHAPES, demo_checkpoint, export, random_checkpoint
from .gpu_report import (
    checks_table,
    inventory_table,
    lacking,
    latency_table,
    throughput_table,
    verdict,
)
from .gpu_roads import ON_GPU
from .gpu_standin import StandInEngine
from .machine import describe_machine

TINY = "corom-tiny-random"
MODELS = ("demo", *SHAPES)
TESTS = Path(__file__).resolve().parent.parent / "tests"
ROADS: tuple[tuple[str, Precision], ...] = (
    ("tensorrt", "fp16"),
    ("onnxruntime", "fp16"),
    ("onnxruntime", "fp32"),
)
"""Backend and precision of what is compared with torch on the GPU."""


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("gpu-check.json"))
@click.option("--work", type=click.Path(path_type=Path), default=Path("bundles/gpu-check"))
@click.option("--rounds", type=click.IntRange(1), default=500, help="Requests a latency figure.")
@click.option(
    "--requests",
    type=click.IntRange(100),
    default=1_000_000,
    show_default=True,
    help="Requests to an engine that must not make memory grow.",
)
@click.option(
    "--model",
    "models",
    type=click.Choice(MODELS),
    multiple=True,
    help="Only this model; may be given again. The demo is exported for its words in any case.",
)
@click.option("--quick", is_flag=True, help="The device layer only: no bundle, no peer.")
def main(
    output: Path, work: Path, rounds: int, requests: int, models: tuple[str, ...], quick: bool
) -> None:
    """Check and measure corom on this machine's GPU."""
    parts = inventory()
    click.echo(inventory_table(parts))
    if missing := lacking(parts):
        click.echo(f"\nNo GPU check is possible here. Missing: {', '.join(missing)}.", err=True)
        sys.exit(3)
    report: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": describe_machine(),
        "machine": {part.name: part.found or f"missing: {part.missing}" for part in parts},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    report |= {"stand_in": {}, "floors": {}, "models": {}, "checks": []}
    checks: list[Check] = []
    wanted = () if quick else models or MODELS
    every = _all_checks(report, work, flavours_here(parts), rounds, requests, wanted)
    for check in every:
        checks.append(check)
        click.echo(f"{check.outcome}: {check.name}", err=True)
        report["checks"].append(check._asdict())
        # After every check: what was measured must survive what comes next.
        output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    click.echo("\n" + checks_table(checks))
    click.echo("\n" + latency_table(report["models"]))
    click.echo("\n" + throughput_table(report["models"]))
    click.echo(f"\nfloors: {report['floors']}\nstand-in: {report['stand_in']}\nwritten: {output}")
    sys.exit(verdict(checks))


def _all_checks(
    report: dict[str, Any],
    work: Path,
    flavours: tuple[Flavour, ...],
    rounds: int,
    requests: int,
    wanted: Collection[str],
) -> Iterator[Check]:
    """Yield every check; figures go into the report as they come, each behind a check too."""
    yield from _device_layer()
    yield run_check(
        "figures: stand-in", lambda: _filled(report["stand_in"], _stand_in_figures(rounds))
    )
    yield run_check("figures: floors", lambda: _filled(report["floors"], _floors()))
    if wanted:
        yield from _models(report["models"], work, flavours, rounds, wanted)
        yield run_check("pytest -m gpu", _gpu_tests)
    for backend in ON_GPU if TINY in wanted else ():
        yield run_check(
            f"{TINY}: {requests:,} requests of random shapes by {backend}, no growth",
            partial(soak, work / TINY, backend, requests),
        )


def _filled(target: dict[str, Any], figures: dict[str, Any]) -> str:
    target.update(figures)
    return f"{len(figures)} figures"


def flavours_here(parts: list[Component]) -> tuple[Flavour, ...]:
    """Return the engine kinds that can be built and run here."""
    found = {part.name for part in parts if part.found}
    names: dict[str, Flavour] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
    return tuple(flavour for name, flavour in names.items() if name in found)


def _device_layer() -> Iterator[Check]:
    for adapter in ("pycuda", "cuda-bindings"):
        yield from device_checks(adapter)


def _stand_in_figures(rounds: int) -> dict[str, Any]:
    """Return what the plumbing alone costs: a kernel that does next to nothing is the engine."""
    device = open_device()
    engine = StandInEngine(device)
    figures = {
        f"{rows} x {width}": stages(device, engine, rows, width, rounds)
        for rows in ROWS
        for width in WIDTHS
    }
    with device.use():
        engine.close()
    device.close()
    return {"label": "stand-in kernel, no model: copies, launch and waiting only", **figures}


def _floors() -> dict[str, Any]:
    device = open_device()
    floors: dict[str, Any] = dict(copy_floors(device))
    device.close()
    try:
        floors["gemm_fp16_tflops"] = gemm_floor()
    except CoromError as error:
        floors["gemm_fp16_tflops"] = f"missing: {error}"
    return floors


def _models(
    results: dict[str, Any],
    work: Path,
    flavours: tuple[Flavour, ...],
    rounds: int,
    wanted: Collection[str],
) -> Iterator[Check]:
    def exported(name: str, source: str, pooling: str = "auto") -> str:
        export(source, work / name, flavours, pooling)
        return ", ".join(flavours) or "no TensorRT here: ONNX graphs only"

    demo = work / "demo"
    yield run_check("demo: export and its parity gate", lambda: exported("demo", "demo"))
    checkpoints: dict[str, Path | None] = {"demo": demo_checkpoint()}
    for name, shape in SHAPES.items():
        if name not in wanted:
            continue

        def made(name: str = name, shape: Any = shape) -> str:  # noqa: ANN401
            checkpoints[name] = random_checkpoint(work / f"{name}-checkpoint", shape, demo)
            return exported(name, str(checkpoints[name]), "cls")

        yield run_check(f"{name}: export and its parity gate", made)
    for name, checkpoint in checkpoints.items():
        if name not in wanted:
            continue
        if not (work / name / "manifest.json").exists():
            results[name] = {"missing": "not exported"}
            continue
        for backend, precision in ROADS:
            yield run_check(
                f"{name}: {precision} parity by {backend} on the GPU",
                _parity(work / name, backend, precision),
            )

        def figures(name: str = name, checkpoint: Path | None = checkpoint) -> str:
            results[name] = measured(work / name, checkpoint, rounds)
            return f"{len(results[name])} parts"

        yield run_check(f"{name}: figures", figures)


def _parity(bundle: Path, backend: str, precision: Precision) -> Any:  # noqa: ANN401
    def check() -> str:
        variant = load_manifest(bundle).variant(precision)
        assert variant is not None, f"the bundle has no {precision} variant"
        with Encoder(bundle, backend=backend, device="cuda", precision=precision) as encoder:
            parity = measure(encoder, load_golden(bundle / GOLDEN_NAME))
        failures = parity.failures(variant.tolerance)
        assert not failures, "; ".join(failures)
        return f"cosine min {parity.cosine_min:.7f}, max abs {parity.max_abs_error:.2g}"

    return check


def _gpu_tests() -> str:
    # The files with such tests alone: the others want packages that a GPU has no use for.
    files = [str(path) for path in TESTS.glob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = result.stdout.strip().splitlines() or [result.stderr]
    if result.returncode:
        raise AssertionError("\n".join(lines[-30:]))
    if "passed" not in lines[-1]:
        raise UnavailableError(f"every test was skipped: {lines[-1]}")
    return lines[-1]


if __name__ == "__main__":
    main()
