"""One library in an environment of its own: opens a model, gives vectors, times itself.

Run by `peer_process.py` with the interpreter of that environment; imports nothing of corom. Reads
one JSON object a line on standard input, answers each with one on standard output:

    {"do": "prepare", …}    make what the library makes of a checkpoint, once, into its folder
    {"do": "open", …}       open the model; the answer has the versions of the libraries
    {"do": "vectors", "texts": […], "file": F.npy}     write the vectors (N, H)
    {"do": "latency", "texts": […], "seconds": s}
                            seconds of each text alone, in as many passes as fill s seconds
    {"do": "throughput", "texts": […], "setting": n, "seconds": s}
                            seconds of all, the mean of as many passes as fill s seconds

An answer has "error" if that failed; the worker goes on. What the library prints goes to stderr.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str], int | None], Any]
Opened = tuple[Encode, list[str]]
"""Texts and a setting to vectors (N, H); the packages whose versions count. The setting of a
library is the most rows of a batch."""
ONNX, INT8 = "onnx/model.onnx", "onnx/model_int8_{cpu}.onnx"


def prepare_sentence_transformers(job: dict[str, Any]) -> None:
    """Export the folder's model for a backend by the library's own exporter, and quantize it."""
    from sentence_transformers import SentenceTransformer

    folder = Path(job["folder"])
    made = {"onnx": ONNX, "openvino": "openvino/openvino_model.xml"}[job["backend"]]
    if not (folder / made).exists():
        options = {"export": True}
        model = SentenceTransformer(str(folder), backend=job["backend"], model_kwargs=options)
        model.save_pretrained(str(folder))
    if job.get("int8") and not (folder / _int8_file()).exists():
        from sentence_transformers import export_dynamic_quantized_onnx_model

        model = SentenceTransformer(str(folder), backend="onnx", model_kwargs={"file_name": ONNX})
        # Its own names of files tell kinds of weights as well, which differ by processor.
        suffix = f"int8_{_int8_cpu()}"
        export_dynamic_quantized_onnx_model(model, _int8_cpu(), str(folder), file_suffix=suffix)


def open_sentence_transformers(job: dict[str, Any]) -> Opened:
    """Open by sentence-transformers on the backend that the job names."""
    from sentence_transformers import SentenceTransformer

    backend, options = job["backend"], dict[str, Any]()
    packages = ["sentence-transformers", "transformers", "torch"]
    if backend == "onnx":
        options = {"provider": "CPUExecutionProvider", "session_options": _session(job)}
        options["file_name"] = _int8_file() if job.get("int8") else ONNX
        packages += ["onnxruntime", "optimum-onnx"]
    elif backend == "openvino":
        options = {"ov_config": {"INFERENCE_NUM_THREADS": job["threads"]}}
        packages += ["openvino", "optimum-intel"]
    model = SentenceTransformer(
        job["folder"], device="cpu", backend=backend, model_kwargs=options or None
    )
    model.max_seq_length = job["max_length"]

    def encode(texts: list[str], batch: int | None) -> Any:  # noqa: ANN401
        return model.encode(texts, batch_size=batch or 32, show_progress_bar=False)

    return encode, packages


def open_optimum(job: dict[str, Any]) -> Opened:
    """Open by optimum's ONNX Runtime model, used as its documentation shows."""
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    model = ORTModelForFeatureExtraction.from_pretrained(
        job["folder"], file_name="model.onnx", subfolder="onnx", session_options=_session(job)
    )

    def encode(texts: list[str], batch: int | None) -> Any:  # noqa: ANN401
        parts = []
        for some in _batches(texts, batch or 32):
            options = {"padding": True, "truncation": True, "max_length": job["max_length"]}
            inputs = tokenizer(some, return_tensors="np", **options)
            hidden = model(**inputs).last_hidden_state
            parts.append(_pooled(np.asarray(hidden), inputs["attention_mask"], job["pooling"]))
        return np.concatenate(parts)

    return encode, ["optimum", "optimum-onnx", "onnxruntime", "transformers"]


