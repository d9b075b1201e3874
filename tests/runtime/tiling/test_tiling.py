"""Tile planning is arithmetic, so it is tested as such."""

import dataclasses
import functools
import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from esrgan_deploy import InferenceError
from esrgan_deploy._spec import UNBOUNDED
from esrgan_deploy.runtime import TilePlan, plan_tiles
from esrgan_deploy.runtime.tiling import TileOptions

SCALES = st.sampled_from([Fraction(s) for s in ("1", "2", "4", "8", "3/2", "5/2", "4/3", "13/10", "1/2")])


@dataclasses.dataclass(frozen=True)
class Case:
    """A plan with what it was asked for."""

    plan: TilePlan
    halo: int
    rim: int
    multiple: int
    align: int
    least: tuple[int, int]
    most: tuple[int, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Plans of every kind of net: any scale, size multiple, least and greatest shape, some of one size only."""
    halo = draw(st.integers(0, 12))
    multiple = draw(st.sampled_from([1, 2, 3, 4, 8]))
    scale = draw(SCALES)
    align = math.lcm(multiple, scale.denominator)
    # The least tile in which two halos leave something; any net that takes less than that must be refused.
    room = 2 * -(-halo // align) * align + align
    kind = draw(st.sampled_from(["any", "bounded", "fixed"]))
    least, most = (1, 1), (UNBOUNDED, UNBOUNDED)
    if kind != "any":
        most = (room + draw(st.integers(multiple, 80)), room + draw(st.integers(multiple, 80)))
        least = (
            draw(st.integers(1, most[0] // multiple * multiple)),
            draw(st.integers(1, most[1] // multiple)),
        )
    if kind == "fixed":
        least = most = (most[0] // multiple * multiple, most[1] // multiple * multiple)
    tiles = [st.just("auto"), st.integers(room, room + 60)]
    tile = draw(st.one_of(*tiles, st.just(0)) if kind == "any" else st.one_of(*tiles))
    edge = draw(st.sampled_from(["repeat", "zero"]))
    plan = plan_tiles(
        draw(st.integers(1, 200)),
        draw(st.integers(1, 200)),
        tile=tile,
        halo=halo,
        multiple=multiple,
        scale=scale,
        batch=draw(st.integers(1, 7)),
        least=least,
        most=most,
        largest=draw(st.integers(room, room + 60)),
        edge=edge,
    )
    return Case(plan, halo, plan.halo if edge == "repeat" else 0, multiple, align, least, most)


@given(cases())
def test_every_output_pixel_is_written_exactly_once(case):
    """A gap would leave uninitialised memory in the picture, an overlap would hide a misplaced tile."""
    plan = case.plan
    assert plan.out_size == (math.floor(plan.height * plan.scale), math.floor(plan.width * plan.scale))
    for spans, length, made in zip((plan.rows, plan.columns), plan.out_size, plan.out_tile, strict=True):
        covered = np.zeros(length, int)
        for span in spans:
            start, stop = plan.out_range(span)
            covered[start:stop] += 1
            # What is kept must lie in what the net made of the tile.
            assert plan.out_origin(span) <= start <= stop <= plan.out_origin(span) + made
        assert (covered == 1).all()


@given(cases())
def test_kept_pixels_lie_a_halo_away_from_their_tiles_border(case):
    """Less would show the seam that the halo is there to hide, and at the picture's border the rim."""
    plan = case.plan
    assert plan.halo >= case.halo
    for spans, edge in zip((plan.rows, plan.columns), plan.tile, strict=True):
        assert spans[0].keep_start == spans[0].origin + case.rim
        assert spans[-1].keep_stop <= spans[-1].origin + edge - case.rim
        for before, after in itertools.pairwise(spans):
            assert before.keep_stop == after.keep_start
            assert before.keep_stop <= before.origin + edge - plan.halo
            assert after.keep_start >= after.origin + plan.halo


@given(cases())
def test_tiles_lie_inside_the_padded_picture(case):
    """A tile that starts outside, or ends beyond the padding, would be filled with more than one picture."""
    plan = case.plan
    for spans, edge, length in zip(
        (plan.rows, plan.columns), plan.tile, (plan.height, plan.width), strict=True
    ):
        assert spans[0].origin == -case.rim
        assert spans[0].keep_start == 0
        assert all(span.origin >= -case.rim for span in spans)
        # The padding is never more than the alignment asks for, but for a picture smaller than the least tile.
        last = max(span.origin for span in spans)
        assert last + edge <= max(edge - case.rim, length + case.rim + case.align - 1)
        assert spans[-1].keep_stop == length
        assert all(span.keep_start < span.keep_stop for span in spans)


@given(cases())
def test_a_tile_is_of_a_shape_that_the_net_takes(case):
    """A plan or a fixed graph refuses every other shape, in the middle of a picture."""
    for side, low, high in zip(case.plan.tile, case.least, case.most, strict=True):
        assert low <= side <= high
        assert side % case.multiple == 0


@given(cases())
def test_origins_fit_the_net(case):
    """Otherwise an unshuffle groups other pixels than untiled, or a x1.5 net shifts by a part."""
    plan = case.plan
    for spans in (plan.rows, plan.columns):
        for span in spans:
            assert span.origin % case.multiple == 0
            assert (span.origin * plan.scale).denominator == 1
            if span.keep_start:
                assert (span.keep_start * plan.scale).denominator == 1


@given(cases())
def test_batches_hold_every_tile_in_order(case):
    """A tile that falls between two batches leaves a hole."""
    plan = case.plan
    batches = list(plan.batches())
    assert [tile for batch in batches for tile in batch] == list(plan.tiles())
    assert all(len(batch) == plan.batch for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= plan.batch
    assert len(list(plan.tiles())) == plan.count


@given(cases())
def test_the_output_fills_from_the_top(case):
    """Finished rows of a memory map are let go of while later ones are computed; one above would come back."""
    tops = [tile.row.keep_start for tile in case.plan.tiles()]
    assert tops == sorted(tops)


@given(st.integers(300, 4000), st.integers(0, 20), st.sampled_from([1, 2, 3, 4]), st.integers(60, 300))
def test_even_tiles_are_no_more_than_full_ones(length, halo, multiple, largest):
    """Evening out that adds a tile computes more than it saves."""
    full = plan_tiles(length, length, tile=largest, halo=halo, multiple=multiple)
    even = plan_tiles(length, length, largest=largest, halo=halo, multiple=multiple)
    assert even.count == full.count
    assert even.tile[0] <= full.tile[0]
    less = even.tile[0] - multiple
    if less >= 2 * even.halo + multiple:
        assert plan_tiles(length, length, tile=less, halo=halo, multiple=multiple).count > even.count


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 20))
def test_auto_never_makes_a_tile_above_its_bound(height, width, halo):
    """Memory is bounded by the tile's area, the repeated edge within it, and by nothing else."""
    plan = plan_tiles(height, width, halo=halo, multiple=2)
    assert plan.tile[0] * plan.tile[1] <= 256 * 256 + 2 * (height + width + 4 * halo + 6)
    if plan.count > 1:
        assert max(plan.tile) <= 256


