"""Which tiles are taken: as asked, and where nothing was asked, as measured and as memory allows."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esrgan_deploy import InferenceError, Upscaler
from esrgan_deploy.runtime import SessionInfo
from esrgan_deploy.runtime.device import MemoryFacts
from esrgan_deploy.runtime.tiling import SeamCurve, TileOptions, choose_tiling, cutter_for, store_tiling
from esrgan_deploy.runtime.tiling import _cutter as _cutting
from esrgan_deploy.runtime.tiling._cutter import Cutter

INFO = SessionInfo(
    name="net", form="uint8", dtype=np.dtype(np.uint8), in_channels=3, out_channels=3, scale=Fraction(4),
    provider="a test",
)  # fmt: skip

CURVE = SeamCurve(
    halos=(0, 4, 8, 12, 16), largest=(90.0, 9.0, 0.15, 0.01, 0.0), percentile=(50.0, 5.0, 0.1, 0.0, 0.0),
    tile=128, margin=16, pictures=("drawn",), positions=8,
)  # fmt: skip


@pytest.fixture
def measured(tiny_export: Path, tmp_path: Path) -> Path:
    """An artefact whose seams were measured: half a level is reached at a halo of 8."""
    for name in ("model.onnx", "model.json", "model.fp16.onnx"):
        (tmp_path / name).write_bytes((tiny_export / name).read_bytes())
    memory = MemoryFacts(free_bytes=2**34, l2_bytes=None, kind="processor")
    store_tiling(tmp_path / "model.onnx", CURVE, choose_tiling(INFO, memory=memory, curve=CURVE))
    return tmp_path / "model.onnx"


def test_the_halo_is_the_measured_one(measured):
    """A halo of 16 where 8 does is half as much work again for tiles of 64."""
    assert cutter_for(INFO, measured, tile="auto", halo=None).plan(2000, 2000).halo == 8
    assert cutter_for(INFO, measured, tile=64, halo=None).plan(2000, 2000).halo == 8
    # What was built from the file sees as far as the file does.
    assert (
        cutter_for(INFO, measured.with_name("model.fp16.onnx"), tile=64, halo=None).plan(900, 900).halo == 8
    )
    assert cutter_for(INFO, None, tile=64, halo=None).plan(2000, 2000).halo == 16
    with Upscaler(measured, tile=48, threads=1) as up:
        assert up.plan(400, 400).halo == 8


def test_a_halo_that_was_asked_for_is_taken(measured):
    """Whoever sets it knows why."""
    for tile in ("auto", 64):
        assert cutter_for(INFO, measured, tile=tile, halo=3).plan(2000, 2000).halo == 3
    assert cutter_for(INFO, measured, tile="auto", halo=200).plan(2000, 2000).halo == 200


def test_a_tile_that_leaves_nothing_between_two_halos_is_refused(measured):
    """A halo that shrinks without a word shows seams of a hundred levels."""
    with pytest.raises(ValueError, match="leaves nothing between two halos of 16"):
        cutter_for(INFO, None, tile=32, halo=None)
    # The measured one is 8.
    assert cutter_for(INFO, measured, tile=32, halo=None).plan(100, 100).halo == 8
    with pytest.raises(ValueError, match="leaves nothing between two halos of 8"):
        cutter_for(INFO, measured, tile=16, halo=None)


def test_memory_that_is_short_makes_small_tiles_and_says_so(monkeypatch):
    """256 pixels of a net of 64 features take about two GiB."""
    facts = MemoryFacts(free_bytes=2**29, l2_bytes=None, kind="processor")
    monkeypatch.setattr(_cutting, "processor_memory", lambda: facts)
    with pytest.warns(RuntimeWarning, match="memory is short"):
        plan = cutter_for(INFO, None, tile="auto", halo=None).plan(2000, 2000)
    assert max(plan.tile) < 150


def test_a_batch_is_no_larger_than_the_tiles_that_there_are():
    """Three empty places beside one small picture would cost three times its time."""
    info = dataclasses.replace(INFO, device=0)
    cutter = Cutter(info, TileOptions(tile=64, halo=4), batch=4)
    assert cutter.plan(50, 50).batch == 1
    assert cutter.plan(50, 90).batch == 2
    assert cutter.plan(300, 300).batch == 4
    fixed = Cutter(dataclasses.replace(info, min_shape=(4, 1, 1)), TileOptions(tile=64, halo=4))
    assert fixed.plan(50, 50).batch == 4


@given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    tile=st.one_of(st.just("auto"), st.just(0), st.integers(40, 400)),
    batch=st.integers(1, 6),
    multiple=st.sampled_from([1, 2, 4]),
)
def test_smaller_is_smaller_until_it_is_refused(height, width, tile, batch, multiple):
    """A step that did not shrink would be tried for ever."""
    cutter = Cutter(
        dataclasses.replace(INFO, size_multiple=multiple), TileOptions(tile=tile, halo=8), batch=batch
    )
    plan = cutter.plan(height, width)
    for _ in range(40):
        before = plan.batch * plan.tile[0] * plan.tile[1]
        try:
            plan, said = cutter.smaller(plan)
        except InferenceError:
            break
        assert plan.batch * plan.tile[0] * plan.tile[1] < before
        assert "memory ran out" in said
        assert plan.batch <= batch
        # And what did not fit is not asked for again.
        again = cutter.plan(height, width)
        assert again == plan
    else:
        pytest.fail("it never ends")


def test_memory_of_a_device_without_bindings_is_a_guess(monkeypatch):
    """PyTorch computes on a GPU where cuda-bindings are not installed; that is no reason to fail."""

    def none(device: int) -> MemoryFacts:
        raise InferenceError("no driver")

    monkeypatch.setattr(_cutting, "device_memory", none)
    info = dataclasses.replace(INFO, device=0)
    assert cutter_for(info, None, tile="auto", halo=None).plan(2000, 2000).count > 1


def test_wrong_numbers_are_refused_before_anything_is_opened(make):
    """A halo that leaves nothing of the tile."""
    with pytest.raises(ValueError, match="leaves nothing between two halos"):
        Upscaler(make("nearest"), tile=16, halo=8)
