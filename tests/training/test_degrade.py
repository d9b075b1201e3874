"""Real-ESRGAN's degradation."""

import itertools
import math
import pickle
import re
from collections import Counter

import numpy as np
import pytest

from esrgan_deploy._metrics import bicubic_downscale
from esrgan_deploy.training.data import RealEsrganDegradation, _degrade
from esrgan_deploy.training.data._blur import blur, draw_kernel
from esrgan_deploy.training.data._degrade import gaussian_noise, jpeg, poisson_noise, resize


@pytest.fixture(scope="module")
def astronaut():
    data = pytest.importorskip("skimage.data")
    return data.astronaut()


def _dice(*seed):
    return np.random.default_rng(seed)


def _float(picture):
    return np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32) / 255


def test_the_generator_alone_decides_the_bytes(astronaut):
    """A resumed training draws sample n again, after other samples and in another process."""
    hr = astronaut[100:164, 200:264]
    degrade = RealEsrganDegradation(4)
    first = [degrade(hr, _dice(1, number)) for number in range(10)]
    np.random.seed(5)
    again = [degrade(hr, _dice(1, number)) for number in reversed(range(10))][::-1]
    np.testing.assert_array_equal(first, again)
    assert len({picture.tobytes() for picture in first}) == 10


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (13, 17), (16, 16), (32, 47)])
def test_lr_has_the_size_that_the_scale_asks_for(astronaut, scale, size):
    """Crops are stacked into batches: one pixel more in one of them and the batch fails."""
    hr = astronaut[: size[0] * scale, : size[1] * scale]
    for number in range(20):
        lr = RealEsrganDegradation(scale)(hr, _dice(2, number))
        assert (lr.shape, lr.dtype) == ((*size, 3), np.uint8)


def test_a_size_that_is_no_multiple_is_refused():
    """Cut in silence, LR and HR would no longer lie on each other."""
    with pytest.raises(ValueError, match="not a multiple of 4"):
        RealEsrganDegradation(4)(np.zeros((64, 66, 3), np.uint8), _dice(0))


def test_lr_is_the_picture_and_lies_on_hr():
    """Red waves along the columns and blue along the rows: the mean LR has them at the phase of bicubic."""
    # A crest on either border, which reflection leaves in place.
    wave = 128 + 90 * np.cos((np.arange(64) + 0.5) * 2 * math.pi / 32)
    hr = np.full((64, 64, 3), 128, np.uint8)
    hr[..., 0] = wave
    hr[..., 2] = wave[:, None]
    mean = np.mean([RealEsrganDegradation(4)(hr, _dice(3, number)) for number in range(200)], axis=0)
    lr = bicubic_downscale(hr, 4).astype(float)
    for channel, axis in ((0, 1), (2, 0)):
        got, expected = (np.fft.fft(p[..., channel].mean(1 - axis))[2] for p in (mean, lr))
        assert 0.4 < abs(got / expected) < 1
        # In LR pixels, of which a wave has 8.
        assert abs(np.angle(got / expected)) / (2 * math.pi) * 8 < 0.05
    np.testing.assert_allclose(mean.mean(axis=(0, 1)), lr.mean(axis=(0, 1)), atol=4)


def test_a_turned_and_mirrored_view_gives_what_its_copy_gives(astronaut):
    """Augmentation hands over views with negative strides."""
    view = np.rot90(astronaut[:64, :96])[:, ::-1]
    degrade = RealEsrganDegradation(2)
    np.testing.assert_array_equal(degrade(view, _dice(4)), degrade(view.copy(), _dice(4)))


def test_workers_get_a_copy_that_does_the_same(astronaut):
    """A DataLoader that spawns pickles its data set."""
    degrade = RealEsrganDegradation(4)
    copy = pickle.loads(pickle.dumps(degrade))
    np.testing.assert_array_equal(copy(astronaut[:64, :64], _dice(5)), degrade(astronaut[:64, :64], _dice(5)))


def test_the_steps_come_in_the_orders_and_shares_of_the_authors(monkeypatch):
    """A step left out or swapped still gives a plausible picture."""
    steps = []
    for name, label in (
        ("blur", "b"),
        ("resize", "r"),
        ("jpeg", "j"),
        ("gaussian_noise", "g"),
        ("poisson_noise", "p"),
    ):
        step = getattr(_degrade, name)
        monkeypatch.setattr(
            _degrade, name, lambda *a, step=step, label=label: (steps.append(label), step(*a))[1]
        )
    orders = []
    for number in range(600):
        steps.clear()
        RealEsrganDegradation(2)(np.full((4, 4, 3), 99, np.uint8), _dice(6, number))
        orders.append(re.fullmatch("br([gp])j(b?)r([gp])(rb?j|jrb?)", "".join(steps)))
    assert all(orders)
    first, blurred, second, last = zip(*(order.groups() for order in orders), strict=True)
    shares = {
        "gaussian first": (first.count("g"), 0.5),
        "second blur": (blurred.count("b"), 0.8),
        "gaussian second": (second.count("g"), 0.5),
        "jpeg last": (sum(order.endswith("j") for order in last), 0.5),
        "final sinc": (sum("b" in order for order in last), 0.8),
    }
    for step, (times, share) in shares.items():
        assert abs(times / 600 - share) < 0.06, step


