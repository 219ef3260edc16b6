"""Encoder: the reference's vectors, whatever the batch, the order, the thread; no other input."""

import itertools
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.runtime import Encoder, load_manifest
from corom.runtime.errors import (
    BundleError,
    CoromError,
    InputError,
    InputTypeError,
    UnavailableError,
)
from corom.runtime.windows import WINDOW_TEXTS

INVARIANCE = 1e-5
EQUALITY = 1e-4

# Texts of the list "bad input" that are texts nevertheless: each has a vector.
ODD_TEXTS = {
    "empty": "",
    "spaces": " \t\u3000 \u00a0",
    "newlines": "\n\r\n",
    "control characters": "\x00\x01头\x07痛\x1b[0m\x7f",
    "NUL": "\x00",
    "zero width": "头\u200b痛\u200d\ufeff\u2060",
    "only zero width": "\u200b\u200d\ufeff",
    "emoji": "👩🏽‍⚕️🤒🇨🇳",
    "CJK extension B": "𠀀𠮷野家𪚥",
    "right to left": "صداع מיגרנה \u202etxet\u202c",
    "combining": "e\u0301 ﷽ ﬁ ① Ⅳ",
    "private use, unassigned": "\ue000\U0010ffff\u0378",
    "special tokens": "[CLS] [SEP] [MASK] [PAD]",
    "one word": "a" * 1000,
    "1 MB": "上消化道出血手术大约多久 " * 28_000,
}


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Iterator[Encoder]:
    with Encoder(tiny_bundle) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def mean_encoder(tiny_mean_bundle: Path) -> Iterator[Encoder]:
    with Encoder(tiny_mean_bundle) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def pool(encoder: Encoder, parity_texts: list[str]) -> dict[str, np.ndarray]:
    """Texts of every kind, with the vector that each has alone."""
    texts = [*parity_texts[::5], *ODD_TEXTS.values()]
    return {text: encoder.encode(text) for text in texts}


# --- Equal to transformers


@pytest.mark.parametrize(
    ("bundle", "checkpoint", "pooling", "max_length"),
    [
        ("tiny_bundle", "tiny_checkpoint", "cls", 128),
        ("tiny_mean_bundle", "tiny_mean_checkpoint", "mean", 96),
        ("demo_bundle", "demo_source", "mean", 512),
    ],
)
def test_every_vector_equals_transformers_in_any_batch(
    request: pytest.FixtureRequest,
    transformers_vectors: Callable[..., np.ndarray],
    parity_texts: list[str],
    bundle: str,
    checkpoint: str,
    pooling: str,
    max_length: int,
) -> None:
    folder = request.getfixturevalue(checkpoint)
    texts = parity_texts[:: 24 if bundle == "demo_bundle" else 4] + [max(parity_texts, key=len)]
    expected = transformers_vectors(getattr(folder, "folder", folder), texts, pooling, max_length)
    order = random.Random(0).sample(range(len(texts)), len(texts))
    with Encoder(request.getfixturevalue(bundle)) as encoder:
        assert encoder.max_length == max_length
        for batch_size in (None, 3):
            found = encoder.encode(texts, normalize_embeddings=False, batch_size=batch_size)
            assert np.abs(found - expected).max() <= EQUALITY
        found = encoder.encode([texts[row] for row in order], normalize_embeddings=False)
        assert np.abs(found - expected[order]).max() <= EQUALITY


# --- Batch invariance


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_vector_depends_on_neither_batch_mates_nor_order(
    encoder: Encoder, pool: dict[str, np.ndarray], data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.sampled_from(sorted(pool)), max_size=40))
    batch_size = data.draw(st.none() | st.integers(1, 9))
    vectors = encoder.encode(texts, batch_size=batch_size)
    assert vectors.shape == (len(texts), encoder.dimension)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.abs(vector - pool[text]).max() <= INVARIANCE


