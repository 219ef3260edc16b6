"""What requests mean and how replies are written: the pure functions of the server."""

import base64
import json
import pickle
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("orjson")

from prometheus_client import CollectorRegistry, Histogram

from corom.runtime.errors import (
    BundleError,
    CoromError,
    DeadlineExceeded,
    InputError,
    Overloaded,
    TextTooLong,
    WorkerError,
)
from corom.runtime.request import Usage
from corom.runtime.server_body import check_content_type, decode
from corom.runtime.server_call import request_id
from corom.runtime.server_embedding import deadline_s
from corom.runtime.server_errors import Refusal, body_of, is_openai, refusal_of, status_of
from corom.runtime.server_metrics import SECONDS, Distribution
from corom.runtime.server_openai import EmbeddingsRequest, embeddings_reply
from corom.runtime.server_protocol import without_upgrade
from corom.runtime.server_service import retry_after_s
from corom.runtime.server_tei import EmbedRequest, SimilarityRequest, cosines, embed_reply
from corom.runtime.server_texts import options_of, texts_of

import msgspec  # isort: skip

VECTORS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(1, 5)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)
IDS = st.lists(st.integers(0, 10**9), min_size=1)


# --- Replies


@given(VECTORS, st.integers(1, 8))
def test_tei_replies_are_the_vectors_to_the_bit_in_however_many_parts(
    vectors: np.ndarray, rows: int
) -> None:
    parts = list(embed_reply(vectors, rows))
    assert len(parts) == -(-len(vectors) // rows)
    got = np.array(json.loads(b"".join(parts)), np.float32)
    np.testing.assert_array_equal(got, vectors)


@given(VECTORS, st.integers(1, 8), st.sampled_from(["float", "base64"]), st.text())
def test_openai_replies_are_the_vectors_to_the_bit(
    vectors: np.ndarray, rows: int, encoding_format: str, model: str
) -> None:
    usage = Usage()
    usage.tokens = 17
    reply = json.loads(
        b"".join(embeddings_reply(vectors, encoding_format, model, usage, rows))  # type: ignore[arg-type]
    )
    assert list(reply) == ["object", "data", "model", "usage"]
    assert reply["model"] == model
    assert reply["usage"] == {"prompt_tokens": 17, "total_tokens": 17}
    assert [item["index"] for item in reply["data"]] == list(range(len(vectors)))
    values = [item["embedding"] for item in reply["data"]]
    if encoding_format == "base64":
        values = [np.frombuffer(base64.b64decode(value), "<f4") for value in values]
    np.testing.assert_array_equal(np.array(values, np.float32), vectors)


def test_cosines_of_vectors() -> None:
    vectors = np.array([[2, 0], [1, 0], [0, 3], [-1, 0], [0, 0]], np.float32)
    assert cosines(vectors) == [1, 0, -1, 0]


# --- What was asked


@given(st.text(), st.integers(1, 10))
def test_one_text_is_one_text(text: str, most: int) -> None:
    assert texts_of(text, "input", most) == (text, True)


@given(st.lists(st.text(), min_size=1, max_size=20), st.integers(1, 20))
def test_texts_are_taken_as_they_are_up_to_the_limit(texts: list[str], most: int) -> None:
    if len(texts) <= most:
        assert texts_of(texts, "input", most) == (texts, False)
        return
    with pytest.raises(Refusal, match=f"has {len(texts)} texts") as refused:
        texts_of(texts, "input", most)
    assert (refused.value.status, refused.value.param) == (413, "input")


@given(IDS, st.lists(IDS, min_size=1, max_size=5))
def test_token_ids_are_one_text_and_lists_of_them_several(
    ids: list[int], several: list[list[int]]
) -> None:
    assert texts_of(ids, "inputs", 1) == ([ids], True)
    assert texts_of(several, "inputs", 5) == (several, False)


@pytest.mark.parametrize(
    ("asked", "status"),
    [([], 400), ([[]], 400), ([[1], []], 400), (["a", 1], 422), ([1, [2]], 422), ([[1], "a"], 422)],
)
def test_nothing_and_mixtures_are_refused(asked: list[object], status: int) -> None:
    with pytest.raises(Refusal) as refused:
        texts_of(asked, "input", 10)
    assert refused.value.status == status


def test_options() -> None:
    assert options_of(truncate=True, most_dimensions=9) == {}
    assert options_of(truncate=False, direction="left", most_dimensions=9) == {"truncate": "error"}
    assert options_of(truncate=True, direction="Left", most_dimensions=9) == {"truncate": "left"}
    asked = options_of(
        truncate=True,
        normalize=False,
        dimensions=3,
        prompt_name="q",
        prompt="p: ",
        most_dimensions=9,
    )
    assert asked == {"normalize_embeddings": False, "truncate_dim": 3, "prompt_name": "q"}
    assert options_of(truncate=True, prompt="p: ", most_dimensions=9) == {"prompt": "p: "}


@given(st.binary(max_size=60) | st.text().map(str.encode))
def test_any_body_is_a_request_or_a_refusal(body: bytes) -> None:
    for kind in (EmbeddingsRequest, EmbedRequest):
        try:
            decode(body, msgspec.json.Decoder(kind))
        except Refusal as refusal:
            status = refusal.status
        else:
            status = 200
        assert status in {200, 400, 422}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from(["input", "model", "dimensions", "user", "x"]), JSON))
