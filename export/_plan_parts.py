"""The plans of a trunk and of a tail, beside the plan of the whole graph: for pictures that are too large for it."""

import dataclasses
import tempfile
from pathlib import Path

import onnx_ir as ir

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy._files import PARTS, part_of
from esrgan_deploy._manifest import Artefact
from esrgan_deploy._spec import METADATA_KEY
from esrgan_deploy.engines import (
    BuildOptions,
    ShapeRange,
    built_fields,
    check_sizes,
    engine_from_onnx,
    read_graph,
)
from esrgan_deploy.export._plan import plan_shapes
from esrgan_deploy.export._write_graphs import Export
from esrgan_deploy.export.graphs import save, trunk_of
from esrgan_deploy.runtime.device import device_facts
from esrgan_deploy.runtime.sessions import PartsInfo
from esrgan_deploy.runtime.tiling import TAIL

__all__ = ["build_part_plans"]

USUAL = (1088, 1920)
"""What the trunk's kernels are chosen for: of what is too large for the plan of the whole graph, most are frames."""

LARGEST = ((2880, 3840), (2176, 3840), USUAL)
"""The first is where TensorRT ends, in the shape that the largest frames have: the 192 channels of a dense block have
2^31 elements at 11.2 megapixels, where the whole graph's 64 at sixteen times the pixels have them at 2.1. The others
are for cards with less memory."""


def build_part_plans(export: Export, graph: Path, precision: str) -> list[Artefact]:
    """Build ``model.<precision>.trunk.plan`` and ``.tail.plan``, and return their entries for the manifest.

    The trunk takes one picture, as large as TensorRT and the memory limit allow (see `LARGEST`), or the one size of
    a static plan; the tail takes tiles of the map, with its reach around them. A tail that takes the picture too,
    as an SRVGGNetCompact's does, gets no plan: it has little memory to save. A part that cannot be built is a
    warning: the plan itself takes pictures of any size, in tiles.

    Args:
        export: What is exported.
        graph: What the plan was built from, with its parts beside it; none are built where it has none.
        precision: Of the graph.
    """
    options = export.options
    if export.cut is None or not part_of(graph, "tail").exists():
        return []
    tail = ir.load(part_of(graph, "tail"))
    known = PartsInfo.from_json(tail.metadata_props[METADATA_KEY])
    if known.picture:
        return []
    whole = plan_shapes(options, export.size_multiple)
    made: list[Artefact] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, part in zip(PARTS, (trunk_of(ir.load(graph), export.cut), tail), strict=True):
            # One file that holds its weights: the parts that were written share those of their graph.
            file, plan = (part_of(place / graph.name, name) for place in (Path(folder), export.staging))
            plan = plan.with_suffix(".plan")
            save(ir.external_data.load_to_model(part), file)
            build = dataclasses.replace(options.build, shapes=_tail_shapes(whole, known))
            if name == "trunk":
                build = _trunk_build(file, whole, options.build)
            export.say(f"building {plan.name} for {build.shapes}")
            try:
                result = engine_from_onnx(file, plan, build, expect_precision=_expected(file, precision))
            except EngineBuildError as error:
                # The plan itself is there, and takes large pictures in tiles.
                export.say(f"warning: no plan of the parts, large pictures will go in tiles ({error})")
                for other in made:
                    (export.staging / other.file).unlink()
                return []
            for warning in result.warnings:
                export.say(f"warning: {warning}")
            made.append(
                Artefact.from_file(
                    plan,
                    kind="part",
                    precision=precision,
                    form=options.form,
                    outscale=export.outscale,
                    size_multiple=export.size_multiple if name == "trunk" else 1,
                    built_from=graph.name,
                    **built_fields(result, build),
                    reach=known.reach if name == "tail" else 0,
                    note="built; not run, as it runs together with the other one",
                )
            )
    return made


def _expected(part: Path, precision: str) -> str:
    if precision not in ("int8", "fp8"):
        return precision
    # All that a graph quantises, or all of one format, may lie in the other part; the rest it keeps in fp16.
    quantised = read_graph(part).quantised
    return precision if precision in quantised else next(iter(quantised), "fp16")


def _trunk_build(trunk: Path, whole: ShapeRange, options: BuildOptions) -> BuildOptions:
    """Return the options with the widest range that can be built."""
    device = None if options.compute_capabilities else device_facts()
    for most in () if whole.static else LARGEST:
        build = dataclasses.replace(options, shapes=_trunk_shapes(whole, most))
        try:
            check_sizes(read_graph(trunk), build, device)
        except EngineBuildError:
            continue
        return build
    return dataclasses.replace(options, shapes=_trunk_shapes(whole, whole.max[1:], whole.opt[1:]))


def _trunk_shapes(whole: ShapeRange, most: tuple[int, ...], usual: tuple[int, ...] = USUAL) -> ShapeRange:
    # What the whole plan takes its trunk takes, one picture at a time.
    sides = []
    for axis, (top, middle) in enumerate(zip(most, usual, strict=True), start=1):
        high = max(whole.max[axis], top // whole.size_multiple * whole.size_multiple)
        wanted = max(whole.opt[axis], middle // whole.size_multiple * whole.size_multiple)
        sides.append((whole.min[axis], min(wanted, high), high))
    low, wide = sides
    return dataclasses.replace(
        whole, min=(1, low[0], wide[0]), opt=(1, low[1], wide[1]), max=(1, low[2], wide[2])
    )


def _tail_shapes(whole: ShapeRange, known: PartsInfo) -> ShapeRange:
    # The map is cut evenly: where it has more than `TAIL` rows, none of its tiles has under half of that.
    height, width = (min(side // known.step, TAIL // 2) for side in whole.min[1:])
    most = (1, TAIL + 2 * known.reach, TAIL + 2 * known.reach)
    return ShapeRange(min=(1, height, width), opt=most, max=most)
