"""A graph that watches itself: one small output that says whether what it made is a picture."""

import numpy as np
import onnx_ir as ir

from esrgan_deploy._spec import HEALTH_OUTPUT
from esrgan_deploy.export.graphs._edit import FEATURES, append, constant

__all__ = ["is_watched", "watch"]

_AXES_ARE_INPUTS = 18
"""From this opset on ReduceMax, ReduceMean and ReduceMin take their axes as an input."""


def watch(model: ir.Model) -> None:
    """Give a graph the second output ``health``, ``(N, 3)`` float32, one row for each picture.

    A row holds the mean of the output before it is clipped, which is NaN or infinite as soon as one sample is;
    the spread (largest less smallest sample) of the output after clipping to 0..1; and the spread of the input.
    A NaN that is cast to uint8 is black and cannot be told from a dark frame, so that the uint8 form has to be
    watched inside the graph.

    The rows of pixels are reduced first and what is left of them after. TensorRT for RTX then reads the output
    once, in one kernel with all three reductions in it; over C, H and W at once it reads it three times, with a
    copy in fp32 between. Samples are cast to fp32 before they are added, because a sum of fp16 ends at 65504.

    Args:
        model: A graph in the float form and in its final precision, or the tail of one, whose rows lack the spread of
            the input; call `to_uint8_form` after this.
    """
    graph = model.graph
    source, result = graph.inputs[0], graph.outputs[0]
    assert result.shape is not None
    tail = source.name == FEATURES
    given = None if tail else _as_float(model, source, "health_given")
    made = _as_float(model, result, "health_made")
    mean = _reduced(model, "ReduceMean", made, "health_mean")
    # Clipping keeps the order, so the clipped extremes are the extremes of what is clipped.
    low = constant(model, np.array(0.0, np.float32), "health_black")
    high = constant(model, np.array(1.0, np.float32), "health_white")
    ends = [
        append(model, "Clip", [_reduced(model, op, made, name), low, high], name=f"{name}_clipped")
        for op, name in (("ReduceMax", "health_most"), ("ReduceMin", "health_least"))
    ]
    spread = append(model, "Sub", ends, name="health_spread")
    found = [mean, spread]
    if given is not None:
        given_ends = [
            _reduced(model, op, given, name)
            for op, name in (("ReduceMax", "health_given_most"), ("ReduceMin", "health_given_least"))
        ]
        found.append(append(model, "Sub", given_ends, name="health_given_spread"))
    columns = append(model, "Concat", found, {"axis": 1}, name="health_columns")
    last = constant(model, np.array([2], np.int64), "health_last_axis")
    health = append(model, "Squeeze", [columns, last], name=HEALTH_OUTPUT)
    health.type, health.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([result.shape[0], len(found)])
    graph.outputs.append(health)


def is_watched(model: ir.Model) -> bool:
    """Return whether a graph has the output that `watch` adds."""
    return [value.name for value in model.graph.outputs[1:]] == [HEALTH_OUTPUT]


def _as_float(model: ir.Model, value: ir.Value, name: str) -> ir.Value:
    if value.dtype == ir.DataType.FLOAT:
        return value
    return append(model, "Cast", [value], {"to": ir.DataType.FLOAT}, name=name)


def _reduced(model: ir.Model, op: str, value: ir.Value, name: str) -> ir.Value:
    # (N, C, H, W) to (N, C, H) to (N, 1, 1).
    rows = _reduce(model, op, value, [3], f"{name}_of_rows", keep=False)
    return _reduce(model, op, rows, [1, 2], name, keep=True)


def _reduce(model: ir.Model, op: str, value: ir.Value, axes: list[int], name: str, *, keep: bool) -> ir.Value:
    if model.graph.opset_imports[""] < _AXES_ARE_INPUTS:
        return append(model, op, [value], {"axes": axes, "keepdims": int(keep)}, name=name)
    where = constant(model, np.array(axes, np.int64), f"{name}_axes")
    return append(model, op, [value, where], {"keepdims": int(keep)}, name=name)
