"""The main job: a checkpoint in, a folder of verified artefacts out."""

import contextlib
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path

from esrgan_deploy import _optional
from esrgan_deploy._errors import ExportError
from esrgan_deploy._files import PARTS, temporary_folder
from esrgan_deploy._manifest import Artefact, Manifest, load_manifest, save_manifest
from esrgan_deploy._parity import Comparison, Pairs, planar
from esrgan_deploy.engines import ShapeRange, preflight
from esrgan_deploy.export._open_source import open_source
from esrgan_deploy.export._options import PROCESSOR, ExportOptions
from esrgan_deploy.export._plan import build_plan, plan_flavour, plan_shapes
from esrgan_deploy.export._plan_parts import build_part_plans
from esrgan_deploy.export._prove_quantised import prove_quantised
from esrgan_deploy.export._write_graphs import (
    Export,
    prove_graph,
    prove_parts,
    write_graph,
    write_interchange,
)
from esrgan_deploy.export._write_quantised import QUANTISED_GRAPHS, Graph, search_state, write_quantised
from esrgan_deploy.export.proof import (
    activation_maxima,
    affordable,
    fitted_picture,
    golden_pictures,
    noise_pictures,
    overflow_warnings,
    pictures_in,
    reference_pairs,
    rounding_costs,
    save_golden,
    verify_shapes,
)

__all__ = ["MANIFEST", "export_model"]

MANIFEST = "model.json"

