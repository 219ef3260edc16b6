"""`corom tune`: what is kept, who uses it, what is ignored and said; the front by definition."""

import json
import logging
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corom.benchmarks.contestants import Contestant, rungs
from corom.benchmarks.figures import spread
from corom.benchmarks.tuning import (
    BATCHES_A_WORKER,
    BUDGETS,
    FINALISTS,
    WARM_TEXTS,
    Final,
    Measured,
    Way,
    alone_ms,
    budgets,
    enough,
    fastest_alone,
    finalists,
    measure,
    pareto_front,
    texts_for,
    ways,
)
from corom.runtime import Encoder, choice, load_manifest
from corom.runtime.cache import cache_root
from corom.runtime.choice import Asked, choose
from corom.runtime.errors import InputError, UnavailableError
from corom.runtime.golden import GOLDEN_NAME, Golden, load_golden, save_golden
from corom.runtime.manifest import manifest_sha256, save_manifest
from corom.runtime.tuning import (
    TUNING_VERSION,
    Tuning,
    Winner,
    find_winner,
    save_tuning,
    this_machine,
    tuning_file,
)

Corom = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COROM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def winner(**changes: Any) -> Winner:
    fields: dict[str, Any] = {
        "backend": "onnxruntime", "precision": "fp32", "threads": 1, "workers": 1,
        "cpus": 2, "batch_tokens": 4096, "cosine_min": 1.0, "p50_ms": 1.0,
        "texts_per_second": 1000.0,
    }  # fmt: skip
    return Winner(**fields | changes)


def tuning(folder: Path, **changes: Any) -> Tuning:
    fields: dict[str, Any] = {
        "version": TUNING_VERSION, "bundle": manifest_sha256(folder), "machine": this_machine(),
        "min_cosine": 0.999, "latency": winner(), "throughput": winner(workers=2),
    }  # fmt: skip
    return Tuning(**fields | changes)


# --- What is kept, and who uses it


def test_auto_uses_the_winner_and_says_so(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = load_manifest(tiny_bundle)
    save_tuning(manifest, tuning(tiny_bundle))
    with caplog.at_level(logging.INFO, "corom"), Encoder(tiny_bundle) as encoder:
        assert encoder.choice == "fp32 by onnxruntime on cpu, tuned for throughput"
        assert encoder.choice in caplog.text
        assert (encoder.workers, encoder.batch_tokens) == (2, 4096)
        vector = encoder.encode("头痛怎么办")
    with Encoder(tiny_bundle, tuned="latency", max_batch_tokens=100) as encoder:
        assert encoder.choice == "fp32 by onnxruntime on cpu, tuned for latency"
        assert (encoder.workers, encoder.batch_tokens) == (1, 100)
        np.testing.assert_allclose(encoder.encode("头痛怎么办"), vector, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"tuned": "off"}, {"threads": 1}, {"workers": 1}, {"precision": "fp32"},
     {"backend": "onnxruntime"}],
    ids=str,
)  # fmt: skip
def test_what_is_asked_for_goes_before_what_was_found(
    tiny_bundle: Path, options: dict[str, Any]
) -> None:
    save_tuning(load_manifest(tiny_bundle), tuning(tiny_bundle))
    with Encoder(tiny_bundle, **options) as encoder:
        assert "tuned" not in encoder.choice


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": "Another CPU, 64 CPUs"}, "tuned for another machine (Another CPU, 64 CPUs"),
        ({"bundle": "0" * 64}, "tuned for another export of it"),
    ],
)
def test_what_was_found_elsewhere_is_ignored_and_said(
    tiny_bundle: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, str],
    message: str,
) -> None:
    save_tuning(load_manifest(tiny_bundle), tuning(tiny_bundle, **changes))
    with Encoder(tiny_bundle) as encoder:
        assert "tuned" not in encoder.choice
    assert message in caplog.text
    assert f"corom tune {tiny_bundle}" in caplog.text


