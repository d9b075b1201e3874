"""One run of the builder: a graph goes in, the bytes of a plan come out."""

import dataclasses
import threading
import time
from typing import Any

from esrgan_deploy._cache import KeyedFile
from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy._flavour import Flavour
from esrgan_deploy.engines._diagnose import diagnose
from esrgan_deploy.engines._graph import Graph
from esrgan_deploy.engines._layers import Layer, parse_layers
from esrgan_deploy.engines._monitor import BuildLog, Progress, Stop, progress_monitor, stopped_by_ctrl_c
from esrgan_deploy.engines._options import BuildOptions

__all__ = ["Compiled", "TimingCache", "compile_graph"]

# All builders of a process log to one logger, which cannot tell them apart.
_ONE_BUILD = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the builder made.

    Attributes:
        plan: The bytes, in TensorRT's own memory.
        seconds: What reading the graph and building took.
        layers: The kernels of the plan.
        scratch_bytes: Memory for activations at the largest input, as the builder logged it; None if it did
            not.
        weights_bytes: Memory for weights, likewise.
        warnings: What TensorRT warned of, each once.
    """

    plan: memoryview = dataclasses.field(repr=False)
    seconds: float
    layers: tuple[Layer, ...] = dataclasses.field(repr=False)
    scratch_bytes: int | None
    weights_bytes: int | None
    warnings: tuple[str, ...]


class TimingCache(KeyedFile):
    """Kernel timings of full TensorRT, kept between builds; TensorRT for RTX times nothing while it builds.

    Never run so far, for want of full TensorRT: the names are those of the 10.13 and 11.4 bindings.
    """

    def attach(self, config: Any) -> None:
        """Give the builder's configuration the timings on disk, or an empty cache to fill."""
        cache = config.create_timing_cache(self.load())
        if not config.set_timing_cache(cache, False):
            self.warn(f"TensorRT does not accept timing cache {self.path}; building without it")
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def collect(self, config: Any) -> None:
        """Merge what the build timed into the file, keeping what another build wrote meanwhile."""
        cache = config.get_timing_cache()
        if cache is None:
            return
        on_disk = self.load()
        if on_disk and not cache.combine(config.create_timing_cache(on_disk), False):
            self.warn(f"TensorRT does not merge timing cache {self.path}; replacing it")
        self.save(bytes(memoryview(cache.serialize())))


def compile_graph(
    graph: Graph,
    options: BuildOptions,
    flavour: Flavour,
    *,
    progress: Progress | None = None,
    cache: TimingCache | None = None,
) -> Compiled:
    """Build a plan in memory.

    Args:
        graph: What `read_graph` returned, after `preflight`.
        options: Options that the flavour has.
        flavour: The TensorRT to build with.
        progress: Called with ``(phase, step, total)``, in this thread; what it raises ends the build.
        cache: Kernel timings to use and to add to.

    Raises:
        EngineBuildError: TensorRT refuses the graph or the options.
        KeyboardInterrupt: Ctrl-C; the build has ended.
    """
    log = BuildLog()
    start = time.perf_counter()
    with _ONE_BUILD, stopped_by_ctrl_c() as stop, flavour.listen(log):
        plan = _build(graph, options, flavour, log, stop, progress, cache)
    stop.raise_if_asked()
    return Compiled(
        plan=plan,
        seconds=time.perf_counter() - start,
        layers=parse_layers(log.layers),
        scratch_bytes=log.bytes.get("Total Activation Memory"),
        weights_bytes=log.bytes.get("Total Weights Memory"),
        warnings=tuple(dict.fromkeys(" ".join(warning.split()) for warning in log.warnings)),
    )


def _build(
    graph: Graph,
    options: BuildOptions,
    flavour: Flavour,
    log: BuildLog,
    stop: Stop,
    progress: Progress | None,
    cache: TimingCache | None,
) -> memoryview:
    trt = flavour.module
    subject = f"{flavour.name} {flavour.version} cannot build {graph.path.name}"
    builder = _made(trt.Builder, flavour.logger, subject=subject, log=log)
    network = _strongly_typed_network(trt, builder, flavour)
    # The parser's weights point into the parser: it has to outlive the build.
    parser = trt.OnnxParser(network, flavour.logger)
    _parse(parser, graph, log, stop, subject)
    # The only text that a plan carries back to its reader: which graph it was built from.
    network.name = graph.sha256[:16]
    config = builder.create_builder_config()
    _configure(trt, config, options, log, subject)
    _set_shapes(builder, config, graph, options, log, subject)
    # Python callbacks are owned here: the configuration does not keep them alive.
    monitor = progress_monitor(flavour, stop, progress)
    config.progress_monitor = monitor
    if cache is not None:
        cache.attach(config)
    plan = builder.build_serialized_network(network, config)
    if cache is not None:
        cache.collect(config)
    stop.raise_if_asked()
    if plan is None:
        raise EngineBuildError(diagnose(log.errors, subject=subject))
    return memoryview(plan)


def _strongly_typed_network(trt: Any, builder: Any, flavour: Flavour) -> Any:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is None:
        raise EngineBuildError(
            f"{flavour.name} {flavour.version} has no strongly typed networks, in which the graph's dtypes "
            "are the precision. Run: pip install 'tensorrt>=10.13'"
        )
    return builder.create_network(1 << int(flag))


def _parse(parser: Any, graph: Graph, log: BuildLog, stop: Stop, subject: str) -> None:
    parsed = parser.parse(graph.content)
    stop.raise_if_asked()
    if not parsed:
        found = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineBuildError(diagnose([*log.errors, *found], subject=subject))
    misread = [warning for warning in log.warnings if "Defaulting to INT8 instead" in warning]
    if misread:
        raise EngineBuildError(diagnose(misread, subject=subject))


def _configure(trt: Any, config: Any, options: BuildOptions, log: BuildLog, subject: str) -> None:
    # DETAILED makes the builder log each kernel with its tensors, and adds names, not work, to the plan.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Set by default, and no dtype of the graph shows it: an fp32 plan would multiply with 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    # Else a running plan asks for the memory of its profile's largest shape, however small the tile.
    resize = getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    if resize is not None:
        config.set_preview_feature(resize, True)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none":
        level = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, level[options.hardware_compatibility]
        )
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            member = "CURRENT" if capability == "current" else "SM" + capability.replace(".", "")
            if not config.set_compute_capability(getattr(trt.ComputeCapability, member), index):
                raise EngineBuildError(diagnose(log.errors, subject=subject))


def _set_shapes(
    builder: Any, config: Any, graph: Graph, options: BuildOptions, log: BuildLog, subject: str
) -> None:
    shapes = [graph.tensor_shape(s) for s in (options.shapes.min, options.shapes.opt, options.shapes.max)]
    profile = builder.create_optimization_profile()
    profile.set_shape(graph.input, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise EngineBuildError(diagnose(log.errors, subject=subject))


def _made(make: Any, *args: Any, subject: str, log: BuildLog) -> Any:
    # pybind turns a null pointer into a TypeError: full TensorRT has no builder where there is no GPU.
    try:
        return make(*args)
    except (TypeError, RuntimeError) as error:
        raise EngineBuildError(diagnose([*log.errors] or [str(error)], subject=subject)) from error
