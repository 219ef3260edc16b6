"""ModelScope's call and its answers: ``pipeline(Tasks.sentence_embedding, model=…)(input)``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

from .encoder import Encoder
from .errors import InputError, InputTypeError
from .vectors import Vectors, similarity


class Tasks:
    """The names of tasks, as ModelScope spells them."""

    sentence_embedding = "sentence-embedding"


class SentenceEmbedding(TypedDict):
    """What the pipeline returns."""

    text_embedding: Vectors
    """(N, H) float32, un-normalized."""
    scores: list[float]
    """Inner products of the first vector with each other one."""


class SentenceEmbeddingPipeline:
    """Answers as ModelScope's sentence-embedding pipeline does, on a bundle and without torch.

    ``encoder`` is the encoder it runs on.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, input: Mapping[str, Any]) -> SentenceEmbedding:  # noqa: A002
        """Return vectors and scores for ``{"source_sentence": […], "sentences_to_compare": […]}``.

        With sentences to compare: the vectors of the first source sentence and of each of them.
        Without: the vectors of all source sentences. Scores are the inner products of the first
        vector with each of the others; one sentence has none.

        Raises ``InputError`` for any other form of input.
        """
        sentences = _sentences(input)
        vectors = self.encoder.encode(sentences, normalize_embeddings=False)
        scores: list[float] = similarity(vectors[:1], vectors[1:], "dot")[0].tolist()
        return {"text_embedding": vectors, "scores": scores}

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
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> SentenceEmbeddingPipeline:
    """Return a pipeline on the bundle ``model``, to be called as ModelScope's.

    ``sequence_length``: tokens a sentence is cut to; None takes the manifest's. The other options
    are those of ``Encoder``.
    """
    if task != Tasks.sentence_embedding:
        raise InputError(f"task is {task!r}; corom has only '{Tasks.sentence_embedding}'.")
    encoder = Encoder(
        model,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        max_length=sequence_length,
    )
    return SentenceEmbeddingPipeline(encoder)


def _sentences(input: Mapping[str, Any]) -> list[str]:  # noqa: A002
    if not isinstance(input, Mapping):
        raise InputTypeError(
            f"the input is {type(input).__name__}; pass "
            '{"source_sentence": [...], "sentences_to_compare": [...]}.'
        )
    unknown = ", ".join(str(key) for key in input if key not in _KEYS)
    if unknown:
        raise InputError(f"the input has unknown keys: {unknown}. Allowed: {', '.join(_KEYS)}.")
    source, compare = (_as_list(key, input.get(key)) for key in _KEYS)
    if not source:
        raise InputError("the input has no source_sentence; pass a list with at least one.")
    return source if compare is None else [source[0], *compare]


_KEYS = ("source_sentence", "sentences_to_compare")


def _as_list(key: str, value: object) -> list[Any] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise InputTypeError(f"{key} is {type(value).__name__}; pass a list of str.")
    return list(value)
