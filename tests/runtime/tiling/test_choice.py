"""The choice of tiles is a function of facts, so its promises are tested as properties."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esrgan_deploy._spec import UNBOUNDED, ModelSpec
from esrgan_deploy.runtime.device import MemoryFacts
from esrgan_deploy.runtime.sessions import SessionInfo
from esrgan_deploy.runtime.tiling import SeamCurve, TileChoice, choose_tiling, plan_tiles
from esrgan_deploy.runtime.tiling._choice import activation_bytes

GIB = 2**30
HALOS = (0, 2, 4, 8, 12, 16, 24, 32)
PLENTY = MemoryFacts(free_bytes=64 * GIB, l2_bytes=None, kind="processor")


def spec(**changes: Any) -> ModelSpec:
    """ESRGAN itself, or what it is changed to."""
    facts = {
        "architecture": "rrdbnet", "scale": 4, "in_channels": 3, "out_channels": 3, "features": 64, "blocks": 23,
        "growth": 32, "source_sha256": "",
    }  # fmt: skip
    return ModelSpec(**{**facts, **changes})


COMPACT = spec(architecture="srvggnetcompact", blocks=16, growth=0)


def info(**changes: Any) -> SessionInfo:
    """A session of ESRGAN in fp32 on the processor, or what it is changed to."""
    facts: dict[str, Any] = {
        "name": "model", "form": "float", "dtype": np.dtype(np.float32), "in_channels": 3, "out_channels": 3,
        "scale": Fraction(4), "provider": "test", "spec": spec(),
    }  # fmt: skip
    return SessionInfo(**{**facts, **changes})


def gpu(free: float = 70.0, l2: float | None = 50.0) -> MemoryFacts:
    return MemoryFacts(
        free_bytes=int(free * GIB), l2_bytes=None if l2 is None else int(l2 * 2**20), kind="gpu"
    )


def on_gpu(**changes: Any) -> SessionInfo:
    return info(**{"device": 0, "precision": "fp16", **changes})


def curve(*largest: float) -> SeamCurve:
    return SeamCurve(
        halos=HALOS[: len(largest)], largest=largest, percentile=largest, tile=128, margin=32, pictures=("a",),
        positions=1,
    )  # fmt: skip


SMALL = curve(60, 15, 4.7, 0.12, 0.005, 0, 0, 0)


@st.composite
def sessions(draw: st.DrawFn) -> SessionInfo:
    """Every kind of net: any scale, size multiple, range of shapes, known or not, on either kind of device."""
    multiple = draw(st.sampled_from([1, 2, 4]))
    most = draw(st.sampled_from([UNBOUNDED, 1024, 512, 200, 64, 32]))
    least = draw(st.sampled_from([1, 16, 32]))
    batches = sorted((draw(st.integers(1, 8)), draw(st.integers(1, 8))))
    if draw(st.booleans()) and most != UNBOUNDED:
        least = most
    known = st.sampled_from([None, spec(), spec(unshuffle=2, scale=2), COMPACT, spec(features=32, growth=16)])
    return info(
        spec=draw(known),
        scale=draw(st.sampled_from([Fraction(s) for s in ("1", "2", "4", "3/2", "4/3", "1/2", "13/10")])),
        size_multiple=multiple,
        min_shape=(batches[0], least, least),
        max_shape=(batches[1], most // multiple * multiple, most),
        precision=draw(st.sampled_from(["", "fp16"])),
        device=draw(st.sampled_from([-1, 0])),
        slots=draw(st.integers(1, 3)),
    )


FREE = st.floats(0, 100).map(lambda gib: int(gib * GIB))
MEMORY = st.builds(
    MemoryFacts,
    free_bytes=FREE | st.integers(0, 2**28),
    l2_bytes=st.none() | st.integers(2**18, 2**27),
    kind=st.sampled_from(["processor", "gpu"]),
)
CURVES = st.none() | st.lists(st.floats(0, 200), min_size=1, max_size=len(HALOS)).map(lambda x: curve(*x))


@given(sessions(), MEMORY, CURVES, st.integers(1, 3000), st.integers(1, 3000))
def test_every_choice_can_be_carried_out(session, memory, seams, height, width):
    """A choice that no plan can follow, or of a shape that the net refuses, fails where no choice would have."""
    choice = choose_tiling(session, memory=memory, curve=seams)
    plan = plan_tiles(
        height,
        width,
        largest=choice.tile,
        halo=choice.halo,
        batch=choice.batch,
        multiple=session.size_multiple,
        scale=session.scale,
        least=session.min_shape[1:],
        most=session.max_shape[1:],
    )
    shape = (plan.batch, *plan.tile)
    assert all(a <= b <= c for a, b, c in zip(session.min_shape, shape, session.max_shape, strict=True))
    assert "\n" not in choice.reason + choice.warning


@given(sessions(), MEMORY, CURVES)
def test_a_choice_fits_into_half_of_what_is_free_or_says_so(session, memory, seams):
    """More is ended by the system, or fails on the card, in the middle of a picture."""
    choice = choose_tiling(session, memory=memory, curve=seams)
    slots = session.slots if memory.kind == "gpu" else 1
    need = activation_bytes(session) * choice.tile**2 * choice.batch * slots
    assert need <= memory.free_bytes / 2 or "may not fit" in choice.warning


@given(sessions(), MEMORY, CURVES)
def test_the_seams_stay_under_half_a_level_or_it_says_so(session, memory, seams):
    """This is what auto promises."""
    choice = choose_tiling(session, memory=memory, curve=seams)
    if seams is not None and not choice.warning:
        assert seams.bound(choice.halo) < 0.5
    if seams is not None and seams.halo_for(0.5) is not None and "takes at most" not in choice.warning:
        assert seams.bound(choice.halo) < 0.5
    if seams is None and not choice.warning:
        assert choice.halo >= 16


@given(sessions(), MEMORY, CURVES)
def test_more_halo_than_picture_comes_with_a_warning(session, memory, seams):
    """Such tiles take twice the time of the untiled picture, and more."""
    choice = choose_tiling(session, memory=memory, curve=seams)
    if not choice.warning:
        assert (choice.tile - 2 * choice.halo) ** 2 >= choice.tile**2 / 2


@given(sessions(), FREE, FREE, CURVES)
def test_more_memory_never_makes_smaller_tiles(session, one, other, seams):
    """A choice that jumps about is one that nobody can reason about."""
    tiles = [
        choose_tiling(
            session, memory=MemoryFacts(free_bytes=free, l2_bytes=2**25, kind="gpu"), curve=seams
        ).tile
        for free in sorted((one, other))
    ]
    assert tiles[0] <= tiles[1]


def test_without_a_measurement_it_is_as_it_was():
    """Who measured nothing keeps tiles of 256 with a halo of 16, one at a time."""
    choice = choose_tiling(info(), memory=PLENTY)
    assert (choice.tile, choice.halo, choice.batch, choice.warning) == (256, 16, 1, "")
    assert "not measured" in choice.reason


def test_the_measured_halo_is_taken():
    """A narrower halo computes less that is thrown away."""
    choice = choose_tiling(info(), memory=PLENTY, curve=SMALL)
    assert (choice.tile, choice.halo) == (256, 8)
    assert "0.120 levels" in choice.reason


def test_what_is_only_just_under_half_a_level_is_not_trusted():
    """Other pictures than those measured show more: 2.4 times as much was seen."""
    assert choose_tiling(info(), memory=PLENTY, curve=curve(60, 15, 4.7, 0.4, 0.1)).halo == 12


def test_a_halo_is_aligned_to_the_net():
    """The plan rounds it up anyway; what is stated must be what is done."""
    choice = choose_tiling(info(size_multiple=4, scale=Fraction(4, 3)), memory=PLENTY, curve=SMALL)
    assert choice.halo == 12
    assert choice.tile == 252


def test_noise_that_no_halo_mends_is_no_reason_for_a_wider_one():
    """fp16 differs a little from tile to tile at any halo: past the knee a wider one costs time for nothing."""
    choice = choose_tiling(info(), memory=PLENTY, curve=curve(60, 15, 4.7, 0.9, 0.7, 0.6, 0.61, 0.6))
    assert choice.halo == 16
    assert "0.61 levels" in choice.warning
    quiet = choose_tiling(info(), memory=PLENTY, curve=curve(60, 15, 4.7, 0.9, 0.4, 0.3, 0.31, 0.3))
    assert (quiet.halo, quiet.warning) == (16, "")
    nearly = choose_tiling(info(), memory=PLENTY, curve=curve(60, 15, 4.7, 0.9, 0.8, 0.55, 0.45, 0.4))
    assert (nearly.halo, nearly.warning) == (24, "")
    steep = choose_tiling(info(), memory=PLENTY, curve=curve(60, 50, 40, 30, 20, 10, 5, 2))
    assert steep.halo == 32


def test_the_dense_blocks_of_a_tile_fit_into_the_l2():
    """An H100's 50 MiB hold 136,533 pixels of 384 bytes: tiles of 368; more goes through the slow memory."""
    choice = choose_tiling(on_gpu(), memory=gpu(), curve=SMALL)
    assert (choice.tile, choice.batch, choice.warning) == (368, 1, "")
    assert choice.tile**2 * 384 <= 50 * 2**20 < (choice.tile + 16) ** 2 * 384
    # An x2plus net unshuffles by 2: its blocks see a quarter of the pixels.
    assert choose_tiling(on_gpu(spec=spec(unshuffle=2, scale=2)), memory=gpu(), curve=SMALL).tile == 736


