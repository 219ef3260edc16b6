"""A real Triton server on repositories that corom wrote, asked by Triton's own clients."""

import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from triton_server import Server, triton_python, triton_server

from corom.benchmarks.peer_process import PeerError
from corom.runtime import Encoder
from corom.runtime.triton_options import TritonOptions
from corom.runtime.triton_repository import write_repository

# The clients' generated code is older than the protobuf that runs it; gevent's hub is never closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
Ask = Callable[..., Any]
ONNX = TritonOptions(name="onnx", encoder="onnxruntime")


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of the server's environment."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the wheel that holds Triton is for Linux on x86-64")
    try:
        return triton_python()
    except PeerError as error:
        if os.environ.get("COROM_TEST_WEIGHTS") == "required":
            raise
        pytest.skip(f"Triton cannot be installed: {error}")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    python: Path,
    tiny_bundle: Path,
    tiny_mean_bundle: Path,
) -> Iterator[Server]:
    """A server with "tiny", [CLS]; "mean", normalized, long is an error; and parts of "onnx"."""
    place = tmp_path_factory.mktemp("triton")
    write_repository(tiny_bundle, place / "tiny", TritonOptions(max_batch_size=32))
    asked = TritonOptions(name="mean", truncate=False, instances=2)
    write_repository(tiny_mean_bundle, place / "mean", asked)
    write_repository(tiny_mean_bundle, place / "onnx", ONNX)
    shutil.rmtree(place / "onnx" / "onnx")
    shutil.move(place / "onnx" / "onnx_encoder", place / "graph")  # what cannot be served here
    (place / "server").mkdir()
    repositories = [place / "tiny", place / "mean", place / "onnx"]
    with triton_server(repositories, place / "server", python) as server:
        yield server


