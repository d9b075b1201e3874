"""The quantised graphs of an export: their recipe, and the graph itself, held to its budget where it is measured."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from esrgan_deploy._cache import cache_folder
from esrgan_deploy._errors import ExportError
from esrgan_deploy._parity import Pairs, judged
from esrgan_deploy.export._open_source import Source
from esrgan_deploy.export._options import PROCESSOR
from esrgan_deploy.export._scales import scales_beside, trained_recipe
from esrgan_deploy.export._write_graphs import Export, write_graph
from esrgan_deploy.export.graphs import (
    add_remainders,
    apply_parameters_to_graph,
    quantise,
    quantise_for_processor,
)
from esrgan_deploy.export.nets import QUANTISED, Quantised, layers, share_of
from esrgan_deploy.export.proof import (
    graph_input,
    noise_pictures,
    reference_pairs,
    run,
    verify_graph,
    verifying_session,
)
from esrgan_deploy.export.quantisation import Net, Quantisation, demand, quantise_net, reusable, tensor_of
from esrgan_deploy.export.quantisation.search import HeldLoss, Loss, SearchOptions

__all__ = ["QUANTISED_GRAPHS", "Graph", "search_state", "write_quantised"]

QUANTISED_GRAPHS = (*QUANTISED, PROCESSOR)
"""Precisions whose graphs have a recipe."""

_ROUNDS = 12
"""How often units return to half precision after the search, because the graph lost more than the simulation."""

_CENTRED = 16
"""Calibration pictures on which the mean error of a graph for processors is measured, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph that was written.

    Attributes:
        path: Where.
        quantisation: Its recipe, where it has one.
        counted: What of it is quantised, likewise.
        measured: What it loses on the held pictures, against the truth and against the fp32 net; None where it has no
            recipe, or no picture to measure that on.
        psnr_y: The fp32 net's there, in dB.
        demand: What it has to hold there; None where nothing was measured.
        unseen: The pictures that judge with what PyTorch makes of them; None where there are none.
    """

    path: Path
    quantisation: Quantisation | None = None
    counted: Quantised | None = None
    measured: Loss | None = None
    psnr_y: float | None = None
    demand: SearchOptions | None = None
    unseen: Pairs | None = None


def write_quantised(export: Export, precision: str) -> Graph:
    """Find a recipe and write the graph that it makes.

    The graph rounds to fp16 what the search's simulation keeps in fp32, and the one for processors rounds outputs as
    well. So it is measured itself, and where it loses more than the budget, the verification's bounds on the pictures
    that judge do not hold, or noise shows that it clips what no photograph holds, further units return to half
    precision.

    Args:
        export: What is exported.
        precision: One of `QUANTISED_GRAPHS`.

    Raises:
        ExportError: There is no checkpoint to calibrate, its architecture cannot be quantised, or nothing holds the
            budget.
        CheckpointError: The scales beside the checkpoint do not fit it.
        MediaError: The folder of pictures holds none that can be used.
    """
    source, options, say = export.source, export.options, export.say
    quantisation = _quantisation_of(export, precision)
    held = _held(source, quantisation)
    wanted = None if held is None else demand(options.quantise, held)
    noise = noise_pictures(source.spec.in_channels, export.size_multiple)
    unseen = _unseen(source, quantisation, held)
    sets: dict[str, Pairs] = {}
    if held is not None and unseen is not None and options.quantise.search:
        # What the verification will ask: dB alone do not say how many samples are within a level.
        sets = {"noise": reference_pairs(source.reference, noise), "unseen": unseen}
    for left in reversed(range(_ROUNDS)):
        path, counted = _write(export, precision, quantisation)
        if precision == PROCESSOR and held is not None and not quantisation.reused:
            # It rounds outputs too, each a little to one side, and nothing before has seen that.
            quantisation = _centred(path, source, quantisation)
            path, counted = _write(export, precision, quantisation)
        measured = None if held is None else _measured(path, precision, held)
        line = (
            f"{path.name}: {counted.convolutions} of {counted.of} convolutions, {counted.share:.1%} of the "
        )
        line += "multiply-adds"
        if measured is not None:
            line += "" if measured.loss is None else f", {measured.loss:+.3f} dB lost"
            line += f", {measured.fidelity:.1f} dB to fp32, {measured.worst:.1f} in the worst tile"
        say(line)
        if measured is None or wanted is None or not options.quantise.search:
            break
        judgement, stands = judged(verify_graph(path, precision, sets), precision, options.form)
        if stands and wanted.allows(measured):
            break
        units = {layer.unit for layer in quantisation.layers if layer.name in quantisation.recipe.formats}
        if not left or len(units) < 2:
            # What was written last stays, and so does what is said of it.
            break
        for figures in judgement:
            for breach in figures["breaches"]:
                say(f"{path.name} on {figures['on']}: {breach}; a unit more returns")
        for breach in wanted.breaches(measured):
            say(f"{path.name} on what judges: {breach}; a unit more returns")
        if quantisation.again is None:
            say("what was taken up does not hold here: calibrating again")
            quantisation = _quantisation_of(export, precision, anew=True)
        else:
            quantisation = _without_worst(quantisation)
    return Graph(
        path=path,
        quantisation=quantisation,
        counted=counted,
        measured=measured,
        psnr_y=None if held is None else held.psnr_y,
        demand=wanted,
        unseen=unseen,
    )


def search_state(folder: Path, precision: str) -> Path:
    """Return where an interrupted search keeps its measurements; a finished export removes it.

    Not in the folder of the export, in which a failure leaves nothing.
    """
    name = hashlib.sha256(f"{folder.resolve()} {precision}".encode()).hexdigest()[:16]
    return cache_folder("searches") / f"{name}.json"


def _write(export: Export, precision: str, quantisation: Quantisation) -> tuple[Path, Quantised]:
    recipe, found = quantisation.recipe, quantisation.layers
    counted: list[Quantised] = []

    def pass_(graph: ir.Model) -> None:
        apply_parameters_to_graph(graph, found, recipe.parameters)
        if precision == PROCESSOR:
            counted.append(quantise_for_processor(graph, found, recipe))
        else:
            counted.append(quantise(graph, found, recipe))
            add_remainders(graph, found, recipe)

    return write_graph(export, precision, pass_), counted[0]


def _centred(path: Path, source: Source, quantisation: Quantisation) -> Quantisation:
    """Take the mean error of each colour, measured on calibration pictures, out of the last convolution's bias."""
    last = quantisation.layers[-1].name
    if quantisation.pictures is None or source.module is None:
        return quantisation
    session = verifying_session(path, PROCESSOR)
    errors = []
    for picture in quantisation.pictures.fit[:_CENTRED]:
        with torch.inference_mode():
            wanted = source.module(tensor_of(picture)).clamp(0, 1)
        made = _planar(run(session, graph_input(session, picture))[0]).clamp(0, 1)
        errors.append((wanted - made).mean((0, 2, 3)))
    off = torch.stack(errors).mean(0).numpy()
    recipe, name = quantisation.recipe, f"{last}.bias"
    bias = recipe.parameters.get(name)
    if bias is None:
        bias = source.module.get_submodule(last).get_parameter("bias").detach().numpy()
    # Of an SRVGGNetCompact each colour is made of as many channels as a pixel becomes.
    moved = (bias + np.repeat(off, len(bias) // len(off))).astype(np.float32)
    recipe = dataclasses.replace(recipe, parameters={**recipe.parameters, name: moved})
    return dataclasses.replace(quantisation, kept=dataclasses.replace(quantisation.kept, recipe=recipe))


def _held(source: Source, quantisation: Quantisation) -> HeldLoss | None:
    # Of a graph that is resized there is no truth.
    if quantisation.pictures is None or source.ratio != 1 or source.module is None:
        return None
    pairs = [(pair.lr, pair.hr) for pair in quantisation.pictures.held]
    return quantisation.held or HeldLoss.of_net(pairs, source.module)


def _unseen(source: Source, quantisation: Quantisation, held: HeldLoss | None) -> Pairs | None:
    if quantisation.pictures is None:
        return None
    pairs = quantisation.pictures.held
    if held is None:
        return reference_pairs(source.reference, {pair.name: pair.lr for pair in pairs})
    # The fp32 net has made them already.
    return {pair.name: (pair.lr, out.numpy()) for pair, out in zip(pairs, held.outputs, strict=True)}


def _measured(path: Path, precision: str, held: HeldLoss) -> Loss:
    session = verifying_session(path, precision)
    return held.of([_planar(run(session, graph_input(session, lr))[0]) for lr, _ in held.pairs])


def _without_worst(quantisation: Quantisation) -> Quantisation:
    """Return the unit that does most harm for its multiply-adds, as it was measured alone, to half precision."""
    alone: Mapping[str, Mapping[str, Any]] = quantisation.kept.facts.get("alone", {})
    recipe = quantisation.recipe
    left = {layer.unit for layer in quantisation.layers if layer.name in recipe.formats}

    def harm(unit: str) -> float:
        seen = alone.get(unit)
        return float(seen["noise"]) / float(seen["macs"]) if seen else 0.0

    worst = max(sorted(left), key=harm)
    kept = [
        layer.name for layer in quantisation.layers if layer.unit != worst and layer.name in recipe.formats
    ]
    assert quantisation.again is not None
    # What was found of the larger recipe is not true of this one.
    facts = {name: value for name, value in quantisation.kept.facts.items() if name != "simulated"}
    facts |= {"convolutions": len(kept), "share": share_of(quantisation.layers, kept)}
    fewer = dataclasses.replace(quantisation.kept, recipe=quantisation.again(kept), facts=facts)
    return dataclasses.replace(quantisation, kept=fewer)


def _quantisation_of(export: Export, precision: str, *, anew: bool = False) -> Quantisation:
    """Find the recipe of a quantised graph.

    Without pictures to calibrate on, the scales that lie in the export's folder are taken up if they belong to
    these weights and were made with these options; else those that a training left beside the checkpoint.

    Args:
        export: What is exported.
        precision: One of `QUANTISED_GRAPHS`.
        anew: Whether to calibrate whatever lies there.

    Raises:
        ExportError: There is no checkpoint to calibrate, or its architecture cannot be quantised.
        CheckpointError: The scales beside the checkpoint do not fit it.
        MediaError: The folder of pictures holds none that can be used.
    """
    source, say = export.source, export.say
    if source.module is None:
        raise ExportError(
            f"{source.name} is a graph, and {precision} is calibrated on a checkpoint in PyTorch. Give the "
            "checkpoint, or run: --precision fp16"
        )
    kind = "int8" if precision == PROCESSOR else precision
    asked = export.options.quantise
    net = Net(module=source.module, spec=source.spec)
    old = None if anew else reusable(export.folder / f"model.{precision}.scales.json", net, kind, asked, say)
    if old is None and precision != PROCESSOR and asked.calibration is None and source.weights is not None:
        trained = trained_recipe(source.weights, net, kind)
        if trained is not None:
            say(f"scales of a training are taken from {scales_beside(source.weights).name}")
            return Quantisation(kept=trained, layers=layers(source.spec), pictures=None, reused=True)
    return quantise_net(
        net,
        kind,
        asked,
        unsigned=precision == PROCESSOR,
        old=old,
        state=search_state(export.folder, precision),
        say=say,
    )


def _planar(out: npt.NDArray[np.generic]) -> torch.Tensor:
    if out.dtype == np.uint8:
        return tensor_of(out.astype(np.uint8))
    return torch.from_numpy(out.astype(np.float32))
