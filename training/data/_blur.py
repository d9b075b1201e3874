"""Real-ESRGAN's blur kernels (arXiv:2107.10833, sections 3.1 and 3.4) and the filter that applies them.

A kernel is ``(k, k)`` float32, k odd, sums to 1 and is the same turned by 180 degrees.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["blur", "draw_kernel", "draw_sinc_kernel", "gaussian_kernel", "plateau_kernel", "sinc_kernel"]

Array = npt.NDArray[np.float32]
Range = tuple[float, float]

# All from options/train_realesrgan_x4plus.yml and realesrgan/data/realesrgan_dataset.py of xinntao/Real-ESRGAN.
_SIZES = range(7, 22, 2)
_SINC_PROBABILITY = 0.1
# Gaussian, generalised Gaussian, plateau; each isotropic, then anisotropic.
_SHAPE_PROBABILITIES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_GENERALISED_BETA: Range = (0.5, 4.0)
_PLATEAU_BETA: Range = (1.0, 2.0)
# A kernel below 13 pixels cannot hold the first ring of a lower cutoff than a third of pi.
_WIDE_SINC_SIZE = 13
_SINC_CUTOFF: Range = (math.pi / 3, math.pi)
_WIDE_SINC_CUTOFF: Range = (math.pi / 5, math.pi)


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float = 1.0) -> Array:
    """Return the generalised Gaussian ``exp(-q**beta / 2)``, q the squared distance in standard deviations.

    Args:
        size: Side of the kernel in pixels, odd.
        sigma_x: Standard deviation along the first axis of the ellipse, in pixels.
        sigma_y: Along the second.
        theta: Turn of the ellipse in radians, from the column axis towards the row axis.
        beta: 1 is the Gaussian, less is more pointed with longer tails, more is flatter.
    """
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, theta) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> Array:
    """Return ``1 / (1 + q**beta)``, with the arguments of `gaussian_kernel`; no beta makes it a Gaussian."""
    return _normalised(1 / (1 + _squared_distance(size, sigma_x, sigma_y, theta) ** beta))


def sinc_kernel(size: int, cutoff: float) -> Array:
    """Return the circular ideal low-pass filter, cut off at the kernel's border: it rings and overshoots.

    The inverse transform of a disc, ``cutoff * J1(cutoff * r) / (2 * pi * r)``.

    Args:
        size: Side of the kernel in pixels, odd.
        cutoff: Radius of the disc in radians per pixel, up to pi.
    """
    offsets = _offsets(size)
    radius = np.hypot(offsets[:, None], offsets)
    # 0 / 0 in the middle, where the limit is known.
    radius[size // 2, size // 2] = 1.0
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    kernel = cutoff * bessel / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalised(kernel)


def draw_kernel(sigma: Range, dice: np.random.Generator) -> Array:
    """Draw one of the blurs: a sinc kernel at times, else one of the six shapes with their probabilities.

    Args:
        sigma: Range of the standard deviation in pixels.
        dice: Draws.
    """
    size = int(dice.choice(_SIZES))
    if dice.random() < _SINC_PROBABILITY:
        return sinc_kernel(
            size, dice.uniform(*(_SINC_CUTOFF if size < _WIDE_SINC_SIZE else _WIDE_SINC_CUTOFF))
        )
    shape, anisotropic = divmod(int(dice.choice(len(_SHAPE_PROBABILITIES), p=_SHAPE_PROBABILITIES)), 2)
    sigma_x = sigma_y = dice.uniform(*sigma)
    theta = 0.0
    if anisotropic:
        sigma_y, theta = dice.uniform(*sigma), dice.uniform(-math.pi, math.pi)
    if shape == 0:
        return gaussian_kernel(size, sigma_x, sigma_y, theta)
    if shape == 1:
        return gaussian_kernel(size, sigma_x, sigma_y, theta, _draw_beta(_GENERALISED_BETA, dice))
    return plateau_kernel(size, sigma_x, sigma_y, theta, _draw_beta(_PLATEAU_BETA, dice))


def draw_sinc_kernel(dice: np.random.Generator) -> Array:
    """Draw the filter that ends the degradation; its cutoff goes as low for every size."""
    return sinc_kernel(int(dice.choice(_SIZES)), dice.uniform(*_SINC_CUTOFF))


def blur(picture: Array, kernel: Array) -> Array:
    """Filter every channel with a kernel; the picture is reflected at its border, the border pixel not repeated.

    Where the kernel reaches further than the picture is wide, as a crop of 64 pixels that was shrunk to 9 makes
    it, the reflection is itself reflected. That is what Real-ESRGAN computes wherever its own padding is defined,
    keeps a constant constant, and favours no pixel, which a border repeated ten times over would.

    Args:
        picture: ``(C, H, W)`` float32, H and W from 1.
        kernel: ``(k, k)`` float32, k odd; the same turned by 180 degrees.

    Returns:
        ``(C, H, W)`` float32, beyond the picture's range where the kernel has negative values.
    """
    radius = kernel.shape[0] // 2
    height, width = picture.shape[1:]
    padded = np.pad(picture, ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    # By Fourier transform: a 21x21 kernel takes 3 ms for 256x256 pixels so, and 45 ms summed directly.
    # What wraps around falls on the 2*radius rows and columns that are cut off.
    lengths = [_fast_length(side) for side in padded.shape[1:]]
    spectrum = torch.fft.rfft2(torch.from_numpy(padded), s=lengths)
    spectrum *= torch.fft.rfft2(torch.from_numpy(kernel), s=lengths)
    out: Array = torch.fft.irfft2(spectrum, s=lengths).numpy()
    return out[:, 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width]


def _draw_beta(limits: Range, dice: np.random.Generator) -> float:
    # Below and above 1 are as likely. The plateau's range starts at 1, so that half of them have exactly that.
    return dice.uniform(limits[0], 1) if dice.random() < 0.5 else dice.uniform(1, limits[1])


def _squared_distance(size: int, sigma_x: float, sigma_y: float, theta: float) -> npt.NDArray[np.float64]:
    x, y = _offsets(size), _offsets(size)[:, None]
    along = (math.cos(theta) * x + math.sin(theta) * y) / sigma_x
    across = (math.cos(theta) * y - math.sin(theta) * x) / sigma_y
    return along**2 + across**2


def _offsets(size: int) -> npt.NDArray[np.float64]:
    return np.arange(size, dtype=np.float64) - size // 2


def _normalised(kernel: npt.NDArray[np.float64]) -> Array:
    out: Array = (kernel / kernel.sum()).astype(np.float32)
    return out


def _fast_length(size: int) -> int:
    # A prime length takes four times as long as the next one that is a product of 2, 3 and 5.
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1
