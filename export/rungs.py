"""The precision ladder: which rungs can be made here, what executes each, which of them hold."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from corom.runtime.availability import why_not_openvino
from corom.runtime.backend import EXECUTES
from corom.runtime.backend_openvino import open_core, require_precision
from corom.runtime.errors import ParityError
from corom.runtime.golden import Golden
from corom.runtime.graph_interface import FUSED_GRAPH
from corom.runtime.manifest import Precision, Variant
from corom.runtime.native_library import PRECISIONS, native_executes
from corom.runtime.native_weights import INDEX_NAME

from .checkpoint import Checkpoint
from .config import EncoderConfig
from .encoder import TorchEncoder
from .fused_graph import check_fused_graph, export_fused_graph
from .graph import remove_graph
from .native_index import fits_native
from .parity import NOTHING_PUBLISHED, pass_gate
from .per_token_graph import PER_TOKEN_GRAPH, export_per_token_graph, require_groups
from .precision import HALF_GRAPH, export_half_graphs
from .quantized_graph import FP32_GRAPH, INT8_GRAPH, export_int8_graph
from .recipe import Recipe
from .reference import Reference
from .rounding import check_rounding

GRAPHS: dict[Precision, str] = {
    "fp32": FP32_GRAPH,
    "bf16": FP32_GRAPH,
    "fp16": HALF_GRAPH,
    "int8-per-token": PER_TOKEN_GRAPH,
    "int8": INT8_GRAPH,
}
"""What is executed in each precision; bf16 is a way to execute the fp32 graph."""


class Ladder(NamedTuple):
    """The variants that passed, each with its parity by backend, and what is said of the others."""

    variants: tuple[Variant, ...]
    failures: list[str]


def proving_backends(staging: Path, precision: Precision) -> list[str]:
    """Return the CPU backends that execute a precision of a bundle here."""
    proving = ["onnxruntime"]
    if why_not_openvino(precision) is None:
        proving.append("openvino")
    if (staging / INDEX_NAME).exists() and precision in PRECISIONS and native_executes(precision):
        proving.append("native")
    return [name for name in proving if precision in EXECUTES[name]]


def require_rungs(precisions: Sequence[Precision], config: EncoderConfig | None = None) -> None:
    """Raise ``UnavailableError`` if nothing here executes one of the precisions.

    With the ``config`` of a model also ``InputError`` for one that cannot have that precision.
    """
    for precision in precisions:
        if precision == "int8-per-token" and config is not None:
            require_groups(config)
        by_native = precision in EXECUTES["native"] and (config is None or fits_native(config))
        if by_native and native_executes(precision):
            continue
        if precision not in EXECUTES["onnxruntime"]:
            require_precision(open_core(), precision)


def make_rungs(
    wanted: Collection[Precision],
    for_engines: bool,
    staging: Path,
    encoder: TorchEncoder,
    reference: Reference,
    golden: Golden,
    checkpoint: Checkpoint,
    recipe: Recipe,
    calibration: list[str],
    say: Callable[[str], None],
) -> tuple[list[Precision], list[str]]:
    """Write the graphs of the rungs below fp32; return what can be executed, and what failed.

    Raises ``ParityError`` if fp16 arithmetic fails and engines are to be built from it.
    """
    made: list[Precision] = [p for p in ("fp32", "bf16") if p in wanted]
    failures = []
    if "fp16" in wanted:
        say("Exporting the fp16 graph and executing it in fp16 arithmetic")
        half = export_half_graphs(encoder, staging, recipe.opset, for_engines=for_engines)
        try:
            rounded = check_rounding(
                half, reference, golden, checkpoint, recipe.tolerance_for("fp16")
            )
        except ParityError as error:
            if for_engines:
                raise ParityError(f"{error}\n{NOTHING_PUBLISHED}") from None
            failures.append(str(error))
            remove_graph(staging / HALF_GRAPH)
        else:
            say(f"Every result rounded to fp16, the cosine is at least {rounded.cosine_min:.7f}")
            made.append("fp16")
            try:
                check_fused_graph(checkpoint, golden, recipe.tolerance_for("fp32"), staging)
            except ParityError as error:
                failures.append(f"{error} ONNX Runtime takes the portable graph on GPUs.")
            else:
                export_fused_graph(checkpoint, staging / FUSED_GRAPH, np.float16)
    if "int8-per-token" in wanted:
        export_per_token_graph(staging)
        made.append("int8-per-token")
    if "int8" in wanted:
        say(f"Choosing the scales of int8 on {len(calibration)} texts")
        export_int8_graph(staging, encoder, recipe.opset, checkpoint, calibration)
        made.append("int8")
    return made, failures


def prove_variants(
    staging: Path,
    variants: Sequence[Variant],
    golden: Golden,
    reference: Reference,
    required: Collection[Precision],
) -> Ladder:
    """Measure every variant by every backend that executes it; those that fail lose their file.

    Raises ``ParityError`` if one fails by ONNX Runtime without which there is no bundle.
    """
    passed, failures = [], []
    for variant in variants:
        parity = {}
        for backend in proving_backends(staging, variant.precision):
            try:
                parity[backend] = pass_gate(staging, variant, golden, reference, backend)
            except ParityError as error:
                if variant.precision in required and backend == "onnxruntime":
                    raise ParityError(f"{error}\n{NOTHING_PUBLISHED}") from None
                failures.append(str(error))
        if parity:
            passed.append(msgspec.structs.replace(variant, parity=parity))
    for file in {v.file for v in variants} - {v.file for v in passed}:
        remove_graph(staging / file)
    if (staging / FUSED_GRAPH).exists() and "fp16" not in {v.precision for v in passed}:
        remove_graph(staging / FUSED_GRAPH)
    return Ladder(tuple(passed), failures)
