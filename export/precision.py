"""Lower precision, written into the module before it becomes a graph: fp16 with fp32 islands.

TensorRT and ONNX Runtime then execute the types they are given; no builder flag decides anything.
Islands in fp32: every LayerNorm with its sum over the hidden values (in fp16 alone it costs more
accuracy than everything else together, and overflows), positions, the arithmetic of the mask, and
the last LayerNorm with the pooling, so that vectors leave in fp32. Softmax stays in fp16: its
scores leave a MatMul that has rounded them already, and a plain fp16 attention is what compilers
fuse into one kernel that sums in fp32 by itself.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .encoder import TorchEncoder
from .errors import CheckpointError, listed
from .graph import ENGINE_INPUTS, export_graph

HALF_GRAPH = "onnx/model_fp16.onnx"
ENGINE_GRAPH = "onnx/model_fp16_engine.onnx"
LARGEST = torch.finfo(torch.float16).max
MAX_ROUNDING = 2.0**-9
"""Share of a weight matrix's norm that rounding to fp16 may take; it is 2**-12 where it fits."""


def export_half_graphs(
    encoder: TorchEncoder, folder: Path, opset: int, *, for_engines: bool
) -> TorchEncoder:
    """Write the fp16 graph, and the one engines are built from; return the fp16 encoder.

    Raises ``CheckpointError`` with the names of weights that fp16 cannot hold.
    """
    half = half_encoder(encoder)
    export_graph(half, folder / HALF_GRAPH, opset)
    if for_engines:
        export_graph(EngineEncoder(half), folder / ENGINE_GRAPH, opset, ENGINE_INPUTS)
    return half


def half_encoder(encoder: TorchEncoder) -> TorchEncoder:
    """Return a copy of the encoder whose matrix products are fp16, same inputs and outputs.

    Raises ``CheckpointError`` with the names of weights that fp16 cannot hold.
    """
    _refuse_unfit(encoder)
    half = copy.deepcopy(encoder)
    half.matmul_dtype = torch.float16
    # A list: the loop replaces what it goes through.
    for name, module in list(half.named_modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.half()
        elif isinstance(module, nn.LayerNorm):
            half.set_submodule(name, Fp32Island(module, torch.float16))
    last = half.layers[-1].output_norm
    assert isinstance(last, Fp32Island)
    last.result = torch.float32
    return half


class Fp32Island(nn.Module):
    """A module executed in fp32 on what comes in any precision; gives ``result``."""

    def __init__(self, module: nn.Module, result: torch.dtype) -> None:
        super().__init__()
        self.module, self.result = module, result

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the module's output (..., H) in the precision ``result``."""
        output: Tensor = self.module(hidden.float()).to(self.result)
        return output


class EngineEncoder(nn.Module):
    """(B, S) int32 ``input_ids`` and (B,) int32 ``lengths`` to (B, H) float32 vectors.

    Two inputs fit into one small copy to the device; mask and positions are made there.
    """

    def __init__(self, encoder: TorchEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the pooled vectors (B, H)."""
        positions = torch.arange(input_ids.shape[1], dtype=torch.int32, device=input_ids.device)
        vectors: Tensor = self.encoder(input_ids, positions < lengths[:, None])
        return vectors


def _refuse_unfit(encoder: nn.Module) -> None:
    too_large, too_small = [], []
    for name, weight in _matmul_weights(encoder):
        if weight.abs().max() > LARGEST:
            too_large.append(f"{name} ({weight.abs().max().item():.3g})")
        # Biases may vanish: what is added to numbers of ordinary size loses nothing by it.
        elif weight.ndim == 2 and _rounding(weight) > MAX_ROUNDING:
            too_small.append(f"{name} (up to {weight.abs().max().item():.3g})")
    problems = {f"above {LARGEST:.0f}": too_large, "too small for fp16's digits": too_small}
    found = [f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"these weights do not fit into fp16: {'; '.join(found)}. Export without fp16 and "
            "without an engine."
        )


def _matmul_weights(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            yield from module.named_parameters(prefix=name)


def _rounding(weight: Tensor) -> float:
    norm = weight.norm()
    return float((weight.half().float() - weight).norm() / norm) if norm > 0 else 0.0
