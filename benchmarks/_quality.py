"""Quality against the truth: PSNR and SSIM on folders of HR and LR pictures."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from esrgan_deploy._errors import MediaError
from esrgan_deploy._metrics import crop_border, luma, psnr, ssim
from esrgan_deploy._optional import require
from esrgan_deploy.runtime import Upscaler, open_session

__all__ = ["Quality", "measure_quality"]

_SUFFIXES = {".png", ".bmp", ".tif", ".tiff"}


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


def measure_quality(
    model: Path, folder: Path, *, crop: int | None = None, threads: int | None = None
) -> Quality:
    """Upscale ``folder/LR`` and compare it with ``folder/HR``; pictures pair by name.

    A half-precision graph on a processor is measured with every tensor really rounded (see `rounding_model`).

    Args:
        model: An .onnx or .plan.
        folder: Holds ``LR`` and ``HR``.
        crop: Border in HR pixels to leave out; None takes the scale, as the papers do.
        threads: Threads of ONNX Runtime on the CPU.

    Raises:
        MediaError: A folder is missing, or the pairs do not fit each other.
    """
    pairs = _pairs(folder)
    image = require("PIL.Image", extra="media")
    scores = []
    with _really_rounding(model) as (path, arithmetic), Upscaler(path, tile=0, threads=threads) as upscaler:
        border = int(np.ceil(float(upscaler.info.scale))) if crop is None else crop
        for lr, hr in pairs:
            with image.open(lr) as opened:
                result = upscaler.upscale(np.asarray(opened.convert("RGB")))
            with image.open(hr) as opened:
                truth = np.asarray(opened.convert("RGB"))
            # HR sides that are no multiple of the scale lose the rest: the LR pictures were made so.
            truth = truth[: result.shape[0], : result.shape[1]]
            if truth.shape != result.shape:
                raise MediaError(f"{lr} becomes {result.shape[:2]}, and {hr} is {truth.shape[:2]}")
            a, b = crop_border(truth, border), crop_border(result, border)
            scores.append((psnr(luma(a), luma(b)), ssim(luma(a), luma(b)), psnr(a, b), ssim(a, b)))
    means = np.mean(scores, axis=0)
    return Quality(
        pictures=len(scores),
        crop=border,
        psnr_y=float(means[0]),
        ssim_y=float(means[1]),
        psnr_rgb=float(means[2]),
        ssim_rgb=float(means[3]),
        arithmetic=arithmetic,
    )


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    low, high = folder / "LR", folder / "HR"
    for needed in (low, high):
        if not needed.is_dir():
            raise MediaError(f"{needed} is not a folder. --quality names a folder that holds LR and HR")
    names = sorted(path.name for path in low.iterdir() if path.suffix.lower() in _SUFFIXES)
    missing = [name for name in names if not (high / name).is_file()]
    if missing or not names:
        raise MediaError(f"{high} lacks {', '.join(missing[:3]) or 'every picture'}; pictures pair by name")
    return [(low / name, high / name) for name in names]


@contextlib.contextmanager
def _really_rounding(model: Path) -> Iterator[tuple[Path, str]]:
    if model.suffix != ".onnx":
        yield model, "the plan"
        return
    session = open_session(model)
    precision = session.info.precision or {np.dtype(np.float16): "fp16"}.get(session.info.dtype, "fp32")
    session.close()
    if precision == "fp32":
        yield model, "fp32 (ONNX Runtime)"
        return
    ir = require("onnx_ir", extra="export")
    from esrgan_deploy.export._rounding import MEASURED_AS, rounding_model

    graph = ir.load(model)
    with tempfile.TemporaryDirectory(prefix="esrgan-bench-") as name:
        path = Path(name) / model.name
        ir.save(rounding_model(graph, precision), path)
        yield path, MEASURED_AS.format(precision=precision)
