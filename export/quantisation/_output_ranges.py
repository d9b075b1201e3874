"""What convolutions give, and how much of it eight bits should hold."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.quantisation._structure import Layer
from esrgan_deploy.export.quantisation._watched import run_watched

__all__ = ["output_ranges"]

_SLOPE = 0.2
_LEVELS = 255
_SAMPLES = 2**9
"""Pixels of each picture whose values are kept."""

_SHARES = np.linspace(1.0, 0.05, 20)


def output_ranges(
    module: nn.Module, layers: Iterable[Layer], pictures: Sequence[npt.NDArray[np.uint8]]
) -> dict[str, tuple[float, float]]:
    """Return the range that the output of each convolution is quantised over, in front of its activation.

    Without an activation it is all that is seen. An activation shrinks what lies below 0, and errors there with it,
    so that the range is cut off where the error behind it is least: the lowest values lose a little, and all others
    have finer steps.

    Args:
        module: The generator, fp32, in eval mode: an RRDBNet or an SRVGGNetCompact.
        layers: Its convolutions, as `_structure.layers` gives them.
        pictures: ``(1, H, W, C)`` uint8 each.

    Raises:
        ExportError: There is no picture, or an output is not a finite number.
    """
    watches = {layer.name: _Watch(layer.name) for layer in layers}
    hooks = [module.get_submodule(name).register_forward_hook(watch) for name, watch in watches.items()]
    run_watched(module, hooks, pictures)
    return {name: watch.range(_slopes_behind(module, name)) for name, watch in watches.items()}


class _Watch:
    """Extremes and a sample of what one convolution gives, as a hook behind it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._low, self._high = 0.0, 0.0
        self._samples: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        low, high = (float(value) for value in torch.aminmax(out))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ExportError(
                f"the output of {self._name} holds {low if not np.isfinite(low) else high} on a calibration "
                "picture: the net overflows in fp32, or its checkpoint is damaged"
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        pixels = out[0].flatten(1)
        self._samples.append(pixels[:, :: -(-pixels.shape[1] // _SAMPLES)].clone())

    def range(self, slopes: Tensor | None) -> tuple[float, float]:
        """Return the range, of which an activation with these slopes below 0, ``(C, 1)``, needs the most."""
        if slopes is None or self._low == 0.0:
            return self._low, self._high
        samples = torch.cat(self._samples, dim=1)
        wanted = torch.where(samples < 0, slopes * samples, samples)
        errors = []
        for share in _SHARES:
            step = (self._high - share * self._low) / _LEVELS
            made = (samples / step).round_().clamp_(round(share * self._low / step)).mul_(step)
            made = torch.where(made < 0, slopes * made, made)
            errors.append(float((made - wanted).square_().mean(dtype=torch.float64)))
        return float(_SHARES[int(np.argmin(errors))]) * self._low, self._high


def _slopes_behind(module: nn.Module, name: str) -> Tensor | None:
    parent, _, last = name.rpartition(".")
    if last.isdigit():
        # An SRVGGNetCompact alternates convolutions and PReLU.
        behind = dict(module.get_submodule(parent).named_children()).get(str(int(last) + 1))
        return behind.weight.detach().reshape(-1, 1) if isinstance(behind, nn.PReLU) else None
    if last in ("conv1", "conv2", "conv3", "conv4", "conv_hr") or last.startswith("conv_up"):
        return torch.tensor([[_SLOPE]])
    return None
