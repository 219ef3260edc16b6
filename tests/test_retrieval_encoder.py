"""RetrievalEncoder: the right prompt for each kind of text, one encoder for all, batches shared."""

import asyncio
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corom.runtime import BundleError, Encoder, InputError, InputTypeError
from corom.runtime.retrieval_encoder import RetrievalEncoder

TEXTS = ["头痛怎么办", "", "CT 12 mg", "上消化道出血手术大约多久"]


@pytest.fixture(scope="module")
def encoder(tiny_mean_bundle: Path) -> RetrievalEncoder:
    """On a bundle with a prompt for queries."""
    return RetrievalEncoder(tiny_mean_bundle, threads=1)


def test_each_kind_of_text_gets_its_prompt(
    encoder: RetrievalEncoder, tiny_mean_bundle: Path
) -> None:
    with Encoder(tiny_mean_bundle, threads=1) as direct:
        np.testing.assert_allclose(encoder.texts(TEXTS), direct.encode(TEXTS), atol=1e-5)
        np.testing.assert_allclose(encoder.queries(TEXTS), direct.encode_query(TEXTS), atol=1e-5)
        documents = direct.encode_document(TEXTS)
        np.testing.assert_allclose(encoder.documents(TEXTS), documents, atol=1e-5)
    assert np.abs(encoder.queries(TEXTS) - encoder.documents(TEXTS)).max() > 1e-2


def test_tasks_that_ask_at_the_same_time_meet_in_batches(encoder: RetrievalEncoder) -> None:
    texts = [f"第{k}个问题：头痛怎么办" for k in range(200)]

    async def ask() -> list[np.ndarray]:
        queries = [encoder.aqueries([text]) for text in texts]
        return await asyncio.gather(*queries, encoder.adocuments(texts))

    before = encoder._late.batcher().counters().batches
    *queries, documents = asyncio.run(ask())
    np.testing.assert_allclose(np.concatenate(queries), encoder.queries(texts), atol=1e-5)
    np.testing.assert_allclose(documents, encoder.documents(texts), atol=1e-5)
    # How many is a matter of the machine; alone they would be 400, as many as there are texts.
    assert encoder._late.batcher().counters().batches - before < len(texts)


def test_any_number_may_wait(encoder: RetrievalEncoder) -> None:
    """More than a server's queue takes: whoever gathers a corpus has its texts already."""
    texts = ["上消化道出血手术大约多久" * 7] * 400

    async def ask() -> list[np.ndarray]:
        return await asyncio.gather(*(encoder.adocuments(texts[:10]) for _ in range(200)))

    assert len(asyncio.run(ask())) == 200


def test_the_event_loop_goes_on_while_the_bundle_is_opened(
    tiny_mean_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = RetrievalEncoder(tiny_mean_bundle, threads=1, max_batch_tokens=4096)  # not opened yet
    turned = threading.Event()

    def held(*arguments: Any, **options: Any) -> Encoder:
        assert turned.wait(30)  # a loop that stands still never sets it
        return Encoder(*arguments, **options)

    monkeypatch.setattr("corom.runtime.late_encoder.Encoder", held)

    async def ask() -> None:
        asked = asyncio.ensure_future(late.aqueries(["头痛"]))
        for _ in range(5):
            await asyncio.sleep(0.001)
        assert not asked.done()
        turned.set()
        await asked

    asyncio.run(ask())


def test_those_with_the_same_options_share_an_encoder(tiny_mean_bundle: Path) -> None:
    first = RetrievalEncoder(tiny_mean_bundle, threads=1)
    second = RetrievalEncoder(str(tiny_mean_bundle), threads=1, truncate_dim=8)
    assert first.open() is second.open()
    assert (second.dimension, second.queries(["头痛"]).shape) == (8, (1, 8))


def test_it_pickles_as_text_even_after_use(encoder: RetrievalEncoder, tmp_path: Path) -> None:
    asyncio.run(encoder.aqueries(TEXTS))
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 5000
    (tmp_path / "pickled").write_bytes(pickled)
    program = (
        f"import pickle, numpy as np; from pathlib import Path; folder = Path({str(tmp_path)!r})\n"
        "encoder = pickle.loads((folder / 'pickled').read_bytes())\n"
        f"np.save(folder / 'vectors.npy', encoder.queries({TEXTS!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    found = np.load(tmp_path / "vectors.npy")
    np.testing.assert_allclose(found, encoder.queries(TEXTS), atol=1e-6)


def test_what_cannot_be_is_refused_before_anything_is_opened(
    tmp_path: Path, tiny_mean_bundle: Path
) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        RetrievalEncoder(tmp_path)
    with pytest.raises(InputTypeError, match="there is no option 'thread'"):
        RetrievalEncoder(tiny_mean_bundle, thread=1)
    with pytest.raises(InputError, match="truncate_dim is 99"):
        RetrievalEncoder(tiny_mean_bundle, truncate_dim=99)


def test_one_text_in_place_of_a_list_is_refused(encoder: RetrievalEncoder) -> None:
    for encode in (encoder.queries, encoder.documents):
        with pytest.raises(InputTypeError, match="one str; pass a list"):
            encode("头痛")  # type: ignore[arg-type]
    for aencode in (encoder.aqueries, encoder.adocuments):
        with pytest.raises(InputTypeError, match="one str; pass a list"):
            asyncio.run(aencode("头痛"))  # type: ignore[arg-type]


def test_vectors_mean_the_same_whatever_the_options_are_called(
    tiny_mean_bundle: Path, altered: Path
) -> None:
    plain = RetrievalEncoder(tiny_mean_bundle)
    meaning = plain.meaning()
    assert (meaning["query_prompt"], meaning["document_prompt"]) == ("查询：", "")
    same: list[dict[str, Any]] = [
        {"max_length": plain.manifest.max_length}, {"truncate": True}, {"threads": 1},
        {"truncate_dim": plain.dimension}, {"normalize_embeddings": None},
    ]  # fmt: skip
    for options in same:
        assert RetrievalEncoder(tiny_mean_bundle, **options).meaning() == meaning
    others: list[dict[str, Any]] = [
        {"max_length": 9}, {"truncate": "left"}, {"truncate_dim": 8},
        {"normalize_embeddings": False},
    ]  # fmt: skip
    for options in others:
        assert RetrievalEncoder(tiny_mean_bundle, **options).meaning() != meaning
    assert RetrievalEncoder(altered).meaning() != meaning


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("chroma", "chromadb", "chroma"),
        ("haystack", "haystack", "haystack"),
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
    ],
)
def test_a_missing_framework_is_named_with_its_pip_line(
    module: str, package: str, extra: str
) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from corom.runtime import UnavailableError\n"
        f"try: import corom.runtime.{module}\n"
        "except UnavailableError as error: print(error)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"pip install 'corom[{extra}]'" in done.stdout
