"""What a server executes before it says that it is ready."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from corom.runtime.backend_lanes import LANES
from corom.runtime.batching import Batch
from corom.runtime.lane import RUNS_BEFORE_CAPTURE
from corom.runtime.server_service import warm_up


class Counting:
    """Stands for an encoder; counts the shapes of the batches it is given."""

    adaptive, workers, max_length, batch_tokens = False, 1, 100, 16384

    def __init__(self, device: str, backend_name: str) -> None:
        self.device, self.backend_name = device, backend_name
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def run(self, batch: Batch) -> None:
        assert np.all(batch.lengths == batch.input_ids.shape[1])
        self.shapes[batch.input_ids.shape] += 1


def warmed(how: Any, device: str, backend_name: str) -> Counter[tuple[int, ...]]:
    encoder = Counting(device, backend_name)
    warm_up(encoder, how)  # type: ignore[arg-type]
    return encoder.shapes


def test_on_a_gpu_every_width_runs_in_every_lane_until_its_graph_is_captured() -> None:
    shapes = warmed("min", "cuda", "onnxruntime")
    assert {width for _, width in shapes} == {16, 32, 48, 64, 96, 100}
    assert set(shapes.values()) == {(RUNS_BEFORE_CAPTURE + 1) * LANES}
    assert {rows for rows, width in shapes if width == 16} == {1, 8, 1024}


@pytest.mark.parametrize("backend_name", ["native", "onnxruntime"])
def test_on_a_cpu_the_ends_of_what_may_come_run_once(backend_name: str) -> None:
    largest = 5 if backend_name == "native" else 163
    assert warmed("min", "cpu", backend_name) == {
        (1, 8): 1,
        (1, 100): 1,
        (min(8, largest), 100): 1,
    } | {(largest, 100): 1}


def test_full_is_every_length_and_none_is_nothing() -> None:
    assert len({width for _, width in warmed("full", "cpu", "native")}) == 13
    assert not warmed("none", "cuda", "tensorrt")