@pytest.mark.parametrize(
    ("stage", "shares", "limits"),
    [(_degrade._FIRST, (0.2, 0.7, 0.1), (0.15, 1.5)), (_degrade._SECOND, (0.3, 0.4, 0.3), (0.3, 1.2))],
)
def test_sizes_are_drawn_over_the_whole_range(stage, shares, limits):
    """The range decides how much detail is left."""
    sizes = np.array([_degrade._draw_size((10000, 5000), stage, _dice(7, n)) for n in range(2000)])
    np.testing.assert_array_equal(sizes[:, 0] // 2, sizes[:, 1])
    factors = sizes[:, 0] / 10000
    assert np.allclose([(factors > 1).mean(), (factors < 1).mean(), (factors == 1).mean()], shares, atol=0.04)
    assert limits[0] <= factors.min() < limits[0] + 0.02
    assert limits[1] - 0.02 < factors.max() <= limits[1]


def test_qualities_and_modes_are_drawn_with_both_ends():
    """An end left out is not seen in any picture."""
    dice = _dice(8)
    assert {_degrade._draw_quality(dice) for _ in range(2000)} == set(range(30, 96))
    modes = Counter(_degrade._draw_mode(dice) for _ in range(2000))
    assert set(modes) == {"area", "bilinear", "bicubic"}
    assert min(modes.values()) > 550


@pytest.mark.parametrize(
    ("stage", "blur_sigma", "noise_sigma", "poisson_scale"),
    [
        (_degrade._FIRST, (0.2, 3.0), (1, 30), (0.05, 3.0)),
        (_degrade._SECOND, (0.2, 1.5), (1, 25), (0.05, 2.5)),
    ],
)
def test_strengths_are_drawn_over_their_ranges(monkeypatch, stage, blur_sigma, noise_sigma, poisson_scale):
    """The second stage is the weaker one."""
    drawn = {"gaussian_noise": [], "poisson_noise": []}
    for name, seen in drawn.items():
        monkeypatch.setattr(_degrade, name, lambda *a, seen=seen: seen.append(a[1]) or np.float32(0))
    sigmas = set()
    monkeypatch.setattr(
        _degrade, "draw_kernel", lambda sigma, dice: sigmas.add(sigma) or np.ones((1, 1), np.float32)
    )
    flat = np.full((3, 2, 2), 0.5, np.float32)
    for number in range(600):
        _degrade._stage(flat, (2, 2), stage, _dice(22, number))
    assert sigmas == {blur_sigma}
    for name, (low, high) in (("gaussian_noise", noise_sigma), ("poisson_noise", poisson_scale)):
        margin = 0.03 * (high - low)
        assert low <= min(drawn[name]) < low + margin
        assert high - margin < max(drawn[name]) <= high


def test_a_constant_stays_constant():
    """Through every kernel and every resize, small pictures with a wide kernel included."""
    dice = _dice(13)
    for side in (5, 64):
        flat = np.full((3, side, side + 2), 0.3, np.float32)
        for _ in range(50):
            np.testing.assert_allclose(blur(flat, draw_kernel((0.2, 3.0), dice)), 0.3, atol=1e-5)
        for mode in ("area", "bilinear", "bicubic"):
            for size in ((3, 4), (7, 70), (90, 11)):
                resized = resize(flat, size, mode)
                assert (resized.shape, resized.dtype) == ((3, *size), np.float32)
                np.testing.assert_allclose(resized, 0.3, atol=1e-5)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize_keeps_the_picture_in_its_place(mode):
    """A ramp from border to border stays one: corners lie on corners."""
    ramp = np.tile(((np.arange(60) + 0.5) / 60).astype(np.float32), (1, 4, 1))
    for width in (17, 30, 83):
        expected = (np.arange(width) + 0.5) / width
        np.testing.assert_allclose(resize(ramp, (4, width), mode)[0, 1, 4:-4], expected[4:-4], atol=0.01)


def test_only_area_averages_what_it_shrinks():
    """The authors' bilinear and bicubic look at the nearest pixels, and the network learns to undo the aliasing."""
    picture = _dice(20).random((3, 60, 80), np.float32)
    means = picture.reshape(3, 12, 5, 16, 5).mean(axis=(2, 4))
    np.testing.assert_allclose(resize(picture, (12, 16), "area"), means, atol=1e-5)
    for mode in ("bilinear", "bicubic"):
        # Every fifth pixel: the middle of five is where the new pixel's middle lies.
        np.testing.assert_allclose(resize(picture, (12, 16), mode), picture[:, 2::5, 2::5], atol=1e-5)
    step = np.repeat(np.float32([0, 1]), 20) * np.ones((3, 40, 1), np.float32)
    assert np.ptp(resize(step, (55, 55), "bilinear")) <= 1
    assert np.ptp(resize(step, (55, 55), "bicubic")) > 1.05


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_the_asked_sigma(gray):
    """In 8-bit steps, the same in the three channels only if gray."""
    noise = np.broadcast_to(gaussian_noise((200, 200), 12.0, gray, _dice(14)), (3, 200, 200))
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise.std(axis=(1, 2)) * 255, 12, rtol=0.03)
    assert abs(noise.mean()) < 0.001
    _assert_channels(noise, gray)


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_grows_with_the_root_of_brightness(gray):
    """With two values white is two photons: at half brightness one is expected, with a deviation of one."""
    picture = np.zeros((3, 200, 200), np.float32)
    picture[:, :, 100:] = 128 / 255
    noise = np.broadcast_to(poisson_noise(picture, 0.4, gray, _dice(15)), picture.shape)
    assert noise.dtype == np.float32
    assert (noise[:, :, :100] == 0).all()
    lit = noise[:, :, 100:]
    np.testing.assert_allclose(lit.std(axis=(1, 2)), 0.4 * math.sqrt(128 / 255 * 2) / 2, rtol=0.03)
    assert abs(lit.mean()) < 0.005
    _assert_channels(lit, gray)


