"""A picture through trunk and tail of a plan, on the simulated driver: see helpers_cuda for what that shows."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx as trt

from esrgan_deploy import DeviceLostError, InferenceError, OutOfMemoryError, Upscaler
from esrgan_deploy.runtime.sessions import judge
from esrgan_deploy.runtime.sessions.plan import _parts
from esrgan_deploy.runtime.sessions.plan._fit import Refusal


def expected(gpu: Any, batch: np.ndarray, step: int = 1) -> np.ndarray:
    """What trunk and tail make of a picture in one piece each."""
    form = gpu.engine.form
    planes = batch.transpose(0, 3, 1, 2) if form == "uint8" else batch
    features = np.ones((1, 4, planes.shape[2] // step, planes.shape[3] // step), np.float16)
    features[:, :3] = planes[:, :, ::step, ::step]
    return gpu.tail_of(features, gpu.tail.scale, form)


def through(slot: Any, batch: np.ndarray, form: str = "uint8") -> Any:
    sides = batch.shape[1:3] if form == "uint8" else batch.shape[2:]
    slot.prepare((1, *sides))[...] = batch
    slot.start()
    return slot.finish()


@pytest.mark.parametrize("rtx", [False, True])
@pytest.mark.parametrize("form", ["uint8", "float"])
@pytest.mark.parametrize(("step", "map_dtype"), [(1, trt.float16), (2, trt.bfloat16)])
def test_no_seam_shows(rig, noise, rtx, form, step, map_dtype):
    """Enqueued, captured and launched: a tile that is off by a row, or lacks its reach, is another picture."""
    gpu = rig(rtx=rtx, form=form, health=True, most=(4, 8, 8), parts={"step": step, "map_dtype": map_dtype})
    slot = gpu.open().slot()
    shapes = [(12, 12), (14, 8), (26, 30), (60, 10), (26, 30), (26, 30), (26, 30), (46, 34), (26, 30)]
    for seed, sides in enumerate(shapes):
        shape = (1, *sides, 3) if form == "uint8" else (1, 3, *sides)
        batch = noise(*shape, seed=seed)
        made = through(slot, batch.astype(np.uint8 if form == "uint8" else np.float16), form)
        np.testing.assert_array_equal(made.batch, expected(gpu, batch, step))
        assert not made.batch.flags.writeable
    assert gpu.engine.executions == 0
    assert ("cuGraphLaunch" in gpu.driver.calls) is not rtx


def test_every_length_is_covered(rig, noise):
    """Tiles that are alike do not divide every length: what two of them share is cut anywhere within both."""
    gpu = rig(most=(4, 8, 8), parts={})
    plan = gpu.open()
    for length in range(9, 45):
        for shape in ((1, length, 8, 3), (1, 8, length, 3)):
            batch = noise(*shape, seed=length)
            np.testing.assert_array_equal(plan.run(batch), expected(gpu, batch))


def test_a_frame_is_one_launch(rig, noise):
    """However many tiles it has; the map never leaves the device, and no buffer is made for it again."""
    gpu = rig(health=True, parts={})
    slot = gpu.open().slot()
    for _ in range(2):
        through(slot, noise(1, 100, 90, 3))
    with gpu.driver.counted() as calls:
        through(slot, noise(1, 100, 90, 3))
    assert {name: count for name, count in calls.items() if not name.startswith("cuCtx")} == {
        "cuGraphLaunch": 1,
        "cuStreamSynchronize": 1,
    }


def test_small_pictures_and_batches_go_whole(rig, noise):
    """The parts are for what is too large; the sessions' own range is that of the plan."""
    gpu = rig(parts={})
    plan = gpu.open()
    assert (plan.info.max_shape, plan.info.most_in_parts) == ((4, 64, 64), (1, 200, 120))
    slot = plan.slot()
    for sides in ((1, 64, 64), (4, 8, 8), (1, 1, 1)):
        slot.prepare(sides)[...] = 7
        slot.start()
        assert (slot.finish().batch == 7).all()
    assert (gpu.engine.executions, gpu.trunk.executions) == (3, 0)
    through(slot, noise(1, 65, 8, 3))
    assert (gpu.engine.executions, gpu.trunk.executions) == (3, 1)
    for sides in ((1, 201, 8), (2, 65, 64), (1, 65, 121), (1, 200, 7)):
        with pytest.raises(InferenceError, match="the batch has"):
            slot.prepare(sides)


def test_what_no_part_takes_is_refused(rig):
    """A side that a folded picture has not, and a session that was closed meanwhile."""
    gpu = rig(parts={"step": 2})
    plan = gpu.open()
    slot = plan.slot()
    with pytest.raises(InferenceError, match="the batch has 67 rows"):
        slot.prepare((1, 67, 66))
    plan.close()
    with pytest.raises(InferenceError, match="is closed"):
        slot.prepare((1, 68, 66))
    slot.close()
    assert gpu.driver.left() == {}


def test_what_the_plan_takes_and_memory_does_not_goes_in_parts(rig, noise):
    """The whole graph holds ten times as much; its batch need not fail for that."""
    gpu = rig(parts={}, driver={"memory": 1 << 18})
    slot = gpu.open().slot()
    gpu.engine.wants = 0
    gpu.engine.get_device_memory_size_for_profile_v2 = lambda profile: 1 << 19
    gpu.engine.sizeless = True
    batch = noise(1, 60, 60, 3)
    np.testing.assert_array_equal(through(slot, batch).batch, expected(gpu, batch))
    assert gpu.engine.executions == 0


