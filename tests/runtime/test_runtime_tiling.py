"""Tile planning is arithmetic, so it is tested as such."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from esrgan_deploy import InferenceError
from esrgan_deploy.runtime import TilePlan, plan_tiles
from esrgan_deploy.runtime._tiling import TileOptions

SCALES = st.sampled_from([Fraction(s) for s in ("1", "2", "4", "8", "3/2", "5/2", "4/3", "13/10", "1/2")])


@st.composite
def plans(draw: st.DrawFn) -> tuple[TilePlan, int, int]:
    """A plan with the halo and the size multiple that it was asked for."""
    halo = draw(st.integers(0, 12))
    multiple = draw(st.sampled_from([1, 2, 3, 4, 8]))
    scale = draw(SCALES)
    align = math.lcm(multiple, scale.denominator)
    least = 2 * -(-halo // align) * align + align
    tile = draw(st.one_of(st.just("auto"), st.just(0), st.integers(least, least + 60)))
    height, width = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    plan = plan_tiles(height, width, tile=tile, halo=halo, multiple=multiple, scale=scale)
    return plan, halo, multiple


@given(plans())
def test_every_output_pixel_is_written_exactly_once(case: tuple[TilePlan, int, int]) -> None:
    """A gap would leave uninitialised memory in the picture, an overlap would hide a misplaced tile."""
    plan, _, _ = case
    for spans, length in zip((plan.rows, plan.columns), plan.out_size, strict=True):
        covered = np.zeros(length, int)
        for span in spans:
            start, stop = plan.out_range(span)
            covered[start:stop] += 1
        assert (covered == 1).all()


@given(plans())
def test_kept_pixels_lie_a_halo_away_from_their_tiles_border(case: tuple[TilePlan, int, int]) -> None:
    """Less would show the seam that the halo is there to hide; the picture's own border is no seam."""
    plan, halo, _ = case
    for spans, edge in zip((plan.rows, plan.columns), plan.tile, strict=True):
        for before, after in itertools.pairwise(spans):
            assert before.keep_stop == after.keep_start
            assert before.keep_stop <= before.origin + edge - halo
            assert after.keep_start >= after.origin + halo


@given(plans())
def test_tiles_lie_inside_the_padded_picture(case: tuple[TilePlan, int, int]) -> None:
    """A tile that starts outside, or ends beyond the padding, would be filled with more than one picture."""
    plan, _, multiple = case
    align = math.lcm(multiple, plan.scale.denominator)
    for spans, edge, length in zip(
        (plan.rows, plan.columns), plan.tile, (plan.height, plan.width), strict=True
    ):
        padded = max(edge, -(-length // align) * align)
        assert spans[0].origin == 0
        assert all(span.origin >= 0 and span.origin + edge <= padded for span in spans)
        assert spans[-1].keep_stop == length
        assert all(span.keep_start < span.keep_stop for span in spans)


@given(plans())
def test_origins_and_tile_sides_fit_the_net(case: tuple[TilePlan, int, int]) -> None:
    """Otherwise an unshuffle groups other pixels than untiled, or a x1.5 net shifts by a part."""
    plan, _, multiple = case
    assert all(side % multiple == 0 for side in plan.tile)
    for spans in (plan.rows, plan.columns):
        for span in spans:
            assert span.origin % multiple == 0
            assert (span.origin * plan.scale).denominator == 1
            if span.keep_start:
                assert (span.keep_start * plan.scale).denominator == 1


@given(plans(), st.integers(1, 7))
def test_batches_hold_every_tile_in_order(case: tuple[TilePlan, int, int], number: int) -> None:
    """A tile that falls between two batches leaves a hole."""
    plan, _, _ = case
    plan = plan_tiles(plan.height, plan.width, tile=60, halo=2, batch=number)
    batches = list(plan.batches())
    assert [tile for batch in batches for tile in batch] == list(plan.tiles())
    assert all(len(batch) == number for batch in batches[:-1])
    assert len(list(plan.tiles())) == plan.count


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 20))
def test_auto_never_makes_a_tile_above_its_bound(height: int, width: int, halo: int) -> None:
    """Memory is bounded by the tile's area and by nothing else."""
    plan = plan_tiles(height, width, halo=halo, multiple=2)
    assert plan.tile[0] * plan.tile[1] <= 256 * 256 + 2 * (height + width + 2)
    if plan.count > 1:
        assert max(plan.tile) <= 256