def test_an_l2_too_small_for_the_halo_does_not_shrink_the_tile_to_nothing():
    """4 MiB hold tiles of 104, of which a halo of 16 would leave less than half."""
    choice = choose_tiling(on_gpu(), memory=gpu(l2=4))
    assert choice.tile == 110
    assert choice.warning == ""


def test_small_tiles_go_together():
    """A net that takes 128 at most leaves most of a card idle with one tile at a time."""
    session = on_gpu(max_shape=(16, 128, 128))
    choice = choose_tiling(session, memory=gpu(), curve=SMALL)
    assert (choice.tile, choice.batch) == (128, 8)
    assert choose_tiling(dataclasses.replace(session, max_shape=(4, 128, 128)), memory=gpu()).batch == 4
    assert choose_tiling(session, memory=gpu(free=4.0), curve=SMALL).batch < 8


def test_memory_that_is_short_makes_the_tile_smaller_and_says_so():
    """The setting that helps must be named."""
    choice = choose_tiling(info(), memory=dataclasses.replace(PLENTY, free_bytes=GIB))
    assert 100 < choice.tile < 256
    assert activation_bytes(info()) * choice.tile**2 <= GIB / 2
    assert "memory is short: 1.00 GiB" in choice.warning
    none = choose_tiling(info(), memory=dataclasses.replace(PLENTY, free_bytes=0))
    assert "may not fit" in none.warning
    assert "more than half" in none.warning


