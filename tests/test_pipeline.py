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


def encoded(pipe: SentenceEmbeddingPipeline, texts: list[str]) -> np.ndarray:
    return pipe.encoder.encode(texts)


def test_one_source_against_sentences_to_compare(pipe: SentenceEmbeddingPipeline) -> None:
    result = pipe({"source_sentence": [SOURCE], "sentences_to_compare": [FIRST, SECOND]})
    vectors = result["text_embedding"]
    assert set(result) == {"text_embedding", "scores"}
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, 48))
    np.testing.assert_allclose(vectors, encoded(pipe, [SOURCE, FIRST, SECOND]), atol=1e-5)
    assert [type(score) for score in result["scores"]] == [float, float]
    np.testing.assert_allclose(result["scores"], vectors[1:] @ vectors[0], rtol=1e-5)


def test_source_sentences_alone_are_scored_against_the_first(
    pipe: SentenceEmbeddingPipeline,
) -> None:
    result = pipe({"source_sentence": [SOURCE, FIRST, SECOND]})
    vectors = result["text_embedding"]
    np.testing.assert_allclose(vectors, encoded(pipe, [SOURCE, FIRST, SECOND]), atol=1e-5)
    np.testing.assert_allclose(result["scores"], vectors[1:] @ vectors[0], rtol=1e-5)


def test_only_the_first_source_is_compared(pipe: SentenceEmbeddingPipeline) -> None:
    result = pipe({"source_sentence": [SOURCE, "另一句"], "sentences_to_compare": [FIRST]})
    np.testing.assert_allclose(result["text_embedding"], encoded(pipe, [SOURCE, FIRST]), atol=1e-5)
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
    np.testing.assert_allclose(result["text_embedding"], encoded(pipe, [SOURCE]), atol=1e-5)


def test_a_string_is_one_sentence(pipe: SentenceEmbeddingPipeline) -> None:
    as_strings = pipe({"source_sentence": SOURCE, "sentences_to_compare": FIRST})
    as_lists = pipe({"source_sentence": [SOURCE], "sentences_to_compare": [FIRST]})
    assert as_strings["scores"] == as_lists["scores"]


def test_vectors_are_of_length_1_where_the_checkpoint_says_so_and_only_there(
    pipe: SentenceEmbeddingPipeline,
) -> None:
    """ModelScope's model normalizes if "normalize" is in its configuration; CoROM's has it not."""
    lengths = np.linalg.norm(pipe({"source_sentence": [SOURCE, FIRST]})["text_embedding"], axis=1)
    off = np.abs(lengths - 1)
    assert (off < 1e-5).all() if pipe.encoder.manifest.normalize else (off > 0.1).all()


def test_a_list_of_inputs_gives_a_list_of_results(pipe: SentenceEmbeddingPipeline) -> None:
    inputs: list[Any] = [
        {"source_sentence": [SOURCE], "sentences_to_compare": [FIRST, SECOND]},
        {"source_sentence": SECOND},
        {"source_sentence": [FIRST, SOURCE]},
    ]
    results = pipe(inputs)
    assert len(results) == 3
    for given, found in zip(inputs, results, strict=True):
        alone = pipe(input=given, batch_size=1)
        np.testing.assert_allclose(found["text_embedding"], alone["text_embedding"], atol=1e-5)
        np.testing.assert_allclose(found["scores"], alone["scores"], rtol=1e-4)
    assert pipe([]) == []


def test_what_is_wrong_in_a_list_of_inputs_is_named(pipe: SentenceEmbeddingPipeline) -> None:
    good = {"source_sentence": [SOURCE]}
    with pytest.raises(InputError, match="input 1 has no source_sentence"):
        pipe([good, {}])
    with pytest.raises(InputTypeError, match=r"sentences_to_compare\[1\] of input 1 is int"):
        pipe([good, good | {"sentences_to_compare": [FIRST, 7]}])
    with pytest.raises(InputError, match="batch_size is 0"):
        pipe(good, batch_size=0)


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
        ([SOURCE], InputTypeError, "input 0 is str; pass"),
        (SOURCE, InputTypeError, "the input is str; pass"),
        (None, InputTypeError, "the input is NoneType; pass"),
        (
            {"source_sentence": 3},
            InputTypeError,
            "source_sentence of the input is int; pass a list",
        ),
        ({"source_sentence": b"bytes"}, InputTypeError, "source_sentence of the input is bytes"),
        ({"source_sentence": {"a": "b"}}, InputTypeError, "source_sentence of the input is dict"),
        (
            {"source_sentence": [None]},
            InputTypeError,
            r"source_sentence\[0\] of the input is NoneType",
        ),
        (
            {"source_sentence": [[SOURCE]]},
            InputTypeError,
            r"source_sentence\[0\] of the input is list",
        ),
        (
            {"source_sentence": [SOURCE], "sentences_to_compare": [FIRST, 7]},
            InputTypeError,
            r"sentences_to_compare\[1\] of the input is int",
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


@pytest.mark.parametrize("model", ["iic/nlp_corom_sentence-embedding_chinese-tiny", "damo/model"])
def test_a_model_id_without_a_bundle_names_the_command_that_makes_one(model: str) -> None:
    with pytest.raises(BundleError, match=f"corom export modelscope:{model} -o {model}\n"):
        pipeline(Tasks.sentence_embedding, model=model)


def test_a_model_id_is_the_bundle_that_lies_at_this_path(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = "damo/nlp_corom_sentence-embedding_chinese-tiny"
    (tmp_path / "damo").mkdir()
    (tmp_path / model_id).symlink_to(tiny_bundle, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    with pipeline(Tasks.sentence_embedding, model=model_id) as pipe:
        assert pipe(input={"source_sentence": [SOURCE]})["scores"] == []


@pytest.mark.parametrize("device", ["cpu", "auto", None])
def test_devices_of_modelscope_are_known(tiny_bundle: Path, device: str | None) -> None:
    with pipeline(Tasks.sentence_embedding, tiny_bundle, device=device) as pipe:
        assert pipe.encoder.device == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda", "gpu:0", "cuda:0"])
def test_a_gpu_asked_for_and_missing_is_an_error(tiny_bundle: Path, device: str) -> None:
    with pytest.raises(UnavailableError, match="cuda"):
        pipeline(Tasks.sentence_embedding, tiny_bundle, device=device)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cuda:1"}, InputError, "CUDA_VISIBLE_DEVICES=1 and device='gpu'"),
        ({"device": "tpu"}, InputError, "does not run on device 'tpu'"),
        ({"device": 0}, InputTypeError, "device is 0; pass"),
        ({"model_revision": "v1.1"}, InputError, "corom export modelscope:ID --revision"),
        ({"preprocessor": object()}, InputError, "the bundle has its tokenizer"),
        ({"trust_remote_code": True}, InputError, "trust_remote_code is not for a bundle"),
        ({"sequence_len": 128}, InputTypeError, "has no option 'sequence_len'. It takes sequence_"),
    ],
)
def test_options_that_mean_nothing_here_say_what_to_do(
    tiny_bundle: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"(?i){message}"):
        pipeline(Tasks.sentence_embedding, tiny_bundle, **options)


def test_a_model_that_is_an_object_is_refused() -> None:
    with pytest.raises(InputTypeError, match="model is object; pass the path of a bundle"):
        pipeline(Tasks.sentence_embedding, model=object())  # type: ignore[arg-type]
