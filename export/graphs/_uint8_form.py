"""The uint8 form of a graph."""

import numpy as np
import onnx_ir as ir

from esrgan_deploy.export.graphs._edit import FEATURES, append, constant, named_node

__all__ = ["bytes_in", "bytes_out", "to_uint8_form"]


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
