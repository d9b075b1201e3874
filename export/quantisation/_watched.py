"""Calibration pictures through a net that hooks watch."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esrgan_deploy._errors import ExportError
from esrgan_deploy._parity import planar

__all__ = ["finite_ends", "run_watched", "tensor_of"]


def run_watched(
    module: nn.Module, hooks: Iterable[RemovableHandle], pictures: Sequence[npt.NDArray[np.uint8]]
) -> None:
    """Run a net on pictures, one in memory at a time, and remove the hooks whatever happens.

    Args:
        module: The generator, fp32, in eval mode.
        hooks: Those that watch it.
        pictures: ``(1, H, W, C)`` uint8 each.

    Raises:
        ExportError: There is no picture.
    """
    try:
        if not pictures:
            raise ExportError(
                "there is no picture to calibrate on. Run: --calibration DIR with pictures in it"
            )
        with torch.inference_mode():
            for picture in pictures:
                module(tensor_of(picture))
    finally:
        for hook in hooks:
            hook.remove()


def finite_ends(x: Tensor, name: str) -> tuple[float, float]:
    """Return the least and the largest value of a tensor that a hook sees.

    Args:
        x: Any shape.
        name: What it is, for the error.

    Raises:
        ExportError: One of them is not a finite number.
    """
    low, high = (float(value) for value in torch.aminmax(x))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ExportError(
            f"{name} holds {low if not math.isfinite(low) else high} on a calibration picture: the net overflows in "
            "fp32, or its checkpoint is damaged"
        )
    return low, high


def tensor_of(picture: npt.NDArray[np.uint8]) -> Tensor:
    """Turn ``(N, H, W, C)`` uint8 into ``(N, C, H, W)`` float32 0..1."""
    return torch.from_numpy(planar(picture))