@settings(deadline=None, max_examples=20)
@given(budget=st.integers(1, 3000), data=st.data())
def test_a_vector_does_not_depend_on_the_token_budget(
    tiny_bundle: Path, pool: dict[str, np.ndarray], budget: int, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.sampled_from(sorted(pool)), min_size=1, max_size=20))
    with Encoder(tiny_bundle, max_batch_tokens=budget, threads=1) as encoder:
        vectors = encoder.encode(texts)
    assert np.abs(vectors - [pool[text] for text in texts]).max() <= INVARIANCE


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        tuple,
        iter,
        lambda texts: (text for text in texts),
        np.array,
        lambda texts: map(str, texts),
    ],
    ids=["list", "tuple", "iterator", "generator", "array", "map"],
)
def test_any_iterable_of_texts_gives_the_same(
    encoder: Encoder, wrap: Callable[[list[str]], Any]
) -> None:
    texts = ["头痛怎么办", "", "CT 12 mg", "发烧"]
    np.testing.assert_array_equal(encoder.encode(wrap(texts)), encoder.encode(texts))


def test_duplicates_have_the_same_vector(encoder: Encoder) -> None:
    vectors = encoder.encode(["头痛", "x", "头痛", "头痛"] * 50)
    assert np.abs(vectors[::4] - vectors[2::4]).max() <= INVARIANCE


@pytest.mark.parametrize("count", [WINDOW_TEXTS - 1, WINDOW_TEXTS, 2 * WINDOW_TEXTS + 1])
@pytest.mark.parametrize("wrap", [list, iter])
def test_more_texts_than_a_window_keep_their_order(
    encoder: Encoder, count: int, wrap: Callable[[list[str]], Any]
) -> None:
    distinct = [f"{n} 毫克" + "药" * (n % 7) for n in range(97)]
    known = encoder.encode(distinct)
    vectors = encoder.encode(wrap([distinct[n % 97] for n in range(count)]))
    assert vectors.shape == (count, 48)
    assert np.abs(vectors - known[np.arange(count) % 97]).max() <= INVARIANCE


def hammer(encoder: Encoder, pool: dict[str, np.ndarray], seconds: float) -> int:
    """Let 64 threads encode, each vector checked; return how many there were."""
    texts = sorted(pool, key=len)[:-1]  # 1 MB takes most of the time and shows nothing more
    until = time.monotonic() + seconds

    def call(seed: int) -> int:
        chance = random.Random(seed)
        count = 0
        while time.monotonic() < until:
            chosen = chance.choices(texts, k=chance.randint(1, 24))
            if chance.random() < 0.3:
                chosen = chosen[:1]
                found = encoder.encode(chosen[0])[None]
            else:
                found = encoder.encode(chosen, batch_size=chance.choice([None, 1, 5]))
            assert np.abs(found - [pool[text] for text in chosen]).max() <= INVARIANCE
            count += len(chosen)
        return count

    with ThreadPoolExecutor(64) as threads:
        return sum(threads.map(call, range(64)))


def test_64_threads_share_an_encoder(encoder: Encoder, pool: dict[str, np.ndarray]) -> None:
    assert hammer(encoder, pool, 2) > 640


@pytest.mark.slow
def test_64_threads_share_an_encoder_for_a_minute_in_flat_memory(
    encoder: Encoder, pool: dict[str, np.ndarray]
) -> None:
    process = psutil.Process()
    hammer(encoder, pool, 10)
    before = process.memory_info().rss
    assert hammer(encoder, pool, 60) > 10_000
    assert process.memory_info().rss - before < 16 * 2**20


# --- Shapes and types


@pytest.mark.parametrize("texts", [[], (), iter([]), np.array([], dtype=str)])
def test_no_texts_have_no_vectors(encoder: Encoder, texts: Any) -> None:
    vectors = encoder.encode(texts)
    assert (vectors.shape, vectors.dtype) == ((0, 48), np.float32)


def test_one_text_has_one_vector_and_a_list_of_one_a_row(encoder: Encoder) -> None:
    one, row = encoder.encode("头痛"), encoder.encode(["头痛"])
    assert (one.shape, row.shape) == ((48,), (1, 48))
    assert one.dtype == row.dtype == np.float32
    np.testing.assert_allclose(one, row[0], atol=INVARIANCE)


def test_vectors_belong_to_the_caller(encoder: Encoder) -> None:
    first = encoder.encode("头痛")
    kept = first.copy()
    encoder.encode("发烧")
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(encoder.encode("头痛"), kept)


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_an_odd_text_is_a_text(
    encoder: Encoder,
    transformers_vectors: Callable[..., np.ndarray],
    tiny_checkpoint: Path,
    name: str,
) -> None:
    text = ODD_TEXTS[name]
    found = encoder.encode(["头痛", text, "发烧吃什么药好"])[1]
    assert np.isfinite(found).all()
    expected = transformers_vectors(tiny_checkpoint, [text], "cls", 128)[0]
    assert np.abs(found - expected).max() <= EQUALITY


