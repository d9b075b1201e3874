"""More bits for a few input channels of an FP8 convolution: what the rounding left of them is read too."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esrgan_deploy.export.graphs import Recipe
from esrgan_deploy.export.nets import Layer
from esrgan_deploy.export.quantisation._simulation import run_watched

__all__ = ["with_remainders"]


def with_remainders(
    module: nn.Module,
    layers: Sequence[Layer],
    recipe: Recipe,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    count: int = 4,
) -> Recipe:
    """Choose the channels whose rounding weighs most in each FP8 convolution that has a group of its own.

    E4M3 has three bits behind the first, and its error is a part of the value. The tail carries the picture itself
    through a few channels, far from 0 and seen by every weight, and those make nearly all of the error. With
    ``Q(x) + Q(x - Q(x))`` they have seven bits, at the cost of ``count`` more input channels, also in FP8. The idea
    is that of LLM.int8() (Dettmers et al., arXiv:2208.07339), which takes such channels out of the product.

    Args:
        module: The generator in fp32, with the recipe's parameters.
        layers: Its convolutions.
        recipe: Formats and steps.
        pictures: ``(1, H, W, C)`` uint8 to look at.
        count: Channels of each convolution, the same for all: tensor cores like multiples of 4 or 8.
    """
    names = [
        layer.name
        for layer in layers
        if layer.group == layer.name and recipe.formats.get(layer.name) == "fp8"
    ]
    power: dict[str, Tensor] = {}

    def watch(name: str, x: Tensor) -> None:
        power[name] = power.get(name, torch.zeros(x.shape[1])) + x.square().mean((0, 2, 3))

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, taken, name=name: watch(name, taken[0])
        )
        for name in names
    ]
    run_watched(module, hooks, pictures)
    chosen = {}
    for name, seen in power.items():
        weight = module.get_submodule(name).get_parameter("weight").detach()
        weighs = seen * weight.square().sum((0, 2, 3))
        chosen[name] = tuple(sorted(weighs.argsort(descending=True)[:count].tolist()))
    return dataclasses.replace(recipe, remainders=chosen)
