"""A plan as a session, on a driver and an engine that are simulated: see helpers_cuda for what that shows."""

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from esrgan_deploy import EngineMismatchError, InferenceError

FRAME = {"cuGraphLaunch": 1, "cuStreamSynchronize": 1}
COPIES = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")


def enlarged(picture: np.ndarray, form: str = "uint8") -> np.ndarray:
    """What the simulated engine makes of a batch."""
    first = 1 if form == "uint8" else 2
    return picture.repeat(2, first).repeat(2, first + 1)


def through(slot: Any, picture: np.ndarray) -> np.ndarray:
    """Send a uint8 batch through a slot."""
    slot.prepare(picture.shape[:3])[...] = picture
    slot.start()
    return slot.finish().batch.copy()


def test_what_is_known_of_a_plan(rig):
    """The tiling cuts by these figures; the range is the profile's; of mixed cards a number names two."""
    card = "cuda:0 (Simulated GPU, 0000:1B:00.0)"
    info = rig(health=True).open().info
    assert (info.form, info.dtype, info.scale, info.in_channels, info.out_channels) == (
        "uint8",
        np.uint8,
        2,
        3,
        3,
    )
    assert (info.min_shape, info.max_shape) == ((1, 1, 1), (4, 64, 64))
    assert (info.device, info.watched, info.provider) == (0, True, f"tensorrt 11.4.0, {card}")
    assert info.slots == 3, "upload, computing and download of three batches overlap"
    info = rig(form="float", rtx=True).open().info
    assert (info.form, info.dtype, info.watched, info.provider) == (
        "float",
        np.float16,
        False,
        f"tensorrt_rtx 1.7.1, {card}",
    )


@pytest.mark.parametrize("rtx", [False, True])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_pictures_come_through(rig, noise, rtx, cuda_graph):
    """Enqueued, captured and launched: a wrong address, size or order is a wrong picture."""
    gpu = rig(rtx=rtx, health=True)
    with_plan = gpu.open(cuda_graph=cuda_graph)
    slot = with_plan.slot()
    for seed, sides in enumerate(
        [(1, 8, 8), (1, 8, 8), (1, 8, 8), (2, 5, 7), (2, 5, 7), (1, 8, 8), (4, 64, 64)]
    ):
        picture = noise(*sides, 3, seed=seed)
        slot.prepare(sides)[...] = picture
        slot.start()
        made = slot.finish()
        np.testing.assert_array_equal(made.batch, enlarged(picture))
        assert made.health is not None
        np.testing.assert_allclose(
            made.health, picture.reshape(len(picture), -1).mean(1)[:, None] + [[0, 0, 0]]
        )
        assert not made.batch.flags.writeable


def test_the_float_form_comes_through(rig, noise):
    """Planes and half precision: every size is another one."""
    with_plan = rig(form="float").open()
    for _ in range(3):
        picture = noise(2, 3, 9, 6, dtype=np.float32).astype(np.float16)
        np.testing.assert_array_equal(with_plan.run(picture), enlarged(picture, "float"))


def test_a_frame_is_one_launch(rig, noise):
    """Three calls a frame instead of one are what the graph is there to save."""
    gpu = rig(health=True)
    slot = gpu.open().slot()
    for _ in range(2):
        through(slot, noise(1, 8, 8, 3))
    for _ in range(5):
        with gpu.driver.counted() as calls:
            through(slot, noise(1, 8, 8, 3))
        assert {name: count for name, count in calls.items() if not name.startswith("cuCtx")} == FRAME
    assert gpu.engine.executions == 2


def test_tensorrt_for_rtx_captures_by_itself(rig, noise):
    """Captured from outside, it would freeze the kernels of the moment; its own strategy is asked for instead."""
    gpu = rig(rtx=True)
    slot = gpu.open().slot()
    for _ in range(4):
        through(slot, noise(1, 8, 8, 3))
    assert "cuStreamBeginCapture" not in gpu.driver.calls
    (config,) = set(gpu.engine.configs)
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    slot = gpu.open(cuda_graph=False).slot()
    through(slot, noise(1, 8, 8, 3))
    assert gpu.engine.configs[-1].cuda_graph_strategy.name == "DISABLED"


def test_one_context_serves_all_shapes_where_nothing_is_captured(rig, noise):
    """On RTX a context compiles its kernels, for seconds: a shape more must not make one more."""
    gpu = rig(rtx=True)
    slot = gpu.open().slot()
    for side in (8, 9, 10, 8, 9, 10):
        picture = noise(1, side, side, 3)
        np.testing.assert_array_equal(through(slot, picture), enlarged(picture))
    assert len(gpu.engine.configs) == 1


def test_the_buffers_serve_again(rig, noise):
    """An allocation per frame waits for the device and fragments its memory."""
    gpu = rig()
    slot = gpu.open().slot()
    first = slot.prepare((2, 16, 16))
    assert slot.prepare((2, 16, 16)) is first
    assert first.flags.c_contiguous
    through(slot, noise(2, 16, 16, 3))
    taken = gpu.driver.left()
    with gpu.driver.counted() as calls:
        for sides in ((1, 8, 8), (2, 16, 16), (2, 15, 3), (1, 16, 16)):
            for _ in range(3):
                through(slot, noise(*sides, 3))
    assert not {name for name in calls if "Alloc" in name or "Free" in name}
    assert gpu.driver.left() == {**taken, "exec": 4}


