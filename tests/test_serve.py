"""`corom serve`, the real process over loopback: routes, and vectors that are the encoder's."""

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corom.runtime import Encoder

TEXTS = ["头痛怎么办", "", "发烧吃什么药 take 2 pills", "上消化道出血手术大约多久" * 20]


def ask(url: str, body: object = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Return status, decoded JSON and headers."""
    data = None if body is None else json.dumps(body).encode()
    head = {"content-type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    request = urllib.request.Request(url, data, head)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            content, status, got = reply.read(), reply.status, reply.headers
    except urllib.error.HTTPError as error:
        with error:
            content, status, got = error.read(), error.code, error.headers
    decoded = json.loads(content) if content[:1] in (b"{", b"[") else content.decode()
    return status, decoded, {k.lower(): v for k, v in got.items()}


@pytest.fixture(scope="session")
def encoder(tiny_bundle: Path) -> Encoder:
    return Encoder(tiny_bundle)


def test_openai_vectors_are_the_encoders(server: str, encoder: Encoder) -> None:
    status, reply, _ = ask(f"{server}/v1/embeddings", {"input": TEXTS, "model": "tiny"})
    assert status == 200
    assert [item["index"] for item in reply["data"]] == [0, 1, 2, 3]
    vectors = np.array([item["embedding"] for item in reply["data"]], np.float32)
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=1e-5)
    count = sum(map(len, encoder.token_ids(TEXTS)))
    assert reply["usage"] == {"prompt_tokens": count, "total_tokens": count}
    body = {"input": TEXTS, "encoding_format": "base64"}
    _, reply, _ = ask(f"{server}/v1/embeddings", body)
    raw = [base64.b64decode(item["embedding"]) for item in reply["data"]]
    np.testing.assert_allclose(np.stack([np.frombuffer(r, "<f4") for r in raw]), vectors, atol=1e-5)


def test_tei_vectors_are_normalized(server: str, encoder: Encoder) -> None:
    status, reply, headers = ask(f"{server}/embed", {"inputs": TEXTS})
    assert (status, headers["x-truncated-texts"]) == (200, "1")
    expected = encoder.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(np.array(reply, np.float32), expected, atol=1e-5)
