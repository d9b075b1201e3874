"""The fp32 and the quantised net side by side, convolution by convolution."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy.export.quantisation._recipe import Recipe
from esrgan_deploy.export.quantisation._simulation import (
    convolution_of,
    quantised_input,
    quantised_output,
    rounded,
)
from esrgan_deploy.export.quantisation._structure import Layer

__all__ = ["Seen", "side_by_side"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """One quantised convolution on its calibration pictures, both nets side by side.

    Attributes:
        layer: Which.
        conv: It, in fp32.
        kind: ``"int8"`` or ``"fp8"``.
        steps: Of its weights, ``(C_out, 1, 1, 1)`` or ``()``.
        exact: ``(N, C_in, H, W)``, what it reads in the fp32 net.
        quantised: The same in the quantised net, rounded.
        wanted: ``(N, C_out, H, W)``, what it gives in the fp32 net.
    """

    layer: Layer
    conv: nn.Conv2d
    kind: str
    steps: Tensor
    exact: Tensor
    quantised: Tensor
    wanted: Tensor

    def run(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what it gives in the quantised net with these parameters, the weights rounded."""
        return functional.conv2d(
            self.quantised,
            rounded(weight, self.steps, self.kind, weights=True),
            bias,
            self.conv.stride,
            self.conv.padding,
        )


@torch.no_grad()
def side_by_side(
    module: nn.Module,
    found: Sequence[Layer],
    recipe: Recipe,
    pictures: Iterable[Tensor],
    change: Callable[[Seen], Tensor],
) -> tuple[Tensor, Tensor]:
    """Run the fp32 and the quantised net in one batch, convolution by convolution, and let each be changed.

    Everything else of a generator treats the pictures of a batch apart, so the one half can be quantised and the
    other not, and a convolution is changed before what follows it runs: one pass for the whole net.

    Args:
        module: The generator in fp32; it is not changed.
        found: Its convolutions.
        recipe: Which are quantised, and how; they are visited in the order in which they run.
        pictures: ``(1, C, H, W)`` float32 0..1, cut to the smallest height and width among them.
        change: Returns what the convolution shall give in the quantised net, ``(N, C_out, H, W)``.

    Returns:
        The outputs of the fp32 and of the quantised net.
    """
    known = list(pictures)
    if not known:
        raise ValueError("no pictures; calibration needs one at least")
    height, width = (min(picture.shape[axis] for picture in known) for axis in (2, 3))
    batch = torch.cat([picture[:, :, :height, :width] for picture in known])
    visited: list[nn.Conv2d] = []
    try:
        for layer in found:
            if layer.name in recipe.formats:
                conv = convolution_of(module, layer.name)
                conv.forward = _Side(layer, conv, recipe, change)  # type: ignore[method-assign, assignment]
                visited.append(conv)
        out: Tensor = module(torch.cat([batch, batch]))
    finally:
        for conv in visited:
            conv.__dict__.pop("forward", None)
    exact, quantised = out.chunk(2)
    return exact, quantised


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    layer: Layer
    conv: nn.Conv2d
    recipe: Recipe
    change: Callable[[Seen], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        conv, kind = self.conv, self.recipe.formats[self.layer.name]
        exact, quantised = x.chunk(2)
        steps = torch.from_numpy(np.array(self.recipe.weights[self.layer.name], np.float32))
        wanted = functional.conv2d(exact, conv.weight, conv.bias, conv.stride, conv.padding)
        seen = Seen(
            layer=self.layer,
            conv=conv,
            kind=kind,
            steps=steps.reshape(-1, 1, 1, 1) if steps.ndim else steps,
            exact=exact,
            quantised=quantised_input(quantised, self.recipe, self.layer),
            wanted=wanted,
        )
        made = quantised_output(self.change(seen), self.recipe, self.layer.name)
        return torch.cat([wanted, made])
