"""The downscaling of the benchmark sets."""

import numpy as np
import pytest

from esrgan_deploy._metrics import bicubic_downscale


@pytest.mark.parametrize(("folder", "factor"), [("Set5/x4", 4), ("Set5/x2", 2), ("BSD100/x4", 4)])
def test_lr_pictures_of_the_benchmark_sets_come_out_bit_for_bit(assets, folder, factor):
    """With another bicubic every figure against a paper would be of another task."""
    from PIL import Image

    pairs = sorted((assets / "images" / folder / "HR").glob("*.png"))[:5]
    assert pairs
    for path in pairs:
        hr = np.asarray(Image.open(path).convert("RGB"))
        lr = np.asarray(Image.open(assets / "images" / folder / "LR" / path.name).convert("RGB"))
        hr = hr[: hr.shape[0] // factor * factor, : hr.shape[1] // factor * factor]
        np.testing.assert_array_equal(bicubic_downscale(hr, factor), lr)


def test_a_constant_stays_and_a_ramp_keeps_its_slope():
    """Taps that do not sum to one change brightness; a wrong centre shifts the picture."""
    flat = np.full((16, 24, 3), 77, np.uint8)
    assert (bicubic_downscale(flat, 4) == 77).all()
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 8, axis=0)
    small = bicubic_downscale(ramp, 4)[0, :, 0].astype(float)
    np.testing.assert_allclose(small[3:-3], (np.arange(30) * 8 + 3)[3:-3], atol=0.51)


def test_a_size_that_is_no_multiple_is_refused():
    """Cut in silence, LR and HR would no longer lie on each other."""
    with pytest.raises(ValueError, match="not a multiple of 4"):
        bicubic_downscale(np.zeros((10, 8, 3), np.uint8), 4)
