"""Real-ESRGAN's degradation (arXiv:2107.10833): what happens to a picture between a camera and a website.

Twice blur, resize, noise and JPEG, then a filter that rings. Between the steps a picture is ``(3, H, W)`` float32,
RGB, 0 to 1; blur and bicubic may leave that range, noise and JPEG clip to it.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from esrgan_deploy._optional import require
from esrgan_deploy.training.data._blur import blur, draw_kernel, draw_sinc_kernel

__all__ = ["Degradation", "RealEsrganDegradation", "gaussian_noise", "jpeg", "poisson_noise", "resize"]

Degradation = Callable[[npt.NDArray[np.uint8], np.random.Generator], npt.NDArray[np.uint8]]
"""From an HR crop ``(H, W, 3)`` uint8 RGB and what draws, to its LR ``(H/scale, W/scale, 3)`` uint8."""

Array = npt.NDArray[np.float32]
Range = tuple[float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class _Stage:
    """Probabilities and ranges of one blur, resize and noise."""

    blur_probability: float
    blur_sigma: Range
    # Enlarge, shrink, keep.
    resize_probabilities: tuple[float, float, float]
    resize_range: Range
    # Standard deviation in 8-bit steps.
    noise_sigma: Range
    # Factor on the noise that counting photons makes.
    poisson_scale: Range


# All from options/train_realesrgan_x4plus.yml of xinntao/Real-ESRGAN.
_FIRST = _Stage(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1.0, 30.0), (0.05, 3.0))
_SECOND = _Stage(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1.0, 25.0), (0.05, 2.5))
_GAUSSIAN_PROBABILITY = 0.5
_GRAY_PROBABILITY = 0.4
_JPEG_QUALITY = (30, 95)
_FINAL_SINC_PROBABILITY = 0.8
# realesrgan/models/realesrgan_model.py: one of the modes at each resize, the filter before or after the JPEG.
_MODES = ("area", "bilinear", "bicubic")
_JPEG_LAST_PROBABILITY = 0.5
# ITU-R BT.601, as torchvision's rgb_to_grayscale, with which Real-ESRGAN makes gray Poisson noise.
_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
_YCBCR_420 = 2


@dataclass(frozen=True)
class RealEsrganDegradation:
    """Real-ESRGAN's two-stage degradation, a `Degradation`.

    Differs from the authors' code where that computes on a GPU batch: a resize is given its target size and not a
    factor, so that LR lies on HR to the last column; JPEG is libjpeg with a whole quality; the degraded crop is
    not the middle of a larger one. Left out: the sharpening (USM) of the HR target, which belongs to the loss.

    Args:
        scale: HR pixels per LR pixel and axis.
    """

    scale: int

    def __call__(self, hr: npt.NDArray[np.uint8], dice: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Make the LR of a crop.

        Args:
            hr: ``(H, W, 3)`` uint8 RGB, in any memory layout; H and W are multiples of the scale.
            dice: Everything drawn comes from it.

        Returns:
            ``(H/scale, W/scale, 3)`` uint8 RGB.

        Raises:
            ValueError: A side is not a multiple of the scale.
        """
        height, width = hr.shape[:2]
        if height % self.scale or width % self.scale:
            raise ValueError(f"{hr.shape[:2]} is not a multiple of {self.scale} on both sides")
        size = height // self.scale, width // self.scale
        picture = _stage(_as_float(hr), (height, width), _FIRST, dice)
        picture = jpeg(picture, _draw_quality(dice))
        picture = _stage(picture, size, _SECOND, dice)
        # Any other order of these three makes lines that twist, the authors say.
        if dice.random() < _JPEG_LAST_PROBABILITY:
            picture = jpeg(_final(picture, size, dice), _draw_quality(dice))
        else:
            picture = _final(jpeg(picture, _draw_quality(dice)), size, dice)
        return _as_bytes(picture)


def resize(picture: Array, size: Size, mode: str) -> Array:
    """Resize as Real-ESRGAN does: bilinear and bicubic do not antialias, and alias where they shrink.

    Args:
        picture: ``(C, H, W)`` float32.
        size: Height and width to get.
        mode: ``"area"``, ``"bilinear"`` or ``"bicubic"``.

    Returns:
        ``(C, *size)`` float32; bicubic overshoots the picture's range.
    """
    if picture.shape[1:] == size:
        return picture
    batch = torch.from_numpy(picture)[None]
    out: Array = torch.nn.functional.interpolate(batch, size=size, mode=mode)[0].numpy()
    return out


