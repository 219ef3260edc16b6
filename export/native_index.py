"""Where the weights of a bundle's fp32 graph lie, for backend "native"."""

import mmap
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import torch

from corom.runtime.manifest import weights_beside
from corom.runtime.native_weights import (
    COARSE,
    FINE,
    GROUP,
    INDEX_NAME,
    PIECES,
    Index,
    Place,
    Sizes,
    array_shapes,
)
from corom.runtime.vectors import Vectors

from .calibration import linear_inputs
from .checkpoint import Checkpoint
from .config import EncoderConfig
from .encoder import Layer, TorchEncoder
from .parity import read_texts
from .quantized_graph import FP32_GRAPH

REST_NAME = "native/weights.bin"
SMOOTHING_TEXTS = 64
"""More of them do not change a power of two."""
BUMP_ENDS = {COARSE: 5.0, FINE: 5.5}
"""Where |x| is so large that an activation gives x, or 0: GELU's bump is 1e-6 and 1e-7 there."""


def fits_native(config: EncoderConfig) -> bool:
    """Say whether the kernels execute an encoder of this shape."""
    return _sizes(config).fit() and config.head_size == GROUP


def export_native_index(staging: Path, encoder: TorchEncoder, checkpoint: Checkpoint) -> None:
    """Write where the fp32 graph, which was made of the same checkpoint, has the weights.

    ``encoder`` must not be ``flat``, and ``fits_native`` be true of it.
    """
    assert not encoder.flat
    config = checkpoint.config
    (layer, *_) = encoder.layers
    assert isinstance(layer, Layer)
    arrays = dict(encoder.named_parameters()) | _smoothing(encoder, checkpoint)
    path = staging / INDEX_NAME
    path.parent.mkdir()
    index = Index(
        sizes=_sizes(config),
        epsilon=encoder.embeddings.norm.eps,
        activation={
            degree: activation_pieces(layer.activation, degree).tolist() for degree in BUMP_ENDS
        },
        arrays=_places(
            staging,
            {name: arrays[name] for name in array_shapes(_sizes(config), encoder.pooling)},
        ),
    )
    path.write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")


def activation_pieces(activation: Callable[[torch.Tensor], torch.Tensor], degree: int) -> Vectors:
    """Return where the bump ends, and the coefficients that ``Activation`` of native/math.h wants.

    They interpolate max(x, 0) - activation(x), which for each of ours depends on |x| alone, at
    Chebyshev's points: GELU to 1e-5 and 2e-7. A step between two 8-bit codes is a
    thousand times the one, a step of float32 at the end of the bump about the other.
    """
    end = BUMP_ENDS[degree]
    pieces = np.zeros((degree + 1, PIECES))
    nodes = np.cos(np.pi * (np.arange(200) + 0.5) / 200) / 2
    for piece in range(PIECES):
        # Up to the middle between two points; nothing is below the first or above the last.
        rest = nodes[(piece + nodes >= 0) & (piece + nodes <= PIECES - 1)]
        sizes = torch.from_numpy((piece + rest) * end / (PIECES - 1))
        bump = (sizes - activation(sizes)).numpy()
        pieces[:, piece] = np.polynomial.polynomial.polyfit(rest, bump, degree)
    return np.concatenate([[end], pieces.reshape(-1)]).astype(np.float32)


def _sizes(config: EncoderConfig) -> Sizes:
    return Sizes(
        layers=config.layers,
        hidden=config.hidden,
        inner=config.intermediate,
        words=config.vocab_size,
        positions=config.max_positions,
    )


def _smoothing(encoder: TorchEncoder, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return what each norm's values are divided by before codes are made of them.

    The square root of how large each of the H values usually is, as a power of two. Which are
    large is the model's doing: on any texts they are the same ones, whose scale is still taken
    from each token as it comes. benchmarks/README.md has what other powers of it are worth.
    """
    texts = read_texts(None, "finding large values", SMOOTHING_TEXTS)
    inputs = linear_inputs(
        encoder, checkpoint, texts[:: len(texts) // SMOOTHING_TEXTS][:SMOOTHING_TEXTS]
    )
    fed_to = {"embeddings.norm": "layers.0.attention.query"}
    for layer in range(checkpoint.config.layers):
        fed_to[f"layers.{layer}.attention_norm"] = f"layers.{layer}.inner"
    for layer in range(1, checkpoint.config.layers):
        fed_to[f"layers.{layer - 1}.output_norm"] = f"layers.{layer}.attention.query"
    found = {}
    for norm, linear in fed_to.items():
        usual = inputs[linear].sample.square().mean(dim=0).sqrt().clamp(min=2**-20)
        found[f"{norm}.smoothing"] = torch.exp2((usual.log2() / 2).round())
    return found


def _places(staging: Path, arrays: dict[str, torch.Tensor]) -> dict[str, Place]:
    """Return where files of the bundle have each array's bytes.

    What the fp32 graph does not hold as it is, as [CLS]'s values, which it has turned round, goes
    into a file of its own.
    """
    possible = (FP32_GRAPH, weights_beside(FP32_GRAPH))
    names = [name for name in possible if (staging / name).exists()]
    places: dict[str, Place] = {}
    rest = b""
    with ExitStack() as stack:
        files = {}
        for name in names:
            file = stack.enter_context((staging / name).open("rb"))
            files[name] = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        ends = dict.fromkeys(names, 0)
        for array, tensor in arrays.items():
            content = np.ascontiguousarray(tensor.detach().numpy(), "<f4").tobytes()
            places[array] = Place(REST_NAME, len(rest))
            # Behind the one before, where it is unless the order is another.
            for name, start in [*ends.items(), *dict.fromkeys(names, 0).items()]:
                offset = files[name].find(content, start)
                if offset >= 0:
                    places[array] = Place(name, offset)
                    ends[name] = max(ends[name], offset + len(content))
                    break
            else:
                rest += content
    if rest:
        (staging / REST_NAME).write_bytes(rest)
    return places
