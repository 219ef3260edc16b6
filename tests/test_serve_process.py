"""`corom serve` as processes: starting, ending, dying, and callers that go away or are many."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from occupied import BODY, ROOM, TEXTS, metric, occupied, until, until_busy

from corom.runtime import Encoder
from corom.runtime.server_process import listening
from corom.runtime.server_settings import Settings

Corom = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[str]"]
Serve = Callable[..., AbstractContextManager[str]]
SLOW = ["头痛" * 60] * 2400
"""Texts that take about two seconds, as many as one body may hold."""


def ask(url: str, body: object = None) -> tuple[int, Any, dict[str, str]]:
    """Return status, content and headers; status 0 if the connection broke."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read(), dict(reply.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)
    except OSError:
        return 0, b"", {}


def vectors_of(content: bytes) -> np.ndarray:
    return np.array(json.loads(content), np.float32)


class Running:
    """A `corom serve` whose stderr is read as it comes."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.said = process, ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"Listening on (\S+)")[1]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    def wait_for(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.said)) is None:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)
        return found

    @property
    def worker(self) -> psutil.Process:
        (worker,) = psutil.Process(self.process.pid).children()
        return worker

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join()
        return code


@pytest.fixture
def running(start: Start, tiny_bundle: Path) -> Iterator[Callable[..., Running]]:
    """Return the function that starts a server; what is left of it is killed."""
    started: list[Running] = []

    def run(*options: object, **popen: Any) -> Running:
        process = start("serve", tiny_bundle, "--port", "0", *options, **popen)
        started.append(Running(process))
        return started[-1]

    yield run
    for server in started:
        server.process.kill()
        server.process.communicate()
        assert "Traceback" not in server.said, server.said


def later(function: Callable[..., Any], *arguments: object) -> "Future[Any]":
    return ThreadPoolExecutor(1).submit(function, *arguments)


# --- Starting


def test_what_cannot_be_served_ends_the_command(
    corom: Corom, tiny_bundle: Path, altered: Path, tmp_path: Path
) -> None:
    done = corom("serve", tmp_path)
    assert (done.returncode, "is not a bundle" in done.stderr) == (2, True)
    (altered / "tokenizer.json").write_text("{}", "utf-8")
    done = corom("serve", altered, "--port", "0")
    assert (done.returncode, "was altered" in done.stderr) == (2, True)
    assert "Listening" not in done.stderr
    done = corom("serve", tiny_bundle, "--port", "0", "--backend", "tensorrt")
    assert (done.returncode, done.stderr.count("Error:")) == (3, 1)
    done = corom("serve", tiny_bundle, "--port", "0", "--default-prompt-name", "query")
    assert (done.returncode, "prompts: none" in done.stderr) == (2, True)
    done = corom("serve", tiny_bundle, "--default-prompt", "a", "--default-prompt-name", "b")
    assert (done.returncode, "exclude each other" in done.stderr) == (2, True)
    done = corom("serve", tiny_bundle, "--hostname", "no.such.host.invalid")
    assert (done.returncode, "--hostname" in done.stderr) == (2, True)
    file = tmp_path / "file"
    file.touch()
    done = corom("serve", tiny_bundle, "--uds-path", file)
    assert (done.returncode, "no socket" in done.stderr) == (2, True)
    done = corom("serve", tiny_bundle, "--api-key-file", file)
    assert (done.returncode, "holds no key" in done.stderr) == (2, True)
    for content, said in ((b"\xff\xfe", "is not UTF-8"), (b"key\n# mine\n", "keys', line 2: ")):
        (tmp_path / "keys").write_bytes(content)
        done = corom("serve", tiny_bundle, "--api-key-file", tmp_path / "keys")
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    for path in (tmp_path / "absent" / "socket", tmp_path / ("long" * 50)):
        done = corom("serve", tiny_bundle, "--uds-path", path)
        assert (done.returncode, f"--uds-path '{path}'" in done.stderr) == (2, True)
    for endpoint in ("localhost:4317", "notaurl", "http://"):
        done = corom("serve", tiny_bundle, "--otlp-endpoint", endpoint)
        assert (done.returncode, "such as http://localhost:4318" in done.stderr) == (2, True)


@pytest.mark.parametrize("variable", ["COROM_API_KEY", "COROM_API_KEY_FILE"])
def test_a_key_that_is_set_and_empty_does_not_open_the_server(
    corom: Corom, tiny_bundle: Path, offline_environment: dict[str, str], variable: str
) -> None:
    environment = offline_environment | {variable: ""}
    done = corom("serve", tiny_bundle, "--port", "0", env=environment)
    assert (done.returncode, f"{variable} is set and empty" in done.stderr) == (2, True)


def test_a_port_that_is_taken(corom: Corom, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = corom("serve", tiny_bundle, "--port", port)
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = corom("serve", tiny_bundle, "--port", "0", "--prometheus-port", port)
    assert done.returncode == 3
    assert "Choose another --prometheus-port." in done.stderr


@pytest.mark.parametrize(
    ("package", "extra", "options"),
    [("starlette", "serve", ()), ("opentelemetry", "otlp", ("--otlp-endpoint", "http://x"))],
)
def test_a_missing_extra_is_named(
    tmp_path: Path,
    tiny_bundle: Path,
    offline_environment: dict[str, str],
    package: str,
    extra: str,
    options: tuple[str, ...],
) -> None:
    hidden = (
        "import sys; from importlib.abc import MetaPathFinder\n"
        "class Hide(MetaPathFinder):\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name.split('.')[0] == {package!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from corom.runtime.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden, "serve", str(tiny_bundle), *options],
        env=offline_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, f"pip install 'corom[{extra}]'" in done.stderr) == (3, True)
    assert "Traceback" not in done.stderr


def test_not_ready_before_warm_up_is_over(
    start: Start, tiny_bundle: Path, tmp_path: Path, offline_environment: dict[str, str]
) -> None:
    """The server answers while the encoder is being opened; a hook of the interpreter delays it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'onnxruntime': \n"
        "            while not os.path.exists(os.environ['GO']): time.sleep(0.02)\n"
        "sys.meta_path.insert(0, Slow())\n",
        "utf-8",
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = offline_environment | {
        "PYTHONPATH": str(tmp_path),
        "GO": str(tmp_path / "go"),
    }
    url = f"http://127.0.0.1:{port}"
    process = start("serve", tiny_bundle, "--port", port, env=environment)
    try:
        while ask(f"{url}/health/live")[0] != 200:
            assert process.poll() is None
        for path in ("/health", "/health/ready", "/info", "/v1/models", "/openapi.json"):
            status, content, headers = ask(url + path)
            assert (status, headers["retry-after"]) == (503, "1")
            assert b"loading" in content
        for path in ("/embed", "/v1/embeddings"):
            assert ask(url + path, {"inputs": "a"})[0] == 503
        assert b"corom_ready 0.0" in ask(f"{url}/metrics")[1]
        (tmp_path / "go").touch()
        while ask(f"{url}/health/ready")[0] != 200:
            assert process.poll() is None
        assert ask(f"{url}/embed", {"inputs": "a"})[0] == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


