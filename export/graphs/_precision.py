"""The graph's dtypes are the precision: TensorRT 11 has no flag for it."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.graphs._edit import clone

__all__ = ["DTYPES", "to_precision"]

DTYPES = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    # What is not quantised of a quantised graph.
    "int8": ir.DataType.FLOAT16,
    "fp8": ir.DataType.FLOAT16,
    # No processor computes in half precision.
    "int8-cpu": ir.DataType.FLOAT,
}

# Inputs that stay fp32 whatever the picture's dtype, by operator and position.
_FIXED = {("Resize", 2)}


def to_precision(model: ir.Model, precision: str) -> ir.Model:
    """Return the graph with every float tensor, its input and its output in another dtype.

    No cast is left inside: the convolutions, the resizes at four times the size among them, all run in the
    new dtype.

    Args:
        model: A float-form graph in fp32; it is not changed.
        precision: A key of `DTYPES`; the quantised ones give the fp16 graph that `quantise` then works on.

    Raises:
        ExportError: A weight is too large for fp16, or the graph holds branches or loops.
    """
    target = DTYPES[precision]
    model = clone(model)
    if target == ir.DataType.FLOAT:
        return model
    inner = [
        node.op_type for node in model.graph if any(_holds_graphs(one) for one in node.attributes.values())
    ]
    if inner:
        raise ExportError(
            f"the graph holds {inner[0]}, and what is inside branches and loops stays fp32. "
            "Run: esrgan-export with --precision fp32"
        )
    if target == ir.DataType.BFLOAT16 and model.graph.opset_imports[""] < 22:
        # ONNX defines bfloat16 convolutions from opset 22 on; nothing else changes for these operators.
        model = ir.serde.deserialize_model(
            onnx.version_converter.convert_version(ir.serde.serialize_model(model), 22)
        )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for value in list(model.graph.initializers.values()):
        if value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
            continue
        if any((use.node.op_type, use.idx) in _FIXED for use in value.uses()):
            continue
        array = value.const_value.numpy()
        if target == ir.DataType.FLOAT16 and array.size and float(np.abs(array).max()) > 65504:
            raise ExportError(
                f"{value.name} holds {float(np.abs(array).max()):.4g}, over the 65504 that fp16 ends at. "
                "Run: esrgan-export with --precision bf16 or fp32"
            )
        value.const_value = ir.tensor(array.astype(target.numpy()), dtype=target, name=value.name)
        value.type = ir.TensorType(target)
    for node in model.graph:
        for attribute in node.attributes.values():
            if node.op_type == "Cast" and attribute.name == "to" and attribute.as_int() == ir.DataType.FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", int(target))
        for value in node.outputs:
            if value.dtype in (ir.DataType.FLOAT, None):
                value.type = ir.TensorType(target)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(target)
    return model


def _holds_graphs(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