def test_slots_of_a_gpu_share_its_memory():
    """Three batches in flight hold three times the buffers; a processor computes one at a time."""
    one, three = (choose_tiling(on_gpu(slots=n), memory=gpu(free=2.0), curve=SMALL).tile for n in (1, 3))
    assert three < one
    assert math.isclose(one / three, math.sqrt(3), rel_tol=0.05)
    assert choose_tiling(info(slots=3), memory=dataclasses.replace(PLENTY, free_bytes=5 * GIB)).tile == 256


def test_no_tensor_has_more_elements_than_tensorrt_counts():
    """64 features at 16 times the pixels reach 2^31 at 1448 x 1448: conv fails beyond (NVIDIA/TensorRT 4408)."""
    choice = choose_tiling(on_gpu(), memory=gpu(free=1000, l2=2000), curve=SMALL)
    assert 1400 < choice.tile <= 1448
    assert 64 * 16 * choice.tile**2 * choice.batch < 2**31


def test_a_net_too_small_for_the_halo_gets_less_of_it():
    """A fixed graph of 32x32 with two halos of 16 would keep nothing; a seam with a warning is a picture."""
    choice = choose_tiling(info(min_shape=(1, 32, 32), max_shape=(1, 32, 32)), memory=PLENTY)
    assert (choice.tile, choice.halo) == (32, 4)
    assert "at most 32" in choice.warning


def test_a_net_that_takes_nothing_smaller_gets_its_least_tile():
    """Its memory would be reckoned from a tile that is never run."""
    choice = choose_tiling(info(min_shape=(1, 300, 300)), memory=PLENTY)
    assert (choice.tile, choice.warning) == (300, "")


@pytest.mark.parametrize(
    ("session", "measured"),
    # Peak of ONNX Runtime 1.32 on a processor in bytes per input pixel, tile of 256, less what the graph takes.
    [
        (info(spec=spec(features=32, growth=32, blocks=2)), 14057),
        (info(spec=spec(features=32, growth=16, blocks=4)), 13686),
        (info(spec=COMPACT), 1722),
    ],
)
def test_the_model_of_memory_agrees_with_what_was_measured(session, measured):
    """Less than was measured ends the process, and twice as much wastes half of the machine."""
    assert measured <= activation_bytes(session) <= 1.5 * measured


def test_a_net_that_says_nothing_is_taken_for_a_large_one():
    """Half precision saves nothing on a processor, where ONNX Runtime computes it in float32."""
    assert activation_bytes(info(spec=None)) >= activation_bytes(info())
    assert activation_bytes(info(precision="fp16")) == activation_bytes(info())
    assert activation_bytes(on_gpu()) * 2 == activation_bytes(info())


@pytest.mark.parametrize("options", [{"tile": 30}, {"batch": 0}, {"halo": -1}])
def test_a_choice_that_is_none_is_refused(options):
    """A manifest edited by hand must not choose the tile."""
    with pytest.raises(ValueError, match=r"tile|batch|halo"):
        TileChoice(**{"tile": 256, "halo": 16, "batch": 1, "reason": "", **options})