# --- Ending


def test_sigterm_answers_what_was_admitted(
    running: Callable[..., Running], tiny_bundle: Path
) -> None:
    server = running()
    answer = later(ask, f"{server.url}/embed", {"inputs": SLOW, "normalize": False})
    until_busy(server.url)
    idle = socket.create_connection(urlsplit(server.url).netloc.split(":"))  # type: ignore[arg-type]
    code = later(server.end)
    refused_at = 0.0
    while not code.done():
        if ask(f"{server.url}/health/live")[0] == 0:
            refused_at = refused_at or time.monotonic()
    status, content, _ = answer.result(60)
    assert (status, code.result(60)) == (200, 0)
    with Encoder(tiny_bundle) as encoder:
        np.testing.assert_allclose(vectors_of(content), encoder.encode(SLOW), atol=1e-4)
    assert refused_at
    idle.close()


def test_the_drain_has_an_end(running: Callable[..., Running]) -> None:
    server = running("--shutdown-timeout", "0.2", "--payload-limit", 2**25)
    answer = later(ask, f"{server.url}/embed", {"inputs": SLOW * 5})
    until_busy(server.url)
    start = time.monotonic()
    assert server.end() == 143
    assert time.monotonic() - start < 10
    assert "1 requests were cut off" in server.said
    status, content, _ = answer.result(60)
    assert (status, b"the server is ending" in content) == (503, True)