def test_a_picture_of_many_pixels_prefers_the_parts(rig):
    """A plan for large sizes takes it, and would hold ten times the memory."""
    gpu = rig(most=(1, 1024, 1024), parts={"most": (1024, 1024), "tile": 512})
    slot = gpu.open().slot()
    for sides, whole in (((512, 512), True), ((512, 513), False)):
        slot.prepare((1, *sides))
        assert bool(len(gpu.trunk.contexts)) is not whole


@pytest.mark.parametrize("status", ["CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_LAUNCH_FAILED"])
def test_failures_are_what_the_queue_answers(rig, noise, status):
    """Lower plans, fewer slots or another device: it must be told which, and what was held must be free."""
    kind = {"CUDA_ERROR_OUT_OF_MEMORY": OutOfMemoryError, "CUDA_ERROR_LAUNCH_FAILED": DeviceLostError}[status]
    gpu = rig(parts={})
    plan = gpu.open()
    for call in ("cuMemAlloc", "cuMemHostAlloc", "cuMemcpy3DAsync"):
        slot = plan.slot()
        gpu.driver.fail(call, status, after=2 if call != "cuMemHostAlloc" else 1)
        with pytest.raises(kind):
            through(slot, noise(1, 70, 70, 3))
        assert not {"device", "pinned"} & set(gpu.driver.left()) or kind is DeviceLostError
        slot.close()
    batch = noise(1, 70, 70, 3)
    np.testing.assert_array_equal(plan.run(batch), expected(gpu, batch))
    plan.close()
    assert gpu.driver.left() == {}


@pytest.mark.parametrize("found", ["NaN", "one value", "nothing"])
def test_each_tile_is_watched(rig, noise, found):
    """A black tile is no black picture: it must be found among a hundred, and a black one of the source is none."""
    gpu = rig(health=True, parts={})
    batch = noise(1, 90, 90, 3)
    batch[:, 40:80, 40:80] = 0
    # One that lies in the middle of the black, and one that does not.
    gpu.tail.spoil = lambda made: (0.5, 0.0 if made.max() == 0 else 0.6)
    if found != "nothing":
        last = expected(gpu, batch)[0, -1, -1]
        bad = (np.nan, 0.5) if found == "NaN" else (0.5, 0.0)
        gpu.tail.spoil = lambda made: bad if (made[0, -1, -1] == last).all() else (0.5, 0.6)
    plan = gpu.open()
    made = through(plan.slot(), batch)
    wrong = judge(made, plan.info, 1)
    assert made.health.shape == (1, 3)
    if found == "nothing":
        assert wrong is None
        np.testing.assert_allclose(made.health, [[0.5, 0.6, (batch.max() - batch.min()) / 255]])
    else:
        assert found in wrong


@pytest.mark.parametrize("fault", ["refused", "another graph", "not loaded"])
def test_parts_that_do_not_fit_are_left_out(rig, monkeypatch, fault):
    """The plan works without them; that seams may show then is said."""
    gpu = rig(parts={})
    kept = _parts.check_plan

    def check(path, **how):
        assert how["kind"] == "part"
        if fault == "refused":
            return Refusal(reason="is cut off", mend="Run: this")
        good = kept(path)
        if fault == "not loaded":
            return dataclasses.replace(good, content=b"something else")
        return dataclasses.replace(good, artefact=dataclasses.replace(good.artefact, built_from="other.onnx"))

    monkeypatch.setattr(_parts, "check_plan", check)
    with pytest.warns(RuntimeWarning, match="pictures too large for it go in tiles"):
        plan = gpu.open()
    assert plan.info.most_in_parts is None
    plan.close()
    assert gpu.driver.left() == {}


def test_a_picture_of_any_size_goes_in_one_piece(rig, noise, monkeypatch):
    """As far as the trunk takes it, its repeated edge too; what is larger, or does not fit, goes in tiles."""
    gpu = rig(parts={})
    plan = gpu.open()
    monkeypatch.setattr("esrgan_deploy.runtime.tiling._cutter.device_memory", lambda device: _memory(2**30))
    picture = noise(150, 70, 3)
    with Upscaler(plan, halo=4) as up:
        made = up.upscale(picture)
        padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)), "edge")
        np.testing.assert_array_equal(made, expected(gpu, padded[None])[0, 8:-8, 8:-8])
        assert up.plan(250, 70).count > 1
        assert up.plan(150, 300).count > 1
        assert up.plan(150, 70).count == 1
        # For a tile, and not for a trunk.
        gpu.driver.memory, picture = 300_000, noise(170, 70, 3)
        with pytest.warns(RuntimeWarning, match="memory ran out"):
            np.testing.assert_array_equal(up.upscale(picture), picture.repeat(2, 0).repeat(2, 1))
        assert up.plan(150, 70).count > 1
    gpu.driver.memory = 1 << 30
    with Upscaler(plan, tile=0, edge="zero") as up:
        np.testing.assert_array_equal(up.upscale(picture), expected(gpu, picture[None])[0])
    for how in ({"tile": 32}, {"strip": 0}):
        with Upscaler(plan, halo=4, **how) as up:
            assert up.plan(150, 70).count > 1
    monkeypatch.setattr("esrgan_deploy.runtime.tiling._cutter.device_memory", lambda device: _memory(2**20))
    with pytest.warns(RuntimeWarning, match="memory is short"), Upscaler(plan) as up:
        assert up.plan(150, 70).count > 1


def _memory(free: int) -> Any:
    from esrgan_deploy.runtime.device import MemoryFacts

    return MemoryFacts(free_bytes=free, l2_bytes=None, kind="gpu")
