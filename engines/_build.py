"""From an ONNX graph to a TensorRT plan."""

import dataclasses
import os
from pathlib import Path

from esrgan_deploy._errors import EngineBuildError, MissingDependencyError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._flavour import Flavour, open_flavour
from esrgan_deploy.engines._compile import Compiled, TimingCache, compile_graph
from esrgan_deploy.engines._graph import Graph, read_graph
from esrgan_deploy.engines._layers import Layer, convolution_dtypes
from esrgan_deploy.engines._monitor import Progress
from esrgan_deploy.engines._options import BuildOptions, refuse_unavailable
from esrgan_deploy.engines._preflight import preflight
from esrgan_deploy.engines._shapes import ShapeRange
from esrgan_deploy.runtime.device import DeviceFacts, device_facts, device_memory

__all__ = ["BuildResult", "check_sizes", "engine_from_onnx", "refuse_other_precision"]

_QUANTISED = ("int8", "fp8")
_PRECISIONS = ("fp32", "fp16", "bf16", *_QUANTISED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What one build made.

    Attributes:
        plan: The file.
        size: Its length in bytes.
        seconds: Time that TensorRT took.
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: Version of that library.
        shapes: The sizes that the plan accepts.
        compute_capabilities: Architectures that it was built for; empty for the library's own choice.
        dtypes: Number of convolution kernels by dtype; empty where the builder's log names none.
        layers: The kernels.
        scratch_bytes: Memory for activations at the largest input, as the builder reckons it; None if it
            does not say.
        weights_bytes: Memory for weights, likewise.
        warnings: One sentence each, TensorRT's own among them.
    """

    plan: Path
    size: int
    seconds: float
    flavour: str
    version: str
    shapes: ShapeRange
    compute_capabilities: tuple[str, ...]
    dtypes: dict[str, int]
    layers: tuple[Layer, ...] = dataclasses.field(repr=False)
    scratch_bytes: int | None
    weights_bytes: int | None
    warnings: tuple[str, ...]


def engine_from_onnx(
    onnx_path: Path,
    plan_path: Path,
    options: BuildOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
    expect_precision: str | None = None,
) -> BuildResult:
    """Build a plan; the file appears whole or not at all.

    The precision is that of the graph: TensorRT is told to keep every dtype as it stands.

    Args:
        onnx_path: One file that holds its weights, in either I/O form.
        plan_path: Where the plan goes. Its folder must exist.
        options: What to ask of the builder.
        force: Replace a plan that is there already.
        progress: Called now and then with ``(phase, step, total)`` in this thread. What it raises ends the
            build and is raised here.
        expect_precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``: refuse a plan whose
            convolutions compute in anything else.

    Raises:
        EngineBuildError: The graph, the options or the sizes cannot work, `plan_path` exists, or the plan's
            convolutions are not of the precision asked for.
        InferenceError: There is a GPU, and CUDA fails when asked what is free there.
        MissingDependencyError: TensorRT or onnx is not installed.
        KeyboardInterrupt: Ctrl-C; the build has ended and left no file.
        OSError: The plan cannot be written.
    """
    options = options or BuildOptions()
    if expect_precision is not None and expect_precision not in _PRECISIONS:
        raise EngineBuildError(f"expect_precision is {expect_precision!r}; allowed: {', '.join(_PRECISIONS)}")
    _refuse_target(plan_path, force=force)
    graph = read_graph(onnx_path)
    flavour = open_flavour(options.flavour)
    refuse_unavailable(options, flavour)
    # A portable plan for named architectures says nothing about the GPU at hand, if there is one.
    device = None if options.compute_capabilities else device_facts()
    warnings = check_sizes(graph, options, device)
    cache = _timing_cache(options, flavour, device, warnings)
    built = compile_graph(graph, options, flavour, progress=progress, cache=cache)
    dtypes = convolution_dtypes(built.layers)
    if not dtypes and graph.convolutions:
        warnings.append("the builder's log names no convolution, so their dtypes could not be checked")
    elif expect_precision is not None:
        refuse_other_precision(dtypes, expect_precision, graph)
    warnings += _memory_warning(built, options)
    with replaced_atomically(plan_path) as temporary:
        temporary.write_bytes(built.plan)
    return BuildResult(
        plan=plan_path,
        size=built.plan.nbytes,
        seconds=built.seconds,
        flavour=flavour.name,
        version=flavour.version,
        shapes=options.shapes,
        compute_capabilities=_targets(options, flavour, device),
        dtypes=dtypes,
        layers=built.layers,
        scratch_bytes=built.scratch_bytes,
        weights_bytes=built.weights_bytes,
        warnings=(*warnings, *built.warnings),
    )


def check_sizes(graph: Graph, options: BuildOptions, device: DeviceFacts | None) -> list[str]:
    """Run the preflight against the option's memory limit, else against what is free on the GPU at hand.

    Returns:
        Where that cannot be asked, a sentence that says so.

    Raises:
        EngineBuildError: The largest input cannot work; the message names the tile that can.
    """
    limit, source, notes = options.memory_limit, "memory_limit", []
    if limit is None and device is not None:
        source = f"what is free on {device.name}"
        try:
            limit = device_memory(device.ordinal).free_bytes
        except MissingDependencyError as error:
            notes.append(f"{source} was not asked: {error}")
    preflight(graph, options.shapes, memory_limit=limit, memory_from=source)
    return notes


def refuse_other_precision(dtypes: dict[str, int], precision: str, graph: Graph) -> None:
    """Refuse a plan whose convolutions do not compute in the precision that was asked for.

    A quantised net keeps some convolutions in floating point on purpose, and may quantise others to the other
    format: as many have to compute in each as the graph quantises to it, and at least one in the one asked for.

    Raises:
        EngineBuildError: They compute in something else.
    """
    seen = ", ".join(f"{count} in {dtype}" for dtype, count in dtypes.items())
    if precision in _QUANTISED:
        least = {precision: 1, **graph.quantised}
        if all(dtypes.get(dtype, 0) >= count for dtype, count in least.items()):
            return
        wanted = " and ".join(f"at least {count} in {dtype}" for dtype, count in least.items())
    elif set(dtypes) == {precision}:
        return
    else:
        wanted = f"all in {precision}"
    raise EngineBuildError(
        f"the plan of {graph.path.name} has convolutions {seen}; expected {wanted}. "
        f"Run: esrgan-export with --precision {precision} to make the graph again"
    )


def _refuse_target(plan_path: Path, *, force: bool) -> None:
    if plan_path.is_dir():
        raise EngineBuildError(f"{plan_path} is a folder. Run: with the name of a file to write")
    if plan_path.exists() and not force:
        raise EngineBuildError(f"{plan_path} exists. Run: with --force to replace it, or with another name")
    # A build may take many minutes: better to learn now that nothing can be written there.
    if not plan_path.parent.is_dir() or not os.access(plan_path.parent, os.W_OK):
        raise EngineBuildError(
            f"{plan_path.parent} is not a folder that can be written. Run: mkdir -p {plan_path.parent}"
        )


def _timing_cache(
    options: BuildOptions, flavour: Flavour, device: DeviceFacts | None, warnings: list[str]
) -> TimingCache | None:
    if options.timing_cache is None or device is None:
        return None
    # Everything that a timing depends on; TensorRT's own key leaves out what a kernel may use.
    key = {
        "gpu": device.name,
        "compute_capability": device.compute_capability,
        "tensorrt": flavour.version,
        "driver": device.driver,
        "workspace": options.workspace,
        "hardware_compatibility": options.hardware_compatibility,
    }
    return TimingCache(options.timing_cache, "timing", key, warn=warnings.append)


def _memory_warning(built: Compiled, options: BuildOptions) -> list[str]:
    limit = options.memory_limit
    if limit is None or built.scratch_bytes is None or built.scratch_bytes <= limit:
        return []
    return [
        f"the plan takes {built.scratch_bytes / 2**20:,.0f} MiB for activations at its largest input, more "
        f"than the {limit / 2**20:,.0f} MiB of memory_limit"
    ]


def _targets(options: BuildOptions, flavour: Flavour, device: DeviceFacts | None) -> tuple[str, ...]:
    if flavour.builds_without_gpu:
        return options.compute_capabilities
    return (device.compute_capability,) if device else ()
