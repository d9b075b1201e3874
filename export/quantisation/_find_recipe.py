"""From a net and pictures to a recipe that holds a budget of decibels."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from esrgan_deploy._errors import ExportError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs import Recipe
from esrgan_deploy.export.nets import Layer, layers, share_of
from esrgan_deploy.export.quantisation._options import MOST_LOSS, QuantiseOptions
from esrgan_deploy.export.quantisation._prepare import Preparation
from esrgan_deploy.export.quantisation._recipe_file import KeptRecipe, Net, load_recipe
from esrgan_deploy.export.quantisation._simulation import Simulation, apply_parameters
from esrgan_deploy.export.quantisation.calibration import CalibrationPictures, calibration_pictures
from esrgan_deploy.export.quantisation.search import (
    HeldLoss,
    Loss,
    Point,
    SearchOptions,
    SearchResult,
    frontier,
    search,
    table,
)

__all__ = ["Quantisation", "demand", "pictures_for", "quantise_net", "reusable"]

FIDELITY = 44.5
"""dB to the fp32 picture that a search keeps: four of five samples are then within one level, as the verification
asks, where errors are spread as rounding spreads them."""

LOSS = 0.1
"""dB of PSNR-Y against the truth that a net may lose which is close to it."""

_WORST, _SHIFT = 8.5, 0.3
"""How far the worst tile may lie below the fidelity in dB, and how far a channel's mean may move in levels, where
fidelity is all that is judged: a tint in a flat place is what the eye sees first."""

_CALIBRATION = 8e12
"""Floating-point operations that one run of the net on all pictures to calibrate on may cost: a minute and a half of
two cores. With a quarter of it, pictures that come later exceed what was seen two- and threefold."""

_EVALUATION = 4e11
"""Floating-point operations that running the net on all held pictures may cost: some seconds on two cores."""

_MOST_CROPS = 96

_FEW, _FEW_POINTS = 14, 3
"""`SearchOptions.evaluations` and `points` where weights are rounded anew for each, up to a minute each time."""

_SEARCH = 1e13
"""Floating-point operations that measuring every convolution alone may cost: minutes on two cores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """A recipe, what it is judged on, and how it was found.

    Attributes:
        kept: The recipe with its facts, as it is written beside the artefact.
        layers: The net's convolutions.
        pictures: What calibrated and what judges; None where a recipe was taken up without its pictures.
        reused: Whether it was read instead of made.
        held: The pictures that judge with the fp32 net's outputs, where a search has computed them.
        again: Makes the recipe that quantises these convolutions alone, as the search measured it: all else has its
            exact parameters, but for the last convolution, which is fitted anew. None where the recipe was read.
    """

    kept: KeptRecipe
    layers: tuple[Layer, ...]
    pictures: CalibrationPictures | None
    reused: bool
    held: HeldLoss | None = None
    again: Callable[[Sequence[str]], Recipe] | None = None

    @property
    def recipe(self) -> Recipe:
        """What is quantised and how."""
        return self.kept.recipe


