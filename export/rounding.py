"""fp16 arithmetic on the CPU: products summed in fp32, every result rounded to fp16.

That is what tensor cores do. ONNX Runtime on the CPU does not: it keeps fp32 between the nodes of
an fp16 graph, so that neither rounding nor overflow shows there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from corom.runtime.batching import pad, plan_batches
from corom.runtime.errors import ParityError
from corom.runtime.golden import Golden
from corom.runtime.manifest import Parity, Tolerance
from corom.runtime.parity import compare
from corom.runtime.tokens import Tokenizer, Tokens
from corom.runtime.vectors import Vectors

from .checkpoint import Checkpoint
from .drift import drifts_from, first_drift
from .encoder import TorchEncoder
from .precision import Fp32Island
from .reference import Reference

BATCH_TOKENS = 8192

_PRODUCTS = {functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}


class RoundedProducts(TorchFunctionMode):
    """Within it fp16 matrix products are computed in fp32 and rounded.

    torch's own fp16 products on a CPU are slow and sum in an order of their own; every other fp16
    operation of torch computes in fp32 and rounds already.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Execute one operation."""
        if func in _PRODUCTS and args[0].dtype == torch.float16:
            return func(*(tensor.float() for tensor in args)).half()
        return func(*args, **(kwargs or {}))


def check_rounding(
    encoder: TorchEncoder,
    reference: Reference,
    golden: Golden,
    checkpoint: Checkpoint,
    tolerance: Tolerance,
) -> Parity:
    """Return the parity of an fp16 encoder in fp16 arithmetic.

    Raises ``ParityError`` with the worst text and the first layer that drifts if it is out of
    tolerance.
    """
    tokenizer = Tokenizer(
        checkpoint.tokenizer_json, checkpoint.max_length, checkpoint.config.max_positions
    )
    token_ids = tokenizer(golden.texts).ids
    vectors = rounded_vectors(encoder, token_ids)
    parity = compare(golden.texts, golden.vectors, vectors, [vectors])
    if failures := parity.failures(tolerance):
        worst = np.array([token_ids[golden.texts.index(parity.worst_text)]], np.int64)
        drifts = drifts_from(reference, worst, _norm_outputs(encoder, worst))
        raise ParityError(
            f"fp16 arithmetic failed parity with torch: {'; '.join(failures)}.\n"
            f"Worst text: {parity.worst_text[:200]}\n"
            f"First layer that drifts: {first_drift(drifts, tolerance)}\n"
            "This checkpoint's values are too large or too fine for fp16; export it without fp16 "
            "and without an engine."
        )
    return parity


def rounded_vectors(encoder: TorchEncoder, token_ids: list[list[int]]) -> Vectors:
    """Return the un-normalized vectors (N, H) that an fp16 encoder gives in fp16 arithmetic."""
    tokens = Tokens(token_ids, np.array([len(ids) for ids in token_ids], np.int64), 0)
    vectors = np.empty((len(token_ids), encoder.embeddings.positions.shape[1]), np.float32)
    for rows in plan_batches(tokens.lengths, BATCH_TOKENS):
        batch = pad(tokens, rows)
        vectors[rows] = _forward(encoder, batch.input_ids, batch.lengths)
    return vectors


def _forward(
    encoder: TorchEncoder, ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> Vectors:
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    with torch.inference_mode(), RoundedProducts():
        output: Vectors = encoder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    return output


def _norm_outputs(encoder: TorchEncoder, ids: npt.NDArray[np.int64]) -> list[Vectors]:
    """Return what each LayerNorm gives for one text, (1, S) ids, in order of execution."""
    outputs: list[Vectors] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output: outputs.append(output.float().numpy()))
        for module in encoder.modules()
        if isinstance(module, Fp32Island)
    ]
    try:
        _forward(encoder, ids, np.array([ids.shape[1]]))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