_TOOLS = ("esrgan-deploy", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")


def export_model(
    model: str | Path | None,
    folder: Path,
    options: ExportOptions | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Export a checkpoint to ONNX and TensorRT, and prove what each artefact computes.

    Everything is made in a temporary folder beside `folder` and moved there at the end: a failure leaves
    nothing, and what was there before stays. What a killed process leaves is removed by the next export. A breach
    of the bounds is no failure here: the artefacts are kept, and marked ``verified: false`` in the manifest with
    what they breach.

    Args:
        model: A ``.pth``, ``.pt``, ``.ckpt``, ``.safetensors`` or ``.onnx``, ncnn's ``.param`` or ``.bin`` with the
            other beside it, an official name such as ``"RealESRGAN_x4plus"``, or None for the model that ships.
        folder: Where the artefacts go; made if it is not there.
        options: What to make.
        say: Receives a line of progress now and then.

    Returns:
        The manifest, which was also written to ``folder/model.json``.

    Raises:
        CheckpointError: The checkpoint cannot be read, or is of no family that is known.
        EngineBuildError: TensorRT cannot build the plan.
        ExportError: The model cannot be traced, or artefacts are there already and `force` is not set.
        ParityError: PyTorch itself puts out a NaN, or an artefact has another output shape.
        MissingDependencyError: Something that the options need is not installed.
        OSError: The folder cannot be written.
    """
    options = options or ExportOptions()
    # Nothing is worth two minutes of work if its proof cannot run, or its folder cannot take it.
    _optional.require("onnxruntime", extra="cpu")
    flavour = plan_flavour(options)
    _refuse_overwriting(folder, options, plan=flavour is not None)
    beside = _nearest_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            staging = stack.enter_context(temporary_folder(beside))
        except OSError as error:
            raise ExportError(
                f"{folder} cannot be made ({error.strerror}). Choose another folder with -o"
            ) from error
        manifest = _make(model, staging, folder, options, flavour is not None, say)
        save_manifest(manifest, staging / MANIFEST)
        _publish(staging, folder, say)
    for precision in options.precisions:
        search_state(folder, precision).unlink(missing_ok=True)
    return manifest


def _make(
    model: str | Path | None,
    staging: Path,
    folder: Path,
    options: ExportOptions,
    plan: bool,
    say: Callable[[str], None],
) -> Manifest:
    source = open_source(model, options, say=say)
    export = write_interchange(source, options, staging, folder, say)
    shapes = plan_shapes(options, export.size_multiple)
    if plan:
        # What cannot be built is refused before minutes are spent on its calibration and its proof.
        preflight(export.path, shapes, memory_limit=options.build.memory_limit)
    graphs = {precision: _graph_for(export, precision, plan) for precision in options.precisions}
    sets = _reference_sets(export, shapes if plan else None)
    costs = _costs(export, sets)
    warnings = _warnings(export, sets)
    for warning in warnings:
        say(f"warning: {warning}")

    say(f"verifying model.onnx against {source.against}")
    dynamic, left_out = verify_shapes(
        export.path,
        source.reference,
        shapes.corners,
        channels=source.spec.in_channels,
        multiple=export.size_multiple,
        flops_per_pixel=source.spec.flops_per_pixel,
    )
    warnings += left_out
    artefacts = [prove_graph(export, export.path, "fp32", sets, extra=(dynamic,))]
    artefacts += prove_parts(export, export.path, "fp32", sets["golden"])
    artefacts.append(_write_golden(export, sets["golden"], costs))
    for precision, graph in graphs.items():
        if graph.path != export.path:
            say(f"verifying {graph.path.name}")
            artefacts += prove_quantised(export, graph, precision, sets, costs.get(precision))
            artefacts += prove_parts(export, graph.path, precision, sets["golden"])
        if plan and precision != PROCESSOR:
            artefacts.append(build_plan(export, graph.path, precision, sets, costs.get(precision)))
            artefacts += build_part_plans(export, graph.path, precision)
    return Manifest(
        spec=source.spec,
        source=source.name,
        artefacts=tuple(artefacts),
        tool=_versions(),
        warnings=tuple(warnings),
    )


def _graph_for(export: Export, precision: str, plan: bool) -> Graph:
    if precision in QUANTISED_GRAPHS:
        return write_quantised(export, precision)
    if precision == "fp32" and export.options.form == "float" and not plan:
        # A plan is built from a graph of its own, in the form for plans and watched.
        return Graph(path=export.path)
    return Graph(path=write_graph(export, precision))


def _reference_sets(export: Export, shapes: ShapeRange | None) -> dict[str, Pairs]:
    source, images, say = export.source, export.options.images, export.say
    channels, multiple = source.spec.in_channels, export.size_multiple
    pictures = {"noise": noise_pictures(channels, multiple), "golden": golden_pictures(channels, multiple)}
    if shapes is not None and not any(shapes.holds(lr.shape[:3]) for lr in pictures["golden"].values()):
        # Without one that it takes, a plan could be verified nowhere.
        if affordable(shapes.min, source.spec.flops_per_pixel):
            pictures["golden"]["fitted"] = fitted_picture(channels, shapes.min)
        else:
            say(f"no golden picture of {shapes}: PyTorch would take too long to make one")
    if images is not None:
        pictures["images"] = pictures_in(images, channels, multiple)
    say(f"running {source.against}, on {sum(map(len, pictures.values()))} pictures")
    return {on: reference_pairs(source.reference, chosen) for on, chosen in pictures.items()}


def _costs(export: Export, sets: dict[str, Pairs]) -> dict[str, dict[str, Comparison]]:
    """Return by precision and set what rounding costs: of both on the golden pairs, whatever is made of the rest."""
    module, ratio, made = export.source.module, export.source.ratio, export.options.precisions
    if module is None:
        return {}
    golden = {"golden": sets["golden"]}
    return {
        precision: rounding_costs(module, precision, sets if precision in made else golden, ratio)
        for precision in ("fp16", "bf16")
    }


def _warnings(export: Export, sets: dict[str, Pairs]) -> list[str]:
    if "fp16" not in export.options.precisions:
        return []
    found, spec = [], export.source.spec
    if not spec.supports_half:
        found.append(f"{spec.architecture} is known not to work in fp16; --precision bf16 or fp32 does")
    pictures = [planar(lr) for pairs in sets.values() for lr, _ in pairs.values()]
    return found + overflow_warnings(activation_maxima(export.graph, pictures))


def _write_golden(export: Export, pairs: Pairs, costs: dict[str, dict[str, Comparison]]) -> Artefact:
    path = export.staging / "model.golden.npz"
    save_golden(path, pairs)
    return Artefact.from_file(
        path,
        kind="golden",
        precision="fp32",
        note=f"outputs of {export.source.against}",
        rounding={precision: found["golden"].to_json() for precision, found in costs.items()},
    )


def _refuse_overwriting(folder: Path, options: ExportOptions, *, plan: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file; -o names a folder")
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise ExportError(f"{folder} cannot be written. Choose another folder with -o")
    if options.force:
        return
    names = ["model.onnx", *(f"model.{part}.onnx" for part in PARTS), "model.golden.npz", MANIFEST]
    for precision in options.precisions:
        names += [f"model.{precision}.onnx", *(f"model.{precision}.{part}.onnx" for part in PARTS)]
        if plan and precision != PROCESSOR:
            names += [f"model.{precision}.plan", *(f"model.{precision}.{part}.plan" for part in PARTS)]
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ExportError(
            f"{folder} already holds {', '.join(there)}. Run again with --force to replace them, or with another -o"
        )


def _nearest_folder(folder: Path) -> Path:
    """Return the innermost folder that is there and will hold this one; the rest is made at the end."""
    place = folder.absolute().parent
    while not place.exists():
        place = place.parent
    return place


def _publish(staging: Path, folder: Path, say: Callable[[str], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        # All at once, so that a kill leaves all or nothing.
        staging.rename(folder)
        return
    stale = set()
    if (folder / MANIFEST).exists():
        try:
            listed = {artefact.file for artefact in load_manifest(folder / MANIFEST).artefacts}
            # Plain names only: a manifest that was tampered with must not reach outside its folder.
            stale = {name for name in listed if Path(name).name == name and name.startswith("model.")}
        except ExportError:
            # Not ours to tidy up after.
            stale = set()
    made = {path.name for path in staging.iterdir()}
    # The manifest leaves first and comes last, so that at no moment it speaks of other files than it lists.
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in sorted(stale - made):
        say(f"removing {folder / name}: it belonged to the export that --force replaces")
        (folder / name).unlink(missing_ok=True)
    for name in sorted(made, key=lambda name: (name == MANIFEST, name)):
        (staging / name).replace(folder / name)


def _versions() -> dict[str, str]:
    found = {}
    for name in _TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
