"""The config.pbtxt of each model of a Triton repository. Pure functions: what is served to text.

An ensemble `<name>` joins `<name>_tokenizer`, `<name>_encoder` and, where Triton's own backends
leave scaling to length 1 undone, `<name>_normalize`.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .graph_interface import OUTPUT
from .text_proto import Word, text_proto
from .triton_options import Serving

TEXT, EMBEDDING, TRUNCATED = "TEXT", "SENTENCE_EMBEDDING", "TRUNCATED"
"""Tensors of the ensemble: text in; vector, and whether the text was cut, out."""
_TYPES = {"INT32": np.int32, "INT64": np.int64}
_WARM_TEXT = "text"

Message = dict[str, object]


class Tensor(NamedTuple):
    """One tensor of a model, without its first axis, that of the batch."""

    name: str
    type: str
    dims: tuple[int, ...]


_IDS, _MASK, _LENGTHS = "input_ids", "attention_mask", "lengths"
_TAKES = {
    "onnxruntime": (Tensor(_IDS, "INT64", (-1,)), Tensor(_MASK, "INT64", (-1,))),
    "tensorrt": (Tensor(_IDS, "INT32", (-1,)), Tensor(_LENGTHS, "INT32", (1,))),
    "python": (Tensor(_IDS, "INT32", (-1,)), Tensor(_LENGTHS, "INT32", (1,))),
}
"""What each encoder takes: what a bundle's graph, its engine and `Encoder.encode_tokens` do."""


def configs(serving: Serving) -> dict[str, str]:
    """Return the text of config.pbtxt by name of the model."""
    models = {
        serving.name: _ensemble(serving),
        f"{serving.name}_tokenizer": _tokenizer(serving),
        f"{serving.name}_encoder": _encoder(serving),
    }
    if needs_normalize(serving):
        models[f"{serving.name}_normalize"] = _normalize(serving)
    return {
        name: text_proto({"name": name, **model, **_always()}) for name, model in models.items()
    }


def needs_normalize(serving: Serving) -> bool:
    """Return whether a model of its own scales vectors; the Python encoder does it itself."""
    return serving.manifest.normalize and serving.asked.encoder != "python"


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
            _IDS: np.zeros(width),
            _MASK: np.ones(width),
            _LENGTHS: np.full(1, width, np.float64),
        }
        for tensor in _TAKES[serving.asked.encoder]:
            file = f"{tensor.name}-{width}"
            files[file] = values[tensor.name].astype(_TYPES[tensor.type]).tobytes()
    return files


def _ensemble(serving: Serving) -> Message:
    takes = [tensor.name for tensor in _TAKES[serving.asked.encoder]]
    vectors = "unscaled" if needs_normalize(serving) else EMBEDDING
    steps = [
        _step(
            f"{serving.name}_tokenizer",
            {TEXT: TEXT},
            {name: name for name in takes} | {TRUNCATED: TRUNCATED},
        ),
        _step(f"{serving.name}_encoder", {name: name for name in takes}, {OUTPUT: vectors}),
    ]
    if needs_normalize(serving):
        steps.append(_step(f"{serving.name}_normalize", {OUTPUT: vectors}, {OUTPUT: EMBEDDING}))
    vector = Tensor(EMBEDDING, "FP32", (serving.manifest.dimension,))
    return {
        "platform": "ensemble",
        "max_batch_size": serving.max_batch_size,
        "input": [_tensor(Tensor(TEXT, "STRING", (1,)))],
        "output": [_tensor(vector), _tensor(Tensor(TRUNCATED, "BOOL", (1,)))],
        "ensemble_scheduling": {"step": steps},
        "parameters": _parameters(
            bundle=serving.manifest.name,
            weights_sha256=serving.manifest.source.weights_sha256,
            precision=serving.variant.precision,
            max_length=serving.max_length,
            similarity=serving.manifest.similarity,
        ),
    }


def _tokenizer(serving: Serving) -> Message:
    takes = _TAKES[serving.asked.encoder]
    outputs = [*takes, Tensor(TRUNCATED, "BOOL", (1,))]
    text = Tensor(TEXT, "STRING", (1,))
    return {
        "backend": "python",
        "max_batch_size": serving.max_batch_size,
        "input": [_tensor(text)],
        "output": [_tensor(tensor) for tensor in outputs],
        "dynamic_batching": {},
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
        "model_warmup": [
            {"name": "text", "batch_size": 1, "inputs": [_warm_input(text, 1, _WARM_TEXT)]}
        ],
        "parameters": _parameters(
            max_length=serving.max_length,
            truncate="true" if serving.asked.truncate else "error",
            widths=" ".join(map(str, serving.widths)),
        ),
    }


