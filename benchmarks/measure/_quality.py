"""Quality of an artefact: PSNR and SSIM on folders of HR and LR pictures."""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from esrgan_deploy._files import PLANS
from esrgan_deploy._optional import require
from esrgan_deploy._quality import Quality, measure_pairs
from esrgan_deploy.runtime import Upscaler, open_session

__all__ = ["measure_quality"]


def measure_quality(model: Path, folder: Path, *, threads: int | None = None) -> Quality:
    """Upscale ``folder/LR`` and compare it with ``folder/HR``; pictures pair by name, the scale is cropped.

    A half-precision graph on a processor is measured with every tensor really rounded (see `rounding_model`).

    Args:
        model: An .onnx, a .plan, or a checkpoint.
        folder: Holds ``LR`` and ``HR``.
        threads: Threads of ONNX Runtime on the CPU.

    Raises:
        MediaError: A folder is missing, or the pairs do not fit each other.
    """
    with (
        _really_rounding(model) as (path, arithmetic),
        # The bare net on the whole picture, as the papers and PyTorch have it.
        Upscaler(path, tile=0, edge="zero", threads=threads) as upscaler,
    ):
        # As the papers do.
        border = math.ceil(upscaler.info.scale)
        return measure_pairs(upscaler.upscale, folder, crop=border, arithmetic=arithmetic)


@contextlib.contextmanager
def _really_rounding(model: Path) -> Iterator[tuple[Path, str]]:
    if model.suffix != ".onnx":
        yield model, "the plan" if model.suffix.lower() in PLANS else "PyTorch in fp32"
        return
    session = open_session(model)
    precision = session.info.precision or {np.dtype(np.float16): "fp16"}.get(session.info.dtype, "fp32")
    session.close()
    if precision == "fp32":
        yield model, "fp32 (ONNX Runtime)"
        return
    ir = require("onnx_ir", extra="export")
    from esrgan_deploy.export.graphs import measured_as, rounding_model, runs_as_it_is

    if runs_as_it_is(precision):
        yield model, measured_as(precision)
        return
    graph = ir.load(model)
    with tempfile.TemporaryDirectory(prefix="esrgan-bench-") as name:
        path = Path(name) / model.name
        ir.save(rounding_model(graph, precision), path)
        yield path, measured_as(precision)
