"""Learned rounding, part by part, from the first dense block to the picture."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esrgan_deploy._parity import planar
from esrgan_deploy.export.graphs import Recipe
from esrgan_deploy.export.nets import Generator, Layer, Stage, State, output_of
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

    assert isinstance(module, Generator)
    assert isinstance(quantised, Generator)
    exact, rounded = module.stages(), quantised.stages()
    wanted = made = module.start(crops)
    last = layers[-1].name
    for name, span in _spans(exact):
        part = rounded[span]
        units = {piece.unit for piece in part}
        inside = tuple(layer for layer in layers if layer.unit in units and layer.name in recipe.formats)
        free = (last,) if last in units and last not in recipe.formats else ()
        after = _run(exact[span], wanted)
        if name:
            unit = Unit(name=name, layers=inside, free=free, run=functools.partial(_features, part))
            learned(unit, made, after[0])
        wanted, made = after, _run(part, made)
    return dataclasses.replace(recipe, parameters={**recipe.parameters, **kept})


def _spans(pieces: Sequence[Stage]) -> Iterator[tuple[str, slice]]:
    """Yield what is learned together, with a name; what is not learned has none."""
    units = [piece.unit for piece in pieces if piece.unit]
    if "conv_body" in units:
        for number, piece in enumerate(pieces):
            if piece.unit == "conv_body":
                yield "tail", slice(number, None)
                return
            # The first convolution of an RRDBNet keeps the nearest numbers.
            yield piece.unit if number else "", slice(number, number + 1)
    start = 0
    while start < len(units):
        stop = start + TOGETHER
        # The last convolution makes the picture, and joins those in front of it.
        if stop >= len(units) - 1:
            stop = len(units)
        yield f"{units[start]} to {units[stop - 1]}", slice(start, stop)
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


def _run(part: Sequence[Stage], state: State) -> State:
    made = []
    with torch.no_grad():
        for start in range(0, len(state[0]), 4):
            few = tuple(x[start : start + 4] for x in state)
            for piece in part:
                few = piece.run(few)
            made.append(few)
    return tuple(torch.cat(parts) for parts in zip(*made, strict=True))


def _features(part: tuple[Stage, ...], *state: Tensor) -> Tensor:
    return output_of(part, state)


def _in_words(result: Learned) -> str:
    change = 10 * np.log10(max(result.before, 1e-20) / max(result.after, 1e-20))
    return f"{change:+.2f} dB on crops held back" + ("" if result.parameters else ", left as it was")