# --- Bad input

LONE = "\ud83d"


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        pytest.param(None, InputTypeError, "the input is NoneType; pass one str", id="None"),
        pytest.param(7, InputTypeError, "the input is int", id="a number"),
        pytest.param(2.5, InputTypeError, "the input is float", id="a fraction"),
        pytest.param(b"abc", InputTypeError, "the input is bytes", id="bytes"),
        pytest.param(bytearray(b"abc"), InputTypeError, "the input is bytearray", id="bytearray"),
        pytest.param({"text": "好"}, InputTypeError, "the input is dict", id="dict"),
        pytest.param({"好", "坏"}, InputTypeError, "the input is set", id="set, without order"),
        pytest.param(object(), InputTypeError, "the input is object", id="object"),
        pytest.param(np.array("好"), InputTypeError, "the input is ndarray", id="array, no axis"),
        pytest.param(["好", None], InputTypeError, "text 1 is NoneType, not str", id="None inside"),
        pytest.param(["好", 7], InputTypeError, "text 1 is int", id="a number inside"),
        pytest.param([float("nan")], InputTypeError, "text 0 is float", id="NaN, as in pandas"),
        pytest.param(["好", b"abc"], InputTypeError, r"text 1 is bytes.*decode", id="bytes inside"),
        pytest.param([["好"], ["坏"]], InputTypeError, "text 0 is list.*flat list", id="nested"),
        pytest.param(["好", ("a", "b")], InputTypeError, "text 1 is tuple", id="pair"),
        pytest.param([{"text": "好"}], InputTypeError, "text 0 is dict", id="dict inside"),
        pytest.param(np.eye(2), InputTypeError, "text 0 is ndarray", id="matrix"),
        pytest.param(LONE, InputError, "text 0 holds a lone surrogate", id="lone surrogate"),
        pytest.param(
            ["好", f"坏{LONE}"], InputError, "text 1 holds a lone.* character 1", id="… 2"
        ),
        pytest.param((t for t in ["好", 3]), InputTypeError, "text 1 is int", id="generator"),
    ],
)
def test_what_is_no_text_is_refused(
    encoder: Encoder, texts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoder.encode(texts)


def test_bad_input_is_an_error_of_the_usual_kinds_too() -> None:
    assert issubclass(InputTypeError, TypeError)
    assert issubclass(InputError, ValueError)


def test_a_bad_text_is_named_by_its_place_in_the_whole_input(encoder: Encoder) -> None:
    texts: list[Any] = ["好"] * (WINDOW_TEXTS + 10)
    texts[-1] = None
    with pytest.raises(InputTypeError, match=f"text {WINDOW_TEXTS + 9} is NoneType"):
        encoder.encode(texts)


def test_after_bad_input_the_encoder_goes_on(encoder: Encoder) -> None:
    before = encoder.encode("好")
    with pytest.raises(InputTypeError):
        encoder.encode(["好", None])  # type: ignore[list-item]
    np.testing.assert_array_equal(encoder.encode("好"), before)


def test_an_error_of_the_callers_generator_comes_through(encoder: Encoder) -> None:
    def texts() -> Iterator[str]:
        yield "好"
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        encoder.encode(texts())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"truncate_dim": 0}, InputError, "truncate_dim is 0; the vectors have 48"),
        ({"truncate_dim": 49}, InputError, "truncate_dim is 49; the vectors have 48"),
        ({"truncate_dim": "9"}, InputTypeError, "truncate_dim is '9'"),
        ({"batch_size": 0}, InputError, "batch_size is 0; it must be at least 1"),
        ({"batch_size": -3}, InputError, "batch_size is -3"),
        ({"batch_size": 2.5}, InputTypeError, "batch_size is 2.5; pass a whole number"),
        ({"batch_size": True}, InputTypeError, "batch_size is True"),
        ({"prompt_name": "query"}, InputError, "no prompt 'query'. This bundle's prompts: none"),
        ({"prompt_name": ["query"]}, InputTypeError, "prompt_name is list, not str"),
        ({"prompt": 3}, InputTypeError, "prompt is int"),
        ({"prompt": LONE}, InputError, "prompt holds a lone surrogate"),
        ({"truncate": "yes"}, InputError, "truncate is 'yes'; allowed"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    encoder: Encoder, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoder.encode(["好"], **options)


def test_an_unknown_option_is_refused(encoder: Encoder) -> None:
    with pytest.raises(TypeError, match="convert_to_tensor"):
        encoder.encode(["好"], convert_to_tensor=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tensorflow"}, InputError, "no backend 'tensorflow'. Backends: auto"),
        ({"device": "tpu"}, InputError, "does not run on device 'tpu', only on: .*cpu"),
        ({"backend": "tensorrt", "device": "cpu"}, InputError, "does not run on device 'cpu'"),
        ({"precision": "int8"}, UnavailableError, "no variant of precision 'int8'; it has: fp32"),
        ({"precision": "fp64"}, InputError, "no precision 'fp64'. Precisions: auto, fp32, bf16"),
        (
            {"device": "cpu", "cuda_graphs": True},
            InputError,
            "cuda_graphs is for device 'cuda'; onnxruntime runs on 'cpu' here",
        ),
        ({"threads": 0}, InputError, "threads is 0"),
        ({"threads": 10**9}, InputError, "threads is 1000000000; it can be 4096 at most"),
        ({"engine_cache": "Auto"}, InputError, "engine_cache is 'Auto'; allowed: 'auto', 'off'"),
        ({"threads": "2"}, InputTypeError, "threads is '2'"),
        ({"max_batch_tokens": 0}, InputError, "max_batch_tokens is 0"),
        ({"max_length": 0}, InputError, "max_length is 0; it must be 3 .* to 160"),
        ({"max_length": 161}, InputError, "max_length is 161"),
        ({"max_length": 7.5}, InputTypeError, "max_length is 7.5"),
    ],
)
def test_opening_with_what_is_not_here_is_refused_and_never_replaced(
    tiny_bundle: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Encoder(tiny_bundle, **options)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "options",
    [{"device": "cuda"}, {"backend": "tensorrt"}, {"backend": "onnxruntime", "device": "cuda"}],
)
def test_a_gpu_that_is_not_here_is_unavailable_and_never_replaced(
    tiny_bundle: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UnavailableError):
        Encoder(tiny_bundle, **options)


