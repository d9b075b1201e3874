"""The plan of an export: built, its dtypes read back, and run where a GPU can run it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from esrgan_deploy._errors import EngineMismatchError, InferenceError, MissingDependencyError
from esrgan_deploy._flavour import Flavour, gpu_is_usable, open_flavour
from esrgan_deploy._manifest import Artefact
from esrgan_deploy._parity import Comparison, Pairs, judged
from esrgan_deploy.engines import ShapeRange, built_fields, engine_from_onnx
from esrgan_deploy.export._options import ExportOptions
from esrgan_deploy.export._report import each_tenth
from esrgan_deploy.export._write_graphs import Export
from esrgan_deploy.export.graphs import is_watched
from esrgan_deploy.runtime import SessionOptions, open_session
from esrgan_deploy.runtime.sessions import verify_session

__all__ = ["build_plan", "plan_flavour", "plan_shapes"]


def plan_flavour(options: ExportOptions) -> Flavour | None:
    """Return the TensorRT that will build, or None where no plan is to be built.

    Raises:
        MissingDependencyError: A plan was asked for, or a flavour by name, and it is not installed.
    """
    if options.plan is False:
        return None
    try:
        return open_flavour(options.build.flavour)
    except MissingDependencyError:
        if options.plan or options.build.flavour != "auto":
            raise
        return None


def plan_shapes(options: ExportOptions, size_multiple: int) -> ShapeRange:
    """Return the range of a plan: the one that was asked for, or the default in multiples that the model takes.

    Raises:
        EngineBuildError: A side that was asked for is no multiple of ``size_multiple``.
    """
    asked = options.build.shapes
    # Nobody chose the default's sides, so that no sides of a model can be refused for them.
    return (
        ShapeRange.default(size_multiple) if asked == ShapeRange.default() else asked.checked(size_multiple)
    )


def build_plan(
    export: Export,
    graph: Path,
    precision: str,
    sets: dict[str, Pairs],
    costs: Mapping[str, Comparison] | None = None,
) -> Artefact:
    """Build ``model.<precision>.plan`` of a graph and return its entry for the manifest.

    What the builder reports of its convolutions must be the precision that was asked for. Where a GPU can run
    the plan it is held against the reference as the graphs are; elsewhere `verified` is None and the note says so.

    Raises:
        EngineBuildError: TensorRT cannot build it, or its convolutions compute in something else.
    """
    options, say, plan = export.options, export.say, export.staging / f"model.{precision}.plan"
    build = dataclasses.replace(options.build, shapes=plan_shapes(options, export.size_multiple))
    say(f"building {plan.name} for {build.shapes}")
    result = engine_from_onnx(graph, plan, build, expect_precision=precision, progress=_progress(say))
    for warning in result.warnings:
        say(f"warning: {warning}")
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in result.dtypes.items())
    say(f"{plan.name}: {result.flavour} {result.version}, {result.seconds:.1f} s, convolutions {kinds}")
    figures, verified, state = _run_here(plan, precision, options, sets, costs)
    return Artefact.from_file(
        plan,
        kind="plan",
        precision=precision,
        form=options.form,
        outscale=export.outscale,
        size_multiple=export.size_multiple,
        built_from=graph.name,
        **built_fields(result, build),
        verified=verified,
        parity=figures,
        watched=is_watched(ir.load(graph)),
        note=f"built, all convolutions {'/'.join(result.dtypes)}; {state}"
        if result.dtypes
        else f"built; {state}",
    )


def _run_here(
    plan: Path,
    precision: str,
    options: ExportOptions,
    sets: dict[str, Pairs],
    costs: Mapping[str, Comparison] | None,
) -> tuple[tuple[dict[str, object], ...], bool | None, str]:
    if not gpu_is_usable():
        return (), None, "not run: no GPU here"
    # A portable plan may be for other cards than the one at hand: that is no fault of the plan.
    try:
        # Built a moment ago by this process; its manifest is written when all is proven.
        session = open_session(plan, SessionOptions(trust=True))
    except (EngineMismatchError, InferenceError) as error:
        return (), None, f"not run: {error}"
    try:
        comparisons, left_out = verify_session(session, sets)
    finally:
        session.close()
    if not comparisons:
        return (), None, "not run: no verification picture lies in its range of shapes"
    figures, verified = judged(comparisons, precision, options.form, costs, sums=True)
    return (
        figures,
        verified,
        "run on this GPU" + (f", {left_out} pictures outside its shapes" if left_out else ""),
    )


def _progress(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    show = each_tenth(say)

    def progress(phase: str, step: int, total: int) -> None:
        # Only builds that take a while have enough steps to be worth a line.
        if total >= 50:
            show(step, total, f"  {phase}: {step} of {total}")

    return progress
