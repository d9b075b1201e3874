"""Rounding weights so that what they compute stays, not the weights: closed form, one convolution at a time."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs import Array, Recipe, fitted
from esrgan_deploy.export.nets import Layer, layers
from esrgan_deploy.export.quantisation._simulation import (
    Simulation,
    apply_parameters,
    convolution_of,
    quantised_input,
    quantised_output,
    rounded,
    steps_of,
)

__all__ = ["Moments", "compensate", "compensated", "fitted_last", "side_by_side"]


_DAMPING, _UNFITTED = 1e-3, 1e-2
"""Added to the diagonal, of its mean (arXiv:2210.17323, section 3.3): inputs that calibration hardly moves. More
where pixels are few, and weights are not fitted to them."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """One quantised convolution on its calibration pictures, both nets side by side.

    Attributes:
        layer: Which.
        conv: It, in fp32.
        kind: ``"int8"`` or ``"fp8"``.
        steps: Of its weights, see `steps_of`.
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

    Raises:
        ValueError: There are no pictures.
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
                conv.forward = functools.partial(_side, layer, conv, recipe, change)  # type: ignore[method-assign]
                visited.append(conv)
        out: Tensor = module(torch.cat([batch, batch]))
    finally:
        for conv in visited:
            conv.__dict__.pop("forward", None)
    exact, quantised = out.chunk(2)
    return exact, quantised


def _side(
    layer: Layer, conv: nn.Conv2d, recipe: Recipe, change: Callable[[Seen], Tensor], x: Tensor
) -> Tensor:
    exact, quantised = x.chunk(2)
    wanted = functional.conv2d(exact, conv.weight, conv.bias, conv.stride, conv.padding)
    seen = Seen(
        layer=layer,
        conv=conv,
        kind=recipe.formats[layer.name],
        steps=steps_of(recipe, layer, conv.in_channels),
        exact=exact,
        quantised=quantised_input(quantised, recipe, layer),
        wanted=wanted,
    )
    return torch.cat([wanted, quantised_output(change(seen), recipe, layer.name)])


