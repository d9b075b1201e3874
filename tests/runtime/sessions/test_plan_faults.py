"""What becomes of a plan when CUDA fails, on the simulated driver: see helpers_cuda for what that shows."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from esrgan_deploy import DeviceLostError, InferenceError, OutOfMemoryError

Rig = Callable[..., Any]

# Calls of the layer whose only work is to release something: they are swallowed, as close() must not fail.
RELEASES = {
    "cuMemFree", "cuMemFreeAsync", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphDestroy",
    "cuGraphExecDestroy", "cuDevicePrimaryCtxRelease", "cuEventSynchronize",
}  # fmt: skip
SHARED = {"cuCtxGetCurrent", "cuCtxSetCurrent", "cuStreamSynchronize", "cuInit", "cuDeviceGet"}
# What only tells the user which card it is.
TOLD = {"cuDeviceGetName", "cuDeviceGetPCIBusId"}
CAPTURES = {"cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"}


def everything(gpu: Any) -> None:
    """Use each part of a session once, and release it whatever happens."""
    with_plan = gpu.open()
    slot = None
    try:
        slot = with_plan.slot()
        for side in (8, 8, 8, 16, 8):
            slot.prepare((1, side, side))[...] = side
            slot.start()
            assert slot.finish().batch[0, 0, 0, 0] == side
        with_plan.run(np.zeros((1, 8, 8, 3), np.uint8))
        with_plan._device.memory()
        stream, other = gpu.stream(with_plan), gpu.stream(with_plan)
        with_plan._device.synchronize()
        array = gpu.array((1, 8, 8, 3))
        made = with_plan.run_on_device(array, stream=stream)
        made.__dlpack__(stream=other)
        with_plan.run_on_device(array)
    finally:
        gpu.closing = len(gpu.driver.calls)
        if slot is not None:
            slot.close()
        with_plan.close()


def failure_of(gpu: Any) -> InferenceError | None:
    try:
        everything(gpu)
    except InferenceError as error:
        return error.with_traceback(None)
    return None


def left(gpu: Any) -> dict[str, int]:
    if gpu.driver.left():
        # What an error holds in its frames goes with it.
        gc.collect()
    return gpu.driver.left()


def calls_made(rig: Rig) -> tuple[list[str], int]:
    """The calls of a good run, and how many of them were made before the closing."""
    gpu = rig(health=True)
    everything(gpu)
    return gpu.driver.calls, gpu.closing


def test_every_status_is_looked_at(rig):
    """One that is not is a wrong picture later, or a crash with no name."""
    calls, _ = calls_made(rig)
    names = dict.fromkeys(calls)
    assert len(names) > 25
    for name in names:
        for after in {0, calls.count(name) // 2, calls.count(name) - 1}:
            gpu = rig(health=True)
            gpu.driver.fail(name, "CUDA_ERROR_NOT_PERMITTED", after=after)
            said = f"{name} failed with CUDA_ERROR_NOT_PERMITTED; "
            if name in CAPTURES:
                with pytest.warns(RuntimeWarning, match=said):
                    everything(gpu)
            else:
                error = failure_of(gpu)
                if error is None:
                    # It belonged to what was being released, or put a thread back as it was.
                    assert name in RELEASES | TOLD or (name in SHARED and after)
                else:
                    assert name not in RELEASES
                    assert type(error) is InferenceError
                    assert said in str(error)
                    assert "\n" not in str(error)
                error = None
            assert left(gpu) == {}, (name, after)
            assert not gpu.driver.failing, (name, after)


def test_a_lost_device_is_known_and_can_be_closed(rig):
    """The others do its work only if it says that it is lost, wherever in a batch that was."""
    calls, closing = calls_made(rig)
    waited = max(at for at in range(closing) if calls[at] == "cuStreamSynchronize")
    for at in range(0, len(calls), 7):
        gpu = rig(health=True)
        lose_at(gpu.driver, at)
        error = failure_of(gpu)
        if error is None:
            # All that came after was given back.
            assert at > waited
        else:
            assert type(error) is DeviceLostError
            assert "CUDA_ERROR_LAUNCH_FAILED" in str(error)
        error = None
        assert left(gpu) == {}, (at, calls[at])


def lose_at(driver: Any, at: int) -> None:
    """Lose the device at a call."""
    status = driver._status

    def lost(name: str) -> Any:
        driver.lost = driver.lost or len(driver.calls) > at
        return status(name)

    driver._status = lost


@pytest.mark.parametrize(
    "status",
    [
        "ILLEGAL_ADDRESS", "LAUNCH_FAILED", "ECC_UNCORRECTABLE", "HARDWARE_STACK_ERROR", "DEVICE_UNAVAILABLE",
        "DEINITIALIZED", "CONTEXT_IS_DESTROYED", "MISALIGNED_ADDRESS", "ILLEGAL_INSTRUCTION", "ASSERT",
    ],
)  # fmt: skip
def test_what_breaks_a_context_is_a_lost_device(rig, status):
    """A smaller tile would be tried on a context that answers nothing any more."""
    gpu = rig()
    with_plan = gpu.open()
    slot = with_plan.slot()
    slot.prepare((1, 8, 8))
    slot.start()
    gpu.driver.fail("cuStreamSynchronize", f"CUDA_ERROR_{status}")
    with pytest.raises(DeviceLostError, match=f"cuStreamSynchronize failed with CUDA_ERROR_{status}; "):
        slot.finish()
    slot.close()
    with_plan.close()


def test_out_of_memory_leaves_room_for_a_smaller_tile(rig):
    """The half is tried at once: what the large one had taken by then must be free again."""
    # 1x64x64: 96 KiB of scratch, 12 in, 48 out. The whole does not fit, and half of it only if all is given back.
    gpu = rig(driver={"memory": 150_000})
    with_plan = gpu.open()
    slot = with_plan.slot()
    with pytest.raises(
        OutOfMemoryError, match="cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY; use a smaller tile"
    ):
        slot.prepare((1, 64, 64))
    assert gpu.driver.used() == 0
    for _ in range(3):
        slot.prepare((1, 32, 64))[...] = 9
        slot.start()
        assert (slot.finish().batch == 9).all()
    with pytest.raises(OutOfMemoryError):
        slot.prepare((2, 64, 64))
    slot.prepare((1, 8, 8))
    slot.start()
    slot.finish()
    slot.close()
    with_plan.close()
    gc.collect()
    assert gpu.driver.left() == {}


def test_memory_that_cannot_be_pinned_is_out_of_memory_too(rig):
    """A container's limit on locked memory is met before the card's."""
    gpu = rig()
    slot = gpu.open().slot()
    gpu.driver.fail("cuMemHostAlloc", "CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(OutOfMemoryError, match="cuMemHostAlloc"):
        slot.prepare((1, 64, 64))
    assert gpu.driver.used() == 0


def test_what_tensorrt_refuses_carries_its_reason(rig):
    """It returns False; why, it only logs."""
    gpu = rig()
    with_plan = gpu.open()
    slot = with_plan.slot()
    slot.prepare((1, 8, 8))
    gpu.engine.refuses = "IExecutionContext::enqueueV3: Error Code 3"
    with pytest.raises(
        InferenceError, match=r"model\.plan failed while it ran \(IExecutionContext.*Code 3\)"
    ):
        slot.start()
    with pytest.raises(InferenceError, match="was not given"):
        slot.finish()
    gpu.engine.refuses = "Error Code 2: OutOfMemory (Requested size was 98304 bytes.)"
    with pytest.raises(OutOfMemoryError):
        slot.start()
    assert gpu.driver.used() == 0
    with pytest.raises(OutOfMemoryError, match="got no execution context"):
        slot.prepare((1, 8, 8))
    gpu.engine.refuses = ""
    slot.prepare((1, 8, 8))
    gpu.engine.refuses = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
    gpu.driver.fail("cuStreamSynchronize", "CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
        slot.start()
    gpu.engine.refuses = ""
    slot.prepare((1, 8, 8))
    slot.start()
    slot.finish()