def test_scratch_follows_the_tile_in_use(rig):
    """Sized for the profile's largest shape, a plan for 4K would fill the card while it works on small tiles."""
    gpu = rig(most=(4, 4096, 4096))
    gpu.open().slot().prepare((1, 16, 16))
    assert gpu.driver.used() < 16 * 16 * 3 * (8 + 1 + 4) + 3 * 256


def test_a_larger_shape_in_mid_stream_drops_what_holds_old_addresses(rig, noise):
    """A graph on freed memory computes rubbish, or ends the process."""
    gpu = rig(health=True)
    slot = gpu.open().slot()
    for side in (8, 16, 8, 32, 16, 8):
        for _ in range(3):
            picture = noise(1, side, side, 3, seed=side)
            np.testing.assert_array_equal(through(slot, picture), enlarged(picture))
    # One graph for each of three shapes, of those that were captured after the last growth.
    assert gpu.driver.left()["exec"] == 3


def test_no_more_than_four_shapes_are_kept(rig, noise):
    """Each keeps a context and a graph: a stream of pictures of all sizes would fill the card."""
    gpu = rig()
    slot = gpu.open().slot()
    slot.prepare((1, 64, 64))
    for side in range(1, 30):
        for _ in range(2):
            through(slot, noise(1, side, side, 3))
    gc.collect()
    assert gpu.driver.left()["exec"] == 4
    assert len(gpu.engine.contexts) == 4
    with gpu.driver.counted() as calls:
        for side in (26, 29, 27, 28, 26):
            through(slot, noise(1, side, side, 3))
    assert calls["cuGraphLaunch"] == 5
    assert "cuStreamBeginCapture" not in calls


def test_a_capture_that_fails_is_said_once_and_does_without(rig, noise):
    """Some nets allocate while they run; their pictures still come, a little later."""
    gpu = rig()
    gpu.engine.uncapturable = True
    with_plan = gpu.open()
    slots = [with_plan.slot(), with_plan.slot()]
    # Enqueued, and twice more: the first captures that break may have been broken by another thread.
    for _ in range(3):
        through(slots[0], noise(1, 8, 8, 3))
    with pytest.warns(
        RuntimeWarning, match=r"model\.plan cannot be captured as a CUDA graph \(cuStreamEndCapture"
    ):
        through(slots[0], noise(1, 8, 8, 3))
    for slot in slots:
        for _ in range(3):
            picture = noise(1, 8, 8, 3)
            np.testing.assert_array_equal(through(slot, picture), enlarged(picture))
    assert "cuGraphLaunch" not in gpu.driver.calls
    with_plan.close()


def test_work_that_is_refused_under_capture_is_enqueued_without(rig, noise):
    """The stream has to be out of its capture by then, or the next batches are recorded and never run."""
    gpu = rig()
    gpu.engine.refuses_capture = True
    with_plan = gpu.open()
    slot = with_plan.slot()
    for _ in range(3):
        through(slot, noise(1, 8, 8, 3))
    picture = noise(1, 8, 8, 3, seed=4)
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        np.testing.assert_array_equal(through(slot, picture), enlarged(picture))
    slot.close()
    with_plan.close()
    assert gpu.driver.left() == {}


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_each_step_of_a_capture_may_fail(rig, noise, call):
    """A stream that stays in its capture never runs anything again."""
    gpu = rig()
    with_plan = gpu.open()
    slot = with_plan.slot()
    through(slot, noise(1, 8, 8, 3))
    gpu.driver.fail(call, "CUDA_ERROR_NOT_SUPPORTED")
    with pytest.warns(RuntimeWarning, match=f"{call} failed with CUDA_ERROR_NOT_SUPPORTED"):
        through(slot, noise(1, 8, 8, 3))
    picture = noise(1, 8, 8, 3, seed=4)
    np.testing.assert_array_equal(through(slot, picture), enlarged(picture))
    slot.close()
    with_plan.close()
    gc.collect()
    assert gpu.driver.left() == {}


def test_a_thousand_batches_allocate_nothing(rig, noise):
    """A pipeline runs for weeks."""
    gpu = rig(health=True)
    slot = gpu.open().slot()
    batches = [noise(1, 8, 8, 3, seed=1), noise(2, 16, 16, 3, seed=2)]
    for batch in batches * 3:
        through(slot, batch)
    taken, blocks = gpu.driver.left(), set(gpu.driver.blocks)
    with gpu.driver.counted() as calls:
        for number in range(1000):
            through(slot, batches[number % 2])
    assert gpu.driver.left() == taken
    assert set(gpu.driver.blocks) == blocks
    assert set(calls) == {"cuGraphLaunch", "cuStreamSynchronize", "cuCtxGetCurrent", "cuCtxSetCurrent"}
    assert calls["cuGraphLaunch"] == 1000