def test_the_command_line_says_it_too(shell: Corom, tiny_bundle: Path, cache: Path) -> None:
    save_tuning(load_manifest(tiny_bundle), tuning(tiny_bundle, machine="Another CPU"))
    done = shell(f"COROM_CACHE={cache} corom embed {tiny_bundle} {'头痛' * 100}")
    assert done.returncode == 0
    first, *rest = done.stderr.splitlines()
    assert first.startswith("Warning: tiny was tuned for another machine (Another CPU; this is ")
    assert not [line for line in rest if line.startswith("Warning")]  # what was cut is said once
    assert rest[-1].startswith("1 text was longer than 128 tokens and cut; ")


def test_a_winner_that_was_not_proven_is_ignored_and_said(
    altered: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="pip install 'corom[openvino]'")
    manifest = load_manifest(altered)
    (variant,) = manifest.variants
    parity = {"onnxruntime": variant.parity["onnxruntime"]}
    variants = [msgspec.structs.replace(variant, parity=parity)]
    save_manifest(msgspec.structs.replace(manifest, variants=variants), altered)
    save_tuning(manifest, tuning(altered, throughput=winner(backend="openvino")))
    with Encoder(altered) as encoder:
        assert encoder.choice == "fp32 by onnxruntime on cpu"
    assert "was proven on: onnxruntime" in caplog.text
    assert {rung.job["backend"] for rung in rungs(altered)} == {"onnxruntime"}


