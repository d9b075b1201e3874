"""Learned rounding, part by part, from the first dense block to the picture."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._parity import planar
from esrgan_deploy.export.graphs import Recipe
from esrgan_deploy.export.nets import Layer, RRDBNet, SRVGGNetCompact
from esrgan_deploy.export.quantisation._simulation import Simulation, apply_parameters
from esrgan_deploy.export.quantisation.weights._learn_unit import Learned, Unit, learn

__all__ = ["reconstruct"]

BUDGET = 6e12
"""Floating-point operations that learning may take where no number of steps is given: there and back, with its
rounding, a core does 15 to 20 GFLOP/s of small nets, so this is about 3 minutes of two."""

MOST_STEPS = 400
LEAST_STEPS = 20
"""Fewer are not worth the time: of a net so deep, the dense blocks keep the nearest numbers."""

CROP = 32
MOST_CROPS = 48
BATCH = 4
TOGETHER = 4
"""Convolutions of an SRVGGNetCompact that are learned together."""

Say = Callable[[str], None]


def reconstruct(
    module: nn.Module,
    layers: Sequence[Layer],
    recipe: Recipe,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    steps: int | None = None,
    seed: int = 0,
    say: Say = lambda line: None,
) -> Recipe:
    """Learn which way the quantised weights are rounded, and the biases, against the fp32 net.

    A dense block at a time (of an SRVGGNetCompact a few convolutions), each on what the quantised net so far makes;
    what is behind the dense blocks at once, against the picture, where the last convolution, if it is not quantised,
    makes up for the others. What does no better on crops held back keeps its parameters.

    Args:
        module: The generator in fp32 and eval mode, an ``RRDBNet`` or ``SRVGGNetCompact``, with the recipe's
            parameters; those are the fp32 net's or an exact rewriting of it, for this is what is learned against.
            It is not changed.
        layers: Its convolutions.
        recipe: Formats and steps.
        pictures: ``(1, H, W, C)`` uint8; crops of them are taken, at least 8 pixels on a side.
        steps: Of each part; None takes what keeps a net of 36 MFLOP per pixel within minutes on two cores.
        seed: Of the choice of crops; the same gives the same recipe.
        say: Receives a line for each part.

    Returns:
        The recipe with the parameters that were learned, weights on the grid of their steps.
    """
    if not recipe.formats or not pictures:
        return recipe
    quantised = copy.deepcopy(module)
    simulation = Simulation(quantised, layers, recipe)
    crops = _crops(pictures)
    kept: dict[str, npt.NDArray[np.float32]] = {}

    def learned(unit: Unit, inputs: Sequence[Tensor], target: Tensor) -> None:
        if not unit.layers:
            return
        count = _steps(unit, layers, recipe, target.shape[0]) if steps is None else steps
        if steps is None and count < LEAST_STEPS:
            say(f"{unit.name}: nearest numbers, for {count} steps would be too few")
            return
        result = learn(quantised, unit, recipe, inputs, target, steps=count, batch=BATCH, seed=seed)
        say(f"{unit.name}: {_in_words(result)} in {count} steps")
        kept.update(result.parameters)
        apply_parameters(quantised, dataclasses.replace(recipe, parameters=result.parameters))
        for layer in unit.layers:
            simulation.forget(layer.name)

    chosen = [layer for layer in layers if layer.name in recipe.formats]
    if isinstance(module, RRDBNet):
        _through_rrdbnet(module, quantised, chosen, crops, learned)
    elif isinstance(module, SRVGGNetCompact):
        _through_compact(module, quantised, chosen, crops, learned)
    return dataclasses.replace(recipe, parameters={**recipe.parameters, **kept})


Learn = Callable[[Unit, Sequence[Tensor], Tensor], None]


def _through_rrdbnet(
    exact: RRDBNet, quantised: nn.Module, chosen: Sequence[Layer], crops: Tensor, learned: Learn
) -> None:
    assert isinstance(quantised, RRDBNet)
    if exact.unshuffle > 1:
        crops = functional.pixel_unshuffle(crops, exact.unshuffle)
    first = _run(exact.conv_first, crops)
    # An unquantised first convolution is the same in both.
    other = _run(quantised.conv_first, crops)
    wanted, made = first, other
    for index, (block, rounded) in enumerate(zip(exact.body, quantised.body, strict=True)):
        skip, rounded_skip = wanted, made
        for name in ("rdb1", "rdb2", "rdb3"):
            unit = f"body.{index}.{name}"
            dense = rounded.get_submodule(name)
            target = _run(block.get_submodule(name), wanted)
            inside = tuple(layer for layer in chosen if layer.unit == unit)
            learned(Unit(name=unit, layers=inside, run=dense), [made], target)
            wanted, made = target, _run(dense, made)
        wanted, made = wanted * 0.2 + skip, made * 0.2 + rounded_skip
    target = _run(_tail(exact), first, wanted)
    behind = tuple(layer for layer in chosen if layer.place in ("tail", "last"))
    free = () if any(layer.place == "last" for layer in behind) else ("conv_last",)
    learned(Unit(name="tail", layers=behind, free=free, run=_tail(quantised)), [other, made], target)


def _tail(net: RRDBNet) -> Callable[[Tensor, Tensor], Tensor]:
    def run(features: Tensor, body: Tensor) -> Tensor:
        features = features + net.conv_body(body)
        for number, step in enumerate(net.steps, start=1):
            features = functional.interpolate(features, scale_factor=float(step), mode="nearest")
            features = functional.leaky_relu(net.get_submodule(f"conv_up{number}")(features), 0.2)
        out: Tensor = net.conv_last(functional.leaky_relu(net.conv_hr(features), 0.2))
        return out

    return run


def _through_compact(
    exact: SRVGGNetCompact, quantised: nn.Module, chosen: Sequence[Layer], crops: Tensor, learned: Learn
) -> None:
    assert isinstance(quantised, SRVGGNetCompact)
    by_name = {layer.name: layer for layer in chosen}
    wanted = made = crops
    for start, stop in _spans(len(exact.body)):
        part, rounded = nn.Sequential(*exact.body[start:stop]), nn.Sequential(*quantised.body[start:stop])
        target = _run(part, wanted)
        names = [f"body.{number}" for number in range(start, stop, 2)]
        inside = tuple(by_name[name] for name in names if name in by_name)
        last = names[-1]
        free = (last,) if stop == len(exact.body) and last not in by_name else ()
        unit = Unit(name=f"{names[0]} to {last}", layers=inside, free=free, run=rounded)
        learned(unit, [made], target)
        wanted, made = target, _run(rounded, made)


def _spans(count: int) -> Iterator[tuple[int, int]]:
    # Convolutions are at even places, each with its activation behind it but for the last, which joins the span
    # in front of it: it makes the picture.
    start = 0
    while start < count:
        stop = start + 2 * TOGETHER
        if stop >= count - 2:
            stop = count
        yield start, stop
        start = stop


def _steps(unit: Unit, layers: Sequence[Layer], recipe: Recipe, crops: int) -> int:
    places = {layer.place for layer in unit.layers}
    tail = bool(places & {"tail", "last"})
    names = {layer.name for layer in unit.layers}

    def behind(layer: Layer) -> bool:
        return layer.place in ("tail", "last")

    # Half for what makes the picture, half for all in front of it; each step goes there and back.
    group = [layer for layer in layers if layer.name in recipe.formats and behind(layer) == tail]
    share = sum(layer.macs for layer in group if layer.name in names) / sum(layer.macs for layer in group)
    macs = sum(layer.macs for layer in layers if (behind(layer) if tail else layer.name in names))
    per_step = 3 * 2 * macs * min(BATCH, crops) * CROP**2
    return min(MOST_STEPS, int(share * BUDGET / 2 / per_step))


def _crops(pictures: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    # In turns from all pictures, so that the last quarter, which is held back, is of other places.
    side = min(CROP, *(min(picture.shape[1:3]) for picture in pictures))
    found: list[list[Tensor]] = []
    for picture in pictures:
        tensor = torch.from_numpy(planar(picture))
        tops = range(0, tensor.shape[2] - side + 1, side)
        lefts = range(0, tensor.shape[3] - side + 1, side)
        found.append([tensor[:, :, y : y + side, x : x + side] for y in tops for x in lefts])
    turns = [crops[turn] for turn in range(max(map(len, found))) for crops in found if turn < len(crops)]
    return torch.cat(turns[:MOST_CROPS])


def _run(part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        made = [part(*(x[start : start + 4] for x in inputs)) for start in range(0, len(inputs[0]), 4)]
    return torch.cat(made)


def _in_words(result: Learned) -> str:
    change = 10 * np.log10(max(result.before, 1e-20) / max(result.after, 1e-20))
    return f"{change:+.2f} dB on crops held back" + ("" if result.parameters else ", left as it was")
