"""What a server executes before it says that it is ready."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from corom.runtime.batching import Batch
from corom.runtime.server_service import warm_up


class Counting:
    """Stands for an encoder; counts the shapes of the batches it is given."""

    adaptive, workers, max_length, batch_tokens = False, 1, 100, 16384

    def __init__(self, device: str, backend_name: str) -> None:
        self.device, self.backend_name = device, backend_name
        self.shapes: Counter[tuple[int, ...]] = Counter()

        self.warmed: Counter[tuple[int, ...]] = Counter()

    def warm(self, batch: Batch) -> None:
        self.warmed[batch.input_ids.shape] += 1

    def run(self, batch: Batch) -> None:
        assert np.all(batch.lengths == batch.input_ids.shape[1])
        self.shapes[batch.input_ids.shape] += 1


def after_warm_up(how: Any, device: str, backend_name: str) -> Counting:
    encoder = Counting(device, backend_name)
    warm_up(encoder, how)  # type: ignore[arg-type]
    return encoder


@pytest.mark.parametrize("how", ["min", "full"])
def test_on_a_gpu_every_width_is_warmed_once(how: str) -> None:
    encoder = after_warm_up(how, "cuda", "onnxruntime")
    assert {width for _, width in encoder.warmed} == {16, 32, 48, 64, 96, 100}
    assert set(encoder.warmed.values()) == {1}
    assert {rows for rows, width in encoder.warmed if width == 16} == {1, 8, 1024}
    assert not encoder.shapes


@pytest.mark.parametrize("backend_name", ["native", "onnxruntime"])
def test_on_a_cpu_the_ends_of_what_may_come_run_once(backend_name: str) -> None:
    largest = 5 if backend_name == "native" else 163
    assert after_warm_up("min", "cpu", backend_name).shapes == {
        (1, 8): 1,
        (1, 100): 1,
        (min(8, largest), 100): 1,
    } | {(largest, 100): 1}


def test_full_is_every_length_and_none_is_nothing() -> None:
    assert len({width for _, width in after_warm_up("full", "cpu", "native").shapes}) == 13
    assert not after_warm_up("none", "cuda", "tensorrt").warmed
