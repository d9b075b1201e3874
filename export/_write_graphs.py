"""From a traced model to the graphs that are written, and their proof."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from esrgan_deploy._files import PARTS, part_of, sha256_of
from esrgan_deploy._manifest import Artefact
from esrgan_deploy._parity import Comparison, Pairs, judged
from esrgan_deploy._spec import METADATA_KEY, ModelSpec
from esrgan_deploy.export._open_source import Source
from esrgan_deploy.export._options import PROCESSOR, ExportOptions
from esrgan_deploy.export.graphs import (
    Cut,
    bytes_in,
    bytes_out,
    clone,
    cut_graph,
    cuts_of,
    fold_scales,
    form_for_plans,
    is_watched,
    nest_concats,
    resize_output,
    save,
    to_precision,
    to_uint8_form,
    watch,
)
from esrgan_deploy.export.proof import verify_graph, verify_parts
from esrgan_deploy.runtime.sessions import PartsInfo

__all__ = ["Export", "describe", "prove_graph", "prove_parts", "write_graph", "write_interchange"]


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
        cut: Where it can be cut into parts; None where it cannot.
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
    cut: Cut | None = None


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
    cut = cuts_of(graph, source.spec)
    write_parts(graph, cut, path, form="float", watchdog=False)
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
        cut=cut,
    )


def write_parts(graph: ir.Model, cut: Cut | None, whole: Path, *, form: str, watchdog: bool) -> None:
    """Write trunk and tail of a graph beside it, where it can be cut: ``model.trunk.onnx`` and ``model.tail.onnx``.

    Args:
        graph: In the float form and its final precision, not watched.
        cut: Where to; None where it cannot be.
        whole: The graph's own file, whose digest the parts carry.
        form: Of the graph.
        watchdog: Whether the tail is to be watched, as the graph is.

    Raises:
        ExportError: The ONNX checker refuses one.
        OSError: The folder cannot be written.
    """
    parts = None if cut is None else cut_graph(graph, cut)
    if parts is None:
        return
    if watchdog:
        watch(parts.tail)
    if form == "uint8":
        bytes_in(parts.trunk)
        bytes_out(parts.tail, bytes_in(parts.tail))
    known = PartsInfo(
        whole=sha256_of(whole),
        blocks=parts.blocks,
        features=parts.channels,
        step=parts.step,
        reach=parts.reach,
        scale=parts.scale,
        picture=parts.reads_picture,
    )
    for name, part in (("trunk", parts.trunk), ("tail", parts.tail)):
        part.metadata_props.clear()
        part.metadata_props[METADATA_KEY] = known.to_json()
        save(part, part_of(whole, name), beside=whole)


def write_graph(export: Export, precision: str, quantise: Callable[[ir.Model], None] | None = None) -> Path:
    """Write the graph that a plan is built from, ``model.<precision>.onnx``, in the form that was asked for.

    It is written as plans are best built of it (`form_for_plans`), and in the file, not while the plan is built: the
    graph that is verified is the one that is compiled, now and when a plan is built again. What ONNX Runtime runs on
    a processor is ``model.onnx``, or the graph for processors, which keep the enlargements as they are.

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
    if precision != PROCESSOR:
        form_for_plans(graph, precision)
    graph = to_precision(graph, precision)
    bare = clone(graph)
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
    write_parts(bare, export.cut, path, form=options.form, watchdog=options.watchdog)
    return path


def prove_parts(export: Export, path: Path, precision: str, golden: Pairs) -> list[Artefact]:
    """Hold the parts of a graph against it, and return their entries for the manifest; none where it has no parts.

    Raises:
        InferenceError: ONNX Runtime refuses a part.
    """
    parts = {name: part_of(path, name) for name in PARTS}
    if not all(part.exists() for part in parts.values()):
        return []
    found = verify_parts(path, precision, {name: lr for name, (lr, _) in golden.items()})
    return [
        Artefact.from_file(
            part,
            kind="part",
            precision=precision,
            form="float" if path == export.path else export.options.form,
            outscale=export.outscale,
            size_multiple=export.size_multiple,
            built_from=path.name,
            verified=not found["breaches"],
            parity=(found,) if name == "trunk" else (),
            note="together with the tail" if name == "trunk" else "measured with the trunk",
        )
        for name, part in parts.items()
    ]


def prove_graph(
    export: Export,
    path: Path,
    precision: str,
    sets: dict[str, Pairs],
    *,
    costs: Mapping[str, Comparison] | None = None,
    extra: tuple[Comparison, ...] = (),
) -> Artefact:
    """Hold a written graph against the reference and return its entry for the manifest.

    Args:
        export: What is exported.
        path: The graph.
        precision: Of the graph.
        sets: By name of the set, pictures with their reference output.
        costs: By name of the set, what rounding to the precision costs.
        extra: Comparisons that were made of it already.

    Raises:
        ParityError: Its output has another shape than PyTorch's.
    """
    interchange = path == export.path
    form = "float" if interchange else export.options.form
    comparisons = [*verify_graph(path, precision, sets), *extra]
    figures, verified = judged(comparisons, precision, form, costs)
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
