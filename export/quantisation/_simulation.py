"""Computes in PyTorch what the quantised graph will: rounded inputs and weights, fp32 sums."""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from esrgan_deploy._errors import ExportError
from esrgan_deploy._parity import planar
from esrgan_deploy.export.graphs import UNSIGNED, Array, Recipe, unsigned_grid
from esrgan_deploy.export.nets import LARGEST, Layer

__all__ = [
    "Simulation",
    "apply_parameters",
    "convolution_of",
    "finite_ends",
    "quantised_input",
    "quantised_output",
    "rounded",
    "run_watched",
    "steps_of",
    "tensor_of",
]


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


class Simulation:
    """A module whose chosen convolutions compute with rounded inputs and weights.

    What is not quantised stays fp32 here; the graph rounds it to fp16 besides, which the export measures.

    Args:
        module: The generator, in eval mode, with `Recipe.parameters` applied (see `apply_parameters`). Its
            convolutions' ``forward`` is replaced until `detach`.
        layers: Its convolutions, as `nets.layers` gives them.
        recipe: Steps and formats. Everything in it is quantised until `use` says otherwise.
        weights: Whether weights are rounded too; otherwise all that errs is what the activations' rounding does.
        fitted: Parameters, by their names, that a convolution has while it is quantised; else it has the module's.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Iterable[Layer],
        recipe: Recipe,
        *,
        weights: bool = True,
        fitted: Mapping[str, Array] | None = None,
    ) -> None:
        self.module, self.recipe, self._weights = module, recipe, weights
        self._fitted = {
            name: torch.from_numpy(np.array(value, np.float32)) for name, value in (fitted or {}).items()
        }
        self._layers = {layer.name: layer for layer in layers}
        self._on = frozenset(recipe.formats)
        self._convolutions = {name: convolution_of(module, name) for name in recipe.formats}
        self._rounded: dict[str, Tensor] = {}
        for name, conv in self._convolutions.items():
            conv.forward = functools.partial(self._run, name, conv)  # type: ignore[method-assign]

    def use(self, names: Iterable[str]) -> None:
        """Quantise these convolutions, all of which the recipe knows, and no others.

        Raises:
            KeyError: The recipe has none of that name.
        """
        self._on = frozenset(names)
        unknown = self._on - set(self._convolutions)
        if unknown:
            raise KeyError(f"the recipe has no {sorted(unknown)}")

    @contextlib.contextmanager
    def using(self, names: Iterable[str]) -> Iterator[None]:
        """Quantise these for the length of a ``with`` block."""
        before = self._on
        self.use(names)
        try:
            yield
        finally:
            self._on = before

    def forget(self, name: str) -> None:
        """Round the weights of a convolution again: they have changed in the module."""
        self._rounded.pop(name, None)

    def detach(self) -> None:
        """Give the module its own convolutions back."""
        for conv in self._convolutions.values():
            conv.__dict__.pop("forward", None)

    @torch.inference_mode()
    def __call__(self, picture: Tensor) -> Tensor:
        """Run the module on ``(N, C, H, W)`` float32 0..1."""
        out: Tensor = self.module(picture)
        return out

    def _run(self, name: str, conv: nn.Conv2d, x: Tensor) -> Tensor:
        if name not in self._on:
            return functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
        kind = self.recipe.formats[name]
        if name not in self._rounded:
            weight = self._fitted.get(f"{name}.weight", conv.weight.detach())
            steps = steps_of(self.recipe, self._layers[name], weight.shape[1])
            self._rounded[name] = rounded(weight, steps, kind, weights=True) if self._weights else weight
        taken = quantised_input(x, self.recipe, self._layers[name])
        bias = self._fitted.get(f"{name}.bias", conv.bias)
        out = functional.conv2d(taken, self._rounded[name], bias, conv.stride, conv.padding)
        return quantised_output(out, self.recipe, name)


def steps_of(recipe: Recipe, layer: Layer, channels: int) -> Tensor:
    """Return the grid of a convolution's weights, float32: ``(C_out or 1, C_in or 1, 1, 1)``.

    Args:
        recipe: Whose steps.
        layer: The convolution.
        channels: How many it reads.
    """
    steps = torch.from_numpy(np.array(recipe.weights[layer.name], np.float32)).reshape(-1, 1, 1, 1)
    if layer.group not in recipe.multipliers:
        return steps
    return steps * torch.from_numpy(recipe.multiplied(layer.group, channels)).reshape(1, -1, 1, 1)


def quantised_input(x: Tensor, recipe: Recipe, layer: Layer) -> Tensor:
    """Return what a quantised convolution makes of the tensor that it reads, ``(N, C, H, W)`` float32."""
    if layer.group in recipe.inputs:
        return _unsigned(x, recipe.inputs[layer.group])
    kind, step = recipe.formats[layer.name], torch.tensor(recipe.activations[layer.group])
    if layer.group in recipe.multipliers:
        step = step / torch.from_numpy(recipe.multiplied(layer.group, x.shape[1])).reshape(1, -1, 1, 1)
    taken = rounded(x, step, kind)
    twice = list(recipe.remainders.get(layer.group, ()))
    if twice:
        # Read again with the same weights, the remainder adds to what was rounded.
        own = step[:, twice] if step.ndim else step
        taken[:, twice] += rounded(x[:, twice] - taken[:, twice], own, kind)
    return taken


def quantised_output(out: Tensor, recipe: Recipe, name: str) -> Tensor:
    """Return what is left of what a quantised convolution gives: less only where outputs are rounded too."""
    return _unsigned(out, recipe.outputs[name]) if name in recipe.outputs else out


def _unsigned(x: Tensor, range_: tuple[float, float]) -> Tensor:
    step, zero = unsigned_grid(*range_)
    return (x / step).round_().clamp_(-zero, UNSIGNED - zero).mul_(step)


def rounded(x: Tensor, step: Tensor, kind: str, *, weights: bool = False) -> Tensor:
    """Return what QuantizeLinear and DequantizeLinear make of a tensor.

    Args:
        x: Any shape, float32.
        step: Broadcast to x.
        kind: ``"int8"``: -128..127, half to even; ``"fp8"``: E4M3, saturating at 448.
        weights: Integers end at -127 then, as the export writes them.
    """
    if kind == "int8":
        return (x / step).round_().clamp_(-127 if weights else -128, 127).mul_(step)
    top = LARGEST["fp8"]
    return (x / step).clamp_(-top, top).to(torch.float8_e4m3fn).to(torch.float32).mul_(step)


def apply_parameters(module: nn.Module, recipe: Recipe) -> None:
    """Put the parameters that a recipe changed into a module, which is changed.

    Raises:
        KeyError: The module has none of that name.
    """
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in recipe.parameters.items()}
    missing = module.load_state_dict(state, strict=False).unexpected_keys
    if missing:
        raise KeyError(f"the module has no {sorted(missing)}")


def convolution_of(module: nn.Module, name: str) -> nn.Conv2d:
    """Return a convolution of a module by its name."""
    conv = module.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv
