"""Picture quality: PSNR and SSIM as the super-resolution papers report them.

Both follow BasicSR's ``calculate_psnr``/``calculate_ssim`` with ``crop_border`` and ``test_y_channel``, which
follow the MATLAB code of the SSIM paper (Wang et al., 2004): an 11×11 Gaussian window of sigma 1.5, over the
places where the window lies wholly inside the picture.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["crop_border", "luma", "psnr", "ssim"]

FloatArray = npt.NDArray[np.float64]


def luma(rgb: npt.NDArray[np.generic]) -> FloatArray:
    """Return the Y of ITU-R BT.601 in studio range, as MATLAB's ``rgb2ycbcr`` defines it.

    Args:
        rgb: ``(..., 3)``, 0..255, any dtype.

    Returns:
        ``(...)`` float64, 16..235, not rounded.
    """
    weights = np.array([65.481, 128.553, 24.966]) / 255.0
    return rgb.astype(np.float64) @ weights + 16.0


def crop_border(picture: npt.NDArray[np.generic], border: int) -> npt.NDArray[np.generic]:
    """Return the picture ``(H, W[, C])`` without ``border`` pixels on each side."""
    if border == 0:
        return picture
    return picture[border:-border, border:-border]


def psnr(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], *, peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB; ``inf`` for equal arrays, ``nan`` if either holds a NaN.

    Raises:
        ValueError: The shapes differ, or the arrays are empty.
    """
    _same_shape(a, b)
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    if error == 0.0:
        return float("inf")
    return float(10.0 * np.log10(peak**2 / error))


def ssim(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    """Return the structural similarity of two pictures in 0..255, the mean over channels.

    Args:
        a: ``(H, W)`` or ``(H, W, C)``.
        b: The same shape.

    Raises:
        ValueError: The shapes differ, or a side is under 11 pixels.
    """
    _same_shape(a, b)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs at least 11x11 pixels, got {a.shape[0]}x{a.shape[1]}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _gaussian(x), _gaussian(y)
    var_x = _gaussian(x * x) - mean_x**2
    var_y = _gaussian(y * y) - mean_y**2
    cov = _gaussian(x * y) - mean_x * mean_y
    score = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return float(score.mean())


def _gaussian(picture: FloatArray) -> FloatArray:
    # Separable, valid positions only: 11 shifted adds per axis.
    taps = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    for axis in (0, 1):
        length = picture.shape[axis] - 10
        places = [slice(i, i + length) for i in range(11)]
        if axis == 1:
            picture = picture.swapaxes(0, 1)
        total = taps[0] * picture[places[0]]
        for tap, place in zip(taps[1:], places[1:], strict=True):
            total += tap * picture[place]
        picture = total.swapaxes(0, 1) if axis == 1 else total
    return picture


def _same_shape(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> None:
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"two pictures of one size are compared, got {a.shape} and {b.shape}")
