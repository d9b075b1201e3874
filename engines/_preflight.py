"""What a graph needs at its largest input, reckoned before minutes go into a plan that cannot work."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy._optional import require
from esrgan_deploy.engines._graph import Graph, read_graph
from esrgan_deploy.engines._shapes import Shape, ShapeRange

__all__ = ["ELEMENT_LIMIT", "Preflight", "preflight"]

# TensorRT's convolutions number elements from 0 in a signed 32-bit integer, so the last of 2^31 elements is
# number 2^31 - 1 and still has one: exactly at the limit is allowed (NVIDIA/TensorRT issues 4123 and 4408).
# TensorRT for RTX builds a larger plan without a word, with scratch memory that has wrapped around.
ELEMENT_LIMIT = 2**31

# They overwrite their input where nothing else reads it.
_IN_PLACE = {
    "Add",
    "Cast",
    "Clip",
    "Identity",
    "LeakyRelu",
    "Mul",
    "PRelu",
    "Relu",
    "Round",
    "Sigmoid",
    "Sub",
    "Tanh",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a graph needs at its largest input.

    Attributes:
        shape: That input, ``(N, H, W)``.
        largest_tensor: Name of the tensor with most elements.
        elements: How many it has.
        activation_bytes: Estimate of the memory that tensors take while a batch runs, input and output
            included: the most that is alive at once. For RRDB nets of 64 features TensorRT for RTX 1.7 asked
            for 1.22 to 1.28 times as much, from 1x128x128 to 1x1448x1448.
    """

    shape: Shape
    largest_tensor: str
    elements: int
    activation_bytes: int


def preflight(
    onnx: Path | Graph,
    shapes: ShapeRange,
    *,
    memory_limit: int | None = None,
    memory_from: str = "memory_limit",
) -> Preflight:
    """Reckon what the largest input needs, and refuse what cannot work.

    Args:
        onnx: The file, or what `read_graph` made of it.
        shapes: The sizes that the plan is to accept.
        memory_limit: Bytes that the activations may take; None for no limit.
        memory_from: What set that limit, in the words of the error.

    Raises:
        EngineBuildError: A tensor would have more than 2^31 elements, or the activations need more memory
            than there is; the message names the largest tile that fits.
        MissingDependencyError: onnx is not installed.
    """
    graph = onnx if isinstance(onnx, Graph) else read_graph(onnx)
    graph.refuse_outside(shapes)
    need = _reckon(graph, shapes.max)
    asked = "x".join(map(str, shapes.max))
    if need.elements > ELEMENT_LIMIT:
        raise EngineBuildError(
            f"an input of {asked} makes a tensor of {need.elements:,} elements ({need.largest_tensor}); "
            f"TensorRT counts them in 32 bits and allows {ELEMENT_LIMIT:,}. "
            f"{_advice(graph, shapes, memory_limit)}"
        )
    if memory_limit is not None and need.activation_bytes > memory_limit:
        raise EngineBuildError(
            f"an input of {asked} needs about {_mib(need.activation_bytes)} for activations and "
            f"{memory_from} allows {_mib(memory_limit)}. {_advice(graph, shapes, memory_limit)}"
        )
    return need


def _advice(graph: Graph, shapes: ShapeRange, memory_limit: int | None) -> str:
    batch, height, width = shapes.max

    def fits(tile_height: int, tile_width: int) -> bool:
        need = _reckon(graph, (batch, tile_height, tile_width))
        return need.elements <= ELEMENT_LIMIT and need.activation_bytes <= (memory_limit or math.inf)

    tile = _largest_tile(fits, height, width, shapes.size_multiple)
    if tile is None:
        return f"No tile fits with a batch of {batch}. Run: again with a smaller batch in --shapes"
    size = f"{batch}x{tile[0]}x{tile[1]}"
    return (
        f"The largest tile that fits is {tile[0]}x{tile[1]} with a batch of {batch}. "
        f"Run: again with {size} as the largest of --shapes, and upscale in tiles"
    )


def _largest_tile(
    fits: Callable[[int, int], bool], height: int, width: int, multiple: int
) -> tuple[int, int] | None:
    # A square tile, except that no side is longer than what was asked for.
    def tile(steps: int) -> tuple[int, int]:
        return min(height, steps * multiple), min(width, steps * multiple)

    low, high = 0, max(height, width) // multiple
    while low < high:
        middle = (low + high + 1) // 2
        if fits(*tile(middle)):
            low = middle
        else:
            high = middle - 1
    return tile(low) if low else None


def _reckon(graph: Graph, shape: Shape) -> Preflight:
    onnx = require("onnx", extra="export")
    sizes = _tensor_sizes(onnx, graph, shape)
    activations = [graph.input, *(output for node in graph.skeleton.graph.node for output in node.output)]
    largest = max((name for name in activations if name in sizes), key=lambda name: sizes[name][0])
    return Preflight(
        shape=shape,
        largest_tensor=largest,
        elements=sizes[largest][0],
        activation_bytes=_peak(graph, {name: size for name, (_, size) in sizes.items()}),
    )


def _tensor_sizes(onnx: Any, graph: Graph, shape: Shape) -> dict[str, tuple[int, int]]:
    model = onnx.ModelProto()
    model.CopyFrom(graph.skeleton)
    value = next(value for value in model.graph.input if value.name == graph.input)
    for dim, size in zip(value.type.tensor_type.shape.dim, graph.tensor_shape(shape), strict=True):
        dim.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {}
    for tensor in (*inferred.value_info, *inferred.output, value):
        kind = tensor.type.tensor_type
        # An operator that shape inference does not know leaves its tensors out: what is known still counts.
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            elements = math.prod(dim.dim_value for dim in kind.shape.dim)
            sizes[tensor.name] = elements, elements * _itemsize(onnx, kind.elem_type)
    return sizes


def _peak(graph: Graph, sizes: dict[str, int]) -> int:
    nodes = graph.skeleton.graph.node
    last = {name: place for place, node in enumerate(nodes) for name in node.input}
    last |= {value.name: len(nodes) for value in graph.skeleton.graph.output}
    alive = {graph.input: sizes.get(graph.input, 0)}
    peak = sum(alive.values())
    for place, node in enumerate(nodes):
        made = {name: sizes.get(name, 0) for name in node.output}
        dying = [name for name in dict.fromkeys(node.input) if name in alive and last[name] == place]
        during = sum(alive.values()) + sum(made.values())
        if node.op_type in _IN_PLACE and len(made) == 1:
            room = max((alive[name] for name in dying), default=0)
            during -= min(room, *made.values()) if room >= max(made.values()) else 0
        peak = max(peak, during)
        for name in dying:
            del alive[name]
        alive |= {name: size for name, size in made.items() if name in last}
    return peak


def _itemsize(onnx: Any, elem_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
