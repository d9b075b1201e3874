"""From a traced model to the graphs that are written, and their proof."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from esrgan_deploy._errors import ParityError
from esrgan_deploy._manifest import Artefact
from esrgan_deploy._parity import Comparison, Pairs, judged
from esrgan_deploy.export._forms import to_uint8_form
from esrgan_deploy.export._graph import clone, save
from esrgan_deploy.export._metadata import describe
from esrgan_deploy.export._options import ExportOptions
from esrgan_deploy.export._outscale import resize_output
from esrgan_deploy.export._precision import to_precision
from esrgan_deploy.export._rewrite import fold_scales, nest_concats
from esrgan_deploy.export._source import Source
from esrgan_deploy.export._verify import verify_graph
from esrgan_deploy.export._watchdog import is_watched, watch

__all__ = ["Interchange", "prove_graph", "refuse_breaches", "write_graph", "write_interchange"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interchange:
    """The rewritten fp32 graph that every other artefact is made from.

    Attributes:
        graph: The float form, at the wanted scale.
        path: Where it was written.
        outscale: Output pixels per input pixel and axis.
        size_multiple: What height and width of the input have to be multiples of.
        nested: Number of concatenations that were nested.
        folded: Number of residual scales that were folded into weights.
    """

    graph: ir.Model
    path: Path
    outscale: float
    size_multiple: int
    nested: int
    folded: int


def write_interchange(source: Source, folder: Path) -> Interchange:
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
    path = folder / "model.onnx"
    save(graph, path)
    return Interchange(
        graph=graph, path=path, outscale=outscale, size_multiple=multiple, nested=nested, folded=folded
    )


def write_graph(
    source: Source,
    base: Interchange,
    precision: str,
    options: ExportOptions,
    folder: Path,
    quantise: Callable[[ir.Model], None] | None = None,
) -> Path:
    """Write the graph that a plan is built from, ``model.<precision>.onnx``, in the form that was asked for.

    Args:
        source: What is exported.
        base: Its interchange graph.
        precision: Of the graph.
        options: Of the export.
        folder: Where it goes.
        quantise: Puts the Q/DQ pairs into the fp32 graph, before what is left becomes fp16.

    Raises:
        ExportError: A weight does not fit the precision, or the ONNX checker refuses the graph.
        OSError: The folder cannot be written.
    """
    graph = clone(base.graph)
    if quantise is not None:
        quantise(graph)
    graph = to_precision(graph, precision)
    if options.watchdog:
        watch(graph)
    if options.form == "uint8":
        to_uint8_form(graph)
    describe(
        graph,
        source.spec,
        precision=precision,
        form=options.form,
        outscale=base.outscale,
        size_multiple=base.size_multiple,
    )
    path = folder / f"model.{precision}.onnx"
    save(graph, path)
    return path


def prove_graph(
    path: Path,
    precision: str,
    form: str,
    base: Interchange,
    sets: dict[str, Pairs],
    *,
    extra: tuple[Comparison, ...] = (),
) -> Artefact:
    """Hold a written graph against the reference and return its entry for the manifest.

    Raises:
        ParityError: Its output has another shape than PyTorch's.
    """
    comparisons = [*verify_graph(path, precision, sets), *extra]
    figures, verified = judged(comparisons, precision, form)
    written = ir.load(path)
    return Artefact.from_file(
        path,
        kind="onnx",
        precision=precision,
        form=form,
        outscale=base.outscale,
        size_multiple=base.size_multiple,
        opset=written.graph.opset_imports[""],
        built_from="" if path == base.path else base.path.name,
        verified=verified,
        parity=figures,
        watched=is_watched(written),
    )


def refuse_breaches(artefacts: Sequence[Artefact], manifest: Path) -> None:
    """Raise for artefacts that breached a bound.

    Raises:
        ParityError: One did, with the figures.
    """
    found = [
        f"{artefact.file} on {figures['on'].split(' ')[0]}: {'; '.join(figures['breaches'])}"
        for artefact in artefacts
        for figures in artefact.parity
        if figures.get("breaches")
    ]
    if found:
        raise ParityError(
            f"not verified: {' | '.join(found)}. The files are marked so in {manifest}. "
            "Try --precision bf16 or fp32, and look at the layers that were warned of"
        )