def quantise_net(
    net: Net,
    kind: str,
    options: QuantiseOptions,
    *,
    unsigned: bool = False,
    old: KeptRecipe | None = None,
    state: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Quantisation:
    """Calibrate a net, and return convolutions to half precision until the budget holds.

    Args:
        net: What to quantise.
        kind: ``"int8"`` or ``"fp8"``.
        options: How.
        unsigned: For the graph for processors, which rounds to uint8 with a zero point, and outputs as well.
        old: Of an earlier run, see `reusable`; it is taken up unless a folder of other pictures is given.
        state: A file that keeps the search's measurements, so that an interrupted one goes on.
        say: Receives a line of progress now and then.

    Raises:
        ExportError: The architecture cannot be quantised, a NaN came out, or nothing holds the budget.
        MediaError: The folder holds no picture that can be used.
    """
    found = layers(net.spec)
    if old is not None and options.calibration is None:
        return Quantisation(kept=old, layers=found, pictures=None, reused=True)
    pictures = pictures_for(net.spec, options)
    asked = _asked(kind, options) | {"pictures": pictures.digest}
    if old is not None and old.asked == asked:
        say("the scales that are there are taken up: same weights, pictures and options")
        return Quantisation(kept=old, layers=found, pictures=pictures, reused=True)
    say(f"calibrating {kind} on {pictures.description}")
    if options.calibration is None:
        say("warning: drawn pictures stand in for photographs; give your own with --calibration DIR")
    module = copy.deepcopy(net.module)
    work = Preparation(
        module=module,
        spec=net.spec,
        layers=found,
        kind=kind,
        options=options,
        pictures=pictures.fit,
        unsigned=unsigned,
        say=say,
    )
    exact = work.scaled()
    everything = tuple(layer.name for layer in found if layer.name in exact.formats)
    whole = work.rounded(exact)
    # Of what takes minutes to round, a choice is taken out of the whole instead of being rounded for itself.
    learned = work.rounding == "learned"
    inseparable = learned or net.spec.architecture == "rrdbnet"

    def again(names: Sequence[str]) -> Recipe:
        # Rounded for all candidates, weights make up for errors that the chosen ones alone do not have.
        if tuple(names) == everything:
            return _trimmed(whole, found)
        part = work.part(exact, whole, names) if inseparable else work.rounded(exact.only(names))
        return _trimmed(part, found)

    held = HeldLoss.of_net([(pair.lr, pair.hr) for pair in pictures.held], net.module)
    wanted = demand(options, held)
    made: dict[tuple[str, ...], Recipe] = {}

    def measures(names: tuple[str, ...]) -> Loss:
        made[names] = again(names)
        return _loss_of(module, found, made[names], held)

    if options.search:
        few = {"evaluations": _FEW, "points": _FEW_POINTS} if work.rounding == "compensated" else {}
        alone = whole if inseparable else work.rounded(exact, alone=True)
        # On a copy: it takes the place of its module's convolutions.
        simulation = Simulation(copy.deepcopy(module), found, alone, fitted=alone.parameters)
        result = search(
            simulation,
            found,
            net.spec,
            held,
            dataclasses.replace(wanted, flops=_SEARCH, **few),
            measures=measures,
            state=state,
            say=say,
        )
        chosen, points = result.chosen, result.points
    else:
        result = None
        chosen = Point(names=everything, share=share_of(found, everything), loss=measures(everything))
        points = (chosen,)
    # An interrupted search knows what its recipe loses, and has to make it again.
    final = made[chosen.names] if chosen.names in made else again(chosen.names)
    if result is not None and learned and chosen.names != everything:
        better = _trimmed(work.rounded(exact.only(chosen.names)), found)
        loss = _loss_of(module, found, better, held)
        if loss.fidelity > chosen.loss.fidelity and wanted.allows(loss):
            final, found_again = better, dataclasses.replace(chosen, loss=loss)
            points = tuple(found_again if point == chosen else point for point in points)
            chosen = found_again
    shown = frontier(points)
    kept = KeptRecipe(
        recipe=final,
        weights_sha256=net.sha256,
        asked=asked,
        facts=_facts(result, chosen, shown, held, pictures, found),
    )
    say(table(shown, chosen=chosen))
    return Quantisation(
        kept=kept,
        layers=found,
        pictures=pictures,
        reused=False,
        held=held,
        again=again,
    )


def pictures_for(spec: ModelSpec, options: QuantiseOptions) -> CalibrationPictures:
    """Choose as many crops as the net can be run on in a few seconds.

    Raises:
        MediaError: The folder holds no picture that can be used.
    """
    pixels = _EVALUATION / (spec.flops_per_pixel or 1e7)
    crop = next((side for side in (64, 48) if pixels >= 4 * side**2), 32)
    crop = math.ceil(crop / spec.size_multiple) * spec.size_multiple
    held = int(min(max(pixels // crop**2, 4), 24))
    return calibration_pictures(
        options.calibration,
        channels=spec.in_channels,
        scale=spec.scale,
        multiple=spec.size_multiple,
        crop=crop,
        fit=int(min(max(_CALIBRATION / (spec.flops_per_pixel or 1e7) / crop**2, 8), _MOST_CROPS)),
        held=held,
    )


def demand(options: QuantiseOptions, held: HeldLoss) -> SearchOptions:
    """Return what a quantised net has to hold on the held pictures, see `QuantiseOptions.budget`."""
    budget = options.budget
    if budget is None:
        budget = LOSS if held.closer_than_bicubic() else FIDELITY
    if budget > MOST_LOSS:
        return SearchOptions(budget=None, floor=budget, worst=budget - _WORST, shift=_SHIFT)
    return SearchOptions(budget=budget, floor=FIDELITY)


def _loss_of(module: nn.Module, found: tuple[Layer, ...], recipe: Recipe, held: HeldLoss) -> Loss:
    module = copy.deepcopy(module)
    apply_parameters(module, recipe)
    return held(Simulation(module, found, recipe))


def _asked(kind: str, options: QuantiseOptions) -> dict[str, Any]:
    return {
        "format": kind,
        "budget": options.budget,
        "search": options.search,
        "method": options.method,
        "per_channel": options.per_channel,
        "equalise": options.equalise,
        "parts": options.parts,
        "rounding": options.rounding,
        "remainders": options.remainders,
    }


def reusable(
    path: Path, net: Net, kind: str, options: QuantiseOptions, say: Callable[[str], None]
) -> KeptRecipe | None:
    """Return what an earlier run left, where it belongs to these weights and was made with these options.

    What a training left was made with no options, and serves until a folder of pictures is given.
    """
    if not path.exists():
        return None
    try:
        kept = load_recipe(path)
    except ExportError as error:
        say(f"warning: {error}")
        return None
    asked = {key: value for key, value in kept.asked.items() if key != "pictures"}
    if kept.weights_sha256 != net.sha256:
        say(f"{path} belongs to other weights: calibrating again")
        return None
    if asked == {"format": kind, "training": True} and options.calibration is None:
        say(f"the scales of a training in {path.name} are taken up")
        return kept
    if asked != _asked(kind, options):
        say(f"{path} was made with other options: calibrating again")
        return None
    return kept


def _facts(
    result: SearchResult | None,
    chosen: Point,
    shown: Sequence[Point],
    held: HeldLoss,
    pictures: CalibrationPictures,
    found: tuple[Layer, ...],
) -> dict[str, Any]:
    loss = chosen.loss
    facts: dict[str, Any] = {
        "pictures": pictures.description,
        "convolutions": len(chosen.names),
        "of": len(found),
        "share": chosen.share,
        "psnr_y_fp32": held.psnr_y,
        "simulated": _figures(loss.loss, loss.fidelity),
        "frontier": [
            {
                "share": point.share,
                "convolutions": len(point.names),
                **_figures(point.loss.loss, point.loss.fidelity),
            }
            for point in shown
        ],
    }
    if result is not None:
        facts["alone"] = {
            one.name: {
                "noise": one.loss.noise,
                **_figures(one.loss.loss, one.loss.fidelity),
                "macs": one.macs,
            }
            for one in (*result.sensitivities.units, *result.sensitivities.convolutions)
        }
    return facts


def _figures(loss: float | None, fidelity: float) -> dict[str, Any]:
    return {"loss_db": loss, "to_fp32_db": fidelity if math.isfinite(fidelity) else None}


def _trimmed(recipe: Recipe, found: tuple[Layer, ...]) -> Recipe:
    # What is not quantised keeps its rewritten parameters, and needs no steps.
    groups = {layer.group for layer in found if layer.name in recipe.formats}
    return dataclasses.replace(
        recipe,
        activations={group: step for group, step in recipe.activations.items() if group in groups},
        multipliers={group: one for group, one in recipe.multipliers.items() if group in groups},
        weights={name: steps for name, steps in recipe.weights.items() if name in recipe.formats},
    )
