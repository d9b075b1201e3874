"""From a net and calibration pictures to the recipe that quantises all that can be."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs import Recipe, fitted, weight_steps
from esrgan_deploy.export.nets import Layer, rescalings
from esrgan_deploy.export.quantisation._options import PARTS, QuantiseOptions
from esrgan_deploy.export.quantisation._simulation import apply_parameters, tensor_of
from esrgan_deploy.export.quantisation.calibration import (
    activation_steps,
    aligned,
    low_high,
    observe,
    output_ranges,
)
from esrgan_deploy.export.quantisation.weights import (
    compensated,
    factors,
    fitted_last,
    multipliers,
    noise_gains,
    reconstruct,
    rescaled,
    with_remainders,
)

__all__ = ["Preparation"]

_COMPENSATE = 24
"""Pictures that weights are rounded on, at most: both nets are in memory for all of them at once."""

_DEEP = 1e7
"""Floating-point operations for a pixel of the input: an RRDBNet of 4 blocks and 32 features has a tenth of it."""

_FIT = 1e12
"""Floating-point operations that fitting the last convolution may cost, which each choice of a search has done."""

_PIXELS, _DENSE_PIXELS = 64, 8
"""For each unknown of a row of weights: with 8, an SRVGGNetCompact is 2 dB further from fp32. A dense block has three
times as many unknowns, whose moments cost the square of that, and is not fitted but compensated alone."""

_METHODS = {"int8": "mse", "fp8": "max"}
"""Where the folder holds extreme crops, equal steps up to their largest value are coarse for all others; a float's
are not."""

_REMAINDERS = 4
"""Channels of an FP8 convolution of the tail that are read twice. The picture itself is carried by some three."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """One net, and how it is to be quantised.

    Attributes:
        module: The generator in fp32; `scaled` gives it the recipe's exact parameters.
        spec: What it is.
        layers: Its convolutions.
        kind: ``"int8"`` or ``"fp8"``.
        options: How.
        pictures: ``(1, H, W, C)`` uint8 to calibrate on.
        unsigned: For the graph for processors: its outputs are rounded too, which equalised channels of the tail
            make worse, and its weights have a rule of their own, see `fitted`.
        say: Receives a line of progress now and then.
    """

    module: nn.Module
    spec: ModelSpec
    layers: Sequence[Layer]
    kind: str
    options: QuantiseOptions
    pictures: Sequence[npt.NDArray[np.uint8]]
    unsigned: bool = False
    say: Callable[[str], None] = lambda line: None

    @property
    def rounding(self) -> str:
        """How weights are rounded: as was asked for, or as serves the format best."""
        if self.options.rounding is not None:
            return self.options.rounding
        # Of a deep net learning affords a few steps for each dense block, and those make nothing better.
        deep = (self.spec.flops_per_pixel or 0) > _DEEP
        return "learned" if self.kind == "fp8" and not deep else "compensated"

    @property
    def parts(self) -> str:
        """What may be quantised: as was asked for, or as serves the format best."""
        if self.options.parts is not None:
            return self.options.parts
        # On a processor the last convolution of an RRDBNet takes as long in fp32 as a third of all others in
        # integers, and its output in steps of a level is what an 8-bit file holds.
        return "but-first" if self.unsigned and self.spec.architecture == "rrdbnet" else "inner"

    def scaled(self) -> Recipe:
        """Return steps for all that can be quantised, on an exact rewriting of the net.

        Raises:
            ExportError: An activation is not a finite number.
        """
        options, kind = self.options, self.kind
        # For TensorRT a convolution of an enlarged picture is a transposed one of the small picture, in half
        # precision: it moves fewer bytes than the wide one in eight bits, at less than half of the multiply-adds.
        transposed = options.parts is None and not self.unsigned
        candidates = [
            layer
            for layer in self.layers
            if layer.place in PARTS[self.parts] and not (transposed and layer.enlarges)
        ]
        per_channel = kind == "int8" if options.per_channel is None else options.per_channel
        parameters: dict[str, npt.NDArray[np.float32]] = {}
        multiplied: dict[str, npt.NDArray[np.float32]] = {}
        if options.equalise:
            self.say("equalising channels")
            seen = noise_gains(self.module, self.spec, map(tensor_of, self.pictures))
            inner = [layer.name for layer in candidates if layer.place == "body" or not self.unsigned]
            sets = rescalings(self.spec, multiplied=not self.unsigned)
            found = factors(
                self.module, self.spec, seen, kind=kind, per_channel=per_channel, sets=sets, names=inner
            )
            parameters, multiplied = rescaled(self.module, sets, found), multipliers(sets, found)
            exact = Recipe(formats={}, activations={}, weights={}, parameters=parameters)
            apply_parameters(self.module, exact)
        self.say("choosing scales")
        observed = observe(self.module, self.layers, self.pictures, multiplied)
        groups = dict.fromkeys((layer.group for layer in candidates), kind)
        recipe = Recipe(
            formats=dict.fromkeys((layer.name for layer in candidates), kind),
            activations=activation_steps(observed, groups, options.method or _METHODS[kind]),
            weights={
                layer.name: fitted(_weight(self.module, layer))[1]
                if self.unsigned
                else weight_steps(self._read(layer, multiplied), layer, kind, per_channel=per_channel)
                for layer in candidates
            },
            parameters=parameters,
            multipliers=multiplied,
        )
        if self.unsigned:
            inputs, outputs = aligned(
                {group: low_high(seen) for group, seen in observed.items()},
                output_ranges(self.module, self.layers, self.pictures),
                self.spec,
            )
            recipe = dataclasses.replace(recipe, inputs=inputs, outputs=outputs)
        count = _REMAINDERS if options.remainders is None else options.remainders
        if kind == "fp8" and count:
            few = self.pictures[:_COMPENSATE]
            recipe = with_remainders(self.module, self.layers, recipe, few, count=count)
        return recipe

    def rounded(self, recipe: Recipe, *, alone: bool = False) -> Recipe:
        """Round the weights of what a recipe of `scaled` quantises, each making up for what was rounded before it.

        `Recipe.only` of the recipe of `scaled` is rounded as that part alone needs: what it does not quantise keeps
        its exact parameters, but for the last convolution, which is fitted to what is in front of it.

        Args:
            recipe: Of `scaled`, or a part of it.
            alone: Whether each convolution is rounded as if no other were quantised, and the last is left as it is.
        """
        if self.rounding == "nearest" or not recipe.formats:
            return recipe
        if self.rounding == "learned":
            self.say("learning which way weights are rounded")
            return reconstruct(self.module, self.layers, recipe, self.pictures, say=self.say)
        self.say("rounding weights, each making up for those before it")
        changed = compensated(
            self.module,
            self.spec,
            recipe,
            self._tensors(),
            pixels=_PIXELS,
            dense_pixels=_DENSE_PIXELS,
            alone=alone,
        )
        return _with(recipe, changed) if alone else self._last_fitted(_with(recipe, changed))

    def part(self, exact: Recipe, rounded: Recipe, names: Sequence[str]) -> Recipe:
        """Return a part of what was rounded as a whole, for weights that take too long to be rounded again.

        Args:
            exact: Of `scaled`.
            rounded: What `rounded` made of it.
            names: What is quantised. All else has its exact parameters, but for the last convolution.
        """
        own = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
        chosen = {name: value for name, value in rounded.parameters.items() if name in own}
        return self._last_fitted(_with(exact.only(names), chosen))

    def _read(
        self, layer: Layer, multiplied: Mapping[str, npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float32]:
        # As the graph will hold it: divided by what its input is multiplied with.
        weight = _weight(self.module, layer).copy()
        factors = multiplied.get(layer.group)
        if factors is not None:
            weight[:, : len(factors)] /= factors.reshape(1, -1, 1, 1)
        return weight

    def _last_fitted(self, recipe: Recipe) -> Recipe:
        if not recipe.formats or self.layers[-1].name in recipe.formats:
            return recipe
        pixels = self.pictures[0].shape[1] * self.pictures[0].shape[2]
        affordable = int(_FIT / (2 * pixels * (self.spec.flops_per_pixel or 1e7)))
        return _with(
            recipe, fitted_last(self.module, self.spec, recipe, self._tensors()[: max(affordable, 4)])
        )

    def _tensors(self) -> list[Tensor]:
        return [tensor_of(picture) for picture in self.pictures[:_COMPENSATE]]


def _with(recipe: Recipe, changed: Mapping[str, npt.NDArray[np.float32]]) -> Recipe:
    return dataclasses.replace(recipe, parameters={**recipe.parameters, **changed})


def _weight(module: nn.Module, layer: Layer) -> npt.NDArray[np.float32]:
    weight: npt.NDArray[np.float32] = (
        module.get_submodule(layer.name).get_parameter("weight").detach().numpy()
    )
    return weight
