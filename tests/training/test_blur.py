"""Real-ESRGAN's blur kernels."""

import math

import numpy as np
import pytest

from esrgan_deploy.training.data import _blur
from esrgan_deploy.training.data._blur import (
    blur,
    draw_kernel,
    draw_sinc_kernel,
    gaussian_kernel,
    plateau_kernel,
    sinc_kernel,
)


def _dice(*seed):
    return np.random.default_rng(seed)


def test_every_drawn_kernel_keeps_brightness_and_place():
    """A sum beside 1 changes brightness, and a kernel that is not the same turned around moves the picture."""
    dice = _dice(9)
    kernels = [draw_kernel((0.2, 3.0), dice) for _ in range(1000)]
    kernels += [draw_sinc_kernel(dice) for _ in range(100)]
    for kernel in kernels:
        assert kernel.dtype == np.float32
        assert abs(kernel.sum(dtype=np.float64) - 1) < 1e-5
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-7)
    assert {kernel.shape for kernel in kernels} == {(size, size) for size in range(7, 22, 2)}


def test_kernels_have_the_shares_of_the_authors():
    """A tenth overshoots (only sinc does), and of the rest 0.31 is an ellipse."""
    dice = _dice(10)
    kernels = [draw_kernel((1.0, 3.0), dice) for _ in range(2000)]
    blurs = [kernel for kernel in kernels if kernel.min() >= 0]
    ellipses = [kernel for kernel in blurs if not np.allclose(kernel, kernel.T, atol=1e-6)]
    assert abs(1 - len(blurs) / 2000 - 0.1) < 0.03
    assert abs(len(ellipses) / len(blurs) - 0.31) < 0.05


def test_each_shape_comes_from_its_formula(monkeypatch):
    """Of 2000: 0.7 Gaussian, 0.15 generalised with beta 0.5 to 4, 0.15 plateau with beta 1 to 2, before sinc."""
    betas = {"gaussian_kernel": [], "plateau_kernel": []}
    for name, seen in betas.items():
        monkeypatch.setattr(_blur, name, lambda *a, seen=seen: seen.append(a[4] if len(a) > 4 else None))
    dice = _dice(11)
    for _ in range(2000):
        draw_kernel((0.2, 3.0), dice)
    generalised = np.array([beta for beta in betas["gaussian_kernel"] if beta is not None])
    plateau = np.array(betas["plateau_kernel"])
    assert abs(betas["gaussian_kernel"].count(None) / 1800 - 0.7) < 0.05
    for drawn, low, high in ((generalised, 0.5, 4), (plateau, 1, 2)):
        assert abs(len(drawn) / 1800 - 0.15) < 0.03
        assert low <= drawn.min() < low + 0.05
        assert high - 0.05 < drawn.max() <= high
        assert abs((drawn > 1).mean() - 0.5) < 0.12


def test_cutoffs_are_drawn_over_their_ranges(monkeypatch):
    """A wide kernel cuts as low as a fifth of pi; a narrow one and the last filter stop at a third."""
    cutoffs = []
    monkeypatch.setattr(_blur, "sinc_kernel", lambda *a: cutoffs.append(a))
    monkeypatch.setattr(_blur, "_SINC_PROBABILITY", 1.0)
    dice = _dice(21)
    for _ in range(1000):
        draw_kernel((0.2, 3.0), dice)
    blurs, cutoffs[:] = np.array(cutoffs), []
    for _ in range(1000):
        draw_sinc_kernel(dice)
    last = np.array(cutoffs)
    assert set(blurs[blurs[:, 1] < math.pi / 3, 0]) == {13, 15, 17, 19, 21}
    for drawn, low in ((blurs[blurs[:, 0] >= 13], 5), (blurs[blurs[:, 0] < 13], 3), (last, 3)):
        assert math.pi / low <= drawn[:, 1].min() < math.pi / low + 0.05
        assert math.pi - 0.05 < drawn[:, 1].max() <= math.pi


