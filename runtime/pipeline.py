"""ModelScope's call and its answers: ``pipeline(Tasks.sentence_embedding, model=…)(input)``."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, overload

from .encoder import Encoder
from .errors import BundleError, InputError, InputTypeError
from .tokens import check_text
from .vectors import Vectors, similarity


class Tasks:
    """The names of tasks, as ModelScope spells them."""

    sentence_embedding = "sentence-embedding"


class SentenceEmbedding(TypedDict):
    """What the pipeline returns."""

    text_embedding: Vectors
    """(N, H) float32; of length 1 only if the checkpoint's own are."""
    scores: list[float]
    """Inner products of the first vector with each other one."""


class SentenceEmbeddingPipeline:
    """Answers as ModelScope's sentence-embedding pipeline does, on a bundle and without torch.

    ``encoder`` is the encoder it runs on.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @overload
    def __call__(
        self, input: Mapping[str, Any], *, batch_size: int | None = None
    ) -> SentenceEmbedding: ...

    @overload
    def __call__(
        self, input: Sequence[Mapping[str, Any]], *, batch_size: int | None = None
    ) -> list[SentenceEmbedding]: ...

    def __call__(
        self,
        input: Mapping[str, Any] | Sequence[Mapping[str, Any]],  # noqa: A002  # ModelScope's name
        *,
        batch_size: int | None = None,
    ) -> SentenceEmbedding | list[SentenceEmbedding]:
        """Return vectors and scores for ``{"source_sentence": […], "sentences_to_compare": […]}``.

        With sentences to compare: the vectors of the first source sentence and of each of them.
        Without: the vectors of all source sentences. Scores are the inner products of the first
        vector with each of the others; one sentence has none. A list of inputs gives a list of
        results; their sentences are executed together. ``batch_size``: most sentences of one
        execution.

        Raises ``InputError`` for any other form of input.
        """
        if isinstance(input, list | tuple):
            return self._answer(
                [_sentences(i, f"input {k}") for k, i in enumerate(input)], batch_size
            )
        return self._answer([_sentences(input, "the input")], batch_size)[0]

    def _answer(self, groups: list[list[str]], batch_size: int | None) -> list[SentenceEmbedding]:
        vectors = self.encoder.encode(list(chain.from_iterable(groups)), batch_size=batch_size)
        ends = list(accumulate(len(group) for group in groups))
        return [
            _scored(vectors[end - len(group) : end])
            for end, group in zip(ends, groups, strict=True)
        ]

    def close(self) -> None:
        """Close the encoder."""
        self.encoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def pipeline(
    task: str,
    model: str | Path,
    *,
    sequence_length: int | None = None,
    backend: str = "auto",
    device: str | None = "auto",
    precision: str = "auto",
    threads: int | None = None,
    **modelscope: object,
) -> SentenceEmbeddingPipeline:
    """Return a pipeline on the bundle ``model``, to be called as ModelScope's.

    ``sequence_length``: tokens a sentence is cut to; None takes the manifest's. ``device``: those
    of ``Encoder``, and ModelScope's "gpu", "gpu:0" and "cuda:0". The other options are those of
    ``Encoder``. ModelScope's own that have no meaning for a bundle are refused, unless they are
    left at None.

    Raises ``BundleError`` for a model id of which there is no bundle, with the command that makes
    one.
    """
    if task != Tasks.sentence_embedding:
        raise InputError(f"task is {task!r}; corom has only '{Tasks.sentence_embedding}'.")
    for name, value in modelscope.items():
        if name not in _NOT_FOR_A_BUNDLE:
            raise InputTypeError(
                f"pipeline has no option '{name}'. It takes sequence_length, backend, device, "
                "precision and threads."
            )
        if value is not None:
            raise InputError(f"{name} is not for a bundle. {_NOT_FOR_A_BUNDLE[name]}")
    encoder = Encoder(
        _bundle(model),
        backend=backend,
        device=_device(device),
        precision=precision,
        threads=threads,
        max_length=sequence_length,
    )
    return SentenceEmbeddingPipeline(encoder)


_FIXED = "What it would change was decided by `corom export`: leave it out."
_NOT_FOR_A_BUNDLE = {
    "auto_collate": _FIXED,
    "compile": "The bundle's graphs are compiled already: leave it out.",
    "compile_options": "The bundle's graphs are compiled already: leave it out.",
    "config_file": _FIXED,
    "device_map": "Name a device: device='gpu' or 'cpu'.",
    "framework": "Name a backend instead, such as backend='onnxruntime', or leave it out.",
    "ignore_file_pattern": "Nothing is downloaded: leave it out.",
    "model_revision": (
        "A bundle is of one revision. Make one of another with: "
        "corom export modelscope:ID --revision REVISION -o BUNDLE"
    ),
    "pipeline_name": "There is one pipeline: leave it out.",
    "preprocessor": "The bundle has its tokenizer: leave it out, and give sequence_length.",
    "third_party": "Nothing is reported to anyone: leave it out.",
    "trust_remote_code": "Nothing in a bundle is executed as code: leave it out.",
}
"""What ModelScope's pipeline takes beside, and what to do instead."""
_MODEL_ID = re.compile(r"[A-Za-z][\w-]*/[\w.-]+")
_DEVICES = {None: "auto", "gpu": "cuda", "gpu:0": "cuda", "cuda:0": "cuda"}
_KEYS = ("source_sentence", "sentences_to_compare")


