"""Run by test_cuda.py in a process of its own, whose libcuda.so.1 is the stand-in driver.

Real cuda-bindings, and PyCUDA where it is installed, make the calls. Prints one line a check.
"""

import ctypes
import sys
from collections.abc import Callable

import click

from corom.benchmarks.gpu_checks import device_checks, random_batch, require_exact
from corom.benchmarks.gpu_standin import StandInEngine
from corom.runtime.backend_lanes import LaneBackend
from corom.runtime.cuda import Adapter, Device, open_device
from corom.runtime.errors import CudaError, DeviceMemoryError, UnavailableError
from corom.runtime.gpu_machine import this_machine

FAKE = ctypes.CDLL("libcuda.so.1")


def error_of(work: Callable[[], object]) -> CudaError:
    try:
        work()
    except CudaError as error:
        return error
    raise AssertionError("no CudaError")


def status_codes_become_errors(device: Device) -> None:
    with device.use():
        stream = device.stream()
        full = error_of(lambda: device.allocate(1 << 40))
        assert isinstance(full, DeviceMemoryError)
        assert not full.fatal
        in_capture = error_of(
            lambda: device.capture(stream, lambda: device.free(device.allocate(9)))
        )
        assert not in_capture.fatal
        device.synchronize(stream)
        device.free_stream(stream)
    device.close()


def calls_need_the_context(device: Device) -> None:
    assert not error_of(lambda: device.allocate(9)).fatal
    with device.use(), device.use():
        device.free(device.allocate(9))
    assert FAKE.fake_depth() == 0
    device.close()


def closing_leaves_nothing(device: Device) -> None:
    backend = LaneBackend(device, StandInEngine(device))
    for seed in range(20):
        require_exact(backend, random_batch(seed))
    backend.close()
    assert (FAKE.fake_depth(), FAKE.fake_used(), FAKE.fake_users()) == (0, 0, 0)


def a_fatal_error_is_final_until_reopened(device: Device) -> None:
    backend = LaneBackend(device, StandInEngine(device))
    require_exact(backend, random_batch(0))
    FAKE.fake_fail(b"cuStreamSynchronize", 700)
    assert error_of(lambda: backend.run(random_batch(1))).fatal
    assert "unusable" in str(error_of(lambda: backend.run(random_batch(1))))
    backend.close()
    again = open_device(0, device.adapter)
    backend = LaneBackend(again, StandInEngine(again))
    require_exact(backend, random_batch(2))
    backend.close()


def a_context_that_was_current_stays_so(device: Device) -> None:
    other = ctypes.c_void_p(4242)
    FAKE.cuCtxPushCurrent_v2(other)
    with device.use():
        device.free(device.allocate(9))
    device.close()
    now = ctypes.c_void_p()
    FAKE.cuCtxGetCurrent(ctypes.byref(now))
    assert now.value == 4242
    FAKE.cuCtxPopCurrent_v2(ctypes.byref(now))
    assert FAKE.fake_depth() == 0


def garbage_is_not_collected_during_a_capture(device: Device) -> None:
    import gc

    with device.use():
        stream = device.stream()
        seen: list[bool] = []
        graph = device.capture(stream, lambda: seen.append(gc.isenabled()))
        assert seen == [False]
        assert gc.isenabled()
        device.free_graph(graph)
        device.free_stream(stream)
    device.close()


def a_failed_capture_runs_plainly(device: Device) -> None:
    backend = LaneBackend(device, StandInEngine(device), lanes=1)
    batch = random_batch(0, rows=2, width=8)
    for k in range(6):
        if k == 2:
            FAKE.fake_fail(b"cuGraphInstantiate", 801)
        require_exact(backend, batch)
    (state,) = backend.states()
    assert "NOT_SUPPORTED" in state.executed_by
    backend.close()


CHECKS = (
    status_codes_become_errors,
    calls_need_the_context,
    closing_leaves_nothing,
    a_context_that_was_current_stays_so,
    garbage_is_not_collected_during_a_capture,
    a_failed_capture_runs_plainly,
    a_fatal_error_is_final_until_reopened,
)


def main(adapter: Adapter) -> None:
    assert this_machine().gpu == "stand-in (no GPU)"
    assert this_machine().cuda == "13.0"
    for check in CHECKS:
        check(open_device(0, adapter))
        click.echo(f"passed {check.__name__}")
    for result in device_checks(adapter, requests=200):
        click.echo(f"{result.outcome} {result.name} {result.detail}")
    try:
        open_device(1, adapter)
    except (CudaError, UnavailableError) as error:
        click.echo(f"passed no second GPU: {error}")


main(sys.argv[1])  # type: ignore[arg-type]
