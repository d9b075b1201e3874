"""Bytes that the plan of a recipe declares to move, for the frontier."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from esrgan_deploy._files import temporary_folder
from esrgan_deploy.engines import ShapeRange, declared_bytes_per_pixel, engine_from_onnx
from esrgan_deploy.export._artefacts import Interchange
from esrgan_deploy.export._graph import clone, save
from esrgan_deploy.export._options import PROCESSOR, ExportOptions
from esrgan_deploy.export._plan import plan_flavour
from esrgan_deploy.export._precision import to_precision
from esrgan_deploy.export._qdq import apply_parameters_to_graph, quantise
from esrgan_deploy.export._source import Source
from esrgan_deploy.export.quantisation._recipe import Recipe
from esrgan_deploy.export.quantisation._remainders import add_remainders
from esrgan_deploy.export.quantisation._structure import layers

__all__ = ["bytes_counter"]

_SIDE = 128


def bytes_counter(
    source: Source, base: Interchange, precision: str, options: ExportOptions
) -> Callable[[Recipe], float | None]:
    """Return a function that builds a static plan of a recipe's graph and counts what its kernels declare.

    Bytes per pixel of the input, at 128x128. None where no plan is built, and of the graph for processors.
    """
    if precision == PROCESSOR or plan_flavour(options) is None:
        return lambda recipe: None
    found = layers(source.spec)

    def count(recipe: Recipe) -> float | None:
        graph = clone(base.graph)
        apply_parameters_to_graph(graph, found, recipe.parameters)
        quantise(graph, found, recipe)
        add_remainders(graph, found, recipe)
        shapes = ShapeRange.fixed((1, _SIDE, _SIDE), size_multiple=base.size_multiple)
        with temporary_folder(Path(tempfile.gettempdir())) as folder:
            path = folder / "graph.onnx"
            save(to_precision(graph, precision), path)
            build = dataclasses.replace(options.build, shapes=shapes, timing_cache=None)
            built = engine_from_onnx(path, path.with_suffix(".plan"), build)
        return declared_bytes_per_pixel(built.layers, _SIDE * _SIDE)

    return count