def test_a_gaussian_has_the_asked_width_and_turn():
    """Moments of the kernel: the covariance of an ellipse turned by 30 degrees."""
    kernel = gaussian_kernel(41, 4.0, 2.0, math.pi / 6).astype(float)
    y, x = np.mgrid[-20:21, -20:21]
    covariance = [
        [(kernel * x * x).sum(), (kernel * x * y).sum()],
        [(kernel * x * y).sum(), (kernel * y * y).sum()],
    ]
    turn = np.array(
        [[math.cos(math.pi / 6), -math.sin(math.pi / 6)], [math.sin(math.pi / 6), math.cos(math.pi / 6)]]
    )
    np.testing.assert_allclose(covariance, turn @ np.diag([16.0, 4.0]) @ turn.T, rtol=0.01)


@pytest.mark.parametrize("kernel", [gaussian_kernel, plateau_kernel])
def test_equal_sigmas_make_a_circle_whatever_the_turn(kernel):
    """The isotropic kernels are the same along both axes and both diagonals."""
    circle = kernel(15, 1.7, 1.7, 0.9, 1.4)
    np.testing.assert_allclose(circle, circle.T, atol=1e-7)
    np.testing.assert_allclose(circle, circle[::-1], atol=1e-7)
    np.testing.assert_allclose(circle, kernel(15, 1.7, 1.7, 0.0, 1.4), atol=1e-7)


def test_beta_flattens():
    """Beta 1 is the Gaussian, known from the product of two; the plateau at a distance of one sigma is half."""
    line = np.exp(-0.5 * (np.arange(-10, 11) / 2.5) ** 2)
    np.testing.assert_allclose(
        gaussian_kernel(21, 2.5, 2.5, 0.3, 1.0), np.outer(line, line) / line.sum() ** 2, atol=1e-7
    )
    np.testing.assert_array_equal(gaussian_kernel(21, 2.5, 1.0, 0.3, 1.0), gaussian_kernel(21, 2.5, 1.0, 0.3))
    for beta in (1.0, 1.5, 2.0):
        plateau = plateau_kernel(21, 3.0, 3.0, 0.0, beta)
        np.testing.assert_allclose(plateau[10, 13] / plateau[10, 10], 0.5, rtol=1e-5)
        np.testing.assert_allclose(plateau[10, 16] / plateau[10, 10], 1 / (1 + 4**beta), rtol=1e-5)
    flat, pointed = (gaussian_kernel(21, 3.0, 3.0, 0.0, beta) for beta in (4.0, 0.5))
    assert flat[10, 12] / flat[10, 10] > 0.9 > 0.8 > pointed[10, 12] / pointed[10, 10]


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2, 2])
def test_a_sinc_kernel_passes_below_its_cutoff_and_stops_above(cutoff):
    """The ringing at edges comes from a cut this steep."""
    response = np.abs(np.fft.fft2(sinc_kernel(21, cutoff), s=(256, 256))) ** 2
    axis = 2 * math.pi * np.fft.fftfreq(256)
    frequency = np.hypot(axis[:, None], axis)
    below, above = response[frequency < 0.8 * cutoff], response[frequency > 1.2 * cutoff]
    assert 0.65 < below.min() < below.max() < 1.45
    assert above.max() < 0.02
    assert above.sum() < 0.01 * below.sum()
    at = response[np.abs(frequency - cutoff) < 0.02]
    np.testing.assert_allclose(np.sqrt(at.mean()), 0.5, atol=0.05)


@pytest.mark.parametrize("size", [(40, 33), (9, 10), (2, 3), (1, 1)])
def test_blur_is_the_sum_over_the_kernel_at_any_size(size):
    """Where the kernel reaches beyond the picture more than once, too."""
    picture = _dice(12).random((3, *size), np.float32)
    kernel = gaussian_kernel(21, 3.0, 1.0, 0.7)
    expected = np.zeros_like(picture)
    for dy in range(-10, 11):
        for dx in range(-10, 11):
            rows, columns = (
                _mirrored(np.arange(side) + shift, side) for side, shift in zip(size, (dy, dx), strict=True)
            )
            expected += kernel[dy + 10, dx + 10] * picture[:, rows[:, None], columns]
    np.testing.assert_allclose(blur(picture, kernel), expected, atol=1e-5)


def _mirrored(index, side):
    if side == 1:
        return np.zeros_like(index)
    index = index % (2 * (side - 1))
    return np.minimum(index, 2 * (side - 1) - index)
