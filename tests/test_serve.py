"""`corom serve`, the real process over loopback: routes, forms of errors, limits."""

import base64
import itertools
import json
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import jsonschema
import msgspec
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from corom.runtime import Encoder
from corom.runtime.cli_serve import serve as command
from corom.runtime.server_settings import Settings

Serve = Callable[..., AbstractContextManager[str]]
Start = Callable[..., "subprocess.Popen[str]"]
TEXTS = ["头痛怎么办", "", "发烧吃什么药 take 2 pills", "上消化道出血手术大约多久" * 20]
POSTS = ["/v1/embeddings", "/embeddings", "/embed", "/", "/similarity", "/tokenize", "/decode"]
PROBES = ["/", "/health", "/ping", "/health/ready", "/health/live"]
GETS = ["/v1/models", "/v1/models/tiny", "/info", *PROBES, "/metrics"]
ERROR_FORMS = [{"error", "error_type"}, {"error"}]


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


def refused(reply: Any, path: str) -> str:
    """Check that an error has the form of the path's family, and return its message."""
    assert "Traceback" not in str(reply)
    if path.startswith("/v1") or path == "/embeddings":
        assert set(reply) == {"error"}
        assert set(reply["error"]) == {"message", "type", "param", "code"}
        return str(reply["error"]["message"])
    assert set(reply) == {"error", "error_type"}
    return str(reply["error"])


