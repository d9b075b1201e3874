"""What a graph that plans are built from has at its ends: bytes in and out, and an output by which it is watched."""

import numpy as np
import onnx_ir as ir

from esrgan_deploy._spec import HEALTH_OUTPUT
from esrgan_deploy.export.graphs._edit import FEATURES, append, constant, named_node

__all__ = ["bytes_in", "bytes_out", "is_watched", "to_uint8_form", "watch"]

_AXES_ARE_INPUTS = 18
"""From this opset on ReduceMax, ReduceMean and ReduceMin take their axes as an input."""


def to_uint8_form(model: ir.Model) -> None:
    """Turn the float form into the uint8 form: NHWC RGB 0..255 in and out.

    A frame then crosses to the device and back at one byte a sample, and scaling, clipping and rounding run
    inside the engine. The casts stand outermost, because TensorRT allows UINT8 only at the border of a network;
    the clip stands before the cast, because a float outside [0, 256) has no defined uint8. The arithmetic at
    both ends is fp32 whatever the net's dtype: it fuses into one kernel, and fp16 has only eight steps per level.
    Only the clip is done in the net's dtype, in which 0 and 1 are exact: were the cast first, TensorRT would share
    it with the watchdog's and write the whole output once more in fp32, 288 bytes for each pixel of the input.

    Args:
        model: A graph in the float form, fp32, fp16 or bf16; it may be watched, see `watch`.
    """
    bytes_out(model, bytes_in(model))


def bytes_in(model: ir.Model) -> ir.Value | None:
    """Let a graph, or a part of one, take the picture as bytes, and return the white that it divides by.

    A tail that takes no picture stays as it is.
    """
    graph = model.graph
    pictures = [one for one in graph.inputs if one.name != FEATURES]
    if not pictures:
        return None
    source = pictures[0]
    dtype = source.dtype
    assert dtype is not None
    assert source.shape is not None
    first = next(iter(graph))
    n, c, h, w = source.shape
    picture = ir.Value(name="input", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([n, h, w, c]))
    cast = named_node("Cast", [picture], {"to": ir.DataType.FLOAT}, name="from_uint8")
    planar = named_node("Transpose", [cast.outputs[0]], {"perm": [0, 3, 1, 2]}, name="to_nchw")
    peak = constant(model, np.array(255.0, np.float32), "peak")
    unit = named_node("Div", [planar.outputs[0], peak], name="to_unit_range")
    front = [cast, planar, unit]
    if dtype != ir.DataType.FLOAT:
        front.append(named_node("Cast", [unit.outputs[0]], {"to": dtype}, name="to_net_dtype"))
    source.replace_all_uses_with(front[-1].outputs[0])
    graph.inputs[list(graph.inputs).index(source)] = picture
    graph.insert_before(first, front)
    return peak


def bytes_out(model: ir.Model, peak: ir.Value | None = None) -> None:
    """Let a graph, or the tail of one, give its picture as bytes.

    Args:
        model: See `to_uint8_form`.
        peak: What `bytes_in` returned.
    """
    graph = model.graph
    result = graph.outputs[0]
    dtype = result.dtype
    assert dtype is not None
    assert result.shape is not None
    peak = peak or constant(model, np.array(255.0, np.float32), "peak")
    result.name = "net_output"
    low = constant(model, np.array(0.0, dtype.numpy()), "low")
    high = constant(model, np.array(1.0, dtype.numpy()), "high")
    tail = append(model, "Clip", [result, low, high], name="clipped")
    if dtype != ir.DataType.FLOAT:
        tail = append(model, "Cast", [tail], {"to": ir.DataType.FLOAT}, name="from_net_dtype")
    tail = append(model, "Mul", [tail, peak], name="to_levels")
    # ONNX Round is half to even.
    tail = append(model, "Round", [tail], name="rounded")
    tail = append(model, "Transpose", [tail], {"perm": [0, 2, 3, 1]}, name="to_nhwc")
    tail = append(model, "Cast", [tail], {"to": ir.DataType.UINT8}, name="to_uint8")
    n, c, h, w = result.shape
    tail.name, tail.type = "output", ir.TensorType(ir.DataType.UINT8)
    tail.shape = ir.Shape([n, h, w, c])
    graph.outputs[0] = tail


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
