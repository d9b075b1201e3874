"""What half precision really computes, on a processor that has none.

ONNX Runtime's CPU provider has no fp16 convolution on x86: it puts casts around each node, then removes the
pairs that meet ("precision-free casts"), so that an fp16 graph runs in fp32 from end to end and looks better
than it is. Here the rounding is written into the graph, as casts that are not its own and that it keeps.
"""

import numpy as np
import onnx_ir as ir

from esrgan_deploy.export.graphs._edit import clone, name_apart, named_node
from esrgan_deploy.export.graphs._precision import DTYPES
from esrgan_deploy.export.nets import QUANTISED

__all__ = ["measured_as", "rounding_model", "runs_as_it_is"]

# They move values that are rounded already.
_MOVES = {"Concat", "DepthToSpace", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
          "Transpose", "Unsqueeze"}  # fmt: skip


def runs_as_it_is(precision: str) -> bool:
    """Return whether a processor computes a graph as its dtypes say: where it holds no half precision."""
    return DTYPES[precision] == ir.DataType.FLOAT


def measured_as(precision: str) -> str:
    """Return in words what the figures of a graph in less than fp32 were computed with."""
    if precision == "fp32":
        return "fp32 (ONNX Runtime CPU)"
    if precision == "int8-cpu":
        return "int8 as it runs (ONNX Runtime CPU)"
    if precision in QUANTISED:
        return f"fp32 sums of {precision} inputs and weights, all else rounded to fp16 (ONNX Runtime CPU)"
    return f"fp32 convolutions, every tensor rounded to {precision} (ONNX Runtime CPU)"


def rounding_model(model: ir.Model, precision: str) -> ir.Model:
    """Return a graph that computes in fp32 and rounds each tensor that the original holds in half precision.

    Sums inside one convolution stay fp32, as on tensor cores; what is stored between layers is rounded. The
    inputs and outputs keep their names, and their dtypes but for bfloat16, which numpy lacks: there they are
    float32 and hold rounded values.

    Args:
        model: A graph in fp16 or bf16, quantised or not, either form; it is not changed.
        precision: Of the graph. Q/DQ pairs stay as they are.
    """
    half = DTYPES[precision]
    model = clone(model)
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == half:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for source in graph.inputs:
        if source.dtype == half:
            _widen(graph, source, next(iter(graph)))
            if half == ir.DataType.BFLOAT16:
                _take_float(graph, source, half)
    outputs = {value.name: value for value in graph.outputs}
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == half:
            _widen(graph, node.outputs[0], _after(graph, node))
            continue
        for value in node.outputs:
            if value.dtype != half:
                continue
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if node.op_type in _MOVES and value.name not in outputs:
                continue
            _round(graph, node, value, half)
    name_apart(model)
    return model


def _widen(graph: ir.Graph, value: ir.Value, before: ir.Node | None) -> None:
    # `value` is truly half; its readers get an fp32 copy.
    cast = named_node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}_as_fp32")
    for node, index in list(value.uses()):
        if node is not cast:
            node.replace_input_with(index, cast.outputs[0])
    if before is None:
        graph.append(cast)
    else:
        graph.insert_before(before, cast)


def _take_float(graph: ir.Graph, source: ir.Value, half: ir.DataType) -> None:
    source.type = ir.TensorType(ir.DataType.FLOAT)
    down = named_node("Cast", [source], {"to": half}, name=f"{source.name}_rounded")
    widen = next(node for node, _ in source.uses() if node is not down)
    widen.replace_input_with(0, down.outputs[0])
    graph.insert_before(widen, down)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, half: ir.DataType) -> None:
    name, is_output = value.name, value.is_graph_output()
    down = named_node("Cast", [value], {"to": half}, name=f"{name}_rounded")
    rounded = down.outputs[0]
    rounded.type = ir.TensorType(half)
    up = named_node("Cast", [rounded], {"to": ir.DataType.FLOAT}, name=f"{name}_again")
    for user, index in list(value.uses()):
        if user is not down:
            user.replace_input_with(index, up.outputs[0])
    graph.insert_after(node, [down, up])
    if is_output and half == ir.DataType.BFLOAT16:
        widened = up.outputs[0]
        graph.outputs[list(graph.outputs).index(value)] = widened
        widened.type, widened.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        value.name, widened.name = f"{name}_exact", name
    elif is_output:
        graph.outputs[list(graph.outputs).index(value)] = rounded
        rounded.shape, value.name, rounded.name = value.shape, f"{name}_exact", name


def _after(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    nodes = list(graph)
    place = nodes.index(node) + 1
    return nodes[place] if place < len(nodes) else None