def raw(url: str, data: bytes, seconds: float = 20) -> bytes:
    """Return all that the server sends until it closes."""
    split = urlsplit(url)
    with socket.create_connection((split.hostname, split.port), seconds) as connection:
        connection.sendall(data)
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of a request whose answer ends the connection."""
    lines = [f"POST {path} HTTP/1.1", "host: x", "connection: close", *headers]
    if not any("transfer-encoding" in header for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


JSON = "content-type: application/json"


@pytest.fixture(scope="session")
def encoder(tiny_bundle: Path) -> Iterator[Encoder]:
    with Encoder(tiny_bundle) as encoder:
        yield encoder


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


def test_one_text_token_ids_and_lists_of_them(server: str, encoder: Encoder) -> None:
    ids = encoder.token_ids(TEXTS[:3])
    expected = encoder.encode(TEXTS[:3])
    bare = [row[1:-1] or row for row in ids]
    for asked in (TEXTS[0], ids[0], ids, bare):
        status, reply, _ = ask(f"{server}/embeddings", {"input": asked})
        assert status == 200, reply
        vectors = np.array([item["embedding"] for item in reply["data"]])
        np.testing.assert_allclose(vectors, expected[: len(vectors)], atol=1e-5)
        assert reply["usage"]["prompt_tokens"] == sum(map(len, ids[: len(vectors)]))


def test_ids_of_another_model_are_refused(server: str) -> None:
    status, reply, _ = ask(f"{server}/v1/embeddings", {"input": [1, 100_000]})
    assert status == 400
    assert "token id 100000; this model's are 0 to 1999" in refused(reply, "/v1/embeddings")


def test_dimensions_shorten_vectors(server: str, encoder: Encoder) -> None:
    body: dict[str, Any] = {"input": TEXTS[0], "dimensions": 7, "user": "u"}
    _, reply, _ = ask(f"{server}/v1/embeddings", body)
    expected = encoder.encode(TEXTS[0], truncate_dim=7)
    np.testing.assert_allclose(reply["data"][0]["embedding"], expected, atol=1e-5)
    status, reply, _ = ask(f"{server}/v1/embeddings", body | {"dimensions": 49})
    assert (status, "this model has 48" in refused(reply, "/v1/x")) == (400, True)


def test_models_and_their_names(server: str) -> None:
    status, reply, _ = ask(f"{server}/v1/models")
    assert (status, [model["id"] for model in reply["data"]]) == (200, ["tiny"])
    status, reply, _ = ask(f"{server}/v1/embeddings", {"input": "a", "model": "gpt"})
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
    assert "'gpt' is not served here. Served: tiny." in refused(reply, "/v1/x")
    status, reply, _ = ask(f"{server}/v1/models/tiny")
    assert (status, reply["id"], reply["object"]) == (200, "tiny", "model")
    status, reply, _ = ask(f"{server}/v1/models/some/gpt")
    assert (status, reply["error"]["code"]) == (404, "model_not_found")


def test_tei_vectors_are_normalized_unless_asked_otherwise(server: str, encoder: Encoder) -> None:
    for path in ("/embed", "/"):
        status, reply, headers = ask(f"{server}{path}", {"inputs": TEXTS})
        assert (status, headers["x-truncated-texts"]) == (200, "1")
        expected = encoder.encode(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(np.array(reply), expected, atol=1e-5)
    _, reply, headers = ask(f"{server}/embed", {"inputs": TEXTS[0], "normalize": False})
    np.testing.assert_allclose(np.array(reply), encoder.encode(TEXTS[:1]), atol=1e-5)
    assert "x-truncated-texts" not in headers
    for name in ("compute", "total", "tokenization", "queue", "inference"):
        assert int(headers[f"x-{name}-time"]) >= 0
    assert headers["x-compute-tokens"] == str(len(encoder.token_ids(TEXTS[:1])[0]))


def test_long_texts_are_cut_at_either_end_or_refused(server: str, encoder: Encoder) -> None:
    text = "".join(chr(0x4E00 + k) for k in range(200))
    for direction, kept in (("Right", text[:126]), ("left", text[-126:])):
        body = {"inputs": text, "truncation_direction": direction}
        _, reply, headers = ask(f"{server}/embed", body)
        expected = encoder.encode([kept], normalize_embeddings=True)
        np.testing.assert_allclose(np.array(reply), expected, atol=1e-5)
        assert headers["x-truncated-texts"] == "1"
    status, reply, _ = ask(f"{server}/embed", {"inputs": ["a", text], "truncate": False})
    assert status == 413  # as TEI
    assert "text 1 has 202 tokens" in refused(reply, "/embed")


def test_similarity_is_the_cosine(server: str, encoder: Encoder) -> None:
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    status, reply, _ = ask(f"{server}/similarity", {"inputs": inputs})
    unit = encoder.encode(TEXTS, normalize_embeddings=True)
    assert status == 200
    np.testing.assert_allclose(reply, unit @ unit[0], atol=1e-5)


def test_tokenize_and_decode(server: str, encoder: Encoder) -> None:
    text = "头痛 take ct"
    _, reply, _ = ask(f"{server}/tokenize", {"inputs": text})
    (tokens,) = reply
    assert [token["id"] for token in tokens] == encoder.token_ids([text])[0]
    assert (tokens[0]["special"], tokens[0]["start"], tokens[0]["text"]) == (True, None, "[CLS]")
    spans = [text[t["start"] : t["stop"]] for t in tokens if not t["special"]]
    assert "".join(spans) == text.replace(" ", "")
    assert [t["text"] for t in tokens if not t["special"]] == spans  # as TEI's, no "##ake"
    body = {"inputs": [text, ""], "add_special_tokens": False}
    _, reply, _ = ask(f"{server}/tokenize", body)
    assert [[t["id"] for t in row] for row in reply] == [[t["id"] for t in tokens[1:-1]], []]
    ids = [token["id"] for token in tokens]
    for asked in (ids, [ids, []]):
        _, reply, _ = ask(f"{server}/decode", {"ids": asked})
        assert "[CLS]" not in reply[0]
        assert reply[0].replace(" ", "") == text.replace(" ", "")
    _, reply, _ = ask(f"{server}/decode", {"ids": ids, "skip_special_tokens": False})
    assert reply[0].startswith("[CLS]")
    for mixed in ([[2], 1], [1, [2]]):
        status, reply, _ = ask(f"{server}/decode", {"ids": mixed})
        assert (status, "ids mixes kinds" in refused(reply, "/decode")) == (422, True)
    status, reply, _ = ask(f"{server}/decode", {"ids": [5] * 70_000})
    assert (status, "65536 ids" in refused(reply, "/decode")) == (413, True)
    assert ask(f"{server}/decode", {"ids": []})[0] == 200
    status, reply, _ = ask(f"{server}/decode", {"ids": [2000]})
    assert (status, "token id 2000" in refused(reply, "/decode")) == (422, True)


def test_info(server: str, encoder: Encoder) -> None:
    _, reply, _ = ask(f"{server}/info")
    assert reply["max_input_length"] == encoder.max_length == 128
    assert reply["model_type"] == {"embedding": {"pooling": "cls"}}
    assert (reply["model_dtype"], reply["auto_truncate"]) == ("float32", True)
    assert (reply["served_model_name"], reply["dimension"]) == ("tiny", 48)


def test_health(server: str) -> None:
    for path in PROBES:
        assert ask(f"{server}{path}")[:2] == (200, "")


def test_head_is_answered_at_once_and_the_connection_goes_on(server: str) -> None:
    with closing(HTTPConnection(urlsplit(server).netloc, timeout=20)) as connection:
        sockets = set()
        for path in [*GETS, "/openapi.json"]:
            for method in ("HEAD", "GET"):
                connection.request(method, path)
                reply = connection.getresponse()
                content = reply.read()
                assert reply.status == 200
                assert (len(content) > 0) == (method == "GET" and path not in PROBES)
                sockets.add(connection.sock)
    assert len(sockets) == 1


def test_what_a_request_took_is_in_its_headers(server: str) -> None:
    texts = [f"第{k}个问题" for k in range(3000)]
    status, _, headers = ask(f"{server}/embed", {"inputs": texts})
    assert (status, headers["x-compute-characters"]) == (200, str(sum(map(len, texts))))
    assert int(headers["x-compute-tokens"]) > 3000
    # Batches that are executed at the same time are not added up.
    assert 0 < int(headers["x-inference-time"]) <= int(headers["x-total-time"])


def test_many_callers_get_their_own_vectors(server: str, encoder: Encoder) -> None:
    texts = [f"第{k}个病人{'头痛' * (k % 20)}" for k in range(200)]
    expected = encoder.encode(texts)

    def call(first: int) -> Any:
        body = {"input": texts[first : first + 1 + first % 7]}
        return ask(f"{server}/v1/embeddings", body)

    with ThreadPoolExecutor(8) as pool:
        for first, (status, reply, _) in enumerate(pool.map(call, range(200))):
            vectors = np.array([item["embedding"] for item in reply["data"]])
            assert status == 200
            np.testing.assert_allclose(vectors, expected[first:][: len(vectors)], atol=1e-4)


def test_a_large_batch_is_split_inside_and_streamed(server: str, encoder: Encoder) -> None:
    texts = [f"{k}号病人头痛" for k in range(3000)]
    _, reply, _ = ask(f"{server}/embed", {"inputs": texts, "normalize": False})
    np.testing.assert_allclose(np.array(reply), encoder.encode(texts), atol=1e-4)


# --- Prompts, keys, and other options


def test_prompts(serve: Serve, tiny_mean_bundle: Path) -> None:
    with (
        serve(tiny_mean_bundle, "--default-prompt-name", "query") as url,
        Encoder(tiny_mean_bundle) as encoder,
    ):
        by_default = encoder.encode(["头痛"], prompt_name="query")
        _, reply, _ = ask(f"{url}/embed", {"inputs": "头痛"})
        np.testing.assert_allclose(np.array(reply), by_default, atol=1e-5)
        _, reply, _ = ask(f"{url}/v1/embeddings", {"input": "头痛"})
        np.testing.assert_allclose(reply["data"][0]["embedding"], by_default[0], atol=1e-5)
        _, reply, _ = ask(f"{url}/embed", {"inputs": "头痛", "prompt_name": "document"})
        plain = encoder.encode(["头痛"], prompt_name="document")
        np.testing.assert_allclose(np.array(reply), plain, atol=1e-5)
        for route, name in itertools.product(("/embed", "/tokenize"), ("x", "")):
            status, reply, _ = ask(url + route, {"inputs": "头痛", "prompt_name": name})
            assert (status, "prompts: query, document" in refused(reply, "/")) == (422, True)
        status, reply, _ = ask(f"{url}/embed", {"inputs": [1, 2]})
        assert (status, "before token ids" in refused(reply, "/")) == (422, True)
        _, reply, _ = ask(f"{url}/tokenize", {"inputs": "头痛", "add_special_tokens": False})
        assert len(reply[0]) == len(encoder.token_ids(["查询：头痛"])[0]) - 2


def test_keys(serve: Serve, tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\nsecond\n", "utf-8")
    options = ("--api-key-file", file, "--cors-allow-origin", "https://a.example")
    with serve(tiny_bundle, *options) as url:
        for path in [*POSTS, "/v1/models", "/info", "/metrics", "/openapi.json", "/nothing"]:
            body = {"x": 1} if path in POSTS else None
            for key in ("", "Bearer wrong", "Bearer", "first", "Basic first", "Bearer firs"):
                status, reply, headers = ask(url + path, body, authorization=key)
                assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
                assert "authorization: Bearer KEY" in refused(reply, path)
        for path in PROBES:
            assert ask(url + path)[0] == 200
        for key in ("first", "second"):
            body = {"inputs": "a"}
            assert ask(f"{url}/embed", body, authorization=f"Bearer {key}")[0] == 200
        preflight = urllib.request.Request(
            f"{url}/embed",
            method="OPTIONS",
            headers={"origin": "https://a.example", "access-control-request-method": "POST"},
        )
        with urllib.request.urlopen(preflight) as reply:
            assert reply.headers["access-control-allow-origin"] == "https://a.example"


def test_no_cross_origin_by_default(server: str) -> None:
    _, _, headers = ask(f"{server}/embed", {"inputs": "a"}, origin="https://a.example")
    assert not any(name.startswith("access-control") for name in headers)


def test_a_unix_socket_and_the_log(start: Start, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    log = tmp_path / "log"
    with log.open("w") as file:
        process = start("serve", tiny_bundle, "--uds-path", path, "--json-output", stderr=file)
        while f"Listening on unix:{path}" not in log.read_text():
            assert process.poll() is None
        body = json.dumps({"inputs": ["秘密" * 100, "b"]}).encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(post("/embed", body, JSON, "x-request-id: my-id"))
            reply = b"".join(iter(lambda: connection.recv(65536), b""))
        assert reply.startswith(b"HTTP/1.1 200")
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert not path.exists()
    lines = [json.loads(line) for line in log.read_text().splitlines()]  # every one is JSON
    assert [line["level"] for line in lines if "Listening" in line["message"]] == ["INFO"]
    (request,) = [line for line in lines if line["message"] == "request"]
    assert (request["id"], request["route"], request["status"]) == ("my-id", "/embed", 200)
    assert (request["texts"], request["truncated_texts"]) == (2, 1)
    assert request["total_ms"] >= request["inference_ms"] > 0
    assert "秘密" not in log.read_text()
    assert "\\u79d8" not in log.read_text()


# --- What is refused, in the form of the route's family


@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_no_request(server: str, path: str) -> None:
    bodies = {
        b"": 400,
        b"{": 400,
        b'{"input": "\xff\xfe", "inputs": "\xff"}': None,
        b'{"input": "\\ud800", "inputs": "\\ud800"}': None,
        b'{"inputs": NaN}': None,
        b'{"input": NaN}': None,
        b"[" * 200_000: None,
        b'{"inputs":' + b'{"a":' * 200_000: None,
        b'{"input":' + b"[" * 200_000: None,
        b"null": 422,
        b'{"surprise": 1}': 422,
        b"[]": 422,
    }
    for body, expected in bodies.items():
        reply = raw(server, post(path, body, JSON))
        head, _, content = reply.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        openai = "embeddings" in path
        allowed = {400, 422} if expected is None else {expected}
        assert status in ({400} if openai else allowed), (body[:20], reply)
        refused(json.loads(content), path)


@pytest.mark.parametrize("path", POSTS)
def test_what_is_not_json_is_415(server: str, path: str) -> None:
    for kind in ("text/plain", "multipart/form-data", "application/json; charset=gbk"):
        status, reply, _ = ask(server + path, {"inputs": "a"}, content_type=kind)
        assert status == 415
        assert "content-type: application/json" in refused(reply, path)


def test_wrong_methods_and_paths(server: str) -> None:
    for path in [*POSTS, *GETS]:
        allowed = ["POST"] * (path in POSTS) + ["GET", "HEAD"] * (path in GETS)
        for method in {"DELETE", "GET", "POST", "PATCH", "TRACE"} - {*allowed}:
            reply = raw(server, f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            head, _, content = reply.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 405"), (path, method, head)
            allow = re.search(rb"allow: (.*)", head)
            assert allow is not None
            assert allow[1].decode().strip().split(", ") == sorted(allowed)
            assert method in refused(json.loads(content), path)
    for path in ("/nothing", "/v1/nothing", "/embed/", "/%2e%2e/etc/passwd", "/v1/%F0%9F"):
        status, reply, _ = ask(server + path)
        assert status == 404
        assert "there is no route" in refused(reply, path)


def test_what_is_no_http_is_400(server: str) -> None:
    for data in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET  / HTTP/9\r\n\r\n"):
        head, _, content = raw(server, data).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert set(json.loads(content)) == {"error", "error_type"}


def test_long_headers_are_refused(server: str) -> None:
    ends = b"\r\n\r\n"  # in one piece with the rest, if the machine is quick
    for piece in (b"x: " + b"y" * 70_000, b"GET /" + b"z" * 100_000, b"x: " + b"y" * 70_000 + ends):
        reply = raw(server, b"GET /v1/models HTTP/1.1\r\n" + piece)
        assert reply[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400")


def test_odd_deadlines_and_short_ones(server: str) -> None:
    for path in ("/embed", "/v1/embeddings"):
        name = "inputs" if path == "/embed" else "input"
        status, reply, _ = ask(server + path, {name: "a"}, x_request_timeout="soon")
        assert (status, "x-request-timeout" in refused(reply, path)) == (400, True)
        many = {name: ["头痛" * 60] * 500}
        status, reply, _ = ask(server + path, many, x_request_timeout="0.001")
        assert (status, "0.001 s" in refused(reply, path)) == (504, True)


@pytest.fixture(scope="module")
def small(serve: Serve, tiny_bundle: Path) -> Iterator[str]:
    """A server with small limits."""
    options = {
        "--payload-limit": 20_000,
        "--max-client-batch-size": 50,
        "--body-timeout": 1,
        "--header-timeout": 1.5,
        "--keep-alive-timeout": 1,
        "--max-connections": 8,
        "--served-model-name": "one",
    }
    flat = [str(part) for option in options.items() for part in option]
    with serve(tiny_bundle, *flat, "--served-model-name", "two", "--no-auto-truncate") as url:
        yield url


def test_too_large_bodies_are_413_however_they_come(small: str) -> None:
    body = json.dumps({"inputs": "a" * 20_000}).encode()
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    requests = [
        post("/embed", body, JSON),
        post("/embed", chunk, JSON, "transfer-encoding: chunked"),
        post("/embed", body, JSON, "expect: 100-continue"),
        post("/embed", b"x", JSON).replace(b"content-length: 1", b"content-length: 99999999"),
    ]
    for request in requests[:3]:
        reply = raw(small, request)
        assert b"HTTP/1.1 413" in reply
        assert b"--payload-limit" in reply
    split = urlsplit(small)
    with socket.create_connection((split.hostname, split.port), 20) as connection:
        connection.sendall(requests[3])  # refused before the body is there
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        connection.sendall(b"x" * 100_000)  # and what comes is thrown away


def test_too_many_texts_are_413(small: str) -> None:
    for path, name in (("/embed", "inputs"), ("/v1/embeddings", "input")):
        assert ask(small + path, {name: ["a"] * 50})[0] == 200
        status, reply, _ = ask(small + path, {name: ["a"] * 51})
        assert (status, "has 51 texts" in refused(reply, path)) == (413, True)


def test_long_texts_can_be_refused_by_default(small: str) -> None:
    status, reply, _ = ask(f"{small}/v1/embeddings", {"input": "头" * 200})
    assert (status, "202 tokens" in refused(reply, "/v1/x")) == (400, True)
    assert ask(f"{small}/embed", {"inputs": "头" * 200, "truncate": True})[0] == 200


def test_names_of_the_model(small: str) -> None:
    for name in ("one", "two"):
        status, reply, _ = ask(f"{small}/v1/embeddings", {"input": "a", "model": name})
        assert (status, reply["model"]) == (200, name)
    _, reply, _ = ask(f"{small}/v1/models")
    assert [model["id"] for model in reply["data"]] == ["one", "two"]


def test_half_a_body_is_408(small: str) -> None:
    whole = post("/embed", b'{"inputs": "a"}', JSON)
    reply = raw(small, whole[:-3])
    assert reply.startswith(b"HTTP/1.1 408")
    assert b'"error_type":"Timeout"' in reply


def test_connections_that_owe_headers_or_stay_idle_are_closed(small: str) -> None:
    assert raw(small, b"") == b""
    assert raw(small, b"POST /embed HTTP/1.1\r\nhost:") == b""
    body = b'{"inputs": "a"}'
    request = post("/embed", body, JSON).replace(b"connection: close\r\n", b"")
    assert raw(small, request).startswith(b"HTTP/1.1 200")
    assert raw(small, request + b"P").startswith(b"HTTP/1.1 200")


def test_quiet_connections_make_room_for_new_ones(small: str) -> None:
    split = urlsplit(small)
    quiet = [socket.create_connection((split.hostname, split.port), 20) for _ in range(20)]
    assert ask(f"{small}/embed", {"inputs": "a"})[0] == 200
    for connection in quiet:
        connection.close()


def test_javas_client_offers_http2_and_is_answered(server: str) -> None:
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEA")
    request = post("/embed", b'{"inputs": "a"}', JSON, *upgrade)
    assert raw(server, request).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_order(server: str, encoder: Encoder) -> None:
    requests = b"".join(
        post("/v1/embeddings", json.dumps({"input": text}).encode(), JSON).replace(
            b"connection: close\r\n", b"connection: close\r\n" if text == "e" else b""
        )
        for text in "abcde"
    )
    reply = raw(server, requests).decode()
    found = [
        json.loads(m) for m in re.findall(r"\{\"object\":\"list\".*?total_tokens\":\d+\}\}", reply)
    ]
    vectors = np.array([item["data"][0]["embedding"] for item in found])
    np.testing.assert_allclose(vectors, encoder.encode(list("abcde")), atol=1e-5)


# --- Metrics and the description


def test_metrics_count_what_was_asked(serve: Serve, tiny_bundle: Path) -> None:
    with serve(tiny_bundle) as url:
        ask(f"{url}/embed", {"inputs": TEXTS})
        ask(f"{url}/embed", {"inputs": "a"})
        ask(f"{url}/embed", {"inputs": []})
        ask(f"{url}/nothing")
        ask(f"{url}/embed")  # GET: 405
        ask(f"{url}/info", {"a": 1})
        ask(f"{url}/tokenize", {"a": 1})
        _, text, headers = ask(f"{url}/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["te_request_count", "batch"] == 1
    assert found["te_request_count", "single"] == 2
    assert found["te_request_success", "single"] == 1
    assert found["te_request_failure", "Empty"] == 1
    assert found["corom_requests_total", "/embed", "200"] == 2
    assert found["corom_request_failures_total", "NotFound", "other"] == 1
    assert found["corom_texts_total",] == 5
    assert found["corom_truncated_texts_total",] == 1
    assert found["te_request_duration_count",] == 2
    assert found["corom_request_seconds_count", "inference"] == 2
    assert found["corom_request_seconds_sum", "total"] > 0
    assert found["te_batch_next_size_sum",] == 5
    assert found["corom_batch_tokens_sum",] == found["corom_executed_tokens_total",]
    assert found["te_queue_size",] == found["corom_queue_tokens",] == 0
    assert found["corom_ready",] == found["corom_requests_in_hand",] + 1 == 1
    assert found["process_resident_memory_bytes",] > 1e6


def test_the_description_names_every_route_and_field(server: str) -> None:
    _, document, _ = ask(f"{server}/openapi.json")
    paths = {*POSTS, *GETS, "/openapi.json"} - {"/v1/models/tiny"} | {"/v1/models/{model}"}
    assert set(document["paths"]) == paths
    assert set(document["paths"]["/"]) == {"post", "get"}
    schemas = document["components"]["schemas"]
    assert schemas["EmbedRequest"]["properties"]["dimensions"]["anyOf"][0]["maximum"] == 48
    assert schemas["EmbeddingsRequest"]["required"] == ["input"]

    def check(schema: dict[str, Any], value: Any) -> None:
        jsonschema.validate(value, schema | {"components": document["components"]})

    bodies: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": ["a", "b"], "dimensions": 3},
        "/embed": {"inputs": [[1, 2], [3]], "prompt_name": None},
        "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
        "/tokenize": {"inputs": "a"},
        "/decode": {"ids": [[1]]},
    }
    for path, body in bodies.items():
        operation = document["paths"][path]["post"]
        check(operation["requestBody"]["content"]["application/json"]["schema"], body)
        for asked in (body, {"odd": 1}):
            status, reply, _ = ask(server + path, asked)
            assert (status == 200) == (asked is body)
            described = operation["responses"][str(status)]["content"]["application/json"]
            check(described["schema"], reply)
    for path in ("/v1/models", "/info"):
        described = document["paths"][path]["get"]["responses"]["200"]["content"]
        check(described["application/json"]["schema"], ask(server + path)[1])


# --- The command


def test_every_option_has_its_variable_and_the_default_of_settings() -> None:
    options = [p for p in command.params if isinstance(p, click.Option)]
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    for option in options:
        flag = max(option.opts, key=len)
        assert option.envvar == "COROM_" + flag[2:].upper().replace("-", "_")
    serving = {o.name: o for o in options if o.name in defaults}
    assert {*serving, "bundle", "encoder", "api_keys"} == set(defaults)


def test_options_from_the_environment(
    serve: Serve, tiny_bundle: Path, offline_environment: dict[str, str]
) -> None:
    variables = {
        "COROM_MAX_LENGTH": "16",
        "COROM_AUTO_TRUNCATE": "false",
        "COROM_API_KEY": "secret",
        "COROM_SERVED_MODEL_NAME": "a b",
    }
    with serve(tiny_bundle, env=offline_environment | variables) as url:
        _, reply, _ = ask(f"{url}/info", authorization="Bearer secret")
    assert (reply["max_input_length"], reply["auto_truncate"]) == (16, False)
    assert reply["served_model_name"] == "a"
