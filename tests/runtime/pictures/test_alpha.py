"""Transparency without fringes."""

from fractions import Fraction

import numpy as np
import pytest

from esrgan_deploy import Upscaler
from esrgan_deploy.runtime.pictures import bound_alpha, fill_hidden
from esrgan_deploy.runtime.pictures._alpha import STRIP


def cut_out(hidden: int, dtype: type = np.uint8) -> np.ndarray:
    """An orange disc on fully transparent pixels of another colour."""
    peak = 1 if dtype is np.float32 else np.iinfo(dtype).max
    y, x = np.mgrid[:40, :48]
    inside = (y - 19) ** 2 + (x - 23) ** 2 < 144
    picture = np.zeros((40, 48, 4), np.float64)
    picture[..., :3] = hidden / 255
    picture[inside] = (1.0, 0.6, 0.2, 1.0)
    return (picture * peak).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_hidden_colours_do_not_bleed(make, dtype):
    """Black under alpha 0 makes a dark fringe around every cut-out as soon as a net mixes neighbours."""
    with Upscaler(make("convolved", scale=2, layers=4)) as up:
        black, green = up.upscale(cut_out(0, dtype)), up.upscale(cut_out(200, dtype))
    np.testing.assert_array_equal(black, green)


def test_opaque_and_empty_stay_exactly_so(make):
    """A net that makes 254 of 255 leaves a veil over the whole picture."""
    lr = cut_out(0)
    with Upscaler(make("convolved", scale=2, layers=3)) as up:
        alpha = up.upscale(lr)[..., 3]
        lr[..., 3] = 255
        assert (up.upscale(lr)[..., 3] == 255).all()
    assert (alpha[36:42, 40:50] == 255).all()
    assert (alpha[:8] == 0).all()
    assert set(np.unique(alpha)) - {0, 255}, "the border should be neither"


def test_visible_pixels_keep_their_colour(noise):
    """The fill may touch only what nobody sees."""
    colour, alpha = noise(70, 45, 3), noise(70, 45) // 2 * (noise(70, 45, seed=2) > 128)
    filled = fill_hidden(colour, alpha)
    np.testing.assert_array_equal(filled[alpha > 0], colour[alpha > 0])
    assert (filled[alpha == 0] != colour[alpha == 0]).any()


def test_the_fill_comes_from_what_is_near(noise):
    """One mean colour for the whole picture would fringe a red edge with the blue of another corner."""
    height = 2 * STRIP + 11
    colour, alpha = np.zeros((height, 64, 3), np.uint8), np.zeros((height, 64), np.uint8)
    colour[:20], alpha[:20] = (250, 10, 10), 255
    colour[-20:], alpha[-20:] = (10, 10, 250), 255
    filled = fill_hidden(colour, alpha)
    assert (filled[20:40, :, 0] > 200).all()
    assert (filled[-40:-20, :, 2] > 200).all()
    assert (filled.max(axis=2) > 0).all()


def test_nothing_or_everything_hidden_needs_no_fill(noise):
    """A picture that is all transparent has nothing to fill from; dividing by its weight makes NaN."""
    colour = noise(9, 9, 3)
    assert fill_hidden(colour, np.zeros((9, 9), np.uint8)) is colour
    assert fill_hidden(colour, np.ones((9, 9), np.uint8)) is colour


@pytest.mark.parametrize("scale", [Fraction(4), Fraction(3, 2), Fraction(1, 2)])
def test_alpha_stays_between_its_neighbours(noise, scale):
    """Checked against the plain loop over every pixel."""
    alpha = noise(13, 11) // 3 + 60
    shape = (int(13 * scale), int(11 * scale))
    enlarged = noise(*shape, seed=4)
    before = enlarged.copy()
    bound_alpha(enlarged, alpha, scale)
    for y, x in np.ndindex(*shape):
        i, j = int(y / scale), int(x / scale)
        around = alpha[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
        assert enlarged[y, x] == np.clip(before[y, x], around.min(), around.max())
