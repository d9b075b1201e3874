"""Twins of convolutions: the fp32 weights on the same input, before it is rounded."""

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export._graph import constant
from esrgan_deploy.export.quantisation._explain_noise import Rounding

__all__ = ["Twin", "add_twins"]

Array = npt.NDArray[np.float64]

_KINDS = {
    ir.DataType.INT8: ("int8", -128.0, 127.0),
    ir.DataType.UINT8: ("uint8", 0.0, 255.0),
    ir.DataType.FLOAT8E4M3FN: ("fp8", -448.0, 448.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """One convolution and the names of what is to be compared.

    Attributes:
        name: The convolution's.
        tensor: Its output as the graph was written.
        input: Its input before it is rounded.
        output: Its output, as the next layer reads it.
        exact: The twin's.
        expected: The output in the fp32 graph.
        weights: In fp32, ``(C_out, C_in, k, k)``.
        stored: As the graph has them, dequantised.
        steps: Of the weights, broadcast to them; 1 where they are not quantised.
        rounding: Of the input.
    """

    name: str
    tensor: str
    input: str
    output: str
    exact: str
    expected: str
    weights: Array
    stored: Array
    steps: Array
    rounding: Rounding


def add_twins(graph: ir.Model, source: ir.Model, *, where: str) -> list[Twin]:
    """Put a twin beside each convolution of a graph that computes in fp32, which is changed.

    Args:
        graph: With Q/DQ pairs, and with what half precision rounds written into it (`rounding_model`).
        source: The fp32 graph, whose convolutions are the same and in the same order.
        where: Names the graph in the error.

    Raises:
        ExportError: The convolutions differ.
    """
    exact, made = ([node for node in model.graph if node.op_type == "Conv"] for model in (source, graph))
    # The graph for processors makes blocks of the picture with its last convolution: other weights, of another shape.
    shapes = [[_shape(node) for node in nodes] for nodes in (exact, made)]
    blocks = (
        shapes[0][:-1] == shapes[1][:-1]
        and len(made) == len(exact)
        and _stride(made[-1]) > _stride(exact[-1])
    )
    if blocks:
        exact, made = exact[:-1], made[:-1]
    elif shapes[0] != shapes[1]:
        raise ExportError(
            f"{where} has {len(made)} convolutions that are not those of the fp32 graph, which has {len(exact)}; "
            "give the model.onnx that was written with it"
        )
    return [_twin(graph, node, model) for node, model in zip(made, exact, strict=True)]


def _twin(graph: ir.Model, conv: ir.Node, model: ir.Node) -> Twin:
    weight, arriving, result = model.inputs[1], conv.inputs[0], conv.outputs[0]
    assert weight is not None
    assert weight.name is not None
    assert weight.const_value is not None
    assert arriving is not None
    name = weight.name.removesuffix(".weight")
    pair = _pair(arriving)
    x = _before(graph, conv, arriving, name) if pair is not None else arriving
    array = weight.const_value.numpy()
    twin = ir.node(
        "Conv",
        [x, constant(graph, array, f"{name}.weight_exact"), *conv.inputs[2:]],
        dict(conv.attributes),
        name=f"{name}_exact",
    )
    twin.outputs[0].name, twin.outputs[0].shape = f"{name}_exact", result.shape
    twin.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.graph.insert_after(conv, twin)
    output = _settled(result)
    stored, steps = _weights(conv, array.shape)
    names = [value.name for value in (result, x, output, model.outputs[0])]
    assert all(names)
    return Twin(
        name=name,
        tensor=str(names[0]).removesuffix("_exact"),
        input=str(names[1]),
        output=str(names[2]),
        exact=f"{name}_exact",
        expected=str(names[3]),
        weights=array.astype(np.float64),
        stored=stored,
        steps=steps,
        rounding=_rounding(pair, half=output is not result),
    )


def _stride(conv: ir.Node) -> int:
    strides = conv.attributes.get("strides")
    return 1 if strides is None else max(strides.as_ints())


def _shape(conv: ir.Node) -> tuple[int, ...]:
    value = conv.inputs[1]
    assert value is not None
    value = _through_casts(value)
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return _array(producer.inputs[0]).shape
    return _array(value).shape


def _through_casts(value: ir.Value) -> ir.Value:
    producer = value.producer()
    while producer is not None and producer.op_type == "Cast":
        source = producer.inputs[0]
        assert source is not None
        value, producer = source, source.producer()
    return value


def _pair(value: ir.Value) -> ir.Node | None:
    # The DequantizeLinear behind a value; the parts of a concatenation have one step.
    producer = _through_casts(value).producer()
    while producer is not None and producer.op_type == "Concat" and producer.inputs[0] is not None:
        producer = _through_casts(producer.inputs[0]).producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _before(graph: ir.Model, conv: ir.Node, value: ir.Value, name: str) -> ir.Value:
    producer = _through_casts(value).producer()
    assert producer is not None
    if producer.op_type == "DequantizeLinear":
        stored = producer.inputs[0]
        quantise = stored.producer() if stored is not None else None
        if quantise is None or quantise.op_type != "QuantizeLinear" or quantise.inputs[0] is None:
            # The graph for processors enlarges integers: what was rounded has another size, and no error is left.
            return value
        return quantise.inputs[0]
    parts = [
        _before(graph, conv, part, f"{name}_{i}")
        for i, part in enumerate(producer.inputs)
        if part is not None
    ]
    axis = producer.attributes["axis"].as_int()
    node = ir.node("Concat", parts, {"axis": axis}, name=f"{name}_arriving")
    node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.FLOAT)
    graph.graph.insert_before(conv, node)
    return node.outputs[0]


def _settled(value: ir.Value) -> ir.Value:
    # Behind the casts of `rounding_model`.
    for down in value.consumers():
        if down.op_type == "Cast" and down.attributes["to"].as_int() == ir.DataType.FLOAT16:
            for up in down.outputs[0].consumers():
                if up.op_type == "Cast" and up.attributes["to"].as_int() == ir.DataType.FLOAT:
                    return up.outputs[0]
    return value


def _weights(conv: ir.Node, shape: tuple[int, ...]) -> tuple[Array, Array]:
    value = conv.inputs[1]
    assert value is not None
    value = _through_casts(value)
    producer = value.producer()
    if producer is None:
        return _array(value), np.ones(shape)
    assert producer.op_type == "DequantizeLinear"
    steps = _array(producer.inputs[1])
    steps = np.broadcast_to(steps.reshape(-1, 1, 1, 1), shape)
    zero = _array(producer.inputs[2]).reshape(-1, 1, 1, 1) if len(producer.inputs) > 2 else 0.0
    return (_array(producer.inputs[0]) - zero) * steps, steps


def _rounding(pair: ir.Node | None, *, half: bool) -> Rounding:
    if pair is None:
        return Rounding(kind="fp16" if half else "fp32", step=1.0, ends=(-np.inf, np.inf), half=half)
    step, zero = float(_array(pair.inputs[1])), pair.inputs[2]
    assert zero is not None
    assert zero.dtype is not None
    kind, low, high = _KINDS[zero.dtype]
    at = float(_array(zero))
    return Rounding(kind=kind, step=step, ends=((low - at) * step, (high - at) * step), half=half)


def _array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)
