"""Clients that people already have, unchanged, against the real server: only the URL is ours."""

import asyncio
import gc
import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from occupied import ROOM, occupied, until

from corom.benchmarks.http_server import Server, corom_command
from corom.runtime import Encoder

openai = pytest.importorskip("openai", reason="pip install 'corom[dev]'")

TEXTS = ["头痛怎么办", "发烧吃什么药", "上消化道出血手术大约多久", ""]
MODEL = "text-embedding-3-small"
"""What people's code asks for; the server is told to answer to it."""
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    words = ["--served-model-name", MODEL, "--api-key", "sk-ours", "--no-auto-truncate"]
    with Server(corom_command(tiny_bundle, words), {}) as server:
        yield server.url


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Iterator[Encoder]:
    with Encoder(tiny_bundle) as encoder:
        yield encoder


def assert_close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(found, np.float32), expected, atol=1e-5)


# --- OpenAI's client


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-ours", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    "options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]
)
def test_openai_lists(client: Any, encoder: Encoder, options: dict[str, Any]) -> None:
    """Left alone, the client asks for base64 and decodes it."""
    reply = client.embeddings.create(model=MODEL, input=TEXTS, **options)
    vectors = [item.embedding for item in reply.data]
    if options.get("encoding_format") == "base64":  # named, it is handed on as it came
        import base64

        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    assert_close(vectors, encoder.encode(TEXTS))
    assert [item.index for item in reply.data] == [0, 1, 2, 3]
    assert reply.model == MODEL
    assert reply.usage.prompt_tokens == sum(map(len, encoder.token_ids(TEXTS)))


def test_openai_text_and_token_ids_and_dimensions(client: Any, encoder: Encoder) -> None:
    (one,) = client.embeddings.create(model=MODEL, input=TEXTS[0]).data
    assert_close(one.embedding, encoder.encode(TEXTS[0]))
    ids = encoder.token_ids(TEXTS)
    by_ids = client.embeddings.create(model=MODEL, input=ids)
    assert_close([item.embedding for item in by_ids.data], encoder.encode(TEXTS))
    (short,) = client.embeddings.create(model=MODEL, input=TEXTS[1], dimensions=16, user="u").data
    assert_close(short.embedding, encoder.encode(TEXTS[1], truncate_dim=16))


def test_openai_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


@pytest.mark.parametrize(("kind", "asked"), [
    ("NotFoundError", {"model": "gpt-4", "input": "a"}),
    ("BadRequestError", {"model": MODEL, "input": []}),
    ("BadRequestError", {"model": MODEL, "input": "a", "dimensions": 4096}),
    ("BadRequestError", {"model": MODEL, "input": "a", "dimensions": -1}),
    ("BadRequestError", {"model": MODEL, "input": [[10**9]]}),
    ("BadRequestError", {"model": MODEL, "input": "头痛" * 500}),
])  # fmt: skip
def test_openai_errors_are_the_clients_own_exceptions(
    client: Any, kind: str, asked: dict[str, Any]
) -> None:
    with pytest.raises(getattr(openai, kind)) as caught:
        client.embeddings.create(**asked)
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert len(caught.value.body["message"]) > 10


def test_openai_other_errors(url: str) -> None:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="sk-theirs", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.embeddings.create(model=MODEL, input="a")


def test_openai_overload_is_a_rate_limit_that_is_retried(tiny_bundle: Path) -> None:
    """Busy, the server answers 429 with Retry-After; the client waits as told and succeeds."""
    statuses: list[int] = []

    async def record(response: Any) -> None:
        statuses.append(response.status_code)

    async def ask(max_retries: int) -> Any:
        async with openai.AsyncOpenAI(
            base_url=server.url,
            api_key="-",
            max_retries=max_retries,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [record]}),
        ) as client:
            return await client.embeddings.create(model="tiny", input="头痛")

    words = ["--max-concurrent-requests", "1", *ROOM]
    with Server(corom_command(tiny_bundle, words), {}) as server, ThreadPoolExecutor(1) as pool:
        with occupied(server.url):
            with pytest.raises(openai.RateLimitError) as refused:
                asyncio.run(ask(0))
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
            patient = pool.submit(asyncio.run, ask(20))
            until(lambda: len(statuses) == 2)
        assert len(patient.result().data) == 1
    assert statuses[:2] == [429, 429]
    assert statuses[-1] == 200


def test_openai_async_callers_get_their_own(url: str, encoder: Encoder) -> None:
    texts = [f"第{k}个问题：头痛怎么办" for k in range(40)]

    async def main() -> list[Any]:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-ours", max_retries=0)
        async with client:
            asked = [client.embeddings.create(model=MODEL, input=text) for text in texts]
            return await asyncio.gather(*asked)

    replies = asyncio.run(main())
    assert_close([reply.data[0].embedding for reply in replies], encoder.encode(texts))


# --- Hugging Face


