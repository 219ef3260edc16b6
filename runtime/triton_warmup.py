"""What Triton executes before it says it is ready: the files, and their place in config.pbtxt."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .text_proto import Word
from .triton_options import Serving
from .triton_tensors import IDS, LENGTHS, MASK, TAKES, TEXT, Message, Tensor

_TYPES = {"INT32": np.int32, "INT64": np.int64}
_WARM_TEXT = "text"


def warmup_files(serving: Serving) -> dict[str, dict[str, bytes]]:
    """Return what the models are warmed with: of each its files, by name.

    For the encoder texts of padding alone at every width. Not Triton's zeros: a mask of zeros has
    no text in it, and its softmax no value. For the tokenizer a text, so that a Python that cannot
    read it, as Triton's before 24.12 with NumPy 2, is seen at start and not by the first caller.
    """
    text = "今天天气不错".encode()
    tokenizer = {_WARM_TEXT: len(text).to_bytes(4, "little") + text}
    return {
        f"{serving.name}_tokenizer": tokenizer,
        f"{serving.name}_encoder": _encoder_warmup_files(serving),
    }


def _encoder_warmup_files(serving: Serving) -> dict[str, bytes]:
    files = {}
    for width in _warm_widths(serving):
        values: dict[str, npt.NDArray[np.float64]] = {
            IDS: np.zeros(width),
            MASK: np.ones(width),
            LENGTHS: np.full(1, width, np.float64),
        }
        for tensor in TAKES[serving.asked.encoder]:
            file = f"{tensor.name}-{width}"
            files[file] = values[tensor.name].astype(_TYPES[tensor.type]).tobytes()
    return files


def _warm_widths(serving: Serving) -> tuple[int, ...]:
    return serving.widths or (serving.max_length,)


def tokenizer_warmup() -> Message:
    """Return what the tokenizer executes before the server says it is ready."""
    text = _warm_input(Tensor(TEXT, "STRING", (1,)), 1, _WARM_TEXT)
    return {"name": "text", "batch_size": 1, "inputs": [text]}


def encoder_warmups(serving: Serving) -> Iterator[Message]:
    """Yield what the encoder executes before the server is ready: on a GPU in batches too."""
    batches = (1, *serving.preferred_batch_sizes) if serving.device == "cuda" else (1,)
    for width in _warm_widths(serving):
        for rows in batches:
            inputs = [
                _warm_input(tensor, width, f"{tensor.name}-{width}")
                for tensor in TAKES[serving.asked.encoder]
            ]
            yield {"name": f"{rows}x{width}", "batch_size": rows, "inputs": inputs}


def _warm_input(tensor: Tensor, width: int, file: str) -> Message:
    return {
        "key": tensor.name,
        "value": {
            "data_type": Word(f"TYPE_{tensor.type}"),
            "dims": [width if dim == -1 else dim for dim in tensor.dims],
            "input_data_file": file,
        },
    }
