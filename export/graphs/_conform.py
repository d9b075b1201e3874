"""A graph of another range, layout or precision, brought to the float form."""

import numpy as np
import onnx_ir as ir
from onnx_ir import traversal

from esrgan_deploy.export.graphs._edit import append, constant, drop_unused, named_node
from esrgan_deploy.runtime.sessions.onnx import Ends

__all__ = ["conform", "widen"]

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def conform(model: ir.Model, ends: Ends) -> None:
    """Make a graph take and give ``(N, C, H, W)`` fp32 0..1, and let the picture be its only output.

    Args:
        model: A graph of one fp32 input of rank 4, its constants initialisers.
        ends: What it takes and gives.
    """
    graph = model.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name == ends.output]
    drop_unused(graph)
    last = ends.layout == "NHWC"
    if ends.peaks[0] != 1 or last:
        _prepend(model, ends.peaks[0], last)
    if ends.peaks[1] != 1 or last:
        output = graph.outputs[0]
        if last:
            output = append(model, "Transpose", [output], {"perm": [0, 3, 1, 2]}, name="conformed_planes")
        if ends.peaks[1] != 1:
            white = constant(model, np.array(ends.peaks[1], np.float32), "conformed_white_out")
            output = append(model, "Div", [output, white], name="conformed_output")
        output.type = ir.TensorType(_FLOAT)
        graph.outputs[0] = output


def widen(model: ir.Model) -> None:
    """Turn what a graph holds in fp16 into fp32, with the same values: what it computes in is chosen later."""
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        _widen_value(value)
    for node in traversal.RecursiveGraphIterator(model.graph):
        for name, attribute in list(node.attributes.items()):
            if (
                attribute.type == ir.AttributeType.INT
                and name in ("to", "dtype")
                and attribute.value == _HALF
            ):
                node.attributes[name] = ir.AttrInt64(name, _FLOAT)
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == _HALF:
                node.attributes[name] = ir.AttrTensor(
                    name, ir.tensor(attribute.value.numpy().astype(np.float32))
                )
        for value in node.outputs:
            _widen_value(value)


def _prepend(model: ir.Model, white: int, last: bool) -> None:
    graph = model.graph
    source, first = graph.inputs[0], next(iter(graph))
    assert source.shape is not None
    n, *sides = source.shape
    shape = [n, sides[2], *sides[:2]] if last else [n, *sides]
    taken = ir.Value(name="conformed_input", type=ir.TensorType(_FLOAT), shape=ir.Shape(shape))
    nodes, value = [], taken
    if white != 1:
        scale = constant(model, np.array(white, np.float32), "conformed_white_in")
        nodes.append(named_node("Mul", [value, scale], name="conformed_levels"))
        value = nodes[-1].outputs[0]
    if last:
        nodes.append(named_node("Transpose", [value], {"perm": [0, 2, 3, 1]}, name="conformed_pixels"))
        value = nodes[-1].outputs[0]
    source.replace_all_uses_with(value)
    graph.inputs[0] = taken
    graph.insert_before(first, nodes)


def _widen_value(value: ir.Value) -> None:
    if value.dtype == _HALF:
        value.type = ir.TensorType(_FLOAT)
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