@given(st.integers(1, 500), st.integers(1, 500), st.integers(20, 64), st.integers(0, 6))
def test_a_net_of_one_size_gets_tiles_of_that_size(height, width, side, halo):
    """A graph with fixed sides refuses every other shape."""
    plan = plan_tiles(height, width, halo=halo, least=(side, side + 3), most=(side, side + 3))
    assert plan.tile == (side, side + 3)
    assert plan.rows[-1].keep_stop == height


def test_last_tiles_are_shifted_inward():
    """A smaller last tile would be a second shape, and a second plan or graph to warm up."""
    plan = plan_tiles(100, 70, tile=40, halo=5, edge="zero")
    assert [span.origin for span in plan.rows] == [0, 30, 60]
    assert [span.origin for span in plan.columns] == [0, 30]
    assert plan.tile == (40, 40)
    assert plan.count == 6


def test_a_repeated_edge_begins_before_the_picture_and_ends_behind_it():
    """A tile that begins with the picture has the net's zeros where the edge should be repeated."""
    plan = plan_tiles(100, 70, tile=40, halo=5)
    assert [span.origin for span in plan.rows] == [-5, 25, 55, 65]
    assert [(span.keep_start, span.keep_stop) for span in plan.columns] == [(0, 30), (30, 50), (50, 70)]
    assert plan.tile == (40, 40)
    # As PyTorch has it: nothing beyond the picture, so fewer tiles.
    assert plan_tiles(100, 70, tile=40, halo=5, edge="zero").count == 6


def test_small_pictures_go_whole_and_rounded():
    """Padding a thumbnail to a full tile would cost hundreds of times its own work."""
    assert plan_tiles(1, 1, tile="auto", halo=16).tile == (33, 33)
    assert plan_tiles(5, 9, tile=256, halo=6, multiple=4).tile == (24, 28)
    assert plan_tiles(224, 224, tile="auto", halo=16).count == 1
    assert plan_tiles(96, 480, halo=16).count == plan_tiles(480, 96, halo=16).count == 1
    assert plan_tiles(224, 225, tile="auto", halo=16).count == 2
    assert plan_tiles(225, 224, tile="auto", halo=16).count == 2
    assert plan_tiles(10, 10, tile=0, halo=1, multiple=256).tile == (768, 768)
    assert plan_tiles(1, 1, tile="auto", edge="zero").tile == (1, 1)
    assert plan_tiles(5, 9, tile=256, multiple=4, edge="zero").tile == (8, 12)
    assert plan_tiles(255, 257, tile="auto", edge="zero").count == 1


def test_untiled_is_one_tile_of_any_size():
    """Tile 0 promises the whole picture at once."""
    plan = plan_tiles(5001, 4000, tile=0, multiple=2, halo=16)
    assert (plan.count, plan.tile, plan.out_size) == (1, (5034, 4032), (5001, 4000))
    assert plan_tiles(5001, 4000, tile=0, multiple=2, edge="zero").tile == (5002, 4000)
    assert plan_tiles(32, 48, tile=0, halo=16, most=(64, 80)).tile == (64, 80)


def test_the_smallest_tiles_are_placed():
    """What a halo of nothing leaves is one step of the alignment, down to a pixel."""
    assert plan_tiles(50, 50, tile=4, halo=0, multiple=4).tile == (4, 4)
    assert plan_tiles(3, 3, largest=1, halo=0).count == 9


def test_auto_makes_tiles_no_larger_than_needed():
    """300 pixels as two tiles of 256 would compute a third of the picture twice over."""
    plan = plan_tiles(300, 300, tile="auto", halo=16)
    assert (plan.count, plan.tile) == (4, (182, 182))
    plan = plan_tiles(300, 300, tile="auto", halo=16, edge="zero")
    assert (plan.count, plan.tile) == (4, (166, 166))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tile": 100, "scale": Fraction(1333, 1000)}, "every 1000 input pixels"),
        (
            {"tile": 100, "scale": Fraction(1333, 1000), "edge": "zero"},
            "than a tile of 100; .* tile of 3000$",
        ),
        ({"tile": 36, "halo": 17, "multiple": 4}, "at most 16"),
        ({"tile": 0, "most": (64, 64)}, "at most 64x64; use tile 'auto'$"),
        ({"tile": 0, "most": (499, 520)}, "at most 520x499; use tile 'auto'$"),
        ({"tile": 0, "most": (520, 499)}, "at most 499x520; use tile 'auto'$"),
        ({"tile": 0, "most": (500, 500)}, "with 16 of repeated edge.* use tile 'auto' or edge 'zero'$"),
        ({"tile": 0, "scale": Fraction(1333, 1000)}, "use edge 'zero' and tile 0"),
    ],
)
def test_impossible_tiles_are_refused_with_what_to_do(options, says):
    """Any other answer would be a picture with shifted tiles or visible seams."""
    with pytest.raises(InferenceError, match=says):
        plan_tiles(500, 500, **options)


def test_an_empty_picture_is_refused():
    """There is no tile in a picture without pixels."""
    for height, width in ((0, 5), (5, 0)):
        with pytest.raises(InferenceError, match="at least 1x1"):
            plan_tiles(height, width)


@pytest.mark.parametrize("options", [{"batch": 0}, {"largest": 0}])
def test_no_tiles_at_a_time_is_a_value_error(options):
    """A batch of nothing would never come to an end of the tiles."""
    with pytest.raises(ValueError, match="at least 1"):
        plan_tiles(10, 10, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": -1}, {"halo": -1}, {"tile": "some"}, {"tile": 32, "halo": 16}, {"tile": 1, "halo": 1},
        {"tile": 1.5}, {"edge": "mirror"},
    ],
)  # fmt: skip
def test_options_out_of_range_are_value_errors(options):
    """A halo as large as the tile would loop for ever or keep nothing."""
    for made in (TileOptions, functools.partial(plan_tiles, 10, 10)):
        with pytest.raises(ValueError, match=r"tile|halo|edge"):
            made(**options)


def test_a_plan_beyond_memory_costs_next_to_nothing():
    """A million pixels a side has 10^9 tiles: held at once they would take what the picture itself does not."""
    tracemalloc.start()
    plan = plan_tiles(10**6, 10**6, tile=64, halo=16)
    first = next(plan.batches())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.count > 9 * 10**8
    assert first[0].row.keep_stop == 32
    assert peak < 32 * 2**20


def test_a_fixed_size_that_is_no_multiple_of_the_scales_denominator_is_kept():
    """A x4/3 net of 64x64 was once given tiles of 63x63, which it refuses."""
    plan = plan_tiles(200, 200, halo=8, scale=Fraction(4, 3), least=(64, 64), most=(64, 64))
    assert plan.tile == (64, 64)
    assert [span.origin % 3 for span in plan.rows] == [0] * len(plan.rows)


@given(st.integers(1, 10**9), st.integers(1, 50))
def test_spans_of_a_huge_side_stay_few(length, halo):
    """Planning itself must not be what runs out of memory."""
    tile = max(2 * halo + 1, math.ceil(length / 1000) + 2 * halo)
    assume(tile > 2 * halo)
    plan = plan_tiles(length, 1, tile=tile, halo=halo)
    assert plan.count <= 1001
