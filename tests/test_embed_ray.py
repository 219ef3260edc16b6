"""`corom embed --engine ray`: the same folder as without Ray, whoever dies on the way."""

import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from corom.runtime.errors import InputError, UnavailableError
from corom.runtime.late_encoder import LateEncoder
from corom.runtime.manifest import load_manifest, manifest_sha256
from corom.runtime.ray_team import Machine, Team, plan_team, tuned_winner
from corom.runtime.tuning import TUNING_VERSION, Tuning, Winner, save_tuning, this_machine

Corom = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs ray; run: pip install 'corom[ray]'"
)
ROWS = 3000
OPTIONS = ("--text-column", "2", "--id-column", "1", "--shard-rows", "50", "--threads", "1")
RAY = ("--engine", "ray", "--num-workers", "2")


def contents(folder: Path) -> dict[str, str]:
    """Return the name and hash of every file in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, parity_texts: list[str]) -> Path:
    """Ids and texts of many lengths; one row has no text."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.tsv"
    texts = [text.replace("\t", " ") for text in parity_texts]
    lines = [f"p{n}\t{texts[n % len(texts)]}{n}\n" for n in range(ROWS)]
    lines[777] = "p777\n"
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture
def command(tiny_bundle: Path, corpus: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    """Return the function that makes a command line for a folder."""

    def command(folder: Path, *more: object) -> list[Any]:
        bad = ("--bad-rows", tmp_path / f"{folder.name}.bad")
        return ["embed", tiny_bundle, "-i", corpus, "-o", folder, *OPTIONS, *bad, *more]

    return command


@pytest.fixture
def whole(corom: Corom, command: Callable[..., list[Any]], tmp_path: Path) -> dict[str, str]:
    """The contents of a folder that was made without Ray."""
    done = corom(*command(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    return contents(tmp_path / "whole")


def workers(
    process: subprocess.Popen[str], task: str = "ray::MapWorker(MapBatches(Worker))"
) -> list[psutil.Process]:
    """Return the processes that hold encoders, or do another task of Ray's."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = child.cmdline()  # once: of one that ends meanwhile they are none
            if words and words[0].startswith(task):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def readers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the process that reads the corpus."""
    return workers(process, "ray::MapBatches(read)")


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def shards(folder: Path) -> int:
    return len(list(folder.glob("part-*.parquet")))


@needs_ray
@pytest.mark.slow
def test_who_is_killed_costs_no_row_and_the_folder_is_the_same_to_the_byte(
    start: Start,
    command: Callable[..., list[Any]],
    whole: dict[str, str],
    offline_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "vectors"
    killed = set()
    # Ray Data gives up where for half an hour no portion is done; here it would after a second.
    impatient = offline_environment | {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "1"}
    with start(*command(folder, *RAY), env=impatient) as process:
        wait_for(lambda: readers(process), process)
        readers(process)[0].kill()
        for wanted in (1, 8):
            wait_for(lambda: shards(folder) >= wanted, process)  # noqa: B023
            wait_for(lambda: workers(process), process)
            victim = workers(process)[0]
            victim.kill()
            killed.add(victim.pid)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert len(killed) == 2
    assert contents(folder) == whole
    assert (tmp_path / "vectors.bad").read_bytes() == (tmp_path / "whole.bad").read_bytes()
    assert out == ""
    said = err.splitlines()
    assert said[0] == "There is no Ray cluster; one was started on this machine."
    assert said[1] == "workers: 2, threads of each: 1."
    assert said[2] == "tiny: fp32 by onnxruntime on cpu"
    # Told when another process than before returns something: the first may have had nothing yet.
    assert set(said[3:-2]) == {"A worker died and was started again; nothing it had is lost."}, err
    assert len(said) <= 7
    assert said[-2].startswith("2,999 vectors of 48 in 60 shards")
    assert "texts were longer" in said[-1]


LATE_THREADS = """
import sys, threading, time
import ray
from corom.runtime.cli import main

calls = []

def slow_get(*arguments, **options):
    if threading.current_thread().name != "iter_threaded":
        return get(*arguments, **options)
    calls.append(arguments)
    try:
        time.sleep(0.3)
        return get(*arguments, **options)
    finally:
        calls.pop()

def shutdown(*arguments, **options):
    print("calls of Ray at its end:", len(calls), file=sys.stderr)
    end(*arguments, **options)

get, end = ray.get, ray.shutdown
ray.get, ray.shutdown = slow_get, shutdown
main()
"""
"""Ray ends the process if it is shut down while a thread still calls it: exit code 1, and not
a word for the user. So such calls are made to last."""


@needs_ray
@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)],
)
def test_interrupted_or_killed_it_goes_on_without_ray(
    start: Start,
    corom: Corom,
    command: Callable[..., list[Any]],
    whole: dict[str, str],
    tmp_path: Path,
    sent: int,
    code: int,
) -> None:
    folder = tmp_path / "vectors"
    program = ("-c", LATE_THREADS, *command(folder, *RAY))
    with start(*program, program=sys.executable) as process:
        wait_for(lambda: shards(folder) >= 2, process)
        alive = workers(process)
        process.send_signal(sent)
        _, err = process.communicate()
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert not (folder / "_manifest.json").exists()
    assert alive
    psutil.wait_procs(alive, timeout=30)
    assert not [p for p in alive if p.is_running()], "a worker was left behind"
    if sent == signal.SIGINT:
        assert "calls of Ray at its end: 0" in err.splitlines()
        assert err.splitlines()[-1] == "Interrupted."
        assert not list(folder.glob(".*"))
    done = corom(*command(folder))
    assert done.returncode == 0, done.stderr
    assert "Going on: " in done.stderr
    assert contents(folder) == whole


@needs_ray
@pytest.mark.slow
def test_ray_goes_on_where_another_stopped_and_names_the_text_it_refuses(
    corom: Corom,
    command: Callable[..., list[Any]],
    whole: dict[str, str],
    tmp_path: Path,
) -> None:
    done = corom(*command(tmp_path / "vectors", *RAY, "--error-on-truncate"))
    assert done.returncode == 2
    assert "(Text 0 is row " in done.stderr
    assert len(done.stderr.splitlines()) == 4, done.stderr
    folder = tmp_path / "whole"
    (folder / "_manifest.json").rename(folder / "_manifest.json.partial")
    (folder / "part-00030.parquet").unlink()
    done = corom(*command(folder, *RAY))
    assert "part-00030.parquet is not as it was written" in done.stderr
    assert "Going on: 2,949 vectors" in done.stderr
    assert contents(folder) == whole


@needs_ray
@pytest.mark.slow
def test_a_reader_that_always_dies_is_an_error(
    start: Start, command: Callable[..., list[Any]], tmp_path: Path
) -> None:
    killed = set()
    with start(*command(tmp_path / "vectors", *RAY)) as process:
        while process.poll() is None:
            for reader in readers(process):
                reader.kill()
                killed.add(reader.pid)
            time.sleep(0.005)
        _, err = process.communicate()
    assert process.returncode == 3, err
    assert "was lost and not replaced" in err.splitlines()[-1]
    assert len(killed) == 4


@needs_ray
@pytest.mark.slow
def test_what_comes_through_a_pipe_is_the_same(
    corom: Corom, tiny_bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    text = corpus.read_text("utf-8")
    for folder, engine in (("local", ()), ("ray", RAY)):
        output = ("-i", "-", "--input-format", "tsv", "-o", tmp_path / folder)
        bad = ("--bad-rows", tmp_path / f"{folder}.bad")
        done = corom("embed", tiny_bundle, *output, *OPTIONS, *bad, *engine, input=text)
        assert done.returncode == 0, done.stderr
    assert "is copied first" in done.stderr
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")
    assert (tmp_path / "local.bad").read_bytes() == (tmp_path / "ray.bad").read_bytes()


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A Ray cluster that others have started: the environment that leads to it."""
    program = (
        "import ray, sys\n"
        "context = ray.init(address='local', num_cpus=3, include_dashboard=False)\n"
        "print(context.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    key = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | key
    command = [sys.executable, "-c", program]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": -3}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout is not None
        yield key | {"RAY_ADDRESS": process.stdout.readline().strip()}
        process.communicate()


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_there_is_joined(
    corom: Corom,
    command: Callable[..., list[Any]],
    whole: dict[str, str],
    tmp_path: Path,
    cluster: dict[str, str],
    offline_environment: dict[str, str],
) -> None:
    environment = offline_environment | cluster
    for folder in (tmp_path / "one", tmp_path / "two"):  # the first leaves the cluster as it was
        done = corom(*command(folder, "--engine", "ray", "--num-workers", "3"), env=environment)
        assert done.returncode == 0, done.stderr
        assert "workers: 3, threads of each: 1." in done.stderr
        assert "one was started" not in done.stderr
        assert contents(folder) == whole


# --- What is refused


@needs_ray
def test_a_cluster_that_does_not_answer_is_exit_code_3(
    corom: Corom,
    command: Callable[..., list[Any]],
    tmp_path: Path,
    offline_environment: dict[str, str],
) -> None:
    environment = offline_environment | {"RAY_ADDRESS": "127.0.0.1:9"}
    done = corom(*command(tmp_path / "vectors", *RAY), env=environment)
    assert done.returncode == 3
    assert "RAY_ADDRESS=127.0.0.1:9 cannot be reached" in done.stderr
    assert not (tmp_path / "vectors").exists()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        keyless = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
        done = corom(*command(tmp_path / "vectors", *RAY), env=offline_environment | keyless)
    assert done.returncode == 3, done.stderr
    assert "set RAY_AUTH_MODE and RAY_AUTH_TOKEN" in done.stderr


def test_workers_are_for_a_folder_and_for_ray(
    corom: Corom, command: Callable[..., list[Any]], tiny_bundle: Path, tmp_path: Path
) -> None:
    done = corom(*command(tmp_path / "vectors", "--num-workers", "2"))
    assert (done.returncode, "is for --engine ray" in done.stderr) == (2, True)
    done = corom("embed", tiny_bundle, "头痛", "--engine", "ray")
    assert (done.returncode, "--engine is for a folder" in done.stderr) == (2, True)


def test_auto_takes_what_was_tuned_here_unless_something_is_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COROM_CACHE", str(tmp_path))
    assert tuned_winner(LateEncoder.of(tiny_bundle), ONE) is None
    winner = Winner(
        backend="openvino", precision="fp32", threads=1, workers=1, cpus=2, batch_tokens=4096,
        cosine_min=1.0, p50_ms=1.0, texts_per_second=1.0,
    )  # fmt: skip
    tuning = Tuning(
        version=TUNING_VERSION, bundle=manifest_sha256(tiny_bundle), machine=this_machine(),
        min_cosine=0.99, latency=winner, throughput=winner,
    )  # fmt: skip
    save_tuning(load_manifest(tiny_bundle), tuning)
    assert tuned_winner(LateEncoder.of(tiny_bundle), ONE) == winner
    named: list[dict[str, Any]] = [
        {"precision": "fp32"}, {"backend": "onnxruntime"}, {"threads": 1}, {"workers": 1},
        {"tuned": "off"},
    ]  # fmt: skip
    for options in named:
        assert tuned_winner(LateEncoder.of(tiny_bundle, **options), ONE) is None
    assert tuned_winner(LateEncoder.of(tiny_bundle), GPUS) is None
    assert tuned_winner(LateEncoder.of(tiny_bundle, device="cpu"), GPUS) == winner


# --- How workers and threads are divided

ONE = [Machine(8, 0)]
GPUS = [Machine(16, 4), Machine(32, 4), Machine(64, 0)]


@pytest.mark.parametrize(
    ("machines", "workers", "threads", "device", "team"),
    [
        (ONE, None, None, "auto", Team(1, 8, 0)),
        (ONE, 2, None, "cpu", Team(2, 4, 0)),
        (ONE, 3, None, "auto", Team(3, 2, 0)),
        (ONE, 8, 1, "auto", Team(8, 1, 0)),
        (ONE, None, 2, "auto", Team(1, 2, 0)),
        ([Machine(0, 0), Machine(4, 0), Machine(6, 0)], None, None, "auto", Team(2, 4, 0)),
        ([Machine(4, 0), Machine(6, 0)], 3, None, "auto", Team(3, 2, 0)),
        (GPUS, None, None, "auto", Team(8, 4, 1)),
        (GPUS, None, None, "cuda", Team(8, 4, 1)),
        (GPUS, 2, None, "cuda", Team(2, 16, 1)),
        (GPUS, None, None, "cpu", Team(3, 16, 0)),
    ],
)
def test_workers_and_threads(
    machines: list[Machine], workers: int | None, threads: int | None, device: str, team: Team
) -> None:
    assert plan_team(machines, workers, threads, device) == team


def test_a_worker_that_executes_several_batches_at_once_takes_a_cpu_for_each() -> None:
    assert plan_team(ONE, None, None, "cpu", 2) == Team(1, 4, 0, 2)
    assert plan_team(ONE, 4, None, "cpu", 2).cpus == 2
    with pytest.raises(InputError, match="8 workers of 2 threads do not fit"):
        plan_team(ONE, 8, None, "cpu", 2)


@pytest.mark.parametrize(
    ("machines", "workers", "threads", "device", "said"),
    [
        (ONE, 9, None, "auto", "9 workers of 1 threads do not fit; the cluster's machines have: 8"),
        (ONE, 3, 4, "auto", "3 workers of 4 threads do not fit"),
        ([Machine(5, 0), Machine(5, 0)], 2, 6, "auto", "do not fit"),
        (GPUS, 9, 1, "cuda", "9 workers of 1 threads and a GPU each do not fit"),
        (ONE, None, None, "cuda", "no machine of the Ray cluster has a GPU"),
        ([Machine(0, 0)], None, None, "auto", "no machine of the Ray cluster has a CPU"),
    ],
)
def test_more_than_there_is(
    machines: list[Machine], workers: int | None, threads: int | None, device: str, said: str
) -> None:
    with pytest.raises((InputError, UnavailableError)) as raised:
        plan_team(machines, workers, threads, device)
    assert said in str(raised.value)
