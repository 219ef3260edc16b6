"""int8 with fixed scales: what each matrix product multiplies, chosen by what it gives.

Fixed scales make a text's vector independent of its batch-mates, which scales taken from each batch
do not. One scale for a whole input leaves little for its small columns where a few columns are
large, as they are in trained BERTs. So the columns are divided by factors first, which the weights
are multiplied by (SmoothQuant; Xiao et al., 2022), and rare extremes may be cut. How far to go with
both is tried for each input on the calibration texts: what counts is the error of the products.

Letters in shapes: T rows of the sample, K values of a row, N outputs.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .calibration import Inputs

MIGRATIONS = (0.0, 0.6, 0.7, 0.8, 0.9, 1.0)
"""How much of the difference between columns goes into the weights."""
KEPT_RANGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Shares of the range from the smallest to the largest value that are not cut."""
COMPARED_OUTPUTS = 256
LEVELS = 255


class InputScheme(NamedTuple):
    """How an input becomes 8 bit unsigned: (x · factors / scale) rounded, plus ``zero``."""

    scale: float
    zero: int
    factors: Tensor
    """(K,) what the columns are multiplied by."""

    def rounded(self, rows: Tensor) -> Tensor:
        """Return rows (T, K), multiplied by the factors, as they are after rounding."""
        codes = (rows * self.factors / self.scale).round() + self.zero
        return (codes.clamp(0, LEVELS) - self.zero) * self.scale


class Int8Weights(NamedTuple):
    """Weights of one product for a scheme; ``codes`` · ``scales`` are the weights."""

    codes: Tensor
    """(N, K) int8."""
    scales: Tensor
    """(N,) float32."""

    def rounded(self) -> Tensor:
        """Return the weights (N, K) as they are after rounding."""
        return self.codes.float() * self.scales[:, None]


def choose_scheme(inputs: Inputs, weights: Sequence[Tensor]) -> InputScheme:
    """Return the scheme for an input under which its products with ``weights`` err least."""
    step = [max(1, len(weight) // COMPARED_OUTPUTS) for weight in weights]
    weight = torch.cat([w[::s] for w, s in zip(weights, step, strict=True)])
    exact = inputs.sample @ weight.T

    def error(scheme: InputScheme) -> float:
        found = scheme.rounded(inputs.sample) @ int8_weights(weight, scheme).rounded().T
        return float((found - exact).square().mean())

    factors = min(
        (_factors(inputs, weights, migration) for migration in MIGRATIONS),
        key=lambda f: min(error(scheme) for scheme in _schemes(inputs, f, (1.0, 0.7))),
    )
    return min(_schemes(inputs, factors, KEPT_RANGES), key=error)


def int8_weights(weight: Tensor, scheme: InputScheme) -> Int8Weights:
    """Return weights (N, K) for rows that are multiplied by the scheme's factors."""
    scaled = weight / scheme.factors
    scales = scaled.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    codes = (scaled / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8Weights(codes, scales)


def corrected_bias(inputs: Inputs, weight: Tensor, bias: Tensor, scheme: InputScheme) -> Tensor:
    """Return the bias (N,) with which the outputs have the mean that they had before rounding."""
    found = scheme.rounded(inputs.sample) @ int8_weights(weight, scheme).rounded().T
    return bias + (inputs.sample @ weight.T - found).mean(0)


def _factors(inputs: Inputs, weights: Sequence[Tensor], migration: float) -> Tensor:
    if migration == 0:
        return torch.ones_like(inputs.low)
    largest = torch.maximum(inputs.high.abs(), inputs.low.abs()).clamp(min=1e-5)
    heaviest = torch.cat(list(weights)).abs().amax(0).clamp(min=1e-5)
    return heaviest ** (1 - migration) / largest**migration


def _schemes(inputs: Inputs, factors: Tensor, kept: Sequence[float]) -> Iterator[InputScheme]:
    low = min(0.0, float((inputs.low * factors).min()))
    high = max(0.0, float((inputs.high * factors).max()))
    for share in kept:
        scale = max((high - low) * share, torch.finfo(torch.float32).tiny) / LEVELS
        yield InputScheme(scale, round(-low * share / scale), factors)
