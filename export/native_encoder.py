"""The torch module's weights as backend "native" takes them: 8-bit matrices, all else in fp32."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from corom.runtime.native_weights import (
    DEGREE,
    GROUP,
    WIDEST,
    Linear,
    NativeWeights,
    save_native_weights,
)
from corom.runtime.vectors import Vectors

from .config import EncoderConfig
from .encoder import Attention, Layer, TorchEncoder
from .per_token_graph import fits_groups, int8_codes

BUMP_END = 5.0
"""Where |x| is so large that an activation gives x, or 0: GELU's bump is 1e-6 there."""


def fits_native(config: EncoderConfig) -> bool:
    """Say whether the kernels execute an encoder of this shape."""
    return fits_groups(config) and config.head_size == GROUP and config.hidden <= WIDEST


def export_native_weights(file: Path, encoder: TorchEncoder) -> None:
    """Write an encoder for which ``fits_native``; its form must not be ``flat``."""
    assert not encoder.flat
    layers = [layer for layer in encoder.layers if isinstance(layer, Layer)]
    attentions = [layer.attention for layer in layers if isinstance(layer.attention, Attention)]
    assert len(attentions) == len(encoder.layers)
    weights = NativeWeights(
        epsilon=np.array([encoder.embeddings.norm.eps], np.float32),
        activation=activation_polynomial(layers[0].activation),
        words=_array(encoder.embeddings.words.weight),
        positions=_array(encoder.embeddings.positions),
        norm=_norm(encoder.embeddings.norm),
        query_key_value=_linears([[a.query, a.key, a.value] for a in attentions]),
        output=_linears([[a.output] for a in attentions]),
        attention_norm=np.stack([_norm(layer.attention_norm) for layer in layers]),
        inner=_linears([[layer.inner] for layer in layers]),
        outer=_linears([[layer.outer] for layer in layers]),
        output_norm=np.stack([_norm(layer.output_norm) for layer in layers]),
    )
    save_native_weights(file, weights)


def activation_polynomial(activation: Callable[[torch.Tensor], torch.Tensor]) -> Vectors:
    """Return ``BUMP_END`` and the coefficients that ``Activation`` of native/math.h wants.

    They interpolate max(x, 0) - activation(x), which for each of ours depends on |x| alone, at
    Chebyshev's points: GELU to 1e-5, where a step of an 8-bit code is a hundred times that.
    """
    places = np.cos(np.pi * (np.arange(2000) + 0.5) / 2000)
    sizes = torch.from_numpy((places + 1) * BUMP_END / 2)
    bump = (sizes - activation(sizes)).numpy()
    chebyshev = np.polynomial.chebyshev.chebfit(places, bump, DEGREE)
    coefficients = np.polynomial.chebyshev.cheb2poly(chebyshev)
    full = np.zeros(DEGREE + 2, np.float32)  # cheb2poly drops what is zero at the end
    full[0] = BUMP_END
    full[1 : 1 + len(coefficients)] = coefficients
    return full


def _linears(layers: Sequence[Sequence[nn.Linear]]) -> Linear:
    """Return the layers' matrices with codes; those that one layer has share their input."""
    codes, scales, bias = [], [], []
    for linears in layers:
        weight = np.concatenate([_array(linear.weight) for linear in linears])
        found = int8_codes(weight, axis=0)
        codes.append(found[0])
        scales.append(found[1])
        bias.append(np.concatenate([_array(linear.bias) for linear in linears]))
    return Linear(np.stack(codes), np.stack(scales), np.stack(bias))


def _norm(norm: nn.LayerNorm) -> Vectors:
    return np.stack([_array(norm.weight), _array(norm.bias)])


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)
