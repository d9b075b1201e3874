"""The proof of a quantised graph, and the files that lie beside it."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esrgan_deploy._manifest import Artefact
from esrgan_deploy._parity import Comparison, Pairs
from esrgan_deploy.export._write_graphs import Export, prove_graph
from esrgan_deploy.export._write_quantised import Graph
from esrgan_deploy.export.quantisation import Quantisation, save_recipe
from esrgan_deploy.export.quantisation.search import Loss, SearchOptions

__all__ = ["over_budget", "prove_quantised"]


def prove_quantised(
    export: Export,
    graph: Graph,
    precision: str,
    sets: dict[str, Pairs],
    costs: Mapping[str, Comparison] | None = None,
) -> list[Artefact]:
    """Hold a graph against the reference, and a quantised one against its budget as well.

    Returns:
        The entry of the graph, and of a quantised one those of its scales.

    Raises:
        ParityError: Its output has another shape than PyTorch's.
        OSError: The folder cannot be written.
    """
    quantisation, counted = graph.quantisation, graph.counted
    if quantisation is None or counted is None:
        return [prove_graph(export, graph.path, precision, sets, costs=costs)]
    asked = export.options.quantise
    if graph.unseen is not None:
        sets = {**sets, "unseen": graph.unseen}
    artefact = prove_graph(export, graph.path, precision, sets)
    facts: dict[str, Any] = {
        "convolutions": counted.convolutions,
        "of": counted.of,
        "share": counted.share,
        "pictures": quantisation.kept.facts.get("pictures", "scales of a training"),
        "asked": dict(quantisation.kept.asked),
        "budget_db": asked.budget if graph.demand is None else graph.demand.budget or graph.demand.floor,
    }
    found = _figures(graph)
    if found:
        facts["measured"] = found
    artefact = dataclasses.replace(artefact, quantised=facts)
    if graph.measured is not None and graph.demand is not None and asked.search:
        artefact = over_budget(artefact, graph.measured, graph.demand)
    return [artefact, *_write_recipe(quantisation, precision, found, export.staging)]


def over_budget(artefact: Artefact, loss: Loss, demand: SearchOptions) -> Artefact:
    """Return the entry of a graph, marked as not verified where it loses more than it may."""
    found = demand.breaches(loss)
    if not found:
        return artefact
    parity = tuple(
        {**figures, "breaches": [*figures["breaches"], *found]} if figures["on"] == "unseen" else figures
        for figures in artefact.parity
    )
    return dataclasses.replace(artefact, parity=parity, verified=False)


def _figures(graph: Graph) -> dict[str, Any]:
    assert graph.quantisation is not None
    if graph.measured is None:
        # What it lost when it was calibrated, with the pictures that are not at hand now.
        return dict(graph.quantisation.kept.facts.get("measured", {}))
    loss = graph.measured
    return {
        "loss_db": loss.loss,
        "psnr_y": loss.psnr_y,
        "psnr_y_fp32": graph.psnr_y,
        "to_fp32_db": loss.fidelity if math.isfinite(loss.fidelity) else None,
    }


def _write_recipe(
    quantisation: Quantisation, precision: str, measured: dict[str, Any], folder: Path
) -> list[Artefact]:
    kept = quantisation.kept
    if measured:
        kept = dataclasses.replace(kept, facts={**kept.facts, "measured": measured})
    files = save_recipe(folder / f"model.{precision}.scales.json", kept)
    notes = ("scales, sensitivities and what was measured", "parameters that were rewritten")
    return [
        Artefact.from_file(path, kind="scales", precision=precision, note=note)
        for path, note in zip(files, notes, strict=False)
    ]
