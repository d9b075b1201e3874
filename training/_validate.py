"""Validation: the figures of the papers, by the code that `esrgan-bench --quality` uses."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from esrgan_deploy._quality import Quality, measure_pairs

__all__ = ["validate"]

Picture = npt.NDArray[np.uint8]


@torch.no_grad()
def validate(net: nn.Module, folder: Path, scale: int) -> Quality:
    """Upscale ``folder/LR`` with a net in float32 and compare with ``folder/HR``; the border cropped is the scale.

    Raises:
        MediaError: A folder is missing, or the pairs do not fit each other.
    """
    device = next(net.parameters()).device

    def upscale(picture: Picture) -> Picture:
        lr = torch.from_numpy(picture.copy()).to(device).permute(2, 0, 1)[None].float() / 255.0
        out = (net(lr).clamp(0, 1) * 255.0).round().to(torch.uint8)
        result: Picture = out[0].permute(1, 2, 0).cpu().numpy()
        return result

    return measure_pairs(upscale, folder, crop=scale, arithmetic="fp32 (PyTorch)")