@pytest.mark.parametrize("rtx", [False, True])
def test_everything_is_released(rig, noise, rtx):
    """A service opens and closes models for weeks."""
    gpu = rig(rtx=rtx, health=True)
    with_plan = gpu.open()
    slots = [with_plan.slot(), with_plan.slot()]
    for slot in slots:
        for _ in range(3):
            through(slot, noise(1, 8, 8, 3))
    with_plan.run(noise(1, 8, 8, 3))
    slots[0].prepare((1, 4, 4))
    slots[0].start()
    for closing in (*slots, with_plan, *slots, with_plan):
        closing.close()
    gc.collect()
    assert gpu.driver.left() == {}
    assert not len(gpu.engine.contexts)
    for used in (lambda: slots[0].prepare((1, 8, 8)), slots[0].start, with_plan.slot):
        with pytest.raises(InferenceError, match=r"closed"):
            used()
    with pytest.raises(InferenceError, match="closed"):
        with_plan.run(noise(1, 8, 8, 3))


def test_a_result_outlives_its_session(rig, noise):
    """`out = session.run(x)`, and the session is gone: the memory behind it must not be."""
    gpu = rig()
    with_plan, picture = gpu.open(), noise(1, 8, 8, 3)
    out = with_plan.run(picture)
    with_plan.close()
    np.testing.assert_array_equal(out, enlarged(picture))
    assert gpu.driver.left() == {"pinned": 1, "primary": 1}
    del out
    assert gpu.driver.left() == {}


def test_the_order_of_calls_is_kept(rig):
    """A batch that was never started would be an old picture."""
    slot = rig().open().slot()
    for wrong in (slot.start, slot.finish):
        with pytest.raises(InferenceError, match=r"before it was prepared|was not given"):
            wrong()
    slot.prepare((1, 8, 8))
    with pytest.raises(InferenceError, match="was not given"):
        slot.finish()
    slot.start()
    with pytest.raises(InferenceError, match="again before it was finished"):
        slot.start()
    slot.finish()
    with pytest.raises(InferenceError, match="was not given"):
        slot.finish()


def test_a_batch_that_nobody_asked_for_is_waited_for(rig, noise):
    """Else the next one is filled in while the last is still uploaded."""
    gpu = rig()
    slot = gpu.open().slot()
    slot.prepare((1, 8, 8))[...] = 7
    slot.start()
    with gpu.driver.counted() as calls:
        slot.prepare((1, 8, 8))
    assert calls["cuStreamSynchronize"] == 1
    picture = noise(1, 8, 8, 3)
    np.testing.assert_array_equal(through(slot, picture), enlarged(picture))


@pytest.mark.parametrize("shape", [(5, 8, 8), (1, 65, 8), (1, 8, 65), (0, 8, 8)])
def test_a_shape_out_of_range_is_refused(rig, noise, shape):
    """And the slot is as good as before."""
    slot = rig().open().slot()
    picture = noise(1, 8, 8, 3)
    through(slot, picture)
    with pytest.raises(InferenceError, match="takes"):
        slot.prepare(shape)
    np.testing.assert_array_equal(through(slot, picture), enlarged(picture))


@pytest.mark.parametrize("batch", [np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 3, 8, 8), np.uint8)])
def test_a_batch_of_another_kind_is_refused(rig, batch):
    """Copied into the buffer all the same it would be a picture of noise."""
    with pytest.raises(InferenceError, match=r"takes \(N, H, W, C\) uint8 with C = 3"):
        rig().open().run(batch)


def test_threads_share_a_session(rig, noise):
    """Every worker comes with no context of its own, and leaves with none."""
    gpu = rig()
    with_plan = gpu.open()

    def work(number: int) -> None:
        slot = with_plan.slot()
        for turn in range(8):
            picture = noise(1, 8 + turn % 3, 8, 3, seed=number * 100 + turn)
            np.testing.assert_array_equal(through(slot, picture), enlarged(picture))
            assert not gpu.driver.current
        slot.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    with_plan.close()
    gc.collect()
    assert gpu.driver.left() == {}


def test_a_plan_that_does_not_load_names_both_sides(rig):
    """TensorRT returns nothing, and logs why."""
    gpu = rig(content=b"of another version")
    with pytest.raises(
        EngineMismatchError, match=r"unknown version.*tensorrt 11\.4\.0.*the plan is of another"
    ):
        gpu.open()
    assert gpu.driver.left() == {}


def test_a_plan_that_is_no_enlarger_is_refused(rig):
    """Its output would be cut up as if it were a picture."""
    gpu = rig()
    gpu.engine.names.append("third")
    with pytest.raises(InferenceError, match="makes output, third; one in, one out"):
        gpu.open()
    gpu = rig()
    gpu.engine.formats["input"] = __import__("tensorrt_rtx").TensorFormat.HWC8
    with pytest.raises(InferenceError, match="input in the format HWC8; only LINEAR"):
        gpu.open()
    assert gpu.driver.left() == {}
