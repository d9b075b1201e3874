"""Quality against the truth: PSNR and SSIM over folders of HR and LR pictures that pair by name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import MediaError
from esrgan_deploy._metrics import crop_border, luma, psnr, ssim
from esrgan_deploy._optional import require

__all__ = ["Quality", "measure_pairs", "paired_pictures"]

# Lossless: what JPEG changed is no truth.
_SUFFIXES = {".png", ".bmp", ".tif", ".tiff"}

Picture = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over a set of pictures, as the papers report them.

    Attributes:
        pictures: Number of pictures.
        crop: Pixels left out on each side.
        psnr_y: dB of the BT.601 luma.
        ssim_y: SSIM of the luma.
        psnr_rgb: dB over the three channels.
        ssim_rgb: Mean SSIM of the three channels.
        arithmetic: What computed the pictures.
    """

    pictures: int
    crop: int
    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float
    arithmetic: str


def measure_pairs(
    upscale: Callable[[Picture], Picture], folder: Path, *, crop: int, arithmetic: str
) -> Quality:
    """Upscale every picture of ``folder/LR`` and compare it with its namesake in ``folder/HR``.

    Args:
        upscale: Takes and returns ``(H, W, 3)`` uint8.
        folder: Holds ``LR`` and ``HR``.
        crop: Border in HR pixels to leave out.
        arithmetic: What computes the pictures, for the record.

    Raises:
        MediaError: A folder is missing, or the pairs do not fit each other.
    """
    image = require("PIL.Image", extra="media")
    scores = []
    for lr, hr in paired_pictures(folder):
        with image.open(lr) as opened:
            result = upscale(np.asarray(opened.convert("RGB")))
        with image.open(hr) as opened:
            truth = np.asarray(opened.convert("RGB"))
        # HR sides that are no multiple of the scale lose the rest: the LR pictures were made so.
        truth = truth[: result.shape[0], : result.shape[1]]
        if truth.shape != result.shape:
            raise MediaError(f"{lr} becomes {result.shape[:2]}, and {hr} is {truth.shape[:2]}")
        a, b = crop_border(truth, crop), crop_border(result, crop)
        scores.append((psnr(luma(a), luma(b)), ssim(luma(a), luma(b)), psnr(a, b), ssim(a, b)))
    means = np.mean(scores, axis=0)
    return Quality(
        pictures=len(scores),
        crop=crop,
        psnr_y=float(means[0]),
        ssim_y=float(means[1]),
        psnr_rgb=float(means[2]),
        ssim_rgb=float(means[3]),
        arithmetic=arithmetic,
    )


def paired_pictures(folder: Path) -> list[tuple[Path, Path]]:
    """Return the LR and HR files of a benchmark set, which pair by name.

    Raises:
        MediaError: ``folder/LR`` or ``folder/HR`` is missing, LR is empty, or HR lacks one of its names.
    """
    low, high = folder / "LR", folder / "HR"
    for needed in (low, high):
        if not needed.is_dir():
            raise MediaError(
                f"{needed} is not a folder. Quality is measured on a folder that holds LR and HR"
            )
    names = sorted(path.name for path in low.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    missing = [name for name in names if not (high / name).is_file()]
    if missing or not names:
        raise MediaError(f"{high} lacks {', '.join(missing[:3]) or 'every picture'}; pictures pair by name")
    return [(low / name, high / name) for name in names]
