"""A plan of an export, built again from the graph that its manifest names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from esrgan_deploy._errors import EngineBuildError, EngineMismatchError, ExportError
from esrgan_deploy._files import locked, sha256_of, temporary_folder
from esrgan_deploy._flavour import open_flavour
from esrgan_deploy._manifest import Artefact, amend_artefact, find_manifest, load_manifest
from esrgan_deploy._optional import require
from esrgan_deploy.engines._build import BuildResult, engine_from_onnx
from esrgan_deploy.engines._layers import declared_bytes_per_pixel
from esrgan_deploy.engines._options import BuildOptions
from esrgan_deploy.engines._shapes import ShapeRange
from esrgan_deploy.runtime.device import DeviceFacts, device_facts
from esrgan_deploy.runtime.sessions.plan import Admitted, check_plan

__all__ = ["built_fields", "rebuild_plan"]

# What a manifest keeps of BuildOptions. Shapes, flavour and architectures have fields of their own; a folder of
# timings and what memory was free belong to one machine.
_KEPT = ("workspace", "optimization_level", "hardware_compatibility", "version_compatible", "aux_streams")
_OF_FULL_TENSORRT = ("hardware_compatibility", "version_compatible")


def rebuild_plan(
    plan: Path,
    *,
    flavour: str = "",
    device: int | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Artefact | None:
    """Build a plan again from the graph beside it, as it was built before, and put its new entry in the manifest.

    Under a lock on ``<plan>.lock``: of several processes that come at once one builds, and the others wait and
    find that the plan fits. The old plan stays until the new one is whole.

    Args:
        plan: The file, there or not; its manifest lists it.
        flavour: What to build with, ``"auto"`` for whatever is installed; empty for the one that it had.
        device: Ordinal of the GPU that it has to fit; None for the current one.
        force: Build although the plan that is there fits.
        say: Receives a line of progress now and then.

    Returns:
        The new entry, or None where the plan fitted already and nothing was built.

    Raises:
        EngineBuildError: TensorRT cannot build it, or the manifest's options are not allowed here.
        EngineMismatchError: No manifest lists the plan, or the graph is not the one that it names.
        MissingDependencyError: TensorRT or onnx is not installed.
        OSError: The folder cannot be written.
    """
    _entry(plan)
    with locked(plan.with_name(plan.name + ".lock")):
        # Read again: another process may have been at work while this one waited.
        manifest, entry = _entry(plan)
        name = open_flavour(flavour or entry.flavour).name
        facts = device_facts(device)
        if not force and name == entry.flavour and isinstance(check_plan(plan, facts=facts), Admitted):
            return None
        graph = _graph(plan, manifest, entry)
        if device is not None and facts is not None:
            _choose(device)
        options = _options(entry, name, facts)
        say(f"building {plan.name} from {graph.name} for {options.shapes} with {name}")
        return _replace(plan, graph, manifest, entry, options)


def built_fields(result: BuildResult, options: BuildOptions) -> dict[str, Any]:
    """Return what a manifest's entry says of a build, as keyword arguments of `Artefact`."""
    device = device_facts() if _for_one_gpu(result, options) else None
    return {
        "shapes": (result.shapes.min, result.shapes.opt, result.shapes.max),
        "flavour": result.flavour,
        "flavour_version": result.version,
        "compute_capabilities": result.compute_capabilities,
        "options": {name: getattr(options, name) for name in _KEPT},
        "gpu": device.name if device else "",
        "driver": device.driver if device else None,
        "dtypes": result.dtypes,
        "build_seconds": round(result.seconds, 2),
        "declared_bytes_per_pixel": _declared_bytes(result),
    }


def _declared_bytes(result: BuildResult) -> float | None:
    n, height, width = result.shapes.opt
    try:
        return declared_bytes_per_pixel(result.layers, n * height * width) or None
    except ValueError:
        # A range of sizes: the kernels' tensors have none.
        return None


def _for_one_gpu(result: BuildResult, options: BuildOptions) -> bool:
    return result.flavour == "tensorrt" or "current" in options.compute_capabilities


def _replace(plan: Path, graph: Path, manifest: Path, entry: Artefact, options: BuildOptions) -> Artefact:
    # Built beside its place, so that plan and manifest change one right after the other.
    with temporary_folder(plan.parent) as folder:
        fresh = folder / plan.name
        result = engine_from_onnx(graph, fresh, options, expect_precision=entry.precision or None)
        changes = {
            "sha256": sha256_of(fresh),
            "size": fresh.stat().st_size,
            **built_fields(result, options),
            "verified": None,
            "parity": (),
            "note": "rebuilt here, not run",
        }
        fresh.replace(plan)
    return amend_artefact(manifest, plan.name, **changes)


def _entry(plan: Path) -> tuple[Path, Artefact]:
    again = "Run: esrgan-export again, with --force"
    place = find_manifest(plan)
    if place is None:
        raise EngineMismatchError(f"{plan} has no manifest beside it that says how it was built. {again}")
    try:
        entry = load_manifest(place).artefact(plan.name)
    except ExportError as error:
        raise EngineMismatchError(str(error)) from error
    if entry is None or entry.kind != "plan":
        raise EngineMismatchError(f"{place} lists no plan {plan.name}. {again}")
    return place, entry


def _graph(plan: Path, manifest: Path, entry: Artefact) -> Path:
    again = "Run: esrgan-export again, with --force"
    source = load_manifest(manifest).artefact(entry.built_from)
    # A plain name: a manifest must not reach outside its folder.
    if source is None or source.kind != "onnx" or Path(source.file).name != source.file:
        raise EngineMismatchError(
            f"{manifest} does not list the graph {entry.built_from!r} that {plan.name} was built from. {again}"
        )
    graph = plan.with_name(source.file)
    if not graph.is_file():
        raise EngineMismatchError(f"{graph}, from which {plan.name} was built, is not there. {again}")
    digest = sha256_of(graph)
    if digest != source.sha256:
        raise EngineMismatchError(
            f"{graph} has sha256 {digest[:16]}… and its manifest says {source.sha256[:16]}…: a plan of it would be "
            f"another net's. {again}"
        )
    return graph


def _options(entry: Artefact, flavour: str, facts: DeviceFacts | None) -> BuildOptions:
    kept = {name: entry.options[name] for name in _KEPT if name in entry.options}
    targets = entry.compute_capabilities if flavour == entry.flavour == "tensorrt_rtx" else ()
    if flavour != entry.flavour:
        kept = {name: value for name, value in kept.items() if name not in _OF_FULL_TENSORRT}
    if targets and facts is not None and not {facts.compute_capability, "current"} & {*targets}:
        targets = (*targets, facts.compute_capability)
    try:
        low, usual, high = entry.shapes
        shapes = ShapeRange(min=low, opt=usual, max=high, size_multiple=entry.size_multiple)
        return BuildOptions(shapes=shapes, flavour=flavour, compute_capabilities=targets, **kept)
    except (ValueError, TypeError) as error:
        raise EngineBuildError(
            f"the manifest's options of {entry.file} cannot be built from ({error}). "
            "Run: esrgan-export again, with --force"
        ) from error


def _choose(device: int) -> None:
    cuda = require("cuda.bindings.runtime", extra="tensorrt")
    (status,) = cuda.cudaSetDevice(device)
    if int(status) != 0:
        raise EngineBuildError(f"CUDA device {device} cannot be used ({status.name}). Run: nvidia-smi")
