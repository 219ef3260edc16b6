"""Who takes part: every peer with its environment, and every rung of a bundle that can run here."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from corom.runtime.availability import why_not_auto
from corom.runtime.backend import pairs
from corom.runtime.manifest import Precision, load_manifest

COSINE_MIN = {"fp32": 0.9995, "bf16": 0.999, "int8-per-token": 0.99, "int8": 0.97}
"""Cosine to the reference below which a contestant executes another model, and is not timed."""
BATCHES = (16, 32, 64)
"""Rows of a batch that a peer may choose from; what is fastest for it is what it is timed with."""


@dataclass(frozen=True)
class Contestant:
    """One library, or one rung of corom, that turns the same texts into vectors.

    ``environment``: of the peer, by its list of packages; None for corom's own. ``job``: what its
    worker is asked to open; the folder is put in when it is known. ``layout``: the folder it reads.
    """

    name: str
    precision: Precision
    kind: str
    environment: str | None
    layout: str
    job: dict[str, Any] = field(default_factory=dict)
    prepare: bool = False

    @property
    def ours(self) -> bool:
        """Whether this is a rung of corom."""
        return self.environment is None


_ST, _ONNX, _OPENVINO = (
    "sentence_transformers",
    "sentence_transformers_onnx",
    "sentence_transformers_openvino",
)
PEERS = (
    Contestant(
        "sentence-transformers torch",
        "fp32",
        "sentence-transformers",
        _ST,
        "torch",
        job={"backend": "torch"},
    ),
    Contestant(
        "sentence-transformers ONNX",
        "fp32",
        "sentence-transformers",
        _ONNX,
        "onnx",
        job={"backend": "onnx"},
        prepare=True,
    ),
    Contestant(
        "sentence-transformers OpenVINO",
        "bf16",  # where the CPU has it: OpenVINO's own default
        "sentence-transformers",
        _OPENVINO,
        "openvino",
        job={"backend": "openvino"},
        prepare=True,
    ),
    Contestant(
        "sentence-transformers ONNX int8",
        "int8",
        "sentence-transformers",
        _ONNX,
        "onnx",
        job={"backend": "onnx", "int8": True},
        prepare=True,
    ),
    Contestant("optimum ONNX Runtime", "fp32", "optimum", _ONNX, "onnx"),
    Contestant("fastembed", "fp32", "fastembed", "fastembed", "onnx"),
    Contestant("ModelScope pipeline", "fp32", "modelscope", "modelscope", "modelscope"),
)
"""fastembed and optimum read the ONNX file that sentence-transformers' exporter made."""


def as_executed(peer: Contestant, here: Sequence[str]) -> Contestant:
    """Return the peer with the precision it has where the CPU executes those of ``here``."""
    return replace(peer, precision="fp32") if peer.precision not in here else peer


def rungs(bundle: Path) -> list[Contestant]:
    """Return every variant of the bundle with every backend it was proven on that can run here."""
    manifest = load_manifest(bundle)
    found = []
    for variant in manifest.variants:
        for backend, device in pairs():
            reason = partial(why_not_auto, bundle, manifest, variant.precision, "off", backend)
            # Half precision is for GPUs: on a CPU it is executed in fp32 between casts.
            if device == "cpu" and variant.precision != "fp16" and reason(device) is None:
                found.append(
                    Contestant(
                        f"corom {variant.precision} {backend}",
                        variant.precision,
                        "corom",
                        None,
                        "bundle",
                        job={"backend": backend, "precision": variant.precision},
                    )
                )
    return found
