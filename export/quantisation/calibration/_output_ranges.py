"""What convolutions give, and how much of it eight bits should hold."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs import UNSIGNED, unsigned_grid
from esrgan_deploy.export.nets import Layer, RRDBNet, rescalings
from esrgan_deploy.export.quantisation._simulation import finite_ends, run_watched

__all__ = ["aligned", "output_ranges"]

Range = tuple[float, float]

_SLOPE = 0.2
_SAMPLES = 2**9
"""Pixels of each picture whose values are kept."""

_SHARES = np.linspace(1.0, 0.05, 20)


def output_ranges(
    module: nn.Module, layers: Iterable[Layer], pictures: Sequence[npt.NDArray[np.uint8]]
) -> dict[str, tuple[float, float]]:
    """Return the range that the output of each convolution is quantised over, in front of its activation.

    Without an activation it is all that is seen. An activation shrinks what lies below 0, and errors there with it,
    so that the range is cut off where the error behind it is least: the lowest values lose a little, and all others
    have finer steps. The last convolution of an RRDBNet gives the picture: 0..1, whose 255 steps are the levels that
    an 8-bit file has.

    Args:
        module: The generator, fp32, in eval mode: an RRDBNet or an SRVGGNetCompact.
        layers: Its convolutions, as `nets.layers` gives them.
        pictures: ``(1, H, W, C)`` uint8 each.

    Raises:
        ExportError: There is no picture, or an output is not a finite number.
    """
    watches = {layer.name: _OutputRange(layer.name) for layer in layers}
    hooks = [module.get_submodule(name).register_forward_hook(watch) for name, watch in watches.items()]
    run_watched(module, hooks, pictures)
    ranges = {name: watch.range(_slopes_behind(module, name)) for name, watch in watches.items()}
    if isinstance(module, RRDBNet) and "conv_last" in ranges:
        ranges["conv_last"] = 0.0, 1.0
    return ranges


def aligned(
    inputs: Mapping[str, Range], outputs: Mapping[str, Range], spec: ModelSpec
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Give both sides of an activation one step where that is better: what is above 0 is then rounded once.

    Where one convolution makes what is read, both ranges are widened to the larger: in the tail of an RRDBNet the
    picture itself passes, always above 0. A dense block has one step for its input and four features: each of those
    takes it where its range fits.

    Args:
        inputs: By `Layer.group`, the range of what is read.
        outputs: By `Layer.name`, the range in front of the activation.
        spec: What the net is.

    Returns:
        Both, changed.
    """
    read, made = dict(inputs), dict(outputs)
    pairs = [(one.makers[0], one.group) for one in rescalings(spec) if one.group]
    makers = Counter(group for _, group in pairs)
    for maker, group in pairs:
        if group not in read or maker not in made:
            continue
        (low, high), (least, most) = read[group], made[maker]
        if makers[group] == 1:
            span = max(high - low, most - least)
            read[group] = low, low + span
            # What else there is room for lies below 0, where it was cut off.
            made[maker] = most - span, most
            continue
        step, zero = unsigned_grid(low, high)
        lowest, highest = math.ceil(-least / step), UNSIGNED - math.ceil(most / step)
        if lowest <= highest:
            zero = min(max(zero, lowest), highest)
            made[maker] = -zero * step, (UNSIGNED - zero) * step
    return read, made


class _OutputRange:
    """Extremes and a sample of what one convolution gives, as a hook behind it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._low, self._high = 0.0, 0.0
        self._samples: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        low, high = finite_ends(out, f"the output of {self._name}")
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
            step = (self._high - share * self._low) / UNSIGNED
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
