"""The logic of lanes, driven by a stand-in for the GPU and the engine (no CUDA here)."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import FATAL, PROFILES, VOCABULARY, StandInDevice, StandInEngine, engine_graph

from corom.runtime.backend_lanes import LANES, LaneBackend
from corom.runtime.batching import Batch
from corom.runtime.errors import CoromError, CudaError, DeviceMemoryError, EngineError, InputError


@pytest.fixture
def device() -> StandInDevice:
    return StandInDevice()


@pytest.fixture
def engine(device: StandInDevice) -> StandInEngine:
    return StandInEngine(device)


@pytest.fixture
def backend(device: StandInDevice, engine: StandInEngine) -> Iterator[LaneBackend]:
    backend = LaneBackend(device, engine)
    yield backend
    backend.close()


def batch_of(lengths: Any, seed: int = 0) -> Batch:
    lengths = np.asarray(lengths, np.int64)
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, (len(lengths), lengths.max()))
    ids[np.arange(ids.shape[1]) >= lengths[:, None]] = 0
    return Batch(ids, lengths)


def expected(engine: StandInEngine, batch: Batch) -> npt.NDArray[np.float32]:
    inputs = {
        "input_ids": batch.input_ids.astype(np.int32),
        "lengths": batch.lengths.astype(np.int32),
    }
    return engine.session.run(None, inputs)[0]


def check(backend: LaneBackend, engine: StandInEngine, lengths: Any, seed: int = 0) -> None:
    batch = batch_of(lengths, seed)
    assert np.array_equal(backend.run(batch), expected(engine, batch))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=150), min_size=1, max_size=6))
def test_stand_in_any_batches_give_the_engines_vectors(batches: list[list[int]]) -> None:
    device = StandInDevice()
    engine = StandInEngine(device)
    backend = LaneBackend(device, engine)
    made = [batch_of(sorted(lengths, reverse=True), k) for k, lengths in enumerate(batches)]
    for batch, vectors in zip(made, backend.stream(iter(made)), strict=True):
        assert np.array_equal(vectors, expected(engine, batch))
    for batch in made:
        assert np.array_equal(backend.run(batch), expected(engine, batch))
    backend.close()
    assert device.held == (0, 0, 0, 0)
    assert engine.closed
    assert device.closed


def test_stand_in_third_run_of_a_bucket_replays_a_graph(
    backend: LaneBackend, device: StandInDevice, engine: StandInEngine
) -> None:
    for seed in range(12):
        check(backend, engine, [5, 3], seed)
    assert device.calls["capture"] == 1  # one lane is enough for one request at a time
    assert device.calls["launch"] == 10
    assert {state.executed_by for state in backend.states()} == {"graph"}


def test_stand_in_a_vector_survives_the_next_request(
    backend: LaneBackend, engine: StandInEngine
) -> None:
    first = batch_of([4])
    vectors = backend.run(first)
    for seed in range(5):
        backend.run(batch_of([4], seed + 1))
    assert np.array_equal(vectors, expected(engine, first))


def test_stand_in_without_a_graph_runs_plainly_and_says_why(
    backend: LaneBackend, device: StandInDevice, engine: StandInEngine
) -> None:
    device.failures["capture"] = [CudaError("capture is not supported")] * 2
    for seed in range(8):
        check(backend, engine, [5], seed)
    assert device.calls["launch"] == 0
    assert all("capture is not supported" in s.executed_by for s in backend.states())


def test_stand_in_graphs_can_be_switched_off(device: StandInDevice, engine: StandInEngine) -> None:
    backend = LaneBackend(device, engine, graphs=False)
    for seed in range(8):
        check(backend, engine, [5], seed)
    assert device.calls["capture"] == 0
    assert {s.executed_by for s in backend.states()} == {"CUDA graphs are switched off"}
    backend.close()


def test_stand_in_slots_are_capped_and_the_oldest_goes(
    device: StandInDevice, engine: StandInEngine
) -> None:
    backend = LaneBackend(device, engine, lanes=1, slots=3)
    for length in (1, 16, 32, 1, 48):
        for seed in range(4):
            check(backend, engine, [length], seed)
    assert [s.bucket.width for s in backend.states()] == [32, 1, 48]
    assert engine.open_executions == 3
    assert device.held[2] == 3
    backend.close()


def test_stand_in_memory_does_not_grow(device: StandInDevice, engine: StandInEngine) -> None:
    backend = LaneBackend(device, engine)
    generator = np.random.default_rng(1)

    def requests(count: int) -> None:
        for _ in range(count):
            check(backend, engine, np.sort(generator.integers(1, 65, generator.integers(1, 70))))

    requests(300)
    before = device.used
    requests(300)
    assert device.used <= before
    backend.close()


def test_stand_in_out_of_memory_is_halved_then_fails_alone(
    engine: StandInEngine, device: StandInDevice
) -> None:
    backend = LaneBackend(device, engine)
    device.limit = device.used + 64 * 16  # scratch for a few rows only
    engine.scratch_per_token = 20
    check(backend, engine, [16] * 30)
    with pytest.raises(DeviceMemoryError):
        backend.run(batch_of([64]))
    check(backend, engine, [8])
    device.limit = 1 << 24
    check(backend, engine, [64])
    backend.close()


def test_stand_in_too_little_memory_to_open_leaves_nothing(
    device: StandInDevice, engine: StandInEngine
) -> None:
    device.limit = 1000
    with pytest.raises(DeviceMemoryError):
        LaneBackend(device, engine)
    assert device.closed


@pytest.mark.parametrize(
    ("step", "before"),
    [("stream", 0), ("pinned", 0), ("pinned", 1), ("allocate", 0), ("allocate", 1)],
)
def test_stand_in_a_half_built_lane_gives_back_all_it_took(
    device: StandInDevice, engine: StandInEngine, step: str, before: int
) -> None:
    device.failures[step] = [*[None] * before, DeviceMemoryError("no more")]
    with pytest.raises(DeviceMemoryError, match="no more"):
        LaneBackend(device, engine)
    assert device.held == (0, 0, 0, 0)


def test_stand_in_a_refused_execution_fails_the_request_only(
    backend: LaneBackend, engine: StandInEngine
) -> None:
    engine.refusals = 1
    with pytest.raises(EngineError, match="refuses"):
        backend.run(batch_of([5]))
    for seed in range(6):
        check(backend, engine, [5], seed)


def test_stand_in_a_fatal_error_makes_the_encoder_unusable_and_says_so(
    device: StandInDevice, engine: StandInEngine
) -> None:
    backend = LaneBackend(device, engine)
    check(backend, engine, [5])
    device.failures["synchronize"] = [FATAL]
    with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
        backend.run(batch_of([5]))
    with pytest.raises(CudaError, match=r"unusable since .*ILLEGAL_ADDRESS.*open a new one"):
        backend.run(batch_of([5]))
    backend.close()
    assert device.closed


def test_stand_in_a_fatal_error_reaches_threads_that_wait(
    device: StandInDevice, engine: StandInEngine
) -> None:
    backend = LaneBackend(device, engine, lanes=1)
    device.failures["synchronize"] = [None, FATAL]  # the first belongs to prepare
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(backend.run, batch_of([5], k)) for k in range(8)]
        assert all(isinstance(f.exception(20), CudaError | None) for f in futures)
        assert any(f.exception() for f in futures)
    backend.close()


def test_stand_in_threads_share_the_lanes(backend: LaneBackend, engine: StandInEngine) -> None:
    def work(thread: int) -> None:
        generator = np.random.default_rng(thread)
        for k in range(40):
            lengths = np.sort(generator.integers(1, 65, generator.integers(1, 140)))[::-1]
            made = [batch_of(lengths, k), batch_of(lengths[:3], k)]
            for batch, vectors in zip(made, backend.stream(made), strict=True):
                assert np.array_equal(vectors, expected(engine, batch))

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, k) for k in range(8)]:
            future.result(60)


def test_stand_in_an_abandoned_stream_gives_its_lanes_back(
    backend: LaneBackend, engine: StandInEngine
) -> None:
    stream = backend.stream(batch_of([k]) for k in range(1, 30))
    next(stream)
    stream.close()
    done = threading.Event()

    def run() -> None:
        check(backend, engine, [5])
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert done.wait(10)


def test_stand_in_the_next_batch_is_made_while_one_runs(
    backend: LaneBackend, device: StandInDevice
) -> None:
    seen = []

    def batches() -> Iterator[Batch]:
        for k in range(1, 4):
            seen.append(device.calls["copy_out"] - device.calls["synchronize"])
            yield batch_of([k])

    for _ in backend.stream(batches()):
        pass
    assert device.calls["copy_out"] == 3
    assert len(seen) == 3


def test_stand_in_a_text_beyond_the_profiles_is_an_error(
    backend: LaneBackend, engine: StandInEngine
) -> None:
    with pytest.raises(InputError, match="max_length=64"):
        backend.run(batch_of([65]))
    check(backend, engine, [64])


def test_stand_in_closing_twice_is_harmless(device: StandInDevice, engine: StandInEngine) -> None:
    backend = LaneBackend(device, engine)
    check(backend, engine, [5])
    backend.close()
    backend.close()
    assert device.held == (0, 0, 0, 0)


def test_the_stand_ins_graph_takes_what_an_engine_takes() -> None:
    assert [i.name for i in engine_graph().graph.input] == ["input_ids", "lengths"]
    assert PROFILES[0].batch[0] == 1


def test_stand_in_every_lane_is_warm_after_warm(
    backend: LaneBackend, device: StandInDevice, engine: StandInEngine
) -> None:
    backend.warm(batch_of([5, 3]))
    states = backend.states()
    assert [state.executed_by for state in states] == ["graph"] * LANES
    assert device.calls["capture"] == LANES
    check(backend, engine, [5, 3])
    assert device.calls["capture"] == LANES


def test_stand_in_all_idle_lanes_give_up_their_memory(
    device: StandInDevice, engine: StandInEngine
) -> None:
    backend = LaneBackend(device, engine, lanes=3)
    backend.warm(batch_of([5, 3]))
    assert len(backend.states()) == 3
    device.limit = device.used  # not one byte more
    lengths = [30] * 60
    check(backend, engine, lengths)
    assert len({id(lane) for lane in backend._lanes if lane.states()}) == 1
    backend.close()
    assert device.held == (0, 0, 0, 0)


def test_stand_in_closed_while_batches_are_under_way(
    backend: LaneBackend, device: StandInDevice, engine: StandInEngine
) -> None:
    batches = [batch_of([5, 3], seed) for seed in range(6)]
    results = iter(backend.stream(batches))
    first = next(results)
    backend.close()
    assert not device.closed  # somebody has a lane
    assert np.array_equal(first, expected(engine, batches[0]))
    with pytest.raises(CoromError, match="this encoder is closed"):
        list(results)
    assert device.closed
    assert engine.closed
    assert device.held == (0, 0, 0, 0)
    with pytest.raises(CoromError, match="this encoder is closed"):
        backend.run(batches[0])


def test_stand_in_who_waits_for_a_lane_hears_of_the_end(
    device: StandInDevice, engine: StandInEngine
) -> None:
    backend = LaneBackend(device, engine, lanes=1)
    lane = backend._take(wait=True)
    assert lane is not None
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(backend.run, batch_of([4])) for _ in range(3)]
        time.sleep(0.1)
        backend.close()
        assert not device.closed
        backend._give_back(lane)
        for future in waiting:
            with pytest.raises(CoromError, match="this encoder is closed"):
                future.result(30)
    assert device.held == (0, 0, 0, 0)
