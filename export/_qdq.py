"""Explicit quantisation: QuantizeLinear and DequantizeLinear pairs, as TensorRT reads them."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export._placement import LARGEST, LEAST_STEP

__all__ = ["quantise"]

_STORED = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
_LEAST_OPSET = 19


def quantise(model: ir.Model, precision: str, groups: Mapping[str, str], scales: Mapping[str, float]) -> int:
    """Put Q/DQ pairs on the input of each placed convolution, and its weights behind a DequantizeLinear.

    Symmetric: activations with one scale a group, weights with one a channel of the output. An input that is a
    concatenation is quantised before it, tensor by tensor with the group's one scale: the same values, and each
    feature is quantised once however many convolutions read it.

    Args:
        model: A float-form graph in fp16 or fp32, opset 19 or later; it is changed.
        precision: ``"int8"`` or ``"fp8"``.
        groups: See `placement`; a convolution is found by its weight, ``NAME.weight``.
        scales: By group: the real value of one quantisation step.

    Returns:
        The number of convolutions quantised.

    Raises:
        ExportError: The opset is older, a scale is missing or not above 0, or a placed convolution is not in
            the graph.
    """
    opset = model.graph.opset_imports[""]
    if opset < _LEAST_OPSET:
        raise ExportError(
            f"opset {opset} cannot quantise halves; run again with --opset {_LEAST_OPSET} or later"
        )
    convolutions = {
        node.inputs[1].name.removesuffix(".weight"): node
        for node in model.graph
        if node.op_type == "Conv" and node.inputs[1] is not None and node.inputs[1].name is not None
    }
    for name, group in groups.items():
        if name not in convolutions:
            raise ExportError(
                f"the graph has no convolution with the weights {name}.weight, which is to be quantised"
            )
        if not scales.get(group, 0.0) > 0.0:
            raise ExportError(f"the scale of {group} is {scales.get(group)}; it is a number above 0")
    pass_ = _Pass(model.graph, precision)
    for name, group in groups.items():
        node = convolutions[name]
        assert node.inputs[0] is not None
        node.replace_input_with(0, pass_.activation(node.inputs[0], group, scales[group]))
        node.replace_input_with(1, pass_.weight(node))
    _drop_unused(model.graph)
    return len(groups)


class _Pass:
    def __init__(self, graph: ir.Graph, precision: str) -> None:
        self._graph, self._precision = graph, precision
        self._done: dict[tuple[ir.Value, str], ir.Value] = {}

    def activation(self, value: ir.Value, group: str, scale: float) -> ir.Value:
        """Return the quantised and dequantised tensor; made once for each group that reads it."""
        if (value, group) in self._done:
            return self._done[value, group]
        producer = value.producer()
        if producer is not None and producer.op_type == "Concat":
            parts = [self.activation(part, group, scale) for part in producer.inputs if part is not None]
            node = ir.node(
                "Concat",
                parts,
                {"axis": producer.attributes["axis"].as_int()},
                name=f"{value.name}_of_{group}",
            )
            self._place(node, after=value, like=value)
            out = node.outputs[0]
        else:
            out = self._pair(value, group, scale)
        self._done[value, group] = out
        return out

    def _pair(self, value: ir.Value, group: str, scale: float) -> ir.Value:
        name = f"{value.name}_of_{group}"
        assert value.dtype is not None
        step = self._constant(f"{name}_scale", np.array(scale, value.dtype.numpy()))
        zero = self._constant(f"{name}_zero", self._stored(np.zeros((), np.float32)))
        quantised = ir.node("QuantizeLinear", [value, step, zero], name=f"{name}_q")
        self._place(quantised, after=value, like=value)
        quantised.outputs[0].type = ir.TensorType(_STORED[self._precision])
        back = ir.node("DequantizeLinear", [quantised.outputs[0], step, zero], name=f"{name}_dq")
        self._place(back, after=quantised.outputs[0], like=value)
        return back.outputs[0]

    def weight(self, conv: ir.Node) -> ir.Value:
        """Return the dequantised weights of a convolution."""
        value = conv.inputs[1]
        assert value is not None
        assert value.const_value is not None
        assert value.dtype is not None
        array = value.const_value.numpy().astype(np.float32)
        largest = np.abs(array).max(axis=(1, 2, 3))
        # Rounded as they are stored first: the integers are then those of the scale that is used.
        steps = np.maximum((largest / LARGEST[self._precision]).astype(np.float16), np.float16(LEAST_STEP))
        steps = steps.astype(value.dtype.numpy())
        shares = array / steps.astype(np.float32).reshape(-1, 1, 1, 1)
        stored = self._constant(f"{value.name}_q", self._stored(shares))
        step = self._constant(f"{value.name}_scale", steps)
        zero = self._constant(f"{value.name}_zero", self._stored(np.zeros(steps.shape, np.float32)))
        node = ir.node("DequantizeLinear", [stored, step, zero], {"axis": 0}, name=f"{value.name}_dq")
        self._graph.insert_before(conv, node)
        node.outputs[0].name = node.name
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        return node.outputs[0]

    def _stored(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        largest = LARGEST[self._precision]
        if self._precision == "int8":
            return np.clip(np.rint(values), -largest, largest).astype(np.int8)
        return np.clip(values, -largest, largest).astype(ml_dtypes.float8_e4m3fn)

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
        )
        self._graph.register_initializer(value)
        return value

    def _place(self, node: ir.Node, *, after: ir.Value, like: ir.Value) -> None:
        out = node.outputs[0]
        out.name, out.type, out.shape = node.name, like.type, like.shape
        producer = after.producer()
        if producer is None:
            self._graph.insert_before(next(iter(self._graph)), node)
            return
        # A concatenation follows the last of its parts.
        makers = [producer]
        for part in node.inputs:
            maker = part.producer() if part is not None else None
            if maker is not None:
                makers.append(maker)
        order = {node: number for number, node in enumerate(self._graph)}
        self._graph.insert_after(max(makers, key=lambda maker: order[maker]), node)


def _drop_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
