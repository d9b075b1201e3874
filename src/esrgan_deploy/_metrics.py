"""The arithmetic of the super-resolution papers: how LR is made of HR, and PSNR and SSIM as they report them.

These two follow BasicSR's ``calculate_psnr``/``calculate_ssim`` with ``crop_border`` and ``test_y_channel``, which
follow the MATLAB code of the SSIM paper (Wang et al., 2004): an 11×11 Gaussian window of sigma 1.5, over the
places where the window lies wholly inside the picture.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["bicubic_downscale", "crop_border", "luma", "psnr", "ssim"]

FloatArray = npt.NDArray[np.float64]

# Of the bicubic kernel: MATLAB's.
A = -0.5


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


def bicubic_downscale(picture: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Shrink a picture by a whole factor with antialiased bicubic, as MATLAB's ``imresize`` family does.

    Height first, then width; rounded and clipped to 8 bits after each pass; the border pixel repeated outside.
    Bit-equal to the LR pictures of the Set5 and BSD100 benchmark sets.

    Args:
        picture: ``(H, W, C)`` uint8; H and W are multiples of the factor.
        factor: How many pixels become one.

    Returns:
        ``(H/factor, W/factor, C)`` uint8.

    Raises:
        ValueError: A side is not a multiple of the factor.
    """
    if picture.shape[0] % factor or picture.shape[1] % factor:
        raise ValueError(f"{picture.shape[:2]} is not a multiple of {factor} on both sides")
    rows = _shrink_rows(picture, factor)
    return _shrink_rows(rows.transpose(1, 0, 2), factor).transpose(1, 0, 2)


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


def _shrink_rows(picture: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    # The kernel is stretched by the factor: 4 taps become 4·factor, the same ones for every output row.
    taps = 4 * factor
    first = (factor - 1) / 2 - 2 * factor
    offsets = np.floor(first) + 1 + np.arange(taps)
    distance = np.abs(offsets - (factor - 1) / 2) / factor
    weights = _cubic(distance)
    weights /= weights.sum()
    size = picture.shape[0]
    centres = np.arange(size // factor) * factor
    out = np.zeros((size // factor, *picture.shape[1:]))
    for offset, weight in zip(offsets.astype(int), weights, strict=True):
        out += weight * picture[np.clip(centres + offset, 0, size - 1)]
    # Half up, as MATLAB rounds: numpy's own rounding goes to even.
    return np.clip(np.floor(out + 0.5), 0, 255).astype(np.uint8)


def _cubic(x: FloatArray) -> FloatArray:
    near = (A + 2) * x**3 - (A + 3) * x**2 + 1
    far = A * x**3 - 5 * A * x**2 + 8 * A * x - 4 * A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