def _bundle(model: object) -> Path:
    """Return the folder of ``model``; a model id may be one, relative to the working directory."""
    if not isinstance(model, str | Path):
        raise InputTypeError(
            f"model is {type(model).__name__}; pass the path of a bundle. Make one with: "
            "corom export modelscope:ID -o BUNDLE"
        )
    if not Path(model).exists() and _MODEL_ID.fullmatch(str(model)):
        raise BundleError(
            f"there is no bundle at '{model}'. If it is ModelScope's id of a model, run: "
            f"corom export modelscope:{model} -o {model}\n"
            "Then this very call opens it, from the same folder. From elsewhere, pass its path."
        )
    return Path(model)


def _device(device: object) -> str:
    """Return corom's name of a device that may be named as in ModelScope."""
    if device is not None and not isinstance(device, str):
        raise InputTypeError(f"device is {device!r}; pass 'cpu', 'gpu' or 'auto'.")
    name = _DEVICES.get(device, device)
    if name is not None and re.fullmatch(r"(gpu|cuda):\d+", name):
        number = name.partition(":")[2]
        raise InputError(
            f"device is '{name}'; corom takes the first GPU it sees. "
            f"Run with CUDA_VISIBLE_DEVICES={number} and device='gpu'."
        )
    return name or "auto"


def _sentences(input: object, place: str) -> list[str]:  # noqa: A002
    """Return the sentences whose vectors are asked for; ``place`` names the input in messages."""
    if not isinstance(input, Mapping):
        raise InputTypeError(
            f"{place} is {type(input).__name__}; pass "
            '{"source_sentence": [...], "sentences_to_compare": [...]}.'
        )
    unknown = ", ".join(str(key) for key in input if key not in _KEYS)
    if unknown:
        raise InputError(f"{place} has unknown keys: {unknown}. Allowed: {', '.join(_KEYS)}.")
    source, compare = (_as_list(key, input.get(key), place) for key in _KEYS)
    if not source:
        raise InputError(f"{place} has no source_sentence; pass a list with at least one.")
    return source if compare is None else [source[0], *compare]


def _as_list(key: str, value: object, place: str) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise InputTypeError(f"{key} of {place} is {type(value).__name__}; pass a list of str.")
    for number, text in enumerate(value):
        check_text(text, f"{key}[{number}] of {place}")
    return list(value)


def _scored(vectors: Vectors) -> SentenceEmbedding:
    scores: list[float] = similarity(vectors[:1], vectors[1:], "dot")[0].tolist()
    return {"text_embedding": vectors, "scores": scores}
