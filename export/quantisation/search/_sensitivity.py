"""What each convolution and each unit costs the picture when it alone is quantised."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.nets import Generator, Layer, Stage, State, output_of
from esrgan_deploy.export.quantisation._simulation import Simulation, tensor_of
from esrgan_deploy.export.quantisation.search._ledger import Ledger
from esrgan_deploy.export.quantisation.search._loss import HeldLoss, Loss, Pair

__all__ = ["Sensitivities", "Sensitivity", "sensitivities"]

# Below two crops of 32x32 the figures say more about the crop than about the net; above 2^13 pixels, nothing new.
_LEAST_SIDE = 32
_LEAST_PIXELS, _MOST_PIXELS = 2 * _LEAST_SIDE**2, 2**13


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """A unit or a convolution, quantised alone.

    Attributes:
        name: `Layer.unit`, or the convolution's own.
        names: The convolutions that were quantised.
        macs: Their multiply-adds per pixel of the input picture.
        loss: Against the same net with nothing quantised, on the crops of `Sensitivities`. The dB against the truth
            of one convolution are mostly chance; `Loss.noise` is what they are ranked by.
    """

    name: str
    names: tuple[str, ...]
    macs: float
    loss: Loss

    @property
    def harm(self) -> float:
        """Noise power per multiply-add."""
        return self.loss.noise / self.macs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivities:
    """All units and all convolutions that the recipe quantises, in the order in which they run.

    Attributes:
        units: Dense blocks, and convolutions that are none's.
        convolutions: Every single one.
        crops: How many crops they were measured on.
        pixels: Pixels of all of these.
    """

    units: tuple[Sensitivity, ...]
    convolutions: tuple[Sensitivity, ...]
    crops: int
    pixels: int


def sensitivities(
    simulation: Simulation,
    layers: Sequence[Layer],
    spec: ModelSpec,
    held: HeldLoss,
    *,
    flops: float = 2e13,
    ledger: Ledger | None = None,
) -> Sensitivities:
    """Quantise each unit and each convolution alone and measure what it does to the picture.

    What lies in front of a unit is computed once, so that each measurement costs the rest of the net; crops of the
    held pictures are chosen so that all of them together cost no more than `flops`, but never fewer than 2048 pixels.

    Args:
        simulation: What it quantises now does not matter, and is the same afterwards.
        layers: The net's convolutions, as `nets.layers` gives them.
        spec: The net's.
        held: Pictures that calibration has not seen.
        flops: Floating-point operations to spend; two cores do about 1e11 in a second.
        ledger: Knows what was measured before, on the same pictures with the same `flops`.

    Raises:
        ExportError: A NaN comes out.
    """
    ledger = ledger or Ledger()
    jobs = _jobs(simulation, layers)
    crops = _crops(held, spec, int(flops / _cost(jobs, layers)))
    module, found = simulation.module, []
    assert isinstance(module, Generator)
    pieces = module.stages()
    with torch.inference_mode(), simulation.using(()):
        states = [module.start(tensor_of(picture)) for picture, _ in crops]
        base = HeldLoss(crops, [output_of(pieces, state) for state in states])

        def alone(names: Sequence[str], left: tuple[Stage, ...], states: Sequence[State]) -> Loss:
            with simulation.using(names):
                return base.of([output_of(left, state) for state in states])

        for place, piece in enumerate(pieces):
            for job in jobs.get(piece.unit, ()):
                measure = functools.partial(alone, job.names, pieces[place:], states)
                found.append(dataclasses.replace(job, loss=ledger.measured("alone", job.names, measure)))
            states = [piece.run(state) for state in states]
    units = {layer.unit for layer in layers}
    singles = {layer.name for layer in layers}
    return Sensitivities(
        units=tuple(one for one in found if one.name in units),
        convolutions=tuple(one for one in found if one.name in singles),
        crops=len(crops),
        pixels=base.pixels,
    )


def _jobs(simulation: Simulation, layers: Sequence[Layer]) -> dict[str, list[Sensitivity]]:
    """Return by unit what is to be measured, the unit first, each with an empty loss."""
    members: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.name in simulation.recipe.formats:
            members.setdefault(layer.unit, []).append(layer)
    empty = Loss(psnr_y=None, loss=None, fidelity=math.inf, worst=math.inf, shift=0.0, noise=0.0)
    jobs = {}
    for unit, inside in members.items():
        wanted = [(unit, inside)]
        # A convolution that is a unit by itself is measured once.
        wanted += [(layer.name, [layer]) for layer in inside if layer.name != unit]
        jobs[unit] = [
            Sensitivity(
                name=name,
                names=tuple(layer.name for layer in chosen),
                macs=sum(layer.macs for layer in chosen),
                loss=empty,
            )
            for name, chosen in wanted
        ]
    return jobs


def _cost(jobs: dict[str, list[Sensitivity]], layers: Sequence[Layer]) -> float:
    """Return the floating-point operations that all jobs cost for one pixel."""
    cost, left, seen = 0.0, sum(layer.macs for layer in layers), set()
    for layer in layers:
        if layer.unit not in seen:
            seen.add(layer.unit)
            cost += 2 * left * len(jobs.get(layer.unit, ()))
        left -= layer.macs
    return max(cost, 1.0)


def _crops(held: HeldLoss, spec: ModelSpec, affordable: int) -> list[Pair]:
    """Cut the middle out of as many pictures as can be afforded, evenly spread over all."""
    pixels = min(max(affordable, _LEAST_PIXELS), _MOST_PIXELS)
    count = min(len(held.pairs), max(2, pixels // _LEAST_SIDE**2))
    step = math.lcm(8, spec.size_multiple)
    side = max(math.isqrt(pixels // count) // step * step, step)
    found: list[Pair] = []
    for number in range(count):
        picture, truth = held.pairs[number * len(held.pairs) // count]
        height, width = (min(side, size) for size in picture.shape[1:3])
        y, x = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
        s = held.scale
        if truth is not None:
            truth = truth[:, s * y : s * (y + height), s * x : s * (x + width)]
        found.append((picture[:, y : y + height, x : x + width], truth))
    return found