def test_poisson_noise_counts_more_photons_where_there_are_more_values():
    """33 values make 64 photons of white, not 33 and not 256."""
    picture = np.tile(((np.arange(33) + 128) / 255).astype(np.float32), (3, 1000, 1))
    noise = poisson_noise(picture, 1.0, False, _dice(16))
    np.testing.assert_allclose(noise.var(), picture.mean() / 64, rtol=0.03)


def test_gray_poisson_noise_counts_luma():
    """Pure blue is dark: 0.114 of the photons that white has."""
    picture = np.zeros((3, 200, 200), np.float32)
    picture[2] = 1
    noise = poisson_noise(picture, 1.0, True, _dice(17))
    np.testing.assert_allclose(noise.var(), 0.114, rtol=0.05)


def _assert_channels(noise, gray):
    correlation = np.corrcoef(noise.reshape(3, -1))[np.triu_indices(3, 1)]
    if gray:
        np.testing.assert_array_equal(noise, noise[:1].repeat(3, 0))
    else:
        assert np.abs(correlation).max() < 0.05


def test_gray_noise_reaches_the_picture_in_all_channels_at_once(monkeypatch):
    """Drawn for 0.4 of the pictures, for both kinds of noise."""
    monkeypatch.setattr(_degrade, "blur", lambda picture, kernel: picture)
    flat = np.full((3, 32, 32), 0.5, np.float32)
    gray = 0
    for number in range(400):
        out = _degrade._stage(flat, (32, 32), _degrade._FIRST, _dice(18, number))
        assert out.dtype == np.float32
        assert out.min() >= 0
        assert out.max() <= 1
        assert out.std() > 0
        gray += np.allclose(out, out[:1], atol=1e-6)
    assert abs(gray / 400 - 0.4) < 0.1


def test_a_lower_jpeg_quality_loses_more(astronaut):
    """And what comes out is 8-bit steps of the same picture."""
    picture = _float(astronaut[64:160, 160:256])
    errors = []
    for quality in (30, 50, 70, 85, 95):
        out = jpeg(picture, quality)
        assert (out.shape, out.dtype) == (picture.shape, np.float32)
        np.testing.assert_allclose(out * 255, np.rint(out * 255), atol=1e-4)
        errors.append(float(((out - picture) ** 2).mean()))
    assert all(worse > better * 1.05 for worse, better in itertools.pairwise(errors))
    assert 10 * math.log10(1 / errors[0]) > 22
    assert 10 * math.log10(1 / errors[-1]) > 30


def test_jpeg_clips_and_halves_chroma():
    """A value beyond white must not wrap to black, and a colour that changes each pixel is lost at any quality."""
    beyond = np.full((3, 16, 16), 1.3, np.float32)
    beyond[:, 8:] = -0.3
    out = jpeg(beyond, 95)
    assert out[:, :6].min() > 0.95
    assert out[:, 10:].max() < 0.05
    columns = np.zeros((3, 16, 16), np.float32)
    columns[0, :, ::2] = columns[2, :, 1::2] = 1
    out = jpeg(columns, 95)
    assert np.abs(out[0] - out[2]).mean() < 0.3


def test_two_hundred_draws_end_in_a_picture(astronaut, monkeypatch):
    """No step may hand on a NaN: turned to 8 bits it is a number like any other."""
    as_bytes = _degrade._as_bytes

    def finite(picture):
        assert np.isfinite(picture).all()
        return as_bytes(picture)

    monkeypatch.setattr(_degrade, "_as_bytes", finite)
    for number in range(200):
        lr = RealEsrganDegradation(4)(astronaut[300:364, 10:74], _dice(19, number))
        assert lr.shape == (16, 16, 3)
        assert lr.flags["C_CONTIGUOUS"]
        assert lr.std() > 0
