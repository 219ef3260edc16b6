"""pipeline(): ModelScope's call, its input in both forms, its output."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corom.runtime import (
    Encoder,
    InputError,
    InputTypeError,
    SentenceEmbeddingPipeline,
    Tasks,
    UnavailableError,
    pipeline,
)
from corom.runtime.errors import BundleError

SOURCE, FIRST, SECOND = "上消化道出血手术大约多久", "大约要2-3个小时。", "胃出血一般住院30-60天。"


@pytest.fixture(scope="module", params=["tiny_bundle", "tiny_mean_bundle"])
def pipe(request: pytest.FixtureRequest) -> Iterator[SentenceEmbeddingPipeline]:
    """A pipeline on an un-normalized [CLS] bundle, and on a normalizing one."""
    with pipeline(Tasks.sentence_embedding, request.getfixturevalue(request.param)) as pipe:
        yield pipe


def raw(pipe: SentenceEmbeddingPipeline, texts: list[str]) -> np.ndarray:
    return pipe.encoder.encode(texts, normalize_embeddings=False)


def test_one_source_against_sentences_to_compare(pipe: SentenceEmbeddingPipeline) -> None:
    result = pipe({"source_sentence": [SOURCE], "sentences_to_compare": [FIRST, SECOND]})
    vectors = result["text_embedding"]
    assert set(result) == {"text_embedding", "scores"}
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, 48))
    np.testing.assert_allclose(vectors, raw(pipe, [SOURCE, FIRST, SECOND]), atol=1e-5)
    assert [type(score) for score in result["scores"]] == [float, float]
    np.testing.assert_allclose(result["scores"], vectors[1:] @ vectors[0], rtol=1e-5)


def test_source_sentences_alone_are_scored_against_the_first(
    pipe: SentenceEmbeddingPipeline,
) -> None:
    result = pipe({"source_sentence": [SOURCE, FIRST, SECOND]})
    vectors = result["text_embedding"]
    np.testing.assert_allclose(vectors, raw(pipe, [SOURCE, FIRST, SECOND]), atol=1e-5)
    np.testing.assert_allclose(result["scores"], vectors[1:] @ vectors[0], rtol=1e-5)


def test_only_the_first_source_is_compared(pipe: SentenceEmbeddingPipeline) -> None:
    result = pipe({"source_sentence": [SOURCE, "另一句"], "sentences_to_compare": [FIRST]})
    np.testing.assert_allclose(result["text_embedding"], raw(pipe, [SOURCE, FIRST]), atol=1e-5)
    assert len(result["scores"]) == 1


@pytest.mark.parametrize(
    "content",
    [
        {"source_sentence": [SOURCE]},
        {"source_sentence": SOURCE},
        {"source_sentence": [SOURCE], "sentences_to_compare": []},
        {"source_sentence": [SOURCE], "sentences_to_compare": None},
        {"source_sentence": (SOURCE,)},
    ],
)
def test_one_sentence_has_a_vector_and_no_scores(
    pipe: SentenceEmbeddingPipeline, content: dict[str, Any]
) -> None:
    result = pipe(content)
    assert result["scores"] == []
    np.testing.assert_allclose(result["text_embedding"], raw(pipe, [SOURCE]), atol=1e-5)


def test_a_string_is_one_sentence(pipe: SentenceEmbeddingPipeline) -> None:
    as_strings = pipe({"source_sentence": SOURCE, "sentences_to_compare": FIRST})
    as_lists = pipe({"source_sentence": [SOURCE], "sentences_to_compare": [FIRST]})
    assert as_strings["scores"] == as_lists["scores"]


def test_vectors_are_not_normalized(pipe: SentenceEmbeddingPipeline) -> None:
    lengths = np.linalg.norm(pipe({"source_sentence": [SOURCE, FIRST]})["text_embedding"], axis=1)
    assert (np.abs(lengths - 1) > 0.1).all()


def test_an_empty_sentence_is_a_sentence(pipe: SentenceEmbeddingPipeline) -> None:
    result = pipe({"source_sentence": [""], "sentences_to_compare": ["", SOURCE]})
    assert np.isfinite(result["text_embedding"]).all()
    assert len(result["scores"]) == 2


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({}, InputError, "no source_sentence"),
        ({"source_sentence": []}, InputError, "no source_sentence"),
        ({"source_sentence": None}, InputError, "no source_sentence"),
        ({"sentences_to_compare": [FIRST]}, InputError, "no source_sentence"),
        ({"source": [SOURCE]}, InputError, "unknown keys: source. Allowed: source_sentence"),
        ({"source_sentence": [SOURCE], 3: 4}, InputError, "unknown keys: 3"),
        ([SOURCE], InputTypeError, "the input is list; pass"),
        (SOURCE, InputTypeError, "the input is str; pass"),
        (None, InputTypeError, "the input is NoneType; pass"),
        ({"source_sentence": 3}, InputTypeError, "source_sentence is int; pass a list"),
        ({"source_sentence": b"bytes"}, InputTypeError, "source_sentence is bytes"),
        ({"source_sentence": {"a": "b"}}, InputTypeError, "source_sentence is dict"),
        ({"source_sentence": [None]}, InputTypeError, "text 0 is NoneType"),
        ({"source_sentence": [[SOURCE]]}, InputTypeError, "text 0 is list"),
        (
            {"source_sentence": [SOURCE], "sentences_to_compare": [FIRST, 7]},
            InputTypeError,
            "text 2 is int",
        ),
        ({"source_sentence": ["\ud800"]}, InputError, "lone surrogate"),
    ],
)
def test_any_other_input_is_refused(
    pipe: SentenceEmbeddingPipeline, content: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pipe(content)


def test_the_sequence_length_cuts_sentences(tiny_bundle: Path) -> None:
    with pipeline("sentence-embedding", model=str(tiny_bundle), sequence_length=6) as pipe:
        long, short = pipe({"source_sentence": ["头痛怎么办呢", "头痛怎么"]})["text_embedding"]
    np.testing.assert_allclose(long, short, atol=1e-5)
    with Encoder(tiny_bundle) as encoder:
        assert np.abs(encoder.encode("头痛怎么办呢") - long).max() > 1e-3


@pytest.mark.parametrize("task", ["text-embedding", "", None])
def test_another_task_is_refused(tiny_bundle: Path, task: Any) -> None:
    with pytest.raises(InputError, match="corom has only 'sentence-embedding'"):
        pipeline(task, tiny_bundle)


def test_what_the_encoder_refuses_the_pipeline_refuses(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        pipeline(Tasks.sentence_embedding, tmp_path)
    with pytest.raises(UnavailableError, match="no variant of precision 'fp16'"):
        pipeline(Tasks.sentence_embedding, tiny_bundle, precision="fp16")
    with pytest.raises(InputError, match="max_length is 200"):
        pipeline(Tasks.sentence_embedding, tiny_bundle, sequence_length=200)
