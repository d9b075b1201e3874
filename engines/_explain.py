"""Which kernels a plan would run, as text."""

import dataclasses
from pathlib import Path

from esrgan_deploy._flavour import open_flavour
from esrgan_deploy.engines._build import check_sizes
from esrgan_deploy.engines._compile import Compiled, compile_graph
from esrgan_deploy.engines._graph import read_graph
from esrgan_deploy.engines._layers import convolution_dtypes, declared_bytes_per_pixel, kernel_table
from esrgan_deploy.engines._options import BuildOptions, refuse_unavailable
from esrgan_deploy.engines._shapes import ShapeRange
from esrgan_deploy.runtime.device import device_facts

__all__ = ["explain"]


def explain(onnx_path: Path, options: BuildOptions | None, height: int, width: int) -> str:
    """Build for one picture of one size and list the kernels that were chosen.

    A plan with dynamic shapes has no sizes in its log, so a static one is built, read and dropped. The bytes
    are those that each kernel declares to read and write; weights and what a cache saves are not counted.

    Args:
        onnx_path: The graph.
        options: As for the build; its shapes are left aside.
        height: Of the picture, in pixels.
        width: Likewise.

    Returns:
        A table of several lines, without a line break at its end.

    Raises:
        EngineBuildError: The graph, the options or the size cannot work.
        MissingDependencyError: TensorRT or onnx is not installed.
    """
    options = options or BuildOptions()
    shapes = ShapeRange.fixed((1, height, width), size_multiple=options.shapes.size_multiple)
    options = dataclasses.replace(options, shapes=shapes, timing_cache=None)
    graph = read_graph(onnx_path)
    flavour = open_flavour(options.flavour)
    refuse_unavailable(options, flavour)
    notes = check_sizes(graph, options, None if options.compute_capabilities else device_facts())
    built = compile_graph(graph, options, flavour)
    title = f"{onnx_path.name} at 1x{height}x{width}, {flavour.name} {flavour.version}"
    return "\n".join([title, *_table(built, height * width), "", *_totals(built, height * width), *notes])


def _table(built: Compiled, pixels: int) -> list[str]:
    rows = kernel_table(built.layers, pixels)
    width = max([len("kernel"), *(len(row.kind) for row in rows)])
    lines = [f"{'kernel':{width}}  {'count':>5}  {'dtype':5}  {'bytes/px':>9}"]
    lines += [
        f"{row.kind:{width}}  {row.count:5}  {row.dtype:5}  {row.bytes_per_pixel:9,.0f}" for row in rows
    ]
    return lines


def _totals(built: Compiled, pixels: int) -> list[str]:
    dtypes = ", ".join(f"{count} in {dtype}" for dtype, count in convolution_dtypes(built.layers).items())
    return [
        f"{len(built.layers)} kernels, convolutions: {dtypes or 'none named in the log'}",
        f"declared traffic: {declared_bytes_per_pixel(built.layers, pixels):,.0f} bytes per input pixel",
        f"plan: {built.plan.nbytes:,} bytes, weights: {_amount(built.weights_bytes)}, "
        f"scratch at this size: {_amount(built.scratch_bytes)}",
    ]


def _amount(size: int | None) -> str:
    return "not logged" if size is None else f"{size:,} bytes"
