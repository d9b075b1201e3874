"""Learns which way each weight of a few convolutions is rounded, so that their output stays what it was."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from esrgan_deploy.export.graphs import Recipe
from esrgan_deploy.export.nets import LARGEST, Layer
from esrgan_deploy.export.quantisation._simulation import convolution_of, quantised_input, steps_of

__all__ = ["Learned", "Unit", "learn"]

_CHOICE_RATE, _REST_RATE = 1e-2, 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """Convolutions that are learned together.

    Attributes:
        name: What `say` calls it.
        layers: Those that are quantised, at least one.
        free: Convolutions that are not and that may change to make up for the others.
        run: From the tensors that the unit reads, ``(N, ...)`` each, to what it makes.
    """

    name: str
    layers: tuple[Layer, ...]
    free: tuple[str, ...] = ()
    run: Callable[..., Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """What came of a unit.

    Attributes:
        parameters: What changed, by name in the module; nothing where it got worse.
        before: Mean squared error on the crops held back, with each weight rounded to the nearest.
        after: The same with the parameters learned.
    """

    parameters: dict[str, npt.NDArray[np.float32]]
    before: float
    after: float


def learn(
    module: nn.Module,
    unit: Unit,
    recipe: Recipe,
    inputs: Sequence[Tensor],
    target: Tensor,
    *,
    steps: int,
    batch: int,
    seed: int,
) -> Learned:
    """Choose, for each weight, the representable number above it or below it, and the biases.

    A weight goes no further than its two neighbours, as in AdaRound (Nagel et al., arXiv:2004.10568); several
    convolutions are learned at once against their common output (BRECQ, arXiv:2102.05426), their inputs rounded as
    they will be (QDrop, arXiv:2203.05740). Here the weights are always at one of the two, and the gradient passes
    straight through to the sigmoid between them: in a few hundred steps AdaRound's annealed term leaves many
    undecided, and learns half as many decibels. A last quarter of the crops is held back.

    Args:
        module: In eval mode, its parameters those to be rounded; it is not changed.
        unit: Which part of it.
        recipe: Steps and formats.
        inputs: What the unit reads, as the quantised net so far makes it, ``(N, ...)`` float32.
        target: What the fp32 net makes there, ``(N, ...)`` float32.
        steps: How many; 0 changes nothing.
        batch: Crops in each.
        seed: Of the choice of crops.
    """
    count = target.shape[0]
    fit = max(1, count - max(1, count // 4))
    held = slice(fit, None) if fit < count else slice(0, None)
    kept, wanted = [tensor[held] for tensor in inputs], target[held]
    trained: list[_Rounding | _Free] = [_Rounding(module, layer, recipe) for layer in unit.layers]
    trained += [_Free(module, name) for name in unit.free]
    with _replaced(trained):
        # Every weight starts at the nearer one.
        before = _error(unit, kept, wanted)
        seen = [tensor[:fit] for tensor in inputs]
        unlearned = max(_error(unit, seen, target[:fit]), 1e-20)
        _descend(unit, trained, seen, target[:fit], unlearned, steps=steps, batch=batch, seed=seed)
        after = _error(unit, kept, wanted)
    if not after < before:
        return Learned(parameters={}, before=before, after=after)
    parameters = {name: value for item in trained for name, value in item.parameters().items()}
    return Learned(parameters=parameters, before=before, after=after)


def _descend(
    unit: Unit,
    trained: Sequence["_Rounding | _Free"],
    inputs: Sequence[Tensor],
    target: Tensor,
    unlearned: float,
    *,
    steps: int,
    batch: int,
    seed: int,
) -> None:
    count = target.shape[0]
    random = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam([group for item in trained for group in item.groups()], betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step / max(1, steps)))
    for _ in range(steps):
        chosen = torch.randint(count, (min(batch, count),), generator=random)
        made = unit.run(*(tensor[chosen] for tensor in inputs))
        loss = (made - target[chosen]).square().mean() / unlearned
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        rate.step()


class _Rounding:
    # A quantised convolution, and for each of its weights which neighbour it takes.
    def __init__(self, module: nn.Module, layer: Layer, recipe: Recipe) -> None:
        self.conv, self.name = convolution_of(module, layer.name), layer.name
        self._layer, self._recipe = layer, recipe
        weight = self.conv.weight.detach()
        steps = steps_of(recipe, layer, weight.shape[1])
        low, high = _neighbours(weight / steps, recipe.formats[layer.name])
        self._low, self._high = low * steps, high * steps
        nearness = ((weight - self._low) / (self._high - self._low)).clamp(0.01, 0.99)
        self._choice = torch.logit(nearness).requires_grad_(True)
        self._bias = _Scaled(self.conv.bias, weight)

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self._choice], "lr": _CHOICE_RATE},
            {"params": [self._bias.free], "lr": _REST_RATE},
        ]

    def weight(self) -> Tensor:
        up = torch.sigmoid(self._choice)
        taken = torch.where(up >= 0.5, self._high, self._low)
        # The value is `taken`, bit for bit; the gradient is that of the mixture.
        mixed = (self._high - self._low) * up
        return taken + (mixed - mixed.detach())

    def __call__(self, x: Tensor) -> Tensor:
        taken = _Straight.apply(x, self._recipe, self._layer)  # type: ignore[no-untyped-call]
        return functional.conv2d(
            taken, self.weight(), self._bias.value(), self.conv.stride, self.conv.padding
        )

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        return {f"{self.name}.weight": _array(self.weight()), f"{self.name}.bias": _array(self._bias.value())}


class _Free:
    # A convolution that is not quantised: its weights move a little.
    def __init__(self, module: nn.Module, name: str) -> None:
        self.conv, self.name = convolution_of(module, name), name
        weight = self.conv.weight.detach()
        self._weight, self._bias = _Scaled(weight, weight), _Scaled(self.conv.bias, weight)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self._weight.free, self._bias.free], "lr": _REST_RATE}]

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self._weight.value(), self._bias.value()
        return functional.conv2d(x, weight, bias, self.conv.stride, self.conv.padding)

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        values = {"weight": self._weight.value(), "bias": self._bias.value()}
        return {f"{self.name}.{kind}": _array(value) for kind, value in values.items()}


class _Scaled:
    # What is learned is counted in the size of the weights, so that one rate suits all.
    def __init__(self, original: Tensor | None, weight: Tensor) -> None:
        assert original is not None
        self.original = original.detach()
        self._size = weight.square().mean().sqrt().clamp_min(1e-8)
        self.free = torch.zeros_like(self.original).requires_grad_(True)

    def value(self) -> Tensor:
        return self.original + self._size * self.free


class _Straight(Function):
    # The rounding of an input; its gradient is 1 where it was not clipped.
    @staticmethod
    def forward(ctx: object, x: Tensor, recipe: Recipe, layer: Layer) -> Tensor:
        kind = recipe.formats[layer.name]
        largest = LARGEST[kind] * recipe.activations[layer.group]
        factors = torch.from_numpy(recipe.multiplied(layer.group, x.shape[1])).reshape(1, -1, 1, 1)
        ctx.save_for_backward(x.abs() * factors <= largest)  # type: ignore[attr-defined]
        return quantised_input(x, recipe, layer)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * inside, None, None


def _neighbours(scaled: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    # The two representable numbers around each value; at the ends of the range the last two.
    if kind == "int8":
        table = torch.arange(-127.0, 128.0)
    else:
        codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
        table = codes[codes.isfinite()].sort().values
    above = torch.searchsorted(table, scaled.contiguous(), right=True).clamp(1, len(table) - 1)
    return table[above - 1], table[above]


def _error(unit: Unit, inputs: Sequence[Tensor], target: Tensor) -> float:
    total = 0.0
    with torch.no_grad():
        for start in range(0, target.shape[0], 4):
            part = slice(start, start + 4)
            made = unit.run(*(x[part] for x in inputs))
            total += float((made - target[part]).square().sum(dtype=torch.float64))
    return total / target.numel()


def _rate(done: float) -> float:
    return min(1.0, done / 0.05 + 0.1) * (1.0 if done < 0.7 else max(0.05, (1 - done) / 0.3))


@contextlib.contextmanager
def _replaced(items: Sequence[_Rounding | _Free]) -> Iterator[None]:
    before = [item.conv.__dict__.get("forward") for item in items]
    for item in items:
        item.conv.forward = item  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for item, forward in zip(items, before, strict=True):
            item.conv.__dict__.pop("forward", None)
            if forward is not None:
                item.conv.forward = forward  # type: ignore[method-assign]


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().numpy().astype(np.float32)
    return array