def test_ctrl_c_ends_with_130(running: Callable[..., Running]) -> None:
    assert running().end(signal.SIGINT) == 130


def test_when_the_supervisor_is_killed_the_worker_ends(running: Callable[..., Running]) -> None:
    server = running()
    worker = server.worker
    server.process.kill()
    worker.wait(20)


# --- Dying


def test_a_killed_worker_is_replaced(running: Callable[..., Running], tiny_bundle: Path) -> None:
    server = running()
    for _ in range(2):
        worker = server.worker
        broken = later(ask, f"{server.url}/embed", {"inputs": SLOW})
        until_busy(server.url)
        server.said = ""
        worker.kill()
        assert broken.result(60)[0] == 0
        # A new connection waits in the backlog, or hears that it is too early.
        while (status := ask(f"{server.url}/embed", {"inputs": "a", "normalize": False})[0]) != 200:
            assert status in {0, 503}
        server.wait_for("killed by signal 9; starting another")
        server.wait_for("Listening again on")
    with Encoder(tiny_bundle) as encoder:
        _, content, _ = ask(f"{server.url}/embed", {"inputs": ["头痛"], "normalize": False})
        np.testing.assert_allclose(vectors_of(content), encoder.encode(["头痛"]), atol=1e-5)
    assert server.end() == 0


def test_a_worker_that_cannot_start_again_ends_the_command(start: Start, altered: Path) -> None:
    server = Running(start("serve", altered, "--port", "0"))
    (altered / "tokenizer.json").write_text("{}", "utf-8")
    server.worker.kill()
    assert server.process.wait(60) == 2
    server.wait_for("was altered")
    server.process.communicate()


def test_a_hung_worker_is_replaced(tiny_bundle: Path, offline_environment: dict[str, str]) -> None:
    program = "from corom.runtime import cli, server_process\nserver_process.HUNG_S = 4\ncli.main()"
    command = [sys.executable, "-c", program, "serve", str(tiny_bundle), "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=offline_environment
    ) as process:
        server = Running(process)
        os.kill(server.worker.pid, signal.SIGSTOP)
        server.wait_for("killed by signal 9; starting another")
        server.wait_for("Listening again on")
        assert server.end() == 0


def test_a_machine_that_was_paused_loses_no_worker(
    tiny_bundle: Path, offline_environment: dict[str, str]
) -> None:
    program = (
        "from corom.runtime import cli, server_process\n"
        "server_process.HUNG_S, server_process.PAUSED_S = 3, 2\ncli.main()"
    )
    command = [sys.executable, "-c", program, "serve", str(tiny_bundle), "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=offline_environment
    ) as process:
        server = Running(process)
        worker = server.worker.pid
        for pid in (worker, process.pid):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(5)
        for pid in (process.pid, worker):
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.5)  # the supervisor looks before the worker has turned
        assert ask(f"{server.url}/embed", {"inputs": "头痛"})[0] == 200
        assert server.worker.pid == worker
        assert server.end() == 0
        assert "killed" not in server.said


def test_what_is_to_be_ignored_stays_so(running: Callable[..., Running]) -> None:
    server = running(preexec_fn=ignore_hang_up)
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert ask(f"{server.url}/health")[0] == 200
    assert server.end() == 0
    server = running()
    assert server.end(signal.SIGHUP) == 0


def ignore_hang_up() -> None:  # as nohup
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_the_end_of_a_server_leaves_the_next_ones_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    settings = Settings(bundle="", uds_path=str(path))
    with ExitStack() as old, ExitStack() as new:
        ended, _ = old.enter_context(listening(settings))
        ended.close()  # as at SIGTERM, while what was admitted is answered
        new.enter_context(listening(settings))
        old.close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


# --- Callers


def test_a_client_that_goes_away_costs_nothing_more(running: Callable[..., Running]) -> None:
    server = running(*ROOM)
    for _ in range(5):
        with occupied(server.url):
            pass
    for name in ("corom_requests_in_hand", "corom_queue_texts", "corom_running_texts"):
        until(lambda name=name: metric(server.url, name) == 0)  # type: ignore[misc]
    executed = metric(server.url, "corom_executed_texts_total")
    assert executed < 5 * len(TEXTS) / 2
    assert metric(server.url, "corom_cancelled_total") >= 1
    assert server.end() == 0


def test_the_event_loop_is_watched(running: Callable[..., Running]) -> None:
    server = running()
    until(lambda: metric(server.url, "corom_event_loop_late_seconds") > 0)


def test_what_is_in_hand_is_not_looked_through_for_garbage(running: Callable[..., Running]) -> None:
    server = running()

    def collections() -> float:
        return sum(
            metric(server.url, rf'python_gc_collections_total{{generation="{k}"}}')
            for k in range(3)
        )

    before = collections()
    with ThreadPoolExecutor(8) as callers:
        answers = list(
            callers.map(lambda _: ask(f"{server.url}/embed", {"inputs": "头痛"}), range(200))
        )
    assert {status for status, _, _ in answers} == {200}
    assert collections() == before


def test_what_finds_no_room_is_429_with_retry_after(running: Callable[..., Running]) -> None:
    """A long call leaves room at moments: asked again and again, one must find none."""
    server = running("--max-queue-tokens", "100", *ROOM)
    answers = []
    with occupied(server.url):
        while not answers or answers[-1][0] == 200:
            answers.append(ask(f"{server.url}/embed", {"inputs": SLOW[:1]}))
        assert metric(server.url, "corom_requests_in_hand") == 1, "the long call ended too early"
    status, content, headers = answers[-1]
    assert (status, json.loads(content)["error_type"]) == (429, "Overloaded")
    assert 1 <= int(headers["retry-after"]) <= 60
    assert metric(server.url, "corom_overloaded_total") == 1
    until(lambda: metric(server.url, "corom_requests_in_hand") == 0)
    assert ask(f"{server.url}/v1/embeddings", {"input": "a"})[0] == 200
    assert server.end() == 0


def test_concurrent_requests_can_be_limited(running: Callable[..., Running]) -> None:
    server = running("--max-concurrent-requests", "1", *ROOM)
    with occupied(server.url):
        status, content, headers = ask(f"{server.url}/v1/embeddings", {"input": "a"})
        assert ask(f"{server.url}/tokenize", {"inputs": "a"})[0] == 429
    assert (status, "retry-after" in headers) == (429, True)
    assert b"--max-concurrent-requests" in content
    with urllib.request.urlopen(f"{server.url}/openapi.json") as reply:
        declared = json.loads(reply.read())["paths"]
    assert all("429" in of["post"]["responses"] for of in declared.values() if "post" in of)
    until(lambda: metric(server.url, "corom_requests_in_hand") == 0)
    assert ask(f"{server.url}/v1/embeddings", {"input": "a"})[0] == 200
    assert server.end() == 0


def test_who_has_all_of_an_answer_may_ask_again_at_once(running: Callable[..., Running]) -> None:
    limits = ("--max-concurrent-requests", "1", "--vector-memory", "500000")
    server = running(*limits)
    body = json.dumps({"inputs": ["a"] * 1500})  # 288,000 bytes of vectors, in two parts
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    for _ in range(30):
        connection.request("POST", "/embed", body, {"content-type": "application/json"})
        reply = connection.getresponse()
        content = reply.read()
        assert (reply.status, content[:300]) == (200, content[:300])
    connection.close()
    assert server.end() == 0


