"""Captures, refusals and lost devices of a plan, on the simulated driver and engine."""

import threading
from typing import Any

import numpy as np
import pytest

from esrgan_deploy import DeviceLostError, InferenceError, OutOfMemoryError


def through(slot: Any, value: int) -> None:
    slot.prepare((1, 8, 8))[...] = value
    slot.start()
    assert (slot.finish().batch == value).all()


def test_a_capture_that_the_host_program_breaks_is_tried_again(rig):
    """One synchronisation elsewhere would end graphs for good, or fail the batch."""
    gpu = rig()
    slot = gpu.open().slot()
    through(slot, 1)
    gpu.engine.during = gpu.driver.cuCtxSynchronize
    through(slot, 2)
    gpu.engine.during = None
    for value in (3, 4):
        through(slot, value)
    assert gpu.driver.calls.count("cuGraphLaunch") == 2


def test_own_synchronisation_waits_for_a_capture(rig):
    """A call without a stream would break the capture of another thread."""
    gpu = rig()
    plan = gpu.open()
    slot, array = plan.slot(), gpu.array((1, 8, 8, 3))
    through(slot, 1)
    other = threading.Thread(target=lambda: plan.run_on_device(array))
    asked, kept = threading.Event(), plan._device.exclusive

    class Asked:
        def __enter__(self) -> None:
            if threading.current_thread() is other:
                asked.set()
            kept.acquire()

        def __exit__(self, *_: object) -> None:
            kept.release()

    plan._device.exclusive = Asked()

    def during() -> None:
        before = gpu.driver.calls.count("cuCtxSynchronize")
        other.start()
        # It waits for its turn, or it does not and has broken the capture.
        while not asked.wait(0.001) and gpu.driver.calls.count("cuCtxSynchronize") == before:
            pass

    gpu.engine.during = during
    through(slot, 2)
    gpu.engine.during = None
    other.join()
    assert "cuGraphLaunch" in gpu.driver.calls


def test_memory_that_is_short_for_a_graph_does_not_end_graphs(rig):
    """Another process may hold it for a second; the batch itself fits, and the next one is launched as one."""
    gpu = rig()
    slot = gpu.open().slot()
    through(slot, 1)
    gpu.driver.fail("cuGraphInstantiate", "CUDA_ERROR_OUT_OF_MEMORY")
    through(slot, 2)
    for value in (3, 4):
        through(slot, value)
    assert gpu.driver.calls.count("cuGraphLaunch") == 2


def test_nothing_is_collected_while_a_graph_is_captured(rig):
    """What the collector frees on the capturing thread breaks the capture and stays allocated."""
    gpu = rig()
    slot = gpu.open().slot()
    through(slot, 1)

    class Cycle:
        def __init__(self) -> None:
            self.me, self.pointer = self, gpu.driver.allocate(64, "device")

        def __del__(self) -> None:
            gpu.driver.cuMemFree(self.pointer)

    made: list[Any] = []

    def during() -> None:
        made.extend([value] for value in range(20_000))

    Cycle()
    gpu.engine.during = during
    through(slot, 2)
    assert "cuGraphLaunch" in gpu.driver.calls


def test_a_size_of_nothing_asks_the_profile(rig):
    """Work in no memory would overwrite what lies behind it."""
    gpu = rig()
    gpu.engine.sizeless = True
    through(gpu.open().slot(), 7)


def test_memory_that_is_refused_by_the_log_alone_is_an_error(rig):
    """The work would run in the memory of before."""
    gpu = rig()
    gpu.engine.wants = 1 << 20
    with pytest.raises(InferenceError, match=r"to work in .*less than what is needed"):
        gpu.open().slot().prepare((1, 8, 8))


def test_an_old_line_of_the_log_is_no_reason(rig):
    """A refusal would be answered with smaller tiles for ever."""
    gpu = rig()
    slot = gpu.open().slot()
    slot.prepare((1, 8, 8))
    gpu.engine.log("Error Code 2: OutOfMemory (Requested size was 98304 bytes.)")
    gpu.engine.silent = True
    with pytest.raises(InferenceError, match="gives no reason") as caught:
        slot.start()
    assert not isinstance(caught.value, OutOfMemoryError)


def test_no_context_on_a_lost_device_is_a_lost_device(rig):
    """A second GPU takes over only where the first says that it is lost."""
    gpu = rig()
    slot = gpu.open().slot()
    slot.prepare((1, 8, 8))
    gpu.driver.lost = True
    with pytest.raises(DeviceLostError):
        slot.prepare((1, 16, 16))


def test_picture_batches_come_after_a_broken_capture(rig):
    """The first work after it is refused once."""
    gpu = rig()
    plan = gpu.open()
    through(plan.slot(), 5)
    gpu.engine.during = gpu.driver.cuCtxSynchronize
    for value in (1, 2):
        assert (plan.run(np.full((1, 8, 8, 3), value, np.uint8)) == value).all()