# --- Options


def test_prompts_of_the_manifest_are_applied_where_they_belong(mean_encoder: Encoder) -> None:
    plain = mean_encoder.encode("头痛")
    query = mean_encoder.encode_query("头痛")
    np.testing.assert_array_equal(query, mean_encoder.encode("查询：头痛"))
    np.testing.assert_array_equal(query, mean_encoder.encode("头痛", prompt_name="query"))
    np.testing.assert_array_equal(query, mean_encoder.encode("头痛", prompt="查询："))
    assert np.abs(query - plain).max() > 1e-3
    np.testing.assert_array_equal(mean_encoder.encode_document("头痛"), plain)
    np.testing.assert_array_equal(mean_encoder.encode_query("头痛", prompt=""), plain)


def test_without_prompts_queries_and_documents_are_plain(encoder: Encoder) -> None:
    plain = encoder.encode(["头痛"])
    np.testing.assert_array_equal(encoder.encode_query(["头痛"]), plain)
    np.testing.assert_array_equal(encoder.encode_document(["头痛"]), plain)


def test_the_default_prompt_of_the_manifest_is_applied(
    altered: Path, rehash: Callable[..., None], encoder: Encoder
) -> None:
    rehash(altered, prompts={"ask": "问："}, default_prompt_name="ask")
    with Encoder(altered) as prompted:
        np.testing.assert_array_equal(prompted.encode("头痛"), encoder.encode("问：头痛"))
        np.testing.assert_array_equal(prompted.encode("头痛", prompt=""), encoder.encode("头痛"))