def test_vectors_of_others_leave_room_or_it_is_429(running: Callable[..., Running]) -> None:
    server = running("--vector-memory", "1300000", *ROOM)  # of 6,400 texts 1,228,800
    with occupied(server.url):
        # Others may be refused for other reasons, as so much waits.
        until(lambda: ask(f"{server.url}/embed", {"inputs": "a"})[0] == 200)
        said = b""
        while b"--vector-memory" not in said:
            status, said, headers = ask(f"{server.url}/embed", {"inputs": ["a"] * 1000})
            assert (status, "retry-after" in headers) == (429, True)
    until(lambda: metric(server.url, "corom_requests_in_hand") == 0)
    assert ask(f"{server.url}/embed", {"inputs": ["a"] * 1000})[0] == 200
    # Alone even more than that is computed.
    assert ask(f"{server.url}/embed", {"inputs": ["a"] * 8000})[0] == 200
    assert server.end() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_who_is_told_twice_to_end_says_that_something_was_lost(
    running: Callable[..., Running], number: int, code: int
) -> None:
    server = running(*ROOM)
    with occupied(server.url):
        os.kill(server.process.pid, number)
        time.sleep(0.5)
        os.kill(server.process.pid, number)
        assert server.process.wait(30) == code


def test_who_sends_two_requests_at_once_and_goes_costs_nothing_more(
    running: Callable[..., Running],
) -> None:
    server = running(*ROOM)
    split = urlsplit(server.url)
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    posts = [head + b"content-length: %d\r\n\r\n" % len(b) + b for b in (BODY, b'{"inputs": "a"}')]
    with socket.create_connection((split.hostname, split.port)) as connection:
        connection.sendall(b"".join(posts))
        until_busy(server.url)
    until(lambda: metric(server.url, "corom_requests_in_hand") == 0)
    assert metric(server.url, "corom_cancelled_total") >= 1
    assert metric(server.url, "corom_executed_texts_total") < len(TEXTS)
    assert failures(server.url) == {"ClientGone": 1}
    assert server.end() == 0
    assert "a bug in corom" not in server.said


def failures(url: str) -> dict[str, float]:
    """Return how many requests failed, by kind."""
    page = ask(f"{url}/metrics")[1].decode()
    found = re.findall(r'corom_request_failures_total\{.*kind="(\w+)".*\} (.*)', page)
    return {kind: float(count) for kind, count in found}


def test_who_leaves_in_the_middle_of_an_answer_is_no_success(
    running: Callable[..., Running],
) -> None:
    server = running()
    split = urlsplit(server.url)
    body = json.dumps({"inputs": ["头痛"] * 16_000}).encode()
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection((split.hostname, split.port)) as connection:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(20).startswith(b"HTTP/1.1 200")
    until(lambda: failures(server.url) == {"ClientGone": 1})
    assert b'te_request_success{method="batch"} 1' not in ask(f"{server.url}/metrics")[1]
    assert server.end() == 0


# --- Traces, and metrics on a port of their own


def test_a_collector_that_is_not_there_does_not_hold_up_the_end(
    running: Callable[..., Running],
) -> None:
    server = running("--otlp-endpoint", "http://127.0.0.1:9", "--shutdown-timeout", "1")
    assert ask(f"{server.url}/embed", {"inputs": "头痛"})[0] == 200
    began = time.monotonic()
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert time.monotonic() - began < 5


def test_a_span_a_request_reaches_the_collector(serve: Serve, tiny_bundle: Path) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, self.headers.get("content-encoding"), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        with serve(tiny_bundle, "--otlp-endpoint", endpoint) as url:
            request = urllib.request.Request(
                f"{url}/embed",
                json.dumps({"inputs": ["a", "b"]}).encode(),
                {
                    "content-type": "application/json",
                    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                },
            )
            urllib.request.urlopen(request).close()
        collector.shutdown()
    (path, encoding, body) = received[0]
    assert (path, encoding) == ("/v1/traces", None)
    spans = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
    (span,) = spans
    assert span.name == "POST /embed"
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    values = {a.key: a.value for a in span.attributes}
    assert values["corom.texts"].int_value == 2
    assert values["http.response.status_code"].int_value == 200
    assert span.end_time_unix_nano > span.start_time_unix_nano


def test_metrics_on_a_port_of_their_own_need_no_key(serve: Serve, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serve(tiny_bundle, "--api-key", "k", "--prometheus-port", port) as url:
        assert ask(f"{url}/metrics")[0] == 401
        status, content, _ = ask(f"http://127.0.0.1:{port}/metrics")
    assert (status, b"corom_ready 1.0" in content) == (200, True)
