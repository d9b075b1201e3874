"""From a traced model to the graphs that are written, and their proof."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from esrgan_deploy._manifest import Artefact
from esrgan_deploy._parity import Comparison, Pairs, judged
from esrgan_deploy._spec import METADATA_KEY, ModelSpec
from esrgan_deploy.export._open_source import Source
from esrgan_deploy.export._options import ExportOptions
from esrgan_deploy.export.graphs import (
    clone,
    fold_scales,
    is_watched,
    nest_concats,
    resize_output,
    save,
    to_precision,
    to_uint8_form,
    watch,
)
from esrgan_deploy.export.proof import verify_graph

__all__ = ["Export", "describe", "prove_graph", "write_graph", "write_interchange"]


def describe(
    model: ir.Model, spec: ModelSpec, *, precision: str, form: str, outscale: float, size_multiple: int
) -> None:
    """Write what a graph is into its metadata, as JSON under one key, so that it can stand without a manifest."""
    facts = {
        "precision": precision,
        "form": form,
        "outscale": outscale,
        "size_multiple": size_multiple,
        "watched": is_watched(model),
        "spec": spec.to_json(),
    }
    model.metadata_props.clear()
    model.metadata_props[METADATA_KEY] = json.dumps(facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """An export under way, and its interchange graph: the rewritten fp32 one that every other artefact is made from.

    Attributes:
        source: What is exported.
        options: What to make of it.
        staging: The folder in which everything is made.
        folder: Where it will go: scales that lie there may be taken up, and an interrupted search for it goes on.
        say: Receives a line of progress now and then.
        graph: The interchange graph: the float form, at the wanted scale.
        path: Where it was written.
        outscale: Output pixels per input pixel and axis.
        size_multiple: What height and width of the input have to be multiples of.
    """

    source: Source
    options: ExportOptions
    staging: Path
    folder: Path
    say: Callable[[str], None]
    graph: ir.Model
    path: Path
    outscale: float
    size_multiple: int


def write_interchange(
    source: Source, options: ExportOptions, staging: Path, folder: Path, say: Callable[[str], None]
) -> Export:
    """Rewrite the traced graph and write it as ``model.onnx``: the float form in fp32, with dynamic shapes.

    Raises:
        ExportError: The ONNX checker refuses it.
        OSError: The folder cannot be written.
    """
    graph = clone(source.graph)
    nested, folded = nest_concats(graph), fold_scales(graph)
    shrink = resize_output(graph, source.ratio)
    # The net makes `scale` pixels of each, so q of its output need q / gcd(q, scale) of its input.
    multiple = math.lcm(source.spec.size_multiple, shrink // math.gcd(shrink, source.spec.scale))
    outscale = float(source.ratio * source.spec.scale)
    describe(graph, source.spec, precision="fp32", form="float", outscale=outscale, size_multiple=multiple)
    path = staging / "model.onnx"
    save(graph, path)
    say(f"wrote model.onnx: {nested} concatenations nested, {folded} residual scales folded")
    return Export(
        source=source,
        options=options,
        staging=staging,
        folder=folder,
        say=say,
        graph=graph,
        path=path,
        outscale=outscale,
        size_multiple=multiple,
    )


def write_graph(export: Export, precision: str, quantise: Callable[[ir.Model], None] | None = None) -> Path:
    """Write the graph that a plan is built from, ``model.<precision>.onnx``, in the form that was asked for.

    Args:
        export: What is exported.
        precision: Of the graph.
        quantise: Puts the Q/DQ pairs into the fp32 graph, before what is left becomes fp16.

    Raises:
        ExportError: A weight does not fit the precision, or the ONNX checker refuses the graph.
        OSError: The folder cannot be written.
    """
    options = export.options
    graph = clone(export.graph)
    if quantise is not None:
        quantise(graph)
    graph = to_precision(graph, precision)
    if options.watchdog:
        watch(graph)
    if options.form == "uint8":
        to_uint8_form(graph)
    describe(
        graph,
        export.source.spec,
        precision=precision,
        form=options.form,
        outscale=export.outscale,
        size_multiple=export.size_multiple,
    )
    path = export.staging / f"model.{precision}.onnx"
    save(graph, path)
    return path


def prove_graph(
    export: Export,
    path: Path,
    precision: str,
    sets: dict[str, Pairs],
    *,
    extra: tuple[Comparison, ...] = (),
) -> Artefact:
    """Hold a written graph against the reference and return its entry for the manifest.

    Raises:
        ParityError: Its output has another shape than PyTorch's.
    """
    interchange = path == export.path
    form = "float" if interchange else export.options.form
    comparisons = [*verify_graph(path, precision, sets), *extra]
    figures, verified = judged(comparisons, precision, form)
    written = ir.load(path)
    return Artefact.from_file(
        path,
        kind="onnx",
        precision=precision,
        form=form,
        outscale=export.outscale,
        size_multiple=export.size_multiple,
        opset=written.graph.opset_imports[""],
        built_from="" if interchange else export.path.name,
        verified=verified,
        parity=figures,
        watched=is_watched(written),
    )