def test_the_manifest_decides_about_length_unless_the_caller_does(
    encoder: Encoder, mean_encoder: Encoder
) -> None:
    texts = ["头痛", "发烧吃什么药"]
    assert np.abs(np.linalg.norm(encoder.encode(texts), axis=1) - 1).min() > 0.1
    scaled = encoder.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(mean_encoder.encode(texts), axis=1), 1, atol=1e-5)
    raw = mean_encoder.encode(texts, normalize_embeddings=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.1


def test_vectors_are_shortened_before_they_are_scaled(mean_encoder: Encoder) -> None:
    vectors = mean_encoder.encode(["头痛", "发烧"], truncate_dim=8)
    assert vectors.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert mean_encoder.encode("头痛", truncate_dim=8).shape == (8,)


def test_similarity_is_as_the_manifest_says(encoder: Encoder, mean_encoder: Encoder) -> None:
    for opened, kind in [(encoder, "dot"), (mean_encoder, "cosine")]:
        assert opened.manifest.similarity == kind
        queries = opened.encode(["头痛"], normalize_embeddings=False)
        documents = opened.encode(["发烧", "头痛", "天气"], normalize_embeddings=False)
        scores = opened.similarity(queries, documents)
        expected = queries @ documents.T
        if kind == "cosine":
            expected = expected / np.linalg.norm(queries) / np.linalg.norm(documents, axis=1)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_texts_that_are_too_long_are_cut_counted_and_told_once(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Encoder(tiny_bundle, max_length=10) as encoder,
        caplog.at_level(logging.WARNING, logger="corom"),
    ):
        cut = encoder.encode(["头" * 9, "痛" * 8, "x"])
        assert encoder.truncated_texts == 1
        encoder.encode(["头" * 9] * 3)
        encoder.encode("头" * 99)
        assert encoder.truncated_texts == 5
        np.testing.assert_allclose(cut[0], encoder.encode("头" * 8), atol=INVARIANCE)
        with pytest.raises(InputError, match="text 1 has 11 tokens"):
            encoder.encode(["x", "头" * 9], truncate="error")
        whole = encoder.encode("头" * 9, truncate=False)
        assert np.abs(whole - cut[0]).max() > 1e-3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "10 tokens" in caplog.text


def test_an_encoder_says_what_it_is(tiny_bundle: Path) -> None:
    with Encoder(str(tiny_bundle), threads=1) as encoder:
        assert encoder.dimension == 48
        assert encoder.max_length == 128
        assert (encoder.backend_name, encoder.device, encoder.precision) == (
            "onnxruntime",
            "cpu",
            "fp32",
        )
        assert repr(encoder) == "Encoder(tiny, fp32 by onnxruntime on cpu)"


def test_the_choice_of_auto_is_logged(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="corom"):
        Encoder(tiny_bundle).close()
    assert "tiny: fp32 by onnxruntime on cpu" in caplog.text


def test_token_ids_are_what_is_executed(encoder: Encoder) -> None:
    short, long = encoder.token_ids(["", "头" * 500])
    assert len(short) == 2
    assert len(long) == 128
    assert (long[0], long[-1]) == (short[0], short[1])


def test_progress_is_shown_on_stderr_only_when_asked(
    encoder: Encoder, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder.encode(["头痛"] * 3)
    assert capfd.readouterr() == ("", "")
    encoder.encode(["头痛"] * 3, show_progress_bar=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "3/3" in captured.err


def test_a_closed_encoder_says_so(tiny_bundle: Path) -> None:
    encoder = Encoder(tiny_bundle)
    encoder.close()
    encoder.close()
    with pytest.raises(CoromError, match="closed"):
        encoder.encode("好")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_call_that_goes_on_when_it_is_closed_is_refused(
    tiny_bundle: Path, backend: str, workers: int
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="pip install 'corom[openvino]'")
    encoder = Encoder(tiny_bundle, backend=backend, workers=workers)
    begun = threading.Event()

    def endless() -> Iterator[str]:
        for k in itertools.count():
            if k == 5000:
                begun.set()
            yield f"第{k}个问题：头痛怎么办"

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(encoder.encode, endless())
        assert begun.wait(60)
        encoder.close()
        with pytest.raises(CoromError, match="this encoder is closed"):
            call.result(60)


def test_opening_and_closing_leaks_no_memory_or_threads(tiny_bundle: Path) -> None:
    import psutil

    process = psutil.Process()
    for _ in range(5):
        Encoder(tiny_bundle).close()
    threads, memory = process.num_threads(), process.memory_info().rss
    for _ in range(20):
        with Encoder(tiny_bundle) as encoder:
            encoder.encode("好")
    deadline = time.monotonic() + 30
    while process.num_threads() > threads + 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.memory_info().rss - memory < 40 * 2**20


# --- Bundles that are consistent and wrong


def test_a_graph_of_another_dimension_than_the_manifest_says_is_refused(
    altered: Path, rehash: Callable[..., None]
) -> None:
    rehash(altered, dimension=64)
    with pytest.raises(BundleError, match="expected .* of 64 dimensions"):
        Encoder(altered)


def test_a_graph_with_other_inputs_is_refused(altered: Path, rehash: Callable[..., None]) -> None:
    path = altered / load_manifest(altered).variants[0].file
    model = onnx.load(path)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[at] = "mask"
    model.graph.input[1].name = "mask"
    onnx.save(model, path)
    rehash(altered)
    with pytest.raises(BundleError, match="expected .*attention_mask"):
        Encoder(altered)


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", b"\x08\x07\x12\xff"])
def test_a_file_that_is_no_graph_is_a_bundle_error(
    altered: Path, rehash: Callable[..., None], content: bytes
) -> None:
    (altered / "onnx" / "model.onnx").write_bytes(content)
    rehash(altered)
    with pytest.raises(BundleError, match="ONNX Runtime cannot open"):
        Encoder(altered)


def test_the_first_variant_is_the_one_that_auto_takes(
    altered: Path, rehash: Callable[..., None]
) -> None:
    (fp32,) = load_manifest(altered).variants
    fp16 = msgspec.structs.replace(fp32, precision="fp16")
    rehash(altered, variants=(fp32, fp16))
    with Encoder(altered) as exact, Encoder(altered, precision="fp16") as lower:
        assert (exact.precision, lower.precision) == ("fp32", "fp16")


def test_nothing_of_torch_is_loaded_to_encode(tiny_bundle: Path) -> None:
    import subprocess

    program = (
        "import sys; from corom.runtime import Encoder\n"
        f"assert Encoder({str(tiny_bundle)!r}).encode(['好']).shape == (1, 48)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'rich', 'pyarrow', 'corom.export'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


@pytest.mark.parametrize("truncate", [1, 0, np.True_, np.False_, None, "True", np.array([1, 2])])
@pytest.mark.parametrize("texts", ["好", ["好"], []])
def test_what_is_no_way_to_truncate_is_refused(
    encoder: Encoder, texts: object, truncate: object
) -> None:
    with pytest.raises(InputError, match="allowed: True, False, 'error'"):
        encoder.encode(texts, truncate=truncate)  # type: ignore[arg-type]


def test_options_that_contradict_or_mean_nothing_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="prompt and prompt_name"):
        encoder.encode("好", prompt="问：", prompt_name="query")
    with pytest.raises(InputError, match="normalize_embeddings is 'no'"):
        encoder.encode("好", normalize_embeddings="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["prompt", "prompt_name"])
def test_none_leaves_the_querys_prompt_in_place(tiny_mean_bundle: Path, option: str) -> None:
    with Encoder(tiny_mean_bundle) as encoder:
        expected = encoder.encode_query("头痛")
        assert not np.allclose(expected, encoder.encode("头痛"))
        found = encoder.encode_query("头痛", **{option: None})  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)


def test_similarity_takes_one_vector_and_refuses_other_widths(encoder: Encoder) -> None:
    vectors = encoder.encode(["头痛", "发烧"])
    np.testing.assert_allclose(
        encoder.similarity(vectors[0], vectors), encoder.similarity(vectors[:1], vectors)
    )
    with pytest.raises(InputError, match="cannot be compared"):
        encoder.similarity(vectors[:, :5], vectors)


def test_texts_executed_together_are_padded_to_the_longest(encoder: Encoder) -> None:
    widths = []
    backend = encoder._backend
    run = backend.run
    backend.run = lambda batch: (widths.append(batch.input_ids.shape), run(batch))[1]  # type: ignore[method-assign]
    texts = ["头", "痛" * 90, "头痛"]
    together = encoder.encode_together(texts)
    backend.run = run  # type: ignore[method-assign]
    assert widths == [(3, 92)]
    np.testing.assert_allclose(together, encoder.encode(texts), atol=1e-5)
