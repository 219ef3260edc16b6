"""How much of the machine's rate of matrix products text→vector reaches, measured in one run."""

from collections.abc import Sequence
from typing import Any

from corom.export.checkpoint import Checkpoint
from corom.runtime.manifest import Precision

from .figures import Spread, spread
from .flops import EncoderShape, texts_flops
from .gemm import ROOFS, Rate, Roof, gemm_rates

_ROOF_OF: dict[Precision, Roof] = {
    "fp32": "fp32",
    "bf16": "bf16",
    "int8-per-token": "int8",
    "int8": "int8",
}
EMBEDDED_BYTES, MOST_EMBEDDED_BYTES = 12, 256 << 20
"""Of what native makes of embeddings: for each of a word's values, and of all: embedded.h."""


class Roofline:
    """Measures the roof between the rounds, under the conditions the contestants have.

    ``lengths``: tokens of the texts. ``seconds``: how long each matrix product is measured.
    ``bf16``: whether this CPU executes it; emulated it has no rate worth its minutes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        lengths: Sequence[int],
        threads: int,
        seconds: float = 0.1,
        *,
        bf16: bool = True,
    ) -> None:
        config = checkpoint.config
        cls_only = checkpoint.pooling == "cls"
        self.shape = EncoderShape(
            config.hidden, config.layers, config.heads, config.intermediate, cls_only
        )
        flat = self.shape._replace(flat=True)
        looked_up = EMBEDDED_BYTES * config.hidden * (config.vocab_size + config.max_positions)
        forms = {
            "graph": flat,
            "int8 graph": self.shape,  # see TorchEncoder
            "native": flat._replace(looked_up=looked_up <= MOST_EMBEDDED_BYTES),
        }
        self.flops_per_text = {
            form: texts_flops(own, lengths) / len(lengths) for form, own in forms.items()
        }
        self._threads, self._seconds = threads, seconds
        self._found: dict[Roof, list[Rate]] = {roof: [] for roof in ROOFS if bf16 or roof != "bf16"}

    def measure(self) -> None:
        """Measure the rate of every precision that is here once more."""
        roofs = tuple(self._found)
        for roof, rate in gemm_rates(self.shape, self._threads, self._seconds, roofs).items():
            self._found[roof].append(rate)

    def share(
        self, precision: Precision, backend: str, texts_per_second: Sequence[float]
    ) -> Spread:
        """Return reached ÷ possible, round by round: both of a round share its noise."""
        rates = zip(texts_per_second, self._found[_ROOF_OF[precision]], strict=True)
        form = "int8 graph" if precision == "int8" else "graph"
        flops = self.flops_per_text["native" if backend == "native" else form]
        return spread([rate * flops / (top.gflops * 1e9) for rate, top in rates])

    def described(self) -> dict[str, Any]:
        """Return the measured rates, in billions of operations a second, ready for JSON."""
        rates = {
            roof: {**spread([r.gflops for r in found])._asdict(), "by": max(found).by}
            for roof, found in self._found.items()
        }
        return {
            "shape": self.shape._asdict(),
            "flops_per_text": self.flops_per_text,
            "gemm_gflops": rates,
        }