@pytest.mark.parametrize("content", [b"", b"[", b"[{}]", b"\xff", b'{"version": 1}'])
def test_a_broken_cache_is_ignored_and_said(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    manifest = load_manifest(tiny_bundle)
    file = tuning_file(manifest)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert find_winner(tiny_bundle, manifest, "latency") is None
    assert "cannot be read and is ignored" in caplog.text
    save_tuning(manifest, tuning(tiny_bundle))  # and does not stand in the way of a new one
    assert find_winner(tiny_bundle, manifest, "latency") == winner()


def test_a_newer_cache_is_not_used(tiny_bundle: Path) -> None:
    manifest = load_manifest(tiny_bundle)
    save_tuning(manifest, tuning(tiny_bundle, version=TUNING_VERSION + 1))
    assert find_winner(tiny_bundle, manifest, "latency") is None


def test_what_another_version_keeps_stays_there(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = load_manifest(tiny_bundle)
    newer = tuning(tiny_bundle, version=TUNING_VERSION + 1)
    save_tuning(manifest, newer)
    content = msgspec.json.decode(tuning_file(manifest).read_bytes())
    content[0]["a field"] = "of that version"
    tuning_file(manifest).write_bytes(msgspec.json.encode(content))
    assert find_winner(tiny_bundle, manifest, "latency") is None
    assert "is of another version of corom: ignored" in caplog.text
    save_tuning(manifest, tuning(tiny_bundle))
    assert find_winner(tiny_bundle, manifest, "latency") == winner()
    assert msgspec.json.decode(tuning_file(manifest).read_bytes())[0] == content[0]


def test_of_many_who_save_at_once_none_is_lost(tiny_bundle: Path) -> None:
    manifest = load_manifest(tiny_bundle)
    kept = [tuning(tiny_bundle, machine=f"machine {k}") for k in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(partial(save_tuning, manifest), kept))
    found = msgspec.json.decode(tuning_file(manifest).read_bytes(), type=list[Tuning])
    assert {one.machine for one in found} == {one.machine for one in kept}


@pytest.mark.parametrize("name", ["../../victim", "/victim", "a\0b", ""])
def test_a_manifest_cannot_lead_out_of_the_cache(tiny_bundle: Path, cache: Path, name: str) -> None:
    manifest = load_manifest(tiny_bundle)
    source = msgspec.structs.replace(manifest.source, weights_sha256=name)
    file = tuning_file(msgspec.structs.replace(manifest, source=source))
    assert file.parent == cache / "tuning"
    assert not file.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; run as a user")
def test_a_cache_that_may_not_be_read_is_said(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = load_manifest(tiny_bundle)
    save_tuning(manifest, tuning(tiny_bundle)).chmod(0)
    assert find_winner(tiny_bundle, manifest, "throughput") is None
    assert "cannot be read and is ignored" in caplog.text


def test_without_a_home_nothing_was_tuned(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("COROM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with Encoder(tiny_bundle) as encoder:
        assert encoder.encode("头痛").shape == (encoder.dimension,)
    with pytest.raises(UnavailableError, match="COROM_CACHE=FOLDER"):
        cache_root()


def test_who_adapts_has_all_cpus_whatever_won(tiny_bundle: Path) -> None:
    save_tuning(load_manifest(tiny_bundle), tuning(tiny_bundle, latency=winner(cpus=2)))
    with Encoder(tiny_bundle, tuned="latency", adaptive=True) as encoder:
        assert (encoder.workers, encoder.adaptive) == (2, True)


def test_what_was_tuned_is_not_of_gpus(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(tiny_bundle)
    save_tuning(manifest, tuning(tiny_bundle))
    monkeypatch.setattr(choice, "choose_backend", lambda *_: ("onnxruntime", "cuda"))
    asked = Asked("auto", "auto", "auto", None, None, "off", "latency", adaptive=False)
    assert choose(tiny_bundle, manifest, asked).winner is None
    assert "what was tuned is of CPUs" in caplog.text


def test_machines_and_bundles_keep_their_own(tiny_bundle: Path) -> None:
    manifest = load_manifest(tiny_bundle)
    save_tuning(manifest, tuning(tiny_bundle, machine="another"))
    save_tuning(manifest, tuning(tiny_bundle))
    save_tuning(manifest, tuning(tiny_bundle, latency=winner(threads=7)))
    found = find_winner(tiny_bundle, manifest, "latency")
    assert found is not None
    assert found.threads == 7
    assert len(msgspec.json.decode(tuning_file(manifest).read_bytes())) == 2


def test_a_goal_that_does_not_exist(tiny_bundle: Path) -> None:
    for wrong in ("speed", None, ["latency"]):
        with pytest.raises(InputError, match="allowed: 'throughput', 'latency', 'off'"):
            Encoder(tiny_bundle, tuned=wrong)  # type: ignore[arg-type]


# --- Choosing

RUNGS = [
    Contestant("a", "fp32", "corom", None, "bundle", {"backend": "onnxruntime"}),
    Contestant("b", "bf16", "corom", None, "bundle", {"backend": "openvino"}),
]


@given(st.integers(1, 64))
def test_ways_never_take_more_cpus_than_there_are_and_all_are_tried(cpus: int) -> None:
    found = ways(RUNGS, cpus)
    assert len(set(found)) == len(found)
    assert all(1 <= way.threads * way.workers <= cpus for way in found)
    for rung in RUNGS:
        own = [way for way in found if way.precision == rung.precision]
        assert Way(rung.job["backend"], rung.precision, cpus, 1) in own
        assert Way(rung.job["backend"], rung.precision, 1, cpus) in own
        assert Way(rung.job["backend"], rung.precision, 1, 1) in own


figures = st.integers(1, 4).map(float)
measurements = st.lists(
    st.builds(
        Measured,
        way=st.builds(
            Way, st.just("x"), st.just("fp32"), st.integers(1, 4), st.integers(1, 4)
        ),
        batch_tokens=st.sampled_from([1, 2]),
        cosine_min=figures,
        p50_ms=figures,
        texts_per_second=figures,
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda one: one[:2],
)  # fmt: skip


@given(measurements)
def test_the_front_is_what_nothing_beats(found: list[Measured]) -> None:
    front = pareto_front(found)
    assert front
    for one in found:
        better = [
            other
            for other in found
            if other.p50_ms <= one.p50_ms
            and other.texts_per_second >= one.texts_per_second
            and other.cosine_min >= one.cosine_min
            and (
                other.p50_ms < one.p50_ms
                or other.texts_per_second > one.texts_per_second
                or other.cosine_min > one.cosine_min
            )
        ]
        assert (one in front) == (not better)


@given(measurements)
def test_the_fastest_of_each_kind_are_finalists(found: list[Measured]) -> None:
    chosen = finalists(found)
    assert max(one.texts_per_second for one in found) in {one.texts_per_second for one in chosen}
    quickest = min(one.p50_ms for one in found)
    alone = {one.way.alone for one in chosen}
    assert any(one.way.alone in alone for one in found if one.p50_ms == quickest)
    assert len(set(chosen)) == len(chosen)
    assert len({one.way for one in chosen}) <= 2 * FINALISTS


@given(measurements)
def test_one_text_is_won_by_time_and_then_by_rate(found: list[Measured]) -> None:
    finals = [Final(one, spread([one.p50_ms]), spread([one.texts_per_second])) for one in found]
    fastest = fastest_alone(finals)
    alone = fastest.measured.way.alone
    twins = [one for one in finals if one.measured.way.alone == alone]
    assert min(one.p50_ms.median for one in twins) == min(one.p50_ms for one in found)
    most = max(one.texts_per_second.median for one in twins)
    assert fastest.texts_per_second.median == most


@given(st.integers(1, 20), st.integers(1, 64), st.integers(1, 5000))
def test_all_texts_at_once_give_each_worker_several_batches(
    count: int, each: int, at_once: int
) -> None:
    texts = [f"text {k}" for k in range(count)]
    found = enough(texts, count * each, at_once)
    assert found[:count] == texts
    assert len(set(found)) == len(found)  # equal ones would be computed once
    assert len(found) * each >= BATCHES_A_WORKER * at_once
    assert len(found) == count or (len(found) - count) * each < BATCHES_A_WORKER * at_once


def test_every_way_is_timed_with_the_same_texts() -> None:
    class Slow:
        """Stands for an encoder, and notes what it is asked for."""

        def __init__(self, seconds: float) -> None:
            self.seconds, self.asked = seconds, list[str]()

        def encode(self, text: str) -> None:
            self.asked.append(text)
            time.sleep(self.seconds)

    texts = [f"text {k}" for k in range(6)]
    for seconds in (0, 0.003):
        slow: Any = Slow(seconds)
        assert alone_ms(slow, texts, 0.004) >= 1000 * seconds
        times = Counter(slow.asked[min(WARM_TEXTS, len(texts)) :])
        assert set(times) == set(texts)
        assert len(set(times.values())) == 1


def test_a_way_below_the_parity_floor_is_not_timed(tiny_bundle: Path) -> None:
    way = Way("onnxruntime", "fp32", 1, 1)
    assert list(measure(tiny_bundle, way, ["头痛"], 1.1, 0.001)) == []
    found = list(measure(tiny_bundle, way, ["头痛", "发烧"], 0.9999, 0.001))
    tried = [one.batch_tokens for one in found]
    assert tried == list(BUDGETS[: len(tried)])
    assert all(one.cosine_min > 0.9999 for one in found)


@pytest.mark.parametrize(
    ("cpus", "largest", "texts"), [(1, 4096, 128), (2, 4096, 128), (4, 8192, 256), (64, 16384, 512)]
)
def test_more_cpus_are_tried_with_larger_batches_of_more_texts(
    cpus: int, largest: int, texts: int
) -> None:
    assert budgets(cpus) == tuple(budget for budget in BUDGETS if budget <= largest)
    assert texts_for(cpus) == texts


@pytest.mark.parametrize(
    ("rates", "counted"),
    [
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
        ([5, 6, 5.5, 5.3, 1, 2], [5, 6, 5.5, 5.3]),
        ([5, 4, 3], [5, 4]),
        ([5, 1, 6, 7, 1, 2], [5, 6, 7, 2]),  # a stall of the machine ends nothing
    ],
)
def test_no_larger_budget_is_tried_once_the_rate_has_fallen_twice(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, rates: list[float], counted: list[float]
) -> None:
    given = iter(rates)
    monkeypatch.setattr("corom.benchmarks.tuning.throughput", lambda *_: next(given))
    found = list(measure(tiny_bundle, Way("onnxruntime", "fp32", 1, 1), ["头痛"], 0.9, 0.001))
    assert [one.texts_per_second for one in found] == counted


# --- The command


def test_tune_finds_keeps_and_auto_uses_it(
    shell: Corom, tiny_bundle: Path, cache: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("头痛怎么办\n发烧吃什么药\n今天天气不错\n", "utf-8")
    tune = f"COROM_CACHE={cache} corom tune {tiny_bundle} --texts {texts} --seconds 0.002"
    done = shell(tune)
    assert done.returncode == 0, done.stderr
    assert "| fp32 onnxruntime |" in done.stdout
    assert "latency" in done.stdout
    assert f"kept for {load_manifest(tiny_bundle).name} on this machine" in done.stderr
    embedded = shell(f"COROM_CACHE={cache} corom embed {tiny_bundle} 头痛")
    assert "tuned for throughput" in embedded.stderr
    folder = f"corom embed {tiny_bundle} -i {texts} -o {tmp_path / 'v'}"
    assert "tuned for throughput" in shell(f"COROM_CACHE={cache} {folder}").stderr


def test_what_was_found_is_kept_even_if_nobody_reads_it(
    shell: Corom, tiny_bundle: Path, cache: Path
) -> None:
    tune = f"COROM_CACHE={cache} corom tune {tiny_bundle} --cpus 1 --seconds 0.001 --json"
    done = shell(f"{tune} > /dev/full")
    assert done.returncode == 3
    (kept,) = msgspec.json.decode(
        tuning_file(load_manifest(tiny_bundle)).read_bytes(), type=list[Tuning]
    )
    assert kept.latency.cpus == 1
    report = json.loads(shell(tune).stdout)
    assert report["tuning"]["bundle"] == kept.bundle
    assert any(one["front"] for one in report["measured"])
    assert all(one["p50_ms"]["low"] <= one["p50_ms"]["high"] for one in report["finals"])


def test_a_bundle_that_is_replaced_meanwhile_keeps_no_winner(
    start: Callable[..., subprocess.Popen[str]], altered: Path, cache: Path
) -> None:
    with start("tune", altered, "--cpus", "1", "--seconds", "0.01") as process:
        assert process.stderr is not None
        assert "ways to execute" in process.stderr.readline()
        manifest = load_manifest(altered)
        save_manifest(msgspec.structs.replace(manifest, name="another"), altered)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, "changed meanwhile. Tune again." in err) == (2, True), err
    assert not list(cache.rglob("*.json"))


@pytest.mark.parametrize("place", ["file", "read-only"])
def test_a_cache_that_cannot_be_written_is_noticed_before_the_work(
    shell: Corom, tiny_bundle: Path, tmp_path: Path, place: str
) -> None:
    there = tmp_path / place
    if place == "file":
        there.touch()
    elif os.geteuid() == 0:
        there = Path("/proc/corom")  # root may write everywhere else
    else:
        there.mkdir(mode=0o500)
    done = shell(f"COROM_CACHE={there}/c corom tune {tiny_bundle}")
    assert done.returncode == 3
    assert "ways to execute" not in done.stderr


def test_tune_refuses_when_nothing_reaches_the_floor(
    shell: Corom, altered: Path, rehash: Callable[..., None], cache: Path
) -> None:
    golden = load_golden(altered / GOLDEN_NAME)
    save_golden(altered / GOLDEN_NAME, Golden(golden.texts, golden.vectors[::-1].copy()))
    rehash(altered)
    done = shell(f"COROM_CACHE={cache} corom tune {altered} --seconds 0.002")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing here reaches a cosine of 0.999 to torch" in done.stderr
    assert not list(cache.rglob("*.json"))
    assert shell(f"corom tune {altered} --min-cosine nan").returncode == 2
    assert shell(f"corom tune {altered} --min-cosine 1.5").returncode == 2


def test_tune_interrupted_keeps_nothing(
    start: Callable[..., subprocess.Popen[str]], tiny_bundle: Path, cache: Path
) -> None:
    with start("tune", tiny_bundle, "--seconds", "30") as process:
        assert process.stderr is not None
        assert "ways to execute" in process.stderr.readline()  # it has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Interrupted." in err
    assert not list(cache.rglob("*.json"))
