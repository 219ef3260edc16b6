"""CoromModel: real MTEB tasks on data made here, scored by MTEB itself."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corom.runtime import Encoder, InputError, InputTypeError
from corom.runtime.mteb import CoromModel
from corom.runtime.vectors import similarity_pairwise

QUERIES = {"q1": "头痛怎么办", "q2": "发烧吃什么药", "q3": "胃出血要住院多久"}
CORPUS = {
    "d1": "头痛可以吃布洛芬",
    "d2": "发烧要多喝水，吃退烧药",
    "d3": "胃出血一般住院30-60天",
    "d4": "今天天气不错",
}
needs_mteb = pytest.mark.skipif(
    importlib.util.find_spec("mteb") is None,
    reason="not installed; run: pip install -c constraints.txt 'corom[mteb]'",
)


@pytest.fixture(scope="module")
def model(tiny_mean_bundle: Path) -> CoromModel:
    return CoromModel(tiny_mean_bundle, threads=1)


def test_prompts_follow_the_kind_of_text(model: CoromModel, tiny_mean_bundle: Path) -> None:
    texts = list(QUERIES.values())
    batches: list[dict[str, Any]] = [{"text": texts[:2]}, {"text": texts[2:], "title": [""]}]
    with Encoder(tiny_mean_bundle, threads=1) as encoder:
        for kind, expected in (
            (None, encoder.encode(texts)),
            ("query", encoder.encode_query(texts)),
            ("document", encoder.encode_document(texts)),
        ):
            found = model.encode(batches, prompt_type=kind, batch_size=8)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        vectors = encoder.encode(texts)
        scores = encoder.similarity(vectors, vectors[::-1])
    np.testing.assert_allclose(model.similarity(vectors, vectors[::-1]), scores, atol=1e-6)
    pairs = model.similarity_pairwise(vectors, vectors[::-1])
    np.testing.assert_allclose(pairs, np.diag(scores), atol=1e-6)


def test_what_cannot_be_is_refused(model: CoromModel, tiny_mean_bundle: Path) -> None:
    with pytest.raises(InputTypeError, match="the batch has image and no text"):
        model.encode([{"image": [1]}])
    with pytest.raises(InputError, match="a bundle is of one revision"):
        CoromModel(tiny_mean_bundle, "main")
    with pytest.raises(InputError, match="cannot be compared in pairs"):
        model.similarity_pairwise(np.ones((2, 3)), np.ones((3, 3)))


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_pairs_are_scored_as_all_against_all_are(kind: Any) -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    expected = (first * second).sum(1) / (norms if kind == "cosine" else 1)
    np.testing.assert_allclose(similarity_pairwise(first, second, kind), expected, rtol=1e-5)


def test_importing_the_adapter_loads_neither_mteb_nor_torch() -> None:
    program = "import sys, corom.runtime.mteb; print({'mteb', 'torch'} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@needs_mteb
@pytest.mark.filterwarnings("ignore")  # of MTEB and what it imports
def test_mteb_evaluates_retrieval_and_similarity_of_sentences(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    import mteb
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.models_protocols import EncoderProtocol

    def described(name: str, kind: Any, score: str) -> TaskMetadata:
        return TaskMetadata(
            name=name,
            description="Made here.",
            type=kind,
            category="t2t",
            dataset={"path": "none", "revision": "none"},
            eval_langs=["cmn-Hans"],
            main_score=score,
        )

    def rows(texts: dict[str, str]) -> Dataset:
        return Dataset.from_list([{"id": key, "text": text} for key, text in texts.items()])

    class Questions(AbsTaskRetrieval):
        metadata = described("Questions", "Retrieval", "ndcg_at_10")

        def load_data(self, *_args: Any, **_options: Any) -> None:
            relevant = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d3": 1}}
            split = {
                "queries": rows(QUERIES),
                "corpus": rows(CORPUS),
                "relevant_docs": relevant,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    class Sentences(AbsTaskSTS):
        metadata = described("Sentences", "STS", "spearman")
        min_score, max_score = 0, 5

        def load_data(self, *_args: Any, **_options: Any) -> None:
            pairs = {
                "sentence1": ["头痛怎么办", "头痛怎么办", "今天天气不错"],
                "sentence2": ["头疼怎么办", "发烧吃什么药", "胃出血一般住院30-60天"],
                "score": [5.0, 2.0, 0.0],
            }
            self.dataset = DatasetDict({"test": Dataset.from_dict(pairs)})
            self.data_loaded = True

    model = CoromModel(demo_bundle)
    assert isinstance(model, EncoderProtocol)
    result = mteb.evaluate(model, [Questions(), Sentences()], cache=None, show_progress_bar=False)
    scores = {task.task_name: task.get_score() for task in result.task_results}
    assert scores == pytest.approx({"Questions": 1.0, "Sentences": 1.0})
    assert (result.model_name, model.mteb_model_meta.embed_dim) == ("corom/m3e-small", 512)