def gaussian_noise(size: Size, sigma: float, gray: bool, dice: np.random.Generator) -> Array:
    """Draw the noise of a sensor's electronics, the same everywhere.

    Args:
        size: Height and width.
        sigma: Standard deviation in 8-bit steps.
        gray: One draw for the three channels of a pixel.
        dice: Draws.

    Returns:
        ``(3, H, W)`` float32 to be added to a picture of range 1, or ``(1, H, W)`` if gray.
    """
    return dice.standard_normal((1 if gray else 3, *size), np.float32) * np.float32(sigma / 255)


def poisson_noise(picture: Array, scale: float, gray: bool, dice: np.random.Generator) -> Array:
    """Draw the noise of counting photons: its variance grows with brightness.

    White is as many photons as the picture has different values, up to a power of two.

    Args:
        picture: ``(3, H, W)`` float32, 0 to 1; rounded to 8 bits for the count.
        scale: Factor on the noise.
        gray: Count the photons of the luma, and give the three channels the same noise.
        dice: Draws.

    Returns:
        ``(3, H, W)`` float32 to be added to the picture, or ``(1, H, W)`` if gray.
    """
    if gray:
        picture = np.tensordot(_LUMA, picture, 1)[None]
    steps = _rounded(picture)
    values = np.count_nonzero(np.bincount(steps.ravel(), minlength=256))
    white = 1 << (int(values) - 1).bit_length()
    expected = steps * np.float32(white / 255)
    noise: Array = (dice.poisson(expected) - expected).astype(np.float32)
    return noise * np.float32(scale / white)


def jpeg(picture: Array, quality: int) -> Array:
    """Encode and decode as JPEG with halved chroma, clipped and rounded to 8 bits first.

    Args:
        picture: ``(3, H, W)`` float32, 0 to 1.
        quality: 1 to 95, as libjpeg counts.

    Returns:
        ``(3, H, W)`` float32, 0 to 1, in steps of 1/255.
    """
    image = require("PIL.Image", extra="training")
    stream = io.BytesIO()
    image.fromarray(_as_bytes(picture)).save(stream, "JPEG", quality=quality, subsampling=_YCBCR_420)
    return _as_float(np.asarray(image.open(stream)))


def _stage(picture: Array, base: Size, stage: _Stage, dice: np.random.Generator) -> Array:
    # The size to resize to is a factor on `base`, whatever size the picture has.
    if dice.random() < stage.blur_probability:
        picture = blur(picture, draw_kernel(stage.blur_sigma, dice))
    picture = resize(picture, _draw_size(base, stage, dice), _draw_mode(dice))
    gaussian = dice.random() < _GAUSSIAN_PROBABILITY
    gray = dice.random() < _GRAY_PROBABILITY
    if gaussian:
        noise = gaussian_noise(picture.shape[1:], dice.uniform(*stage.noise_sigma), gray, dice)
    else:
        noise = poisson_noise(picture, dice.uniform(*stage.poisson_scale), gray, dice)
    noisy: Array = np.clip(picture + noise, 0, 1)
    return noisy


def _final(picture: Array, size: Size, dice: np.random.Generator) -> Array:
    picture = resize(picture, size, _draw_mode(dice))
    return blur(picture, draw_sinc_kernel(dice)) if dice.random() < _FINAL_SINC_PROBABILITY else picture


def _draw_size(base: Size, stage: _Stage, dice: np.random.Generator) -> Size:
    change = dice.choice(3, p=stage.resize_probabilities)
    low, high = stage.resize_range
    factor = (dice.uniform(1, high), dice.uniform(low, 1), 1.0)[change]
    # At least a pixel: a crop of 6 has none left at 0.15.
    return max(1, int(base[0] * factor)), max(1, int(base[1] * factor))


def _draw_mode(dice: np.random.Generator) -> str:
    return _MODES[dice.integers(len(_MODES))]


def _draw_quality(dice: np.random.Generator) -> int:
    return int(dice.integers(_JPEG_QUALITY[0], _JPEG_QUALITY[1], endpoint=True))


def _as_float(picture: npt.NDArray[np.uint8]) -> Array:
    return np.divide(np.ascontiguousarray(picture.transpose(2, 0, 1)), 255, dtype=np.float32)


def _as_bytes(picture: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(_rounded(picture).transpose(1, 2, 0))


def _rounded(picture: Array) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