def open_fastembed(job: dict[str, Any]) -> Opened:
    """Open by fastembed, as a custom model of the ONNX file that optimum made."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    if not (Path(job["folder"]) / ONNX).exists():
        raise FileNotFoundError(f"no {ONNX}: the peer that makes it (optimum) failed")
    pooling = PoolingType.CLS if job["pooling"] == "cls" else PoolingType.MEAN
    TextEmbedding.add_custom_model(
        model="corom/bench",
        pooling=pooling,
        normalization=False,
        sources=ModelSource(hf="corom/bench"),
        dim=job["dimension"],
        model_file=ONNX,
    )
    model = TextEmbedding(
        "corom/bench", specific_model_path=job["folder"], threads=job["threads"], cuda=False
    )

    def encode(texts: list[str], batch: int | None) -> Any:  # noqa: ANN401
        return np.stack(list(model.embed(texts, batch_size=batch or 256)))

    return encode, ["fastembed", "onnxruntime"]


def open_modelscope(job: dict[str, Any]) -> Opened:
    """Open by ModelScope's pipeline; it takes each call's texts as one batch."""
    from modelscope.pipelines import pipeline

    length = job["max_length"]
    pipe = pipeline("sentence-embedding", model=job["folder"], sequence_length=length, device="cpu")

    def encode(texts: list[str], batch: int | None) -> Any:  # noqa: ANN401
        parts = [
            pipe(input={"source_sentence": some})["text_embedding"]
            for some in _batches(texts, batch or 32)
        ]
        return np.concatenate(parts)

    return encode, ["modelscope", "transformers", "torch"]


def open_transformers(job: dict[str, Any]) -> Opened:
    """Open by plain transformers: the reference's own libraries, in any environment with torch."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    model = AutoModel.from_pretrained(job["folder"]).eval()

    def encode(texts: list[str], batch: int | None) -> Any:  # noqa: ANN401
        parts = []
        for some in _batches(texts, batch or 32):
            options = {"padding": True, "truncation": True, "max_length": job["max_length"]}
            inputs = tokenizer(some, return_tensors="pt", **options)
            with torch.inference_mode():
                hidden = model(**inputs).last_hidden_state.numpy()
            mask = inputs["attention_mask"].numpy()
            parts.append(_pooled(hidden, mask, job["pooling"]))
        return np.concatenate(parts)

    return encode, ["transformers", "torch"]


OPENERS: dict[str, Callable[[dict[str, Any]], Opened]] = {
    "sentence-transformers": open_sentence_transformers,
    "optimum": open_optimum,
    "fastembed": open_fastembed,
    "modelscope": open_modelscope,
    "transformers": open_transformers,
}


def serve(
    openers: dict[str, Callable[[dict[str, Any]], Opened]],
    more: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] | None = None,
) -> None:
    """Answer what comes on standard input until it ends; ``more``: what else can be asked for."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for answers
    encode: Encode | None = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["do"] == "open":
                opener = openers[job["kind"]]
                _limit_threads(job["threads"])
                encode, packages = opener(job)
                answer: dict[str, Any] = {"versions": {p: metadata.version(p) for p in packages}}
            elif job["do"] == "prepare":
                prepare_sentence_transformers(job)
                answer = {}
            elif encode is None:
                answer = {"error": "nothing is open"}
            elif more is not None and job["do"] in more:
                answer = more[job["do"]](job)
            else:
                answer = _measured(job, encode)
        except Exception as error:  # of a library that is not ours: whatever it is, it is reported
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _measured(job: dict[str, Any], encode: Encode) -> dict[str, Any]:
    texts, setting = job["texts"], job.get("setting")
    if job["do"] == "vectors":
        np.save(job["file"], np.asarray(encode(texts, setting), np.float32))
        return {}
    if job["do"] == "latency":
        seconds: list[float] = []
        encode(texts[:1], 1)  # others had the CPUs before
        end = time.perf_counter() + job["seconds"]
        while texts and (not seconds or time.perf_counter() < end):
            for text in texts:
                start = time.perf_counter()
                encode([text], 1)
                seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}
    passes, elapsed, start = 0, 0.0, time.perf_counter()
    while not passes or elapsed < job["seconds"]:
        encode(texts, setting)
        passes, elapsed = passes + 1, time.perf_counter() - start
    return {"seconds": elapsed / passes}


def _limit_threads(threads: int) -> None:
    """Keep the process on as many CPUs as it may have threads, whatever its library does."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads)


def _session(job: dict[str, Any]) -> Any:  # noqa: ANN401
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    return options


def _int8_cpu() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        flags = ""
    return "avx512_vnni" if "avx512_vnni" in flags else "avx2"


def _int8_file() -> str:
    return INT8.format(cpu=_int8_cpu())


def _batches(texts: list[str], size: int) -> Iterator[list[str]]:
    for at in range(0, len(texts), size):
        yield texts[at : at + size]


def _pooled(hidden: Any, mask: Any, pooling: str) -> Any:  # noqa: ANN401
    if pooling == "cls":
        return hidden[:, 0]
    kept = mask[:, :, None].astype(hidden.dtype)
    return (hidden * kept).sum(axis=1) / kept.sum(axis=1)


if __name__ == "__main__":
    serve(OPENERS)
