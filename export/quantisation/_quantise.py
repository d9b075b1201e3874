"""From a net and pictures to a recipe that holds a budget of decibels."""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from esrgan_deploy._errors import ExportError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.quantisation._frontier import frontier, plot, table
from esrgan_deploy.export.quantisation._loss import HeldLoss, Loss
from esrgan_deploy.export.quantisation._options import QuantiseOptions
from esrgan_deploy.export.quantisation._pictures import CalibrationPictures, calibration_pictures
from esrgan_deploy.export.quantisation._prepare import Preparation
from esrgan_deploy.export.quantisation._recipe import Recipe
from esrgan_deploy.export.quantisation._recipe_file import KeptRecipe, load_recipe
from esrgan_deploy.export.quantisation._refine import refined
from esrgan_deploy.export.quantisation._search import Point, SearchOptions, SearchResult, search
from esrgan_deploy.export.quantisation._simulation import Simulation, apply_parameters
from esrgan_deploy.export.quantisation._structure import Layer, layers, share_of

__all__ = ["FLOOR", "Net", "Quantisation", "pictures_for", "plot_beside", "quantise_net"]

FLOOR = 47.0
"""dB to the fp32 picture that a search keeps besides its budget: four of five samples are then within one level, as
the verification asks, where errors are spread as rounding spreads them."""

_EVALUATION = 4e11
"""Floating-point operations that running the net on all held pictures may cost: some seconds on two cores."""

_LARGE = 1e7
"""Floating-point operations per pixel from which on only the chosen point is built to count its bytes."""

_TRIES = 4
"""How often weights are rounded again to find how much more can be quantised then; each takes a minute or so."""

