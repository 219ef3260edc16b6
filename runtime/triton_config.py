"""The config.pbtxt of each model of a Triton repository. Pure functions: what is served to text.

An ensemble `<name>` joins `<name>_tokenizer`, `<name>_encoder` and, where Triton's own backends
leave scaling to length 1 undone, `<name>_normalize`.
"""

from collections.abc import Mapping

from .graph_interface import OUTPUT
from .text_proto import Word, text_proto
from .triton_options import Serving
from .triton_tensors import (
    EMBEDDING,
    LENGTHS,
    TAKES,
    TEXT,
    TRUNCATED,
    Message,
    Tensor,
    described,
)
from .triton_warmup import encoder_warmups, tokenizer_warmup


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


def _ensemble(serving: Serving) -> Message:
    takes = [tensor.name for tensor in TAKES[serving.asked.encoder]]
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
        "input": [described(Tensor(TEXT, "STRING", (1,)))],
        "output": [described(vector), described(Tensor(TRUNCATED, "BOOL", (1,)))],
        "ensemble_scheduling": {"step": steps},
        "parameters": _parameters(
            bundle=serving.manifest.name,
            weights_sha256=serving.manifest.source.weights_sha256,
            precision=serving.precision,
            max_length=serving.max_length,
            similarity=serving.manifest.similarity,
        ),
    }


def _tokenizer(serving: Serving) -> Message:
    takes = TAKES[serving.asked.encoder]
    outputs = [*takes, Tensor(TRUNCATED, "BOOL", (1,))]
    text = Tensor(TEXT, "STRING", (1,))
    return {
        "backend": "python",
        "max_batch_size": serving.max_batch_size,
        "input": [described(text)],
        "output": [described(tensor) for tensor in outputs],
        "dynamic_batching": {},
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
        "model_warmup": [tokenizer_warmup()],
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
        "input": [_encoder_input(kind, tensor) for tensor in TAKES[kind]],
        "output": [described(Tensor(OUTPUT, "FP32", (dimension,)))],
        "dynamic_batching": _batching(serving),
        "instance_group": [_instances(serving)],
        "model_warmup": [*encoder_warmups(serving)],
        "parameters": _encoder_parameters(serving),
    }


def _normalize(serving: Serving) -> Message:
    vector = described(Tensor(OUTPUT, "FP32", (serving.manifest.dimension,)))
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
    message = described(tensor)
    if kind == "python":
        message["allow_ragged_batch"] = True
    elif tensor.name == LENGTHS:  # Triton has no tensor of the batch's axis alone
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


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Message:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }


def _parameters(**values: object) -> list[Message]:
    return [{"key": key, "value": {"string_value": str(v)}} for key, v in values.items()]
