"""The downscaling that the super-resolution benchmarks were made with."""

import numpy as np
import numpy.typing as npt

__all__ = ["bicubic_downscale"]

_A = -0.5


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


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near = (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    far = _A * x**3 - 5 * _A * x**2 + 8 * _A * x - 4 * _A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
