"""A plan on arrays and streams of others, on the simulated driver: see helpers_cuda for what that shows."""

import gc
from typing import Any

import numpy as np
import pytest

from esrgan_deploy import DeviceLostError, InferenceError, OutOfMemoryError
from esrgan_deploy.runtime.device import DeviceArray
from esrgan_deploy.runtime.device._dlpack import _held, dlpack_capsule

WAITS = {
    "cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize", "cuMemFree", "cuMemAlloc",
    "cuMemHostAlloc",
}  # fmt: skip


def seen(gpu: Any, array: Any) -> np.ndarray:
    """What lies behind an array of the session's."""
    interface = array.__cuda_array_interface__
    size = int(np.prod(interface["shape"])) * np.dtype(interface["typestr"]).itemsize
    memory = gpu.driver.array(interface["data"][0], size)
    return np.frombuffer(memory, interface["typestr"]).reshape(interface["shape"])


def enlarged(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(2, 1).repeat(2, 2)


@pytest.mark.parametrize("rtx", [False, True])
def test_nothing_waits_for_the_host(rig, noise, rtx):
    """The caller's pipeline would stall for every batch; and until his stream gets there nothing is computed."""
    gpu = rig(rtx=rtx, health=True)
    with_plan = gpu.open()
    stream, array = gpu.stream(with_plan), gpu.array((2, 8, 8, 3))
    for turn in range(3):
        array.seen[...] = noise(2, 8, 8, 3, seed=turn)
        with gpu.driver.counted() as calls:
            made = with_plan.run_on_device(array, stream=stream)
        assert not WAITS & {*calls}
        assert not any(name.startswith("cuMemcpy") for name in calls)
        assert isinstance(made, DeviceArray)
        assert (made.shape, made.dtype, made.device, made.nbytes) == ((2, 16, 16, 3), np.uint8, 0, 1536)
        assert (seen(gpu, made) == 0xA5).all()
        gpu.driver.streams[stream].drain()
        np.testing.assert_array_equal(seen(gpu, made), enlarged(array.seen))
    assert not gpu.driver.current
    if rtx:
        # A graph of RTX's own would be captured anew for every address.
        assert gpu.engine.configs[-1].cuda_graph_strategy.name == "DISABLED"


def test_out_is_written_and_returned(rig, noise):
    """A pipeline has its own ring of frames."""
    gpu = rig()
    with_plan = gpu.open()
    stream, array, out = gpu.stream(with_plan), gpu.array((1, 8, 8, 3)), gpu.array((1, 16, 16, 3))
    array.seen[...] = noise(1, 8, 8, 3)
    assert with_plan.run_on_device(array, stream=stream, out=out) is out
    gpu.driver.streams[stream].drain()
    np.testing.assert_array_equal(out.seen, enlarged(array.seen))
    with gpu.driver.counted() as calls:
        with_plan.run_on_device(array, stream=stream, out=out)
    assert not any("Alloc" in name for name in calls)


def test_without_a_stream_the_result_is_there(rig, noise):
    """Whatever fills the batch, on a stream that nobody named, is waited for first, and the result then."""
    gpu = rig()
    with_plan = gpu.open()
    array, picture = gpu.array((1, 8, 8, 3)), noise(1, 8, 8, 3)

    def fill() -> None:
        array.seen[...] = picture

    gpu.driver.streams[gpu.stream(with_plan)].push(fill)
    made = with_plan.run_on_device(array)
    np.testing.assert_array_equal(seen(gpu, made), enlarged(picture))


def test_a_stream_that_fills_the_batch_is_waited_for_on_the_device(rig, noise):
    """Version 3 of the interface names it, and leaves the waiting to whoever takes the array."""
    gpu = rig()
    with_plan = gpu.open()
    stream, filling, array = gpu.stream(with_plan), gpu.stream(with_plan), gpu.array((1, 8, 8, 3))
    array.stream, picture = filling, noise(1, 8, 8, 3)

    def fill() -> None:
        array.seen[...] = picture

    gpu.driver.streams[filling].push(fill)
    made = with_plan.run_on_device(array, stream=stream)
    gpu.driver.streams[stream].drain()
    np.testing.assert_array_equal(seen(gpu, made), enlarged(picture))


def test_whatever_does_not_fit_is_refused_before_anything_is_enqueued(rig):
    """Half a batch on the caller's stream would be worse than none."""
    gpu = rig(driver={"devices": 2})
    with_plan = gpu.open()
    stream = gpu.stream(with_plan)
    good, out = gpu.array((1, 8, 8, 3)), gpu.array((1, 16, 16, 3))
    elsewhere = gpu.driver.make_stream(gpu.driver.make_context())
    gpu.driver._current.context = 0
    capturing = gpu.stream(with_plan)
    gpu.driver.streams[capturing].captured = []
    slanted = gpu.array((1, 8, 8, 3))
    gpu.driver.blocks[slanted.pointer + 16] = gpu.driver.blocks[slanted.pointer]
    slanted.pointer += 16
    cases = (
        (
            (gpu.array((1, 8, 8, 3), device=1), stream, None),
            r"lies on cuda:1 and model\.plan computes on cuda:0",
        ),
        ((gpu.array((1, 8, 8, 3), dtype=np.float16), stream, None), "float16"),
        ((gpu.array((1, 3, 8, 8)), stream, None), "channels"),
        ((gpu.array((1, 65, 8, 3)), stream, None), "rows"),
        ((slanted, stream, None), "multiples of 256"),
        ((good, stream, gpu.array((1, 8, 8, 3))), "out has the shape"),
        ((good, stream, gpu.array((1, 16, 16, 3), device=1)), "out lies on cuda:1"),
        ((good, stream, np.zeros((1, 16, 16, 3), np.uint8)), "out lies on the processor"),
        ((good, elsewhere, None), "belongs to another CUDA context"),
        ((good, capturing, None), "is being captured"),
        ((good, 0, None), "legacy default"),
        ((good, "stream", None), "is no stream"),
        (([1, 2], stream, None), "no array that can be borrowed"),
    )
    for (array, where, to), says in cases:
        with gpu.driver.counted() as calls, pytest.raises(InferenceError, match=says) as caught:
            with_plan.run_on_device(array, stream=where, out=to)
        assert "\n" not in str(caught.value)
        assert {*calls} <= {"cuCtxGetCurrent", "cuCtxSetCurrent", "cuStreamIsCapturing", "cuStreamGetCtx"}
    # Making a context would break it.
    gpu.driver.streams[capturing].captured = None
    with_plan.run_on_device(good, stream=stream, out=out)
    assert gpu.engine.executions == 1


def test_each_stream_has_a_context_and_memory_of_its_own(rig, noise):
    """Two batches on two streams run at once; on one scratch memory they would overwrite each other."""
    gpu = rig()
    with_plan = gpu.open()
    streams = [gpu.stream(with_plan) for _ in range(3)]
    arrays = [gpu.array((1, 8, 8 + number, 3)) for number in range(3)]
    made = []
    for number, array in enumerate(arrays):
        array.seen[...] = noise(*array.shape, seed=number)
        made.append(with_plan.run_on_device(array, stream=streams[number]))
    for number in (2, 0, 1):
        gpu.driver.streams[streams[number]].drain()
        np.testing.assert_array_equal(seen(gpu, made[number]), enlarged(arrays[number].seen))
    assert (
        len({context.memory for context in gpu.engine.contexts if context.shape and context.memory[0]}) == 3
    )


def test_a_growing_batch_keeps_what_runs(rig, noise):
    """The memory of the small one is freed in the stream's order, after it was used."""
    gpu = rig(health=True)
    with_plan = gpu.open()
    stream, made, arrays = gpu.stream(with_plan), [], []
    for side in (8, 16, 64, 8):
        arrays.append(gpu.array((1, side, side, 3)))
        arrays[-1].seen[...] = noise(1, side, side, 3)
        made.append(with_plan.run_on_device(arrays[-1], stream=stream))
    gpu.driver.streams[stream].drain()
    for array, large in zip(arrays, made, strict=True):
        np.testing.assert_array_equal(seen(gpu, large), enlarged(array.seen))


def test_a_stream_that_got_the_handle_of_another_waits_for_it(rig, noise):
    """A destroyed stream still runs to its end, in the memory that the new one is given."""
    gpu = rig()
    with_plan, array = gpu.open(), gpu.array((1, 8, 8, 3))
    stream = gpu.stream(with_plan)
    array.seen[...] = noise(1, 8, 8, 3)
    first = with_plan.run_on_device(array, stream=stream)
    gpu.driver.streams[stream] = type(gpu.driver.streams[stream])(with_plan._device.context)
    with_plan.run_on_device(array, stream=stream)
    gpu.driver.streams[stream].drain()
    np.testing.assert_array_equal(seen(gpu, first), enlarged(array.seen))


def test_streams_come_and_go(rig):
    """A server that makes a stream per request would else fill the card with their memory."""
    gpu = rig()
    with_plan, array, out = gpu.open(), gpu.array((1, 8, 8, 3)), gpu.array((1, 16, 16, 3))
    for _ in range(40):
        stream = gpu.stream(with_plan)
        with_plan.run_on_device(array, stream=stream, out=out)
        gpu.driver.streams[stream].drain()
        del gpu.driver.streams[stream]
    assert gpu.driver.left() == {"device": 8, "event": 8, "primary": 1}
    with_plan.close()
    gc.collect()
    assert gpu.driver.left() == {}
    with pytest.raises(InferenceError, match="closed"):
        with_plan.run_on_device(array, stream=1)


def test_a_result_is_freed_on_its_stream_and_outlives_the_session(rig):
    """Freed at once it would be taken from a stream that still fills it; with the session, from its user."""
    gpu = rig()
    with_plan = gpu.open()
    stream, array = gpu.stream(with_plan), gpu.array((1, 8, 8, 3))
    array.seen[...] = 9
    made = [with_plan.run_on_device(array, stream=stream), with_plan.run_on_device(array)]
    with_plan.close()
    gpu.driver.streams[stream].drain()
    assert all((seen(gpu, one) == 9).all() for one in made)
    gc.collect()
    assert gpu.driver.left() == {"device": 2, "primary": 1, "stream": 1}
    with gpu.driver.counted() as calls:
        made.clear()
    assert calls["cuMemFreeAsync"] == 2
    assert gpu.driver.left() == {}


def test_a_stream_of_another_library_is_kept_until_the_memory_is_freed(rig):
    """Freed on a stream that is destroyed, the call would go to whoever has its address then."""
    gpu = rig()
    with_plan = gpu.open()

    class Theirs:
        cuda_stream = gpu.stream(with_plan)

        def __del__(self) -> None:
            gone.append(gpu.driver.calls.count("cuMemFreeAsync"))

    gone: list[int] = []
    made = with_plan.run_on_device(gpu.array((1, 8, 8, 3)), stream=Theirs())
    assert not gone
    del made
    assert gone == [1]


def test_a_session_that_is_dropped_frees_nothing_on_a_stream_that_is_gone(rig):
    """What a stream's batches work in is kept for its next one, and its owner destroyed it meanwhile."""
    gpu = rig(health=True)
    with_plan, array, out = gpu.open(), gpu.array((1, 8, 8, 3)), gpu.array((1, 16, 16, 3))
    stream = gpu.stream(with_plan)
    with_plan.run_on_device(array, stream=stream, out=out)
    gpu.driver.streams.pop(stream).drain()
    del with_plan
    gc.collect()
    assert gpu.driver.left() == {"primary": 1}


def test_what_a_failed_batch_still_does_is_waited_for(rig):
    """Its last kernel was refused, the others are on their way: their scratch memory would be another's by then."""
    gpu = rig()
    with_plan, array, out = gpu.open(), gpu.array((1, 8, 8, 3)), gpu.array((1, 16, 16, 3))
    stream = gpu.stream(with_plan)
    gpu.engine.stumbles = True
    with pytest.raises(InferenceError):
        with_plan.run_on_device(array, stream=stream, out=out)
    with_plan.close()
    gpu.driver.streams[stream].drain()


def test_failures_on_the_way_leave_nothing(rig):
    """The caller gets the reason, and no memory is lost."""
    gpu = rig(driver={"memory": 1 << 16})
    with_plan = gpu.open()
    stream, array = gpu.stream(with_plan), gpu.array((1, 8, 8, 3))
    with pytest.raises(OutOfMemoryError):
        with_plan.run_on_device(gpu.array((1, 64, 64, 3)), stream=stream)
    gpu.engine.refuses = "Error Code 3"
    with pytest.raises(InferenceError, match=r"got no execution context"):
        with_plan.run_on_device(array, stream=gpu.stream(with_plan))
    with pytest.raises(InferenceError, match=r"failed while it ran \(Error Code 3\)"):
        with_plan.run_on_device(array, stream=stream)
    gpu.driver.fail("cuStreamQuery", "CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(DeviceLostError, match="cuStreamQuery failed with CUDA_ERROR_ILLEGAL_ADDRESS"):
        with_plan.run_on_device(array, stream=stream)
    gpu.engine.refuses = ""
    with_plan.run_on_device(array, stream=stream)
    with_plan.close()
    gc.collect()
    gpu.driver.streams[stream].drain()
    assert {kind: count for kind, count in gpu.driver.left().items() if kind != "foreign"} == {}


def test_dlpack_orders_the_consumers_stream(rig):
    """PyTorch reads on its own stream what was filled on another."""
    gpu = rig()
    with_plan = gpu.open()
    stream, consumer, array = gpu.stream(with_plan), gpu.stream(with_plan), gpu.array((1, 8, 8, 3))
    array.seen[...] = 5
    made = with_plan.run_on_device(array, stream=stream)
    assert made.__dlpack_device__() == (2, 0)
    with gpu.driver.counted() as calls:
        made.__dlpack__(stream=stream)
        made.__dlpack__(stream=-1)
    assert not calls
    capsule = made.__dlpack__(stream=consumer, max_version=(1, 0), dl_device=(2, 0), copy=None)
    gpu.driver.streams[consumer].drain()
    assert (seen(gpu, made) == 5).all()
    del made
    assert "cuMemFreeAsync" not in gpu.driver.calls
    del capsule
    assert "cuMemFreeAsync" in gpu.driver.calls
    made = with_plan.run_on_device(array, stream=stream)
    for wrong in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match="stays on cuda:0"):
            made.__dlpack__(stream=stream, **wrong)
    with pytest.raises(ValueError, match="stream is 0"):
        made.__dlpack__(stream=0)


class OnHost:
    """Memory of the processor behind our capsule: real consumers read it here, without a GPU."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **_: Any) -> object:
        return dlpack_capsule(
            self.array.ctypes.data, self.array.shape, self.array.dtype.name, device=(1, 0), owner=self
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_the_capsule_is_read_by_real_consumers(dtype):
    """A wrong field of its structure is a wrong picture, or the end of the process."""
    torch = pytest.importorskip("torch")
    array = np.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4).astype(dtype)
    held = len(_held)
    for consumer in (np.from_dlpack, torch.from_dlpack):
        taken = consumer(OnHost(array))
        np.testing.assert_array_equal(np.asarray(taken), array)
        assert len(_held) == held + 1
        del taken
        assert len(_held) == held
    # Of one that nobody consumed, too.
    capsule = OnHost(array).__dlpack__()
    assert len(_held) == held + 1
    del capsule
    assert len(_held) == held


def test_the_capsule_keeps_the_memory():
    """A tensor that outlives the array it was made of."""
    torch = pytest.importorskip("torch")
    tensor = torch.from_dlpack(OnHost(np.full((64, 64), 7, np.uint8)))
    gc.collect()
    assert int(tensor.sum()) == 7 * 64 * 64
    tensor[0, 0] = 8
    assert int(tensor[0, 0]) == 8