_SEARCH = 1e13
"""Floating-point operations that measuring every convolution alone may cost: minutes on two cores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Net:
    """What is to be quantised.

    Attributes:
        module: The generator in fp32, in eval mode; it is not changed.
        spec: What it is.
        sha256: Of the file of its weights.
    """

    module: nn.Module
    spec: ModelSpec
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantisation:
    """A recipe, what it is judged on, and how it was found.

    Attributes:
        kept: The recipe with its facts, as it is written beside the artefact.
        layers: The net's convolutions.
        pictures: What calibrated and what judges; None where a recipe was taken up without its pictures.
        reused: Whether it was read instead of made.
        held: The pictures that judge with the fp32 net's outputs, where a search has computed them.
        plot: The frontier as an SVG; empty where there is none.
        again: Rounds once more, for these convolutions alone; None where the recipe was read, and where weights are
            learned, which takes minutes each time.
    """

    kept: KeptRecipe
    layers: tuple[Layer, ...]
    pictures: CalibrationPictures | None
    reused: bool
    held: HeldLoss | None = None
    plot: str = ""
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
    bytes_of: Callable[[Recipe], float | None] = lambda recipe: None,
    old: Path | None = None,
    state: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Quantisation:
    """Calibrate a net, and return convolutions to half precision until the budget holds.

    Args:
        net: What to quantise.
        kind: ``"int8"`` or ``"fp8"``.
        options: How.
        unsigned: For the graph for processors, which rounds to uint8 with a zero point, and outputs as well.
        bytes_of: Declared bytes per pixel of the input that the graph of a recipe moves, where that is known.
        old: A ``….scales.json`` of an earlier run; it is taken up where it belongs to these weights and was made
            with these options and, if a folder of pictures is given, with these pictures.
        state: A file that keeps the search's measurements, so that an interrupted one goes on.
        say: Receives a line of progress now and then.

    Raises:
        ExportError: The architecture cannot be quantised, a NaN came out, or nothing holds the budget.
        MediaError: The folder holds no picture that can be used.
    """
    found = layers(net.spec)
    kept = _reusable(old, net, kind, options, say)
    if kept is not None and options.calibration is None:
        return Quantisation(kept=kept, layers=found, pictures=None, reused=True, plot=_plot_beside(old))
    pictures = pictures_for(net.spec, options)
    asked = _asked(kind, options) | {"pictures": pictures.digest}
    if kept is not None and kept.asked == asked:
        say(f"scales of {old} are taken up: same weights, pictures and options")
        return Quantisation(kept=kept, layers=found, pictures=pictures, reused=True, plot=_plot_beside(old))
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

    def again(names: Sequence[str]) -> Recipe:
        # Rounded for all candidates, weights make up for errors that the chosen ones alone do not have.
        return _trimmed(work.rounded(exact.only(names)), found)

    everything = tuple(layer.name for layer in found if layer.name in exact.formats)
    recipe = again(everything)
    result, held = _searched(net, module, found, recipe, pictures, options, kind, state, say)
    chosen, points = result.chosen, result.points
    final = _trimmed(recipe.only(chosen.names), found)
    learned = work.rounding == "learned"
    if isinstance(result, SearchResult) and chosen.names != everything and work.rounding != "nearest":
        better = refined(
            chosen,
            result.order,
            found,
            everything,
            rounds=again,
            measures=lambda one: _loss_of(module, found, one, held),
            allows=_asked_of_search(options).allows,
            tries=0 if learned else _TRIES,
            say=say,
        )
        if better is not None:
            final, measured = better
            known = {point.names for point in measured}
            chosen, points = measured[-1], (*(p for p in points if p.names not in known), *measured)
    shown = frontier(points)
    declared = {
        point.names: bytes_of(recipe.only(point.names))
        for point in shown
        if point == chosen or (net.spec.flops_per_pixel or 0) < _LARGE
    }
    kept = KeptRecipe(
        recipe=final,
        weights_sha256=net.sha256,
        asked=asked,
        facts=_facts(result, chosen, shown, held, pictures, found, declared),
    )
    say(table(shown, chosen=chosen, bytes_of=lambda point: declared.get(point.names)))
    drawing = plot(shown, chosen=chosen, budget=options.budget, title=f"{kind}: what is lost")
    return Quantisation(
        kept=kept,
        layers=found,
        pictures=pictures,
        reused=False,
        held=held,
        plot=drawing,
        again=None if learned else again,
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
        fit=min(max(2 * held, 8), 32),
        held=held,
    )


def _searched(
    net: Net,
    module: nn.Module,
    found: tuple[Layer, ...],
    recipe: Recipe,
    pictures: CalibrationPictures,
    options: QuantiseOptions,
    kind: str,
    state: Path | None,
    say: Callable[[str], None],
) -> tuple["SearchResult | _All", HeldLoss]:
    held = HeldLoss.of_net([(pair.lr, pair.hr) for pair in pictures.held], net.module)
    module = copy.deepcopy(module)
    apply_parameters(module, recipe)
    simulation = Simulation(module, found, recipe)
    if not options.search:
        names = tuple(layer.name for layer in found if layer.name in recipe.formats)
        point = Point(names=names, share=share_of(found, names), loss=held(simulation))
        return _All(chosen=point, points=(point,)), held
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
    return search(simulation, found, net.spec, held, _asked_of_search(options), state=state, say=say), held


def _asked_of_search(options: QuantiseOptions) -> SearchOptions:
    return SearchOptions(budget=options.budget, floor=FLOOR, flops=_SEARCH)


def _loss_of(module: nn.Module, found: tuple[Layer, ...], recipe: Recipe, held: HeldLoss) -> Loss:
    module = copy.deepcopy(module)
    apply_parameters(module, recipe)
    return held(Simulation(module, found, recipe))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _All:
    """What a search would have returned, where none was asked for."""

    chosen: Point
    points: tuple[Point, ...]


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


def _reusable(
    old: Path | None, net: Net, kind: str, options: QuantiseOptions, say: Callable[[str], None]
) -> KeptRecipe | None:
    if old is None or not old.exists():
        return None
    try:
        kept = load_recipe(old)
    except ExportError as error:
        say(f"warning: {error}")
        return None
    asked = {key: value for key, value in kept.asked.items() if key != "pictures"}
    if kept.weights_sha256 != net.sha256:
        say(f"{old} belongs to other weights: calibrating again")
        return None
    if asked != _asked(kind, options):
        say(f"{old} was made with other options: calibrating again")
        return None
    return kept


def plot_beside(scales: Path) -> Path:
    """Return where the plot of a frontier is: ``model.int8.frontier.svg`` for ``model.int8.scales.json``."""
    return scales.with_name(scales.name.removesuffix(".scales.json") + ".frontier.svg")


def _plot_beside(scales: Path | None) -> str:
    path = None if scales is None else plot_beside(scales)
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""


def _facts(
    result: "SearchResult | _All",
    chosen: Point,
    shown: Sequence[Point],
    held: HeldLoss,
    pictures: CalibrationPictures,
    found: tuple[Layer, ...],
    declared: Mapping[tuple[str, ...], float | None],
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
                "declared_bytes": declared.get(point.names),
                **_figures(point.loss.loss, point.loss.fidelity),
            }
            for point in shown
        ],
    }
    if isinstance(result, SearchResult):
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
        weights=_chosen(recipe.weights, recipe.formats),
    )


def _chosen(table_: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table_.items() if name in names}
