"""Calibration pictures through a net that hooks watch."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esrgan_deploy._errors import ExportError
from esrgan_deploy._parity import planar

__all__ = ["run_watched", "tensor_of"]


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


def tensor_of(picture: npt.NDArray[np.uint8]) -> Tensor:
    """Turn ``(N, H, W, C)`` uint8 into ``(N, C, H, W)`` float32 0..1."""
    return torch.from_numpy(planar(picture))