def test_any_json_is_a_request_or_a_refusal(asked: dict[str, object]) -> None:
    try:
        request = decode(json.dumps(asked).encode(), msgspec.json.Decoder(EmbeddingsRequest))
        texts_of(request.input, "input", 5)
    except Refusal as refusal:
        status = refusal.status
    else:
        status = 200
    assert status in {200, 400, 413, 422}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b'{"input": "\xff"}', 400, None),
        (b'{"input": "\\ud800"}', 400, None),
        (b'{"input": "a"', 400, None),
        (b"", 400, None),
        (b'{"input": NaN}', 400, None),
        (b'{"input": Infinity}', 400, None),
        (b"[" * 100_000, None, None),
        (b'{"input":' + b"[" * 100_000, None, None),
        (b'{"input": "a", "dimensions": 0}', 422, "dimensions"),
        (b'{"input": "a", "dimensions": 1e400}', None, None),
        (b'{"input": [1.5]}', 422, "input[0]"),
        (b'{"input": [-1]}', 422, "input[0]"),
        (b'{"input": null}', 422, "input"),
        (b'{"input": "a", "surprise": 1}', 422, "surprise"),
        (b'{"model": "a"}', 422, "input"),
    ],
)
def test_bad_bodies(body: bytes, status: int | None, param: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        decode(body, msgspec.json.Decoder(EmbeddingsRequest))
    assert refused.value.status in ({400, 422} if status is None else {status})
    if status is not None:
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("body", "asked", "said"),
    [
        (b"", EmbedRequest, "the body is empty; send JSON."),
        (b'{"inputs": "\\ud83d"}', EmbedRequest, "half of a surrogate pair"),
        (b'{"inputs": "\\ud83d x"}', EmbedRequest, "half of a surrogate pair"),
        (b'{"inputs": "a}', EmbedRequest, "not valid JSON"),
        (
            b'{"input": "a"}',
            EmbedRequest,
            "Known: inputs, truncate, truncation_direction, ",
        ),
        (
            b'{"inputs": "a", "truncation_direction": "up"}',
            EmbedRequest,
            "Allowed: Left, Right,",
        ),
        (b'{"input": "a", "encoding_format": "hex"}', EmbeddingsRequest, "Allowed: float, base64."),
        (b'{"inputs": "a", "encoding_format": "base64"}', EmbedRequest, "Allowed: float."),
        (b'{"inputs": {}}', SimilarityRequest, "missing required field `source_sentence` - at"),
        (b'{"inputs": 5}', EmbedRequest, "Expected `str | array`, got `int` - at `$.inputs`."),
    ],
)
def test_what_is_allowed_is_said(body: bytes, asked: type, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        decode(body, msgspec.json.Decoder(asked))
    assert said in refused.value.message


def test_a_whole_surrogate_pair_is_text() -> None:
    request = decode(b'{"inputs": "\\ud83d\\ude00"}', msgspec.json.Decoder(EmbedRequest))
    assert request.inputs == "\U0001f600"


# --- Refusals


@pytest.mark.parametrize(
    ("error", "tei", "openai"),
    [
        (Overloaded("full"), (429, "Overloaded"), (429, "rate_limit_error")),
        (DeadlineExceeded("late"), (504, "Timeout"), (504, "timeout_error")),
        (InputError("odd"), (422, "Validation"), (400, "invalid_request_error")),
        (TextTooLong("long"), (413, "Validation"), (400, "invalid_request_error")),
        (WorkerError("dead"), (424, "Backend"), (500, "server_error")),
        (BundleError("gone"), (424, "Backend"), (500, "server_error")),
    ],
)
def test_errors_of_the_runtime_in_the_words_of_each_family(
    error: CoromError, tei: tuple[int, str], openai: tuple[int, str]
) -> None:
    refusal = refusal_of(error, 7)
    body = json.loads(body_of(refusal, "/embed"))
    assert set(body) == {"error", "error_type"}
    assert (status_of(refusal, "/embed"), body["error_type"]) == tei
    nested = json.loads(body_of(refusal, "/v1/embeddings"))["error"]
    assert set(nested) == {"message", "type", "param", "code"}
    assert (status_of(refusal, "/v1/embeddings"), nested["type"]) == openai
    assert refusal.headers == ({"retry-after": "7"} if tei[0] == 429 else {})


def test_a_text_that_is_too_long_is_told_in_the_servers_words() -> None:
    error = pickle.loads(pickle.dumps(TextTooLong("text 3 has 9 tokens; the limit is 8.")))
    assert str(error).count("truncate=True (--truncate)") == 1
    refusal = refusal_of(error, 1)
    assert (refusal.param, refusal.code) == ("input", "context_length_exceeded")
    assert refusal.message.startswith("text 3 has 9 tokens; the limit is 8. Shorten it, or ")
    assert "truncate=True" not in refusal.message


@pytest.mark.parametrize(
    ("batches", "seconds"),
    [
        ([], 0.0),
        ([(10, 12)], 2.0),
        ([(10, 12), (10.5, 12.5), (14, 15)], 3.5),
        ([(2, 3), (1, 4)], 3.0),
        ([(1, 2), (2, 3), (2.5, 4)], 3.0),
        ([(0, 3), (4, 5), (1, 6)], 6.0),
        ([(0, 1), (2, 3), (4, 5), (2.5, 6)], 5.0),
    ],
)
def test_batches_executed_at_the_same_time_count_once(
    batches: list[tuple[float, float]], seconds: float
) -> None:
    usage = Usage()
    for began, ended in batches:
        usage.executed(began, ended)
    assert usage.inference_s == seconds


def test_whose_path_it_is() -> None:
    assert all(map(is_openai, ["/v1/embeddings", "/embeddings", "/v1", "/v1/nothing"]))
    assert not any(map(is_openai, ["/embed", "/", "/v2/x", "/v11", "/embeddings/"]))


@given(st.floats(0, 1e9))
def test_retry_after_is_whole_seconds_from_1_to_60(wait_s: float) -> None:
    seconds = retry_after_s(wait_s)
    assert seconds in range(1, 61)
    assert seconds == 60 or wait_s <= seconds
    assert seconds == 1 or seconds - 1 < wait_s


@pytest.mark.parametrize("header", ["", "x", "-1", "0", "nan", "inf", "-inf", "1,5", "１"])
def test_odd_deadlines_are_refused(header: str) -> None:
    if header == "１":  # float() reads digits of every script
        assert deadline_s(header, 5) == 1
        return
    with pytest.raises(Refusal, match="x-request-timeout"):
        deadline_s(header, 5)


def test_deadlines() -> None:
    assert deadline_s(None, 5) == 5
    assert deadline_s("2.5", 5) == 2.5
    assert deadline_s("250", 5) == 5


@pytest.mark.parametrize(
    ("kind", "fine"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/vnd.api+json", True),
        (None, False),
        ("", False),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("application/json; charset=gbk", False),
        ("image/json", False),
    ],
)
def test_content_types(kind: str | None, fine: bool) -> None:
    if fine:
        check_content_type(kind)
        return
    with pytest.raises(Refusal) as refused:
        check_content_type(kind)
    assert refused.value.status == 415


@given(st.binary(max_size=200))
def test_request_ids_are_printable_and_short(header: bytes) -> None:
    made = request_id(header)
    assert made.isascii()
    assert made.isprintable()
    assert 0 < len(made) <= 128


def test_request_ids_are_kept_and_new_ones_differ() -> None:
    assert request_id(b"abc-1") == "abc-1"
    made = {request_id(b"") for _ in range(1000)}
    assert len(made) == 1000
    assert set("".join(made)) <= set(string.hexdigits)


def test_a_wish_for_another_protocol_is_taken_out_of_the_head_alone() -> None:
    head = b"POST / HTTP/1.1\r\nconnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    body = b'{"inputs": "\r\nUpgrade: h2c"}'
    assert without_upgrade(head + body) == head.replace(b"Upgrade:", b"x-upgrade:") + body


@given(
    st.lists(st.lists(st.floats(0, 100) | st.sampled_from(SECONDS), min_size=1), max_size=5),
)
def test_values_added_together_are_in_the_buckets_of_prometheus(rounds: list[list[float]]) -> None:
    found = Distribution(SECONDS)
    registry = CollectorRegistry()
    theirs = Histogram("x", "x", buckets=SECONDS, registry=registry)
    for values in rounds:
        found.add(values)
        for value in values:
            theirs.observe(value)
    (family,) = registry.collect()
    samples = {s.labels["le"]: s.value for s in family.samples if "le" in s.labels}
    assert dict(found.buckets()) == samples
    assert found.total == pytest.approx(sum(map(sum, rounds)))