def test_huggingface_feature_extraction(url: str, encoder: Encoder) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=url, token="sk-ours")  # noqa: S106
    found = client.feature_extraction(TEXTS[0])
    assert found.shape == (1, encoder.dimension)  # as TEI answers
    assert_close(found, encoder.encode(TEXTS[:1], normalize_embeddings=True))
    many = client.feature_extraction(TEXTS, normalize=False, truncate=True)  # type: ignore[arg-type]
    assert_close(many, encoder.encode(TEXTS))
    short = client.feature_extraction(TEXTS[1], dimensions=8)
    expected = encoder.encode(TEXTS[1:2], truncate_dim=8, normalize_embeddings=True)
    assert_close(short, expected)


def test_huggingface_async_and_similarity(url: str, encoder: Encoder) -> None:
    from huggingface_hub import AsyncInferenceClient, InferenceClient

    async def main() -> Any:
        async with AsyncInferenceClient(model=url, token="sk-ours") as client:  # noqa: S106
            return await client.feature_extraction(TEXTS[2])

    expected = encoder.encode(TEXTS, normalize_embeddings=True)
    assert_close(asyncio.run(main()), expected[2:3])
    client = InferenceClient(model=f"{url}/similarity", token="sk-ours")  # noqa: S106
    scores = client.sentence_similarity(TEXTS[0], TEXTS[1:])
    assert_close(scores, expected[1:] @ expected[0])


def test_huggingface_errors(url: str) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=url, token="wrong").feature_extraction("a")  # noqa: S106
    client = InferenceClient(model=url, token="sk-ours")  # noqa: S106
    with pytest.raises(HfHubHTTPError, match="4(13|22)"):
        client.feature_extraction("头痛" * 500)


# --- curl


def test_curl(shell: Shell, url: str, encoder: Encoder) -> None:
    key = "-H 'authorization: Bearer sk-ours'"
    json_ = "-H 'content-type: application/json'"
    done = shell(
        f"""curl -sS --fail-with-body {url}/v1/embeddings {key} {json_} \
        -d '{{"model": "{MODEL}", "input": ["头痛怎么办", "发烧吃什么药"]}}'"""
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["data"]
    assert_close([item["embedding"] for item in data], encoder.encode(TEXTS[:2]))
    done = shell(f"""curl -sS {url}/embed {key} {json_} -d '{{"inputs": "头痛怎么办"}}'""")
    expected = encoder.encode(TEXTS[:1], normalize_embeddings=True)
    assert_close(json.loads(done.stdout), expected)
    done = shell(f"curl -sS -o /dev/null -w '%{{http_code}}' {url}/health")
    assert done.stdout == "200"
    done = shell(f"""curl -sS --fail-with-body {url}/embed {json_} -d '{{"inputs": "a"}}'""")
    assert (done.returncode, "authorization: Bearer" in done.stdout) == (22, True)


def test_curl_with_a_large_body(
    shell: Shell, tiny_bundle: Path, tmp_path: Path, encoder: Encoder
) -> None:
    """curl asks whether a large body is welcome (Expect: 100-continue) before it sends it."""
    texts = [f"第{k}句话" * 20 for k in range(1000)]
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"inputs": texts, "normalize": False}, ensure_ascii=False), "utf-8")
    with Server(corom_command(tiny_bundle, []), {}) as server:
        done = shell(
            f"curl -sS {server.url}/embed -H 'content-type: application/json' "
            f"-H 'Expect: 100-continue' -d @{body}"
        )
    assert_close(json.loads(done.stdout), encoder.encode(texts))


# --- Frameworks, through what they have for OpenAI

leaves_sockets_open = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
"""These never close the clients they make; what is left is collected before the test ends."""


@leaves_sockets_open
def test_langchain_through_its_openai_client(url: str, encoder: Encoder) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason="pip install 'corom[dev]'")
    embeddings = langchain_openai.OpenAIEmbeddings(
        model=MODEL, base_url=f"{url}/v1", api_key="sk-ours", check_embedding_ctx_length=False
    )
    assert_close(embeddings.embed_documents(TEXTS), encoder.encode(TEXTS))
    assert_close(embeddings.embed_query(TEXTS[1]), encoder.encode(TEXTS[1]))
    assert_close(asyncio.run(embeddings.aembed_query(TEXTS[2])), encoder.encode(TEXTS[2]))
    del embeddings
    gc.collect()


@leaves_sockets_open
def test_llama_index_through_its_openai_client(url: str, encoder: Encoder) -> None:
    module = pytest.importorskip(
        "llama_index.embeddings.openai_like", reason="pip install 'corom[dev]'"
    )
    embedding = module.OpenAILikeEmbedding(
        model_name=MODEL, api_base=f"{url}/v1", api_key="sk-ours", embed_batch_size=10
    )
    texts = TEXTS[:3]
    assert_close(embedding.get_text_embedding_batch(texts), encoder.encode(texts))
    assert_close(embedding.get_query_embedding(TEXTS[1]), encoder.encode(TEXTS[1]))
    del embedding
    gc.collect()
