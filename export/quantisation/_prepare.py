"""From a net and calibration pictures to the recipe that quantises all that can be."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.quantisation import _equalise, _ranges
from esrgan_deploy.export.quantisation._bias import correct_bias
from esrgan_deploy.export.quantisation._compensate import compensated, fitted_last
from esrgan_deploy.export.quantisation._options import PARTS, QuantiseOptions
from esrgan_deploy.export.quantisation._recipe import Recipe, weight_steps
from esrgan_deploy.export.quantisation._reconstruct import reconstruct
from esrgan_deploy.export.quantisation._remainders import with_remainders
from esrgan_deploy.export.quantisation._simulation import apply_parameters
from esrgan_deploy.export.quantisation._structure import Layer
from esrgan_deploy.export.quantisation._watched import tensor_of

__all__ = ["prepare", "round_weights", "rounding_of", "scaled"]

_COMPENSATE = 24
"""Pictures that weights are rounded on, at most: both nets are in memory for all of them at once."""

_PIXELS = 64
"""For each unknown of a row of weights: with 8, an SRVGGNetCompact is 2 dB further from fp32."""

_METHODS = {"int8": "mse", "fp8": "max"}
"""Where the folder holds extreme crops, equal steps up to their largest value are coarse for all others; a float's
are not."""

_REMAINDERS = 4
"""Channels of an FP8 convolution of the tail that are read twice. The picture itself is carried by some three."""


def prepare(
    module: nn.Module,
    spec: ModelSpec,
    found: Sequence[Layer],
    kind: str,
    options: QuantiseOptions,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    unsigned: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Recipe:
    """Equalise, choose scales, round: `scaled` and `round_weights`, with the same arguments."""
    recipe = scaled(module, spec, found, kind, options, pictures, unsigned=unsigned, say=say)
    return round_weights(module, spec, found, recipe, options, pictures, unsigned=unsigned, say=say)


def scaled(
    module: nn.Module,
    spec: ModelSpec,
    found: Sequence[Layer],
    kind: str,
    options: QuantiseOptions,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    unsigned: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Recipe:
    """Return steps for all that can be quantised, on an exact rewriting of the net.

    Args:
        module: The generator in fp32; it has the recipe's exact parameters afterwards.
        spec: What it is.
        found: Its convolutions.
        kind: ``"int8"`` or ``"fp8"``.
        options: How.
        pictures: ``(1, H, W, C)`` uint8 to calibrate on.
        unsigned: For the graph for processors: its outputs are rounded too, which equalised channels of the tail
            make worse, and it rounds weights by a rule of its own.
        say: Receives a line of progress now and then.

    Raises:
        ExportError: An activation is not a finite number.
    """
    candidates = [layer for layer in found if layer.place in PARTS[options.parts]]
    per_channel = kind == "int8" if options.per_channel is None else options.per_channel
    parameters: dict[str, npt.NDArray[np.float32]] = {}
    if options.equalise:
        say("equalising channels")
        seen = _equalise.observe(module, spec, _tensors(pictures))
        inner = [layer.name for layer in candidates if layer.place == "body" or not unsigned]
        parameters = _equalise.equalise(module, spec, seen, kind=kind, per_channel=per_channel, names=inner)
        apply_parameters(module, Recipe(formats={}, activations={}, weights={}, parameters=parameters))
    say("choosing scales")
    observed = _ranges.observe(module, found, pictures)
    groups = dict.fromkeys((layer.group for layer in candidates), kind)
    recipe = Recipe(
        formats=dict.fromkeys((layer.name for layer in candidates), kind),
        activations=_ranges.activation_steps(observed, groups, options.method or _METHODS[kind]),
        weights={
            layer.name: weight_steps(_weight(module, layer), layer, kind, per_channel=per_channel)
            for layer in candidates
        },
        parameters=parameters,
    )
    count = _REMAINDERS if options.remainders is None else options.remainders
    if kind == "fp8" and count:
        recipe = with_remainders(module, found, recipe, pictures[:_COMPENSATE], count=count)
    return recipe


def round_weights(
    module: nn.Module,
    spec: ModelSpec,
    found: Sequence[Layer],
    recipe: Recipe,
    options: QuantiseOptions,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    unsigned: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Recipe:
    """Round the weights of what a recipe quantises, each making up for what was rounded before it.

    Args:
        module: The generator with the recipe's exact parameters; it is not changed.
        spec: What it is.
        found: Its convolutions.
        recipe: Of `scaled`; `Recipe.only` of it rounds for a part of it, as that part needs.
        options: How.
        pictures: ``(1, H, W, C)`` uint8 to calibrate on.
        unsigned: See `scaled`.
        say: Receives a line of progress now and then.
    """
    rounding = rounding_of(options, recipe, unsigned=unsigned)
    if rounding == "nearest":
        return recipe
    if rounding == "learned":
        say("learning which way weights are rounded")
        return reconstruct(module, found, recipe, pictures, say=say)
    tensors = _tensors(pictures[:_COMPENSATE])
    if rounding == "corrected":
        say("taking back what rounding moves each channel by")
        moved = correct_bias(module, spec, recipe, tensors)
        return dataclasses.replace(recipe, parameters={**recipe.parameters, **moved})
    say("rounding weights, each making up for those before it")
    # A dense block loses nothing to speak of, and rounding all of it takes most of the time.
    dense = spec.architecture == "rrdbnet"
    names = [layer.name for layer in found if not (dense and layer.place == "body")]
    changed = compensated(module, spec, recipe, tensors, names=names, pixels=_PIXELS)
    recipe = dataclasses.replace(recipe, parameters={**recipe.parameters, **changed})
    if found[-1].name in recipe.formats:
        return recipe
    last = fitted_last(module, spec, recipe, tensors)
    return dataclasses.replace(recipe, parameters={**recipe.parameters, **last})


def rounding_of(options: QuantiseOptions, recipe: Recipe, *, unsigned: bool) -> str:
    """Return how weights are rounded: as was asked for, or as serves the format best."""
    if options.rounding is not None:
        return options.rounding
    return "learned" if "fp8" in recipe.formats.values() else "nearest" if unsigned else "compensated"


def _tensors(pictures: Sequence[npt.NDArray[np.uint8]]) -> list[torch.Tensor]:
    return [tensor_of(picture) for picture in pictures]


def _weight(module: nn.Module, layer: Layer) -> npt.NDArray[np.float32]:
    weight: npt.NDArray[np.float32] = (
        module.get_submodule(layer.name).get_parameter("weight").detach().numpy()
    )
    return weight