def _encoder(serving: Serving) -> Message:
    kind = serving.asked.encoder
    dimension = serving.manifest.dimension
    return {
        **_executable(serving),
        "max_batch_size": serving.max_batch_size,
        "input": [_encoder_input(kind, tensor) for tensor in _TAKES[kind]],
        "output": [_tensor(Tensor(OUTPUT, "FP32", (dimension,)))],
        "dynamic_batching": _batching(serving),
        "instance_group": [_instances(serving)],
        "model_warmup": [*_warmups(serving)],
        "parameters": _encoder_parameters(serving),
    }


def _normalize(serving: Serving) -> Message:
    vector = _tensor(Tensor(OUTPUT, "FP32", (serving.manifest.dimension,)))
    return {
        "backend": "python",
        "max_batch_size": serving.max_batch_size,
        "input": [vector],
        "output": [vector],
        "dynamic_batching": {},
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
    }


def _always() -> Message:
    return {
        "version_policy": {"latest": {"num_versions": 1}},
        "response_cache": {"enable": False},
    }


def _executable(serving: Serving) -> Message:
    """Return which backend executes the encoder, and the name of the file it opens."""
    if serving.engine is not None:
        file = serving.engine.path.rpartition("/")[2]
        return {"platform": "tensorrt_plan", "default_model_filename": file}
    if serving.asked.encoder == "onnxruntime":
        file = serving.variant.file.rpartition("/")[2]
        return {"platform": "onnxruntime_onnx", "default_model_filename": file}
    return {"backend": "python"}


def _encoder_input(kind: str, tensor: Tensor) -> Message:
    message = _tensor(tensor)
    if kind == "python":
        message["allow_ragged_batch"] = True
    elif tensor.name == _LENGTHS:  # Triton has no tensor of the batch's axis alone
        message["reshape"] = {"shape": []}
    return message


def _batching(serving: Serving) -> Message:
    batching: Message = {"max_queue_delay_microseconds": serving.asked.queue_delay_us}
    if serving.preferred_batch_sizes:
        return {"preferred_batch_size": [*serving.preferred_batch_sizes], **batching}
    return batching


def _instances(serving: Serving) -> Message:
    group: Message = {"count": serving.asked.instances, "kind": Word("KIND_CPU")}
    if serving.device == "cuda":
        group["kind"] = Word("KIND_GPU")
        if serving.asked.encoder == "python":
            group["gpus"] = [0]  # corom opens the first that it sees
    if serving.engine is not None:
        group["profile"] = [str(index) for index in range(len(serving.engine.sidecar.profiles))]
    return group


def _warm_widths(serving: Serving) -> tuple[int, ...]:
    return serving.widths or (serving.max_length,)


def _warmups(serving: Serving) -> Iterator[Message]:
    """Yield what is executed before the server says it is ready: on a GPU also in batches."""
    batches = (1, *serving.preferred_batch_sizes) if serving.device == "cuda" else (1,)
    for width in _warm_widths(serving):
        for rows in batches:
            inputs = [
                _warm_input(tensor, width, f"{tensor.name}-{width}")
                for tensor in _TAKES[serving.asked.encoder]
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


def _encoder_parameters(serving: Serving) -> list[Message]:
    threads = serving.asked.threads
    if serving.asked.encoder == "python":
        return _parameters(
            backend=serving.asked.backend,
            device=serving.device,
            precision=serving.asked.precision,
            **({} if threads is None else {"threads": threads}),
        )
    if serving.asked.encoder == "onnxruntime" and threads is not None:
        return _parameters(intra_op_thread_count=threads)
    return []


def _tensor(tensor: Tensor) -> Message:
    return {
        "name": tensor.name,
        "data_type": Word(f"TYPE_{tensor.type}"),
        "dims": [*tensor.dims],
    }


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Message:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }


def _parameters(**values: object) -> list[Message]:
    return [{"key": key, "value": {"string_value": str(v)}} for key, v in values.items()]