@pytest.fixture(scope="module", params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> ModuleType:
    """Triton's client of one protocol."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.param == "http":
            import tritonclient.http as client
        else:
            import tritonclient.grpc as client
    return client


@pytest.fixture(scope="module")
def grpc() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tritonclient.grpc
    return tritonclient.grpc


def asker(server: Server, protocol: ModuleType) -> Ask:
    """Return the function that asks a model for the vectors of texts; a client a thread."""
    address = server.http if protocol.__name__.endswith("http") else server.grpc
    own = threading.local()

    def ask(texts: list[Any], model: str = "tiny", **options: Any) -> Any:
        if not hasattr(own, "client"):
            own.client = protocol.InferenceServerClient(address)
        column = np.empty((len(texts), 1), object)
        column[:, 0] = [text if isinstance(text, bytes) else text.encode() for text in texts]
        text = protocol.InferInput("TEXT", [len(texts), 1], "BYTES")
        text.set_data_from_numpy(column)
        return own.client.infer(model, [text], **options)

    return ask


@pytest.fixture(scope="module")
def ask(server: Server, protocol: ModuleType) -> Ask:
    return asker(server, protocol)


def vectors_of(answer: Any) -> Any:
    return answer.as_numpy("SENTENCE_EMBEDDING")


def cut_of(answer: Any) -> list[bool]:
    cut: list[bool] = answer.as_numpy("TRUNCATED")[:, 0].tolist()
    return cut


TEXTS = ["上消化道出血手术大约多久", "", " ", "CT 检查 café", "头痛" * 40, "a\nb\0c", "👍🏽"]


def test_one_text_and_several_give_the_encoders_vectors(
    ask: Ask, tiny_bundle: Path, tiny_mean_bundle: Path
) -> None:
    for model, bundle in (("tiny", tiny_bundle), ("mean", tiny_mean_bundle)):
        with Encoder(bundle) as encoder:
            for texts in ([TEXTS[0]], [""], TEXTS):
                answer = ask(texts, model)
                np.testing.assert_allclose(
                    vectors_of(answer), encoder.encode(texts), atol=1e-5, rtol=1e-4
                )
                assert vectors_of(answer).dtype == np.float32
                assert cut_of(answer) == [False] * len(texts)


def test_the_example_of_the_repositorys_readme_runs(server: Server, tiny_bundle: Path) -> None:
    readme = (server.log.parents[1] / "tiny" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "localhost:8000" in code
    names: dict[str, Any] = {}
    exec(code.replace("localhost:8000", server.http), names)
    with Encoder(tiny_bundle) as encoder:
        np.testing.assert_allclose(names["vectors"], encoder.encode(names["texts"]), atol=1e-5)


def test_a_prompt_is_a_parameter_of_the_request(ask: Ask, tiny_mean_bundle: Path) -> None:
    with Encoder(tiny_mean_bundle) as encoder:
        expected = encoder.encode_query(TEXTS[:2])
        plain = encoder.encode(TEXTS[:2])
    answer = ask(TEXTS[:2], "mean", parameters={"prompt_name": "query"})
    np.testing.assert_allclose(vectors_of(answer), expected, atol=1e-5)
    assert np.abs(expected - plain).max() > 1e-3


def test_a_text_that_is_cut_is_flagged_and_counted(
    ask: Ask, server: Server, tiny_bundle: Path
) -> None:
    before = server.counter("corom_truncated_texts_total")
    texts = ["头" * 126, "头" * 127, "短"]
    answer = ask(texts)
    assert cut_of(answer) == [False, True, False]
    with Encoder(tiny_bundle) as encoder:
        np.testing.assert_allclose(vectors_of(answer), encoder.encode(texts), atol=1e-5)
    assert server.counter("corom_truncated_texts_total") == before + 1


def test_bad_requests_get_an_error_that_says_why_and_the_server_lives_on(
    ask: Ask, server: Server, protocol: ModuleType
) -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: ask(["ok", b"\xff\xfe"]), "text 1 is not UTF-8: invalid start byte at byte 0"),
        (lambda: ask(["头" * 200], "mean"), "text 0 has 202 tokens.* the limit is 96"),
        (lambda: ask(["头" * 200], parameters={"truncate": "error"}), "the limit is 128"),
        (lambda: ask(["头"], parameters={"truncate": "x"}), "allowed: True, False, 'error'"),
        (lambda: ask(["头"], parameters={"prompt_name": "nope"}), "there is no prompt 'nope'"),
        (lambda: ask(["头"] * 33), "batch-size must be <= 32"),
        (lambda: ask([]), "expected 1 string elements"),
        (lambda: ask(["头"], "none"), "unknown model"),
        (lambda: _ask_flat(server, protocol), r"Expected \[-1,1\], got \[2\]"),
    ]
    for case, message in cases:
        with pytest.raises(Exception, match=message):
            case()
        assert server.alive()
        assert vectors_of(ask(["头痛"])).shape == (1, 48)


def _ask_flat(server: Server, protocol: ModuleType) -> Any:
    address = server.http if protocol.__name__.endswith("http") else server.grpc
    text = protocol.InferInput("TEXT", [2], "BYTES")
    text.set_data_from_numpy(np.array([b"a", b"b"], object))
    return protocol.InferenceServerClient(address).infer("tiny", [text])


def test_the_onnx_ensembles_python_models_are_served_and_its_graph_fits_between(
    ask: Ask,
    server: Server,
    protocol: ModuleType,
    tiny_mean_bundle: Path,
) -> None:
    """This Triton has no ONNX Runtime backend: the graph is executed here, between two requests."""
    graph = server.log.parents[1] / "graph" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(graph)
    texts = ["头痛", "胃出血一般住院30-60天。", "长" * 300]
    tokens = ask(texts, "onnx_tokenizer")
    inputs = {name: tokens.as_numpy(name) for name in ("input_ids", "attention_mask")}
    assert inputs["input_ids"].shape == (3, 96)
    assert ask(texts[:1], "onnx_tokenizer").as_numpy("input_ids").shape == (1, 16)
    assert cut_of(tokens) == [False, False, True]
    unscaled = session.run(["sentence_embedding"], inputs)[0]
    tensor = protocol.InferInput("sentence_embedding", list(unscaled.shape), "FP32")
    tensor.set_data_from_numpy(unscaled)
    address = server.http if protocol.__name__.endswith("http") else server.grpc
    answer = protocol.InferenceServerClient(address).infer("onnx_normalize", [tensor])
    with Encoder(tiny_mean_bundle) as encoder:
        expected = encoder.encode(texts)
    np.testing.assert_allclose(answer.as_numpy("sentence_embedding"), expected, atol=1e-5)


def test_ids_that_cannot_be_fail_alone(server: Server, grpc: ModuleType) -> None:
    def ids(values: list[int], length: int) -> Any:
        return _ask_encoder(server, grpc, values, length)

    good = ids([2, 7, 3], 3)
    bad = [([2, 10**8, 3], 3), ([2, -7, 3], 3), ([2, 7, 3], 4), ([2, 7, 3], 0)]
    with ThreadPoolExecutor(8) as pool:
        futures = [(pool.submit(ids, *case), case in bad) for case in [([2, 7, 3], 3), *bad] * 8]
        for future, is_bad in futures:
            if is_bad:
                assert future.exception() is not None
            else:
                np.testing.assert_allclose(future.result(), good, atol=1e-5)
    assert server.alive()


def _ask_encoder(server: Server, grpc: ModuleType, values: list[int], length: int) -> Any:
    tensors = []
    for name, array in (("input_ids", [values]), ("lengths", [[length]])):
        content = np.array(array, np.int32)
        tensor = grpc.InferInput(name, list(content.shape), "INT32")
        tensor.set_data_from_numpy(content)
        tensors.append(tensor)
    client = grpc.InferenceServerClient(server.grpc)
    return client.infer("tiny_encoder", tensors).as_numpy("sentence_embedding")


def test_under_load_every_vector_is_its_own_and_requests_meet_in_batches(
    server: Server, grpc: ModuleType, tiny_bundle: Path, parity_texts: list[str]
) -> None:
    """Requests of one to three texts of every length, 24 callers; some ask what is refused."""
    ask = asker(server, grpc)
    requests = [
        [f"{text}{row}" for text in parity_texts[row % 250 : row % 250 + 1 + row % 3]]
        for row in range(360)
    ]
    with Encoder(tiny_bundle) as encoder:
        expected = [encoder.encode(texts) for texts in requests]
    before = _executions(server, grpc)

    def one(row: int) -> None:
        if row % 20 == 7:
            with pytest.raises(Exception, match="not UTF-8"):
                ask([b"\xff", *requests[row]])
        else:
            answer = vectors_of(ask(requests[row]))
            np.testing.assert_allclose(answer, expected[row], atol=1e-5)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(one, range(len(requests))))
    inferences, executions = np.subtract(_executions(server, grpc), before)
    answered = [len(texts) for row, texts in enumerate(requests) if row % 20 != 7]
    assert inferences == sum(answered)
    assert executions < len(answered) / 2  # so requests were executed together


def _executions(server: Server, grpc: ModuleType) -> tuple[int, int]:
    """Return how many texts the encoder was given so far, and in how many executions."""
    client = grpc.InferenceServerClient(server.grpc)
    (model,) = client.get_inference_statistics("tiny_encoder").model_stats
    return model.inference_count, model.execution_count


@pytest.mark.slow
def test_an_altered_file_keeps_the_server_from_being_ready(
    python: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    write_repository(tiny_bundle, tmp_path / "r")
    (tmp_path / "r/tiny_tokenizer/1/tokenizer.json").write_bytes(b"{}")
    (tmp_path / "server").mkdir()
    with (
        pytest.raises(RuntimeError, match="was altered or cut short"),
        triton_server([tmp_path / "r"], tmp_path / "server", python),
    ):
        pass


@pytest.mark.slow
def test_a_numpy_that_triton_cannot_read_keeps_it_from_being_ready(
    python: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Triton 2.51 misreads strings of NumPy 2: the warm-up ends the stub, sometimes the server."""
    write_repository(tiny_bundle, tmp_path / "r")
    (tmp_path / "server").mkdir()
    packages = Path(np.__file__).parents[1]
    with (
        pytest.raises(RuntimeError, match="deserialize_bytes_tensor"),
        triton_server([tmp_path / "r"], tmp_path / "server", python, packages=packages),
    ):
        pass