def compensated(
    module: nn.Module,
    spec: ModelSpec,
    recipe: Recipe,
    pictures: Iterable[Tensor],
    *,
    pixels: int = 64,
    dense_pixels: int = 8,
    alone: bool = False,
) -> dict[str, Array]:
    """Return weights and biases of quantised convolutions, rounded so that their outputs stay.

    In the order in which they run, with everything before them quantised and rounded in this way, or each as if it
    alone were quantised.

    Args:
        module: The generator in fp32 with the exact parameters applied; it is not changed.
        spec: What it is.
        recipe: Formats and steps.
        pictures: See `side_by_side`.
        pixels: For each unknown of a row of weights, how many pixels to fit on, if the pictures have so many.
        dense_pixels: The same in a dense block, which has three times as many unknowns, and moments that cost the
            square of that.
        alone: Whether each is to be rounded for what it reads in the fp32 net.

    Returns:
        ``NAME.weight``, multiples of the steps in the format, and ``NAME.bias``, float32.
    """
    found: dict[str, Array] = {}

    def change(seen: Seen) -> Tensor:
        conv, name = seen.conv, seen.layer.name
        assert conv.bias is not None
        dense = seen.layer.group != name
        moments = Moments(conv.kernel_size[0], conv.in_channels, crossed=not dense)
        limit = -(-(dense_pixels if dense else pixels) * moments.own.shape[0] // len(seen.exact))
        for number, (exact, quantised) in enumerate(zip(seen.exact, seen.quantised, strict=True)):
            moments.add(exact[None], quantised[None], limit=limit, seed=number)
        weight, bias = compensate(conv.weight, conv.bias, seen.steps, moments, seen.kind, fit=not dense)
        if name in recipe.outputs:
            # On processors some neighbours have to be smaller yet.
            integers, steps = fitted(weight.numpy(), recipe.weights[name])
            weight = torch.from_numpy(integers * steps.reshape(-1, 1, 1, 1))
        found[f"{name}.weight"], found[f"{name}.bias"] = weight.numpy(), bias.numpy()
        return seen.wanted if alone else seen.run(weight, bias)

    handed = dataclasses.replace(recipe, outputs={}) if alone else recipe
    side_by_side(module, layers(spec), handed, pictures, change)
    return found


def fitted_last(
    module: nn.Module, spec: ModelSpec, recipe: Recipe, pictures: Sequence[Tensor], *, pixels: int = 20_000
) -> dict[str, Array]:
    """Return weights and bias of the last convolution that make up for what was rounded in front of it.

    It stays in half precision, so nothing binds it to a grid: by least squares it gives on what the quantised net
    makes what it gave in fp32.

    Args:
        module: The generator in fp32 with the exact parameters applied; it is not changed.
        spec: What it is.
        recipe: All of it, with every parameter that it changed; it does not quantise the last convolution.
        pictures: ``(1, C, H, W)`` float32 0..1.
        pixels: Of each picture, drawn at random.
    """
    last = layers(spec)[-1].name
    conv = convolution_of(module, last)
    assert conv.bias is not None
    quantised = copy.deepcopy(module)
    apply_parameters(quantised, recipe)
    simulation = Simulation(quantised, layers(spec), recipe)
    moments = Moments(conv.kernel_size[0], conv.in_channels)
    for number, picture in enumerate(pictures):
        exact, seen = (
            _read_by(conv, module, picture),
            _read_by(quantised.get_submodule(last), simulation, picture),
        )
        moments.add(exact, seen, limit=pixels, seed=number)
    target = torch.cat([conv.weight.detach().flatten(1), conv.bias.detach()[:, None]], 1).to(torch.float64)
    own = moments.own.clone()
    diagonal = own.diagonal()
    diagonal += _DAMPING / 10 * diagonal.mean()
    wanted = target @ (moments.cross + torch.diag(diagonal - moments.own.diagonal()))
    solved = torch.linalg.solve(own, wanted.T).T.to(torch.float32)
    return {
        f"{last}.weight": solved[:, :-1].reshape(conv.weight.shape).numpy(),
        f"{last}.bias": solved[:, -1].numpy(),
    }


def _read_by(conv: nn.Module, net: Callable[[Tensor], Tensor], picture: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda _, taken: seen.append(taken[0]))
    try:
        with torch.no_grad():
            net(picture)
    finally:
        hook.remove()
    return seen[0].clone()


class Moments:
    """Sums of products of what one convolution reads, over pixels and pictures.

    Attributes:
        own: ``(D, D)``, of the quantised inputs with themselves, D = C_in · k² unfolded and a one for the bias.
        cross: ``(D, D)``, of the fp32 inputs with the quantised ones; nothing where it is not wanted.

    Args:
        size: Of the kernel.
        channels: That the convolution reads.
        crossed: Whether `cross` is wanted, which costs as much as `own`.
    """

    def __init__(self, size: int, channels: int, *, crossed: bool = True) -> None:
        self._size, self._crossed = size, crossed
        unfolded = channels * size**2 + 1
        self.own = torch.zeros(unfolded, unfolded, dtype=torch.float64)
        self.cross = torch.zeros_like(self.own)

    def add(self, exact: Tensor, quantised: Tensor, *, limit: int | None = None, seed: int = 0) -> None:
        """Take in the inputs of one picture.

        Args:
            exact: ``(N, C_in, H, W)``, what the convolution reads in fp32.
            quantised: The same as the quantised net has it, rounded.
            limit: Use this many pixels, drawn at random; all by default.
            seed: Of the draw.
        """
        count = exact.shape[0] * exact.shape[2] * exact.shape[3]
        chosen = None
        if limit is not None and limit < count:
            random = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(count, generator=random)[:limit]
        columns = self._unfolded(quantised, chosen)
        self.own += (columns @ columns.T).to(torch.float64)
        if self._crossed:
            self.cross += (self._unfolded(exact, chosen) @ columns.T).to(torch.float64)

    def _unfolded(self, x: Tensor, chosen: Tensor | None) -> Tensor:
        size = self._size
        if chosen is None:
            columns = functional.unfold(x, size, padding=size // 2).transpose(0, 1).flatten(1)
        else:
            # Of a few pixels their neighbourhoods alone: most of the time would go into those that are not drawn.
            padded = functional.pad(x, [size // 2] * 4)
            pixels = x.shape[2] * x.shape[3]
            number, place = chosen // pixels, chosen % pixels
            top, left = place // x.shape[3], place % x.shape[3]
            taps = [
                padded[number, :, top + down, left + right] for down in range(size) for right in range(size)
            ]
            columns = torch.stack(taps, 2).permute(1, 2, 0).flatten(0, 1)
        return torch.cat([columns, columns.new_ones(1, columns.shape[1])])


def compensate(
    weight: Tensor, bias: Tensor, steps: Tensor, moments: Moments, kind: str, *, fit: bool = True
) -> tuple[Tensor, Tensor]:
    """Return weights on the grid of their steps, and a bias, that keep a convolution's output.

    Column by column, the error of rounding is spread over the columns that are still to be rounded so that the
    output's squared error over the calibration pixels stays least (GPTQ, arXiv:2210.17323, from Optimal Brain
    Surgeon). The columns whose inputs carry most energy are rounded first. Before that the weights are fitted by
    least squares to give on quantised inputs what the fp32 weights give on fp32 inputs.

    Args:
        weight: ``(C_out, C_in, k, k)`` float32.
        bias: ``(C_out,)`` float32.
        steps: See `steps_of`.
        moments: Of the convolution's inputs.
        kind: ``"int8"`` or ``"fp8"``.
        fit: Whether weights are fitted first; with few pixels for each unknown, that would fit the pixels.

    Returns:
        Weights that are multiples of the steps in the format, and the bias, float32.
    """
    own = moments.own.clone()
    target = torch.cat([weight.flatten(1), bias[:, None]], 1).to(torch.float64)
    diagonal = own.diagonal()
    diagonal += (_DAMPING if fit else _UNFITTED) * diagonal.mean()
    if fit:
        # What damping adds on both sides draws the fit to the weights as they are.
        wanted = target @ (moments.cross + torch.diag(diagonal - moments.own.diagonal()))
        target = torch.linalg.solve(own, wanted.T).T
    # The bias is not rounded: it comes last and takes up what is left.
    order = torch.cat([torch.argsort(diagonal[:-1], descending=True), torch.tensor([len(diagonal) - 1])])
    # One for each column, the bias's not used.
    grid = steps.expand(-1, weight.shape[1], *weight.shape[2:]).flatten(1)
    grid = torch.cat([grid, grid[:, :1]], 1)
    solved = _greedy(target[:, order], own[order][:, order], grid[:, order], kind)
    back = torch.empty_like(solved)
    back[:, order] = solved
    fitted = back[:, :-1].reshape(weight.shape)
    # Exactly on the grid: the sums above were in another order.
    on_grid = rounded(fitted.to(torch.float32), steps, kind, weights=True)
    return on_grid, back[:, -1].to(torch.float32)


def _greedy(target: Tensor, own: Tensor, step: Tensor, kind: str, block: int = 64) -> Tensor:
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(own)), upper=True)
    work, columns = target.clone(), target.shape[1]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.zeros(target.shape[0], stop - start, dtype=torch.float64)
        for column in range(start, stop):
            if column == columns - 1:
                continue
            value = work[:, column]
            on = step[:, column : column + 1]
            near = rounded(value[:, None].to(torch.float32), on, kind, weights=True)[:, 0].to(torch.float64)
            error = (value - near) / upper[column, column]
            work[:, column] = near
            work[:, column + 1 : stop] -= error[:, None] * upper[column, column + 1 : stop]
            errors[:, column - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return work
