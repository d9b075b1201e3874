"""The figures of a comparison are what their names say, and each bound bites."""

import dataclasses
import json

import numpy as np
import pytest

from esrgan_deploy._parity import BOUNDS, Bound, Comparer, to_levels

STRICT = Bound(max_abs=1e-4, min_psnr=50.0, min_within_one=0.999, max_bias=0.1)


def _compare(reference, result):
    comparer = Comparer("here", "by hand")
    comparer.add("picture", reference, result)
    return comparer.result()


@pytest.fixture
def flat():
    """A gray of exactly 100 levels, (1, 3, 128, 192)."""
    return np.full((1, 3, 128, 192), 100 / 255, np.float32)


def test_equal_pictures_hold_every_bound_and_survive_json(flat):
    """An infinite PSNR is no JSON number."""
    figures = _compare(flat, flat.copy())
    assert all(figures.breaches(bound) == [] for bound in BOUNDS.values())
    assert (figures.psnr, figures.off_by_0, figures.ssim) == (float("inf"), 1.0, 1.0)
    assert json.loads(json.dumps(figures.to_json(), allow_nan=False))["psnr"] == "inf"


def test_a_shifted_colour_is_seen_with_its_sign_and_channel(flat):
    """A mean over all channels would hide that red rose and blue fell."""
    result = flat.copy()
    result[:, 0] += 2 / 255
    result[:, 2] -= 2 / 255
    figures = _compare(flat, result)
    assert figures.bias == pytest.approx((2.0, 0.0, -2.0))
    assert figures.off_by_0 == pytest.approx(1 / 3)
    assert figures.off_by_more == pytest.approx(2 / 3)
    assert figures.max_abs == pytest.approx(2 / 255, rel=1e-4)
    assert figures.psnr == pytest.approx(10 * np.log10(255**2 / (8 / 3)), abs=1e-6)
    found = " ".join(figures.breaches(STRICT))
    for word in ("max abs", "PSNR", "within one level", "colour shift"):
        assert word in found


def test_each_bound_bites_alone(flat):
    """One that is never checked would let its fault through."""
    result = flat.copy()
    result[0, 1, :, :96] += 1 / 255
    figures = _compare(flat, result)
    free = Bound(min_psnr=0.0, min_within_one=0.0, max_bias=9.0)
    assert figures.breaches(free) == []
    for change in ({"max_abs": 1e-3}, {"min_psnr": 60.0}, {"max_bias": 0.4}):
        assert len(figures.breaches(dataclasses.replace(free, **change))) == 1
    result[0, 1, 0, 0] += 1 / 255
    assert len(_compare(flat, result).breaches(dataclasses.replace(free, min_within_one=1.0))) == 1


def test_the_worst_tile_is_where_the_damage_is(flat):
    """A seam or a black square is lost in the mean of a large picture."""
    result = flat.copy()
    result[0, :, 70:80, 130:140] = 0
    worst = _compare(flat, result).worst_tile
    assert (worst["picture"], worst["y"], worst["x"]) == ("picture", 64, 128)
    assert worst["psnr"] < _compare(flat, result).psnr


def test_a_tile_with_a_nan_stays_the_worst(flat):
    """Whoever looks for the NaN would be sent to the last tile of the picture, or to the next picture."""
    result = flat.copy()
    result[0, :, 5, 70] = np.nan
    comparer = Comparer("here", "by hand")
    comparer.add("broken", flat, result)
    comparer.add("sound", flat, flat + np.float32(0.1))
    worst = comparer.result().worst_tile
    assert (worst["picture"], worst["y"], worst["x"]) == ("broken", 0, 64)
    assert np.isnan(worst["psnr"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_value_that_is_not_finite_breaches_whatever_the_bounds(flat, value, side):
    """Every comparison with a NaN is false, so it would breach none of them."""
    pair = [flat, flat.copy()]
    pair[side] = pair[side].copy()
    pair[side][0, 0, 5, 5] = value
    assert _compare(*pair).breaches(Bound(min_psnr=0.0, min_within_one=0.0, max_bias=1e9)) != []


def test_a_uint8_result_is_held_against_the_rounded_reference(flat):
    """Compared with the unrounded one, a perfect uint8 graph would be off by half a level."""
    levels = np.full((1, 128, 192, 3), 100, np.uint8)
    assert _compare(flat, levels).off_by_0 == 1.0
    with pytest.raises(ValueError, match="the output is"):
        _compare(flat, levels[:, :-1])


def test_levels_are_clipped_and_rounded_half_to_even():
    """Half up would be brighter than what the uint8 form writes."""
    picture = np.array([-0.2, 0.5 / 255, 1.5 / 255, 1.3], np.float32).reshape(1, 1, 1, 4)
    assert to_levels(picture).reshape(-1).tolist() == [0.0, 0.0, 2.0, 255.0]