@given(st.integers(1, 500), st.integers(1, 500), st.integers(20, 64), st.integers(0, 6))
def test_a_net_of_one_size_gets_tiles_of_that_size(height: int, width: int, side: int, halo: int) -> None:
    """A graph with fixed sides refuses every other shape."""
    plan = plan_tiles(height, width, halo=halo, least=(side, side + 3), most=(side, side + 3))
    assert plan.tile == (side, side + 3)
    assert plan.rows[-1].keep_stop == height


def test_last_tiles_are_shifted_inward() -> None:
    """A smaller last tile would be a second shape, and a second plan or graph to warm up."""
    plan = plan_tiles(100, 70, tile=40, halo=5)
    assert [span.origin for span in plan.rows] == [0, 30, 60]
    assert [span.origin for span in plan.columns] == [0, 30]
    assert plan.tile == (40, 40)
    assert plan.count == 6


def test_small_pictures_go_whole_and_rounded() -> None:
    """Padding a thumbnail to a full tile would cost hundreds of times its own work."""
    assert plan_tiles(1, 1, tile="auto").tile == (1, 1)
    assert plan_tiles(5, 9, tile=256, multiple=4).tile == (8, 12)
    assert plan_tiles(255, 257, tile="auto").count == 1


def test_untiled_is_one_tile_of_any_size() -> None:
    """Tile 0 promises the whole picture at once."""
    plan = plan_tiles(5001, 4000, tile=0, multiple=2)
    assert (plan.count, plan.tile, plan.out_size) == (1, (5002, 4000), (5001, 4000))


def test_auto_makes_tiles_no_larger_than_needed() -> None:
    """300 pixels as two tiles of 256 would compute a third of the picture twice over."""
    plan = plan_tiles(300, 300, tile="auto", halo=16)
    assert (plan.count, plan.tile) == (4, (166, 166))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tile": 100, "scale": Fraction(1333, 1000)}, "every 1000 input pixels"),
        ({"tile": 36, "halo": 17, "multiple": 4}, "at most 16"),
        ({"tile": 0, "most": (64, 64)}, "at most 64x64"),
    ],
)
def test_impossible_tiles_are_refused_with_what_to_do(options: dict[str, int], says: str) -> None:
    """Any other answer would be a picture with shifted tiles or visible seams."""
    with pytest.raises(InferenceError, match=says):
        plan_tiles(500, 500, **options)  # type: ignore[arg-type]


def test_an_empty_picture_is_refused() -> None:
    """There is no tile in a picture without pixels."""
    with pytest.raises(InferenceError, match="at least 1x1"):
        plan_tiles(0, 5)


@pytest.mark.parametrize(
    "options", [{"tile": -1}, {"halo": -1}, {"tile": "some"}, {"tile": 32, "halo": 16}, {"tile": 1.5}]
)
def test_options_out_of_range_are_value_errors(options: dict[str, int]) -> None:
    """A halo as large as the tile would loop for ever or keep nothing."""
    with pytest.raises(ValueError, match=r"tile|halo"):
        TileOptions(**options)  # type: ignore[arg-type]


@given(st.integers(1, 10**9), st.integers(1, 50))
def test_spans_of_a_huge_side_stay_few(length: int, halo: int) -> None:
    """Planning itself must not be what runs out of memory."""
    tile = max(2 * halo + 1, math.ceil(length / 1000) + 2 * halo)
    assume(tile > 2 * halo)
    plan = plan_tiles(length, 1, tile=tile, halo=halo)
    assert plan.count <= 1001
