"""INT8 for processors: unsigned activations with a zero point, in the form that ONNX Runtime runs on integers."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.graphs._cpu_weights import fitted, in_phases
from esrgan_deploy.export.graphs._edit import array_of, constant, convolutions, drop_unused, named_node
from esrgan_deploy.export.graphs._recipe import Recipe, unsigned_grid
from esrgan_deploy.export.nets import Layer, Quantised, counted

__all__ = ["quantise_for_processor"]

Range = tuple[float, float]

_ACTIVATIONS = {"LeakyRelu", "PRelu"}
_CHAIN = {"QuantizeLinear", "DequantizeLinear", "Conv", "Reshape"}
_LARGEST_BIAS = 2.0**30
_PHASES = 4
"""Pixels on a side that the last convolution makes at a time, at most."""
_SAME_SHAPE = (0, -1, 0, 0)


def quantise_for_processor(model: ir.Model, layers: Sequence[Layer], recipe: Recipe) -> Quantised:
    """Put Q/DQ pairs around convolutions: on the input, the weights, the bias and the output.

    ONNX Runtime's CPU provider has integer convolutions only from 8 bits to 8 bits: without the pair behind, it
    computes in fp32 and is slower than without any. It fuses each convolution to a QLinearConv and the LeakyReLU
    behind to a table of 256 values. Activations are uint8, for which x86 has instructions; 0 is one of the levels,
    since borders are padded with it. A group has one scale and zero point, so that its concatenations move bytes;
    they are written flat, from which ONNX Runtime keeps them channels last. Sums of the trunk are fp32. Weights are
    those of the graph, per channel, see `fitted`. The last convolution of an RRDBNet, where it
    is among them, makes a block of pixels at a time, see `_phases`: the same sums.

    Args:
        model: A float-form graph in fp32; it is changed.
        layers: All convolutions of the net.
        recipe: Its formats name what is quantised, its inputs and outputs say over which ranges; the input of an
            unquantised convolution that reads the activation of a quantised one is rounded where its range is there.
            Weights without steps get those that `fitted` chooses.

    Raises:
        ExportError: There is nothing to quantise, a convolution is not in the graph, or a range is missing or not
            finite.
    """
    if not recipe.formats:
        raise ExportError("no convolution is to be quantised; name some, or run: --precision fp32")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    nodes = convolutions(model.graph)
    known = {layer.name: layer for layer in layers}
    for name in recipe.formats:
        if name not in known or name not in nodes:
            raise ExportError(
                f"the graph has no convolution with the weights {name}.weight, which is to be quantised"
            )
    names = [layer.name for layer in layers if layer.name in recipe.formats]
    pass_ = _Pass(model, known, recipe, {nodes[name]: name for name in names})
    # Everything in front first: a convolution is found by its weights, which it loses when its own turn comes.
    for name in names:
        pass_.read(nodes[name])
    for name in names:
        pass_.compute(nodes[name])
    model.graph.sort()
    drop_unused(model.graph)
    made = sum(node.op_type == "Conv" and _is_quantised(node) for node in model.graph)
    if made != len(names):
        raise ExportError(f"{made} convolutions are quantised of {len(names)} that were to be")
    return counted(layers, names)


class _Pass:
    def __init__(
        self,
        model: ir.Model,
        layers: Mapping[str, Layer],
        recipe: Recipe,
        chosen: Mapping[ir.Node, str],
    ) -> None:
        self._model, self._graph, self._layers = model, model.graph, layers
        self._recipe, self._chosen = recipe, chosen
        self._names = {node: name for name, node in convolutions(model.graph).items()}
        self._scales: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._done: dict[tuple[ir.Value, str], ir.Value] = {}

    def read(self, conv: ir.Node) -> None:
        """Quantise what a convolution reads, and what comes after the activation behind it."""
        group = self._layers[self._chosen[conv]].group
        assert conv.inputs[0] is not None
        self._dequantise_for(conv, self._quantised(conv.inputs[0], group), group)
        activation = _activation_behind(conv)
        if activation is None:
            return
        uses = [user for user, _ in activation.outputs[0].uses()]
        readers = {self._layers[self._names[user]].group for user in uses if user in self._names}
        if len(uses) == 1 and len(readers) == 1 and readers <= set(self._recipe.inputs):
            # A convolution in fp32 reads it: bytes move faster, and the activation is a table.
            reader, group = uses[0], readers.pop()
            if reader not in self._chosen:
                self._dequantise_for(reader, self._quantised(activation.outputs[0], group), group)

    def compute(self, conv: ir.Node) -> None:
        """Quantise the weights, the bias and the output of a convolution."""
        name = self._chosen[conv]
        layer = self._layers[name]
        step = array_of(self._scale_of(layer.group)[0])
        weight, bias = conv.inputs[1], conv.inputs[2] if len(conv.inputs) > 2 else None
        assert weight is not None
        array = array_of(weight)
        steps: npt.NDArray[np.floating] | None = self._recipe.weights.get(name)
        if steps is not None:
            steps = np.broadcast_to(steps * layer.fold, array.shape[:1])
        added = np.zeros(array.shape[0]) if bias is None else array_of(bias).astype(np.float64)
        integers, steps = fitted(array, steps)
        # The bias is a whole number of these; of a channel of tiny weights they would be too many for int32.
        floor = np.abs(added) / (float(step) * _LARGEST_BIAS)
        if (floor > steps).any():
            integers, steps = fitted(array, np.maximum(steps, floor))
        phases = self._phases(conv, layer, integers.shape)
        if phases > 1:
            integers = in_phases(integers, phases)
            steps, added = np.repeat(steps, phases**2), np.repeat(added, phases**2)
            conv.attributes.add(ir.AttrInt64s("kernel_shape", integers.shape[2:]))
            conv.attributes.add(ir.AttrInt64s("strides", [phases, phases]))
        shape = ir.Shape(integers.shape)
        conv.replace_input_with(1, self._stored(f"{name}.weight", integers, steps, shape))
        if bias is not None:
            each = (steps * step).astype(np.float32)
            whole = np.rint(added / each.astype(np.float64)).astype(np.int32)
            conv.replace_input_with(2, self._stored(f"{name}.bias", whole, each, ir.Shape(whole.shape)))
        self._round_output(conv, name, phases)

    def _phases(self, conv: ir.Node, layer: Layer, shape: Sequence[int]) -> int:
        # A row of three channels is requantised one value at a time, which takes longer than all products: a block
        # of pixels at once makes it 48. With an odd number of channels other weights would be neighbours.
        _, read, *kernel = shape
        if layer.place != "last" or read % 2 or kernel != [3, 3]:
            return 1
        enlarged = _enlarged_by(conv)
        return max(size for size in range(1, _PHASES + 1) if enlarged % size == 0)

    def _round_output(self, conv: ir.Node, name: str, phases: int) -> None:
        out = conv.outputs[0]
        users, whole = list(out.uses()), out.shape
        fold = self._layers[name].fold
        low, high = (fold * value for value in _range(self._recipe.outputs, name, "the output of "))
        scale, zero = self._constants(f"{name}.output", *unsigned_grid(low, high))
        if phases > 1:
            out.shape = None
        quantised = self._node("QuantizeLinear", [out, scale, zero], f"{name}.output_q", out.shape)
        back = self._node("DequantizeLinear", [quantised, scale, zero], f"{name}.output_dq", out.shape)
        if phases > 1:
            attributes = {"blocksize": phases, "mode": "CRD"}
            back = self._node("DepthToSpace", [back], f"{name}.pixels", whole, attributes)
        for user, index in users:
            user.replace_input_with(index, back)
        if out.is_graph_output():
            self._graph.outputs[list(self._graph.outputs).index(out)] = back
            out.name, back.name = f"{out.name}_exact", out.name

    def _quantised(self, value: ir.Value, group: str) -> ir.Value:
        """Return the bytes of a tensor on a group's grid; each is rounded once however many read it."""
        if (value, group) in self._done:
            return self._done[value, group]
        producer = value.producer()
        name = f"{value.name}_of_{group}"
        if producer is not None and producer.op_type == "Concat":
            parts = [self._quantised(part, group) for part in _parts(producer)]
            axis = producer.attributes["axis"].as_int()
            out = self._node("Concat", parts, name, value.shape, {"axis": axis})
        elif producer is not None and _is_nearest(producer):
            # Nearest neighbours are copies, of bytes as of floats.
            assert producer.inputs[0] is not None
            read = self._quantised(producer.inputs[0], group)
            # Changes nothing, and costs nothing. Without it ONNX Runtime moves the transposition behind the Resize
            # to its front, and channels last it has no fast kernel for that: a tenth of the net's time.
            same = constant(self._model, np.array(_SAME_SHAPE, np.int64), f"{name}_same")
            kept = self._node("Reshape", [read, same], f"{name}_as_it_is", producer.inputs[0].shape)
            inputs = [kept, *producer.inputs[1:]]
            out = self._node("Resize", inputs, name, value.shape, producer.attributes)
        else:
            inputs = [value, *self._scale_of(group)]
            out = self._node("QuantizeLinear", inputs, f"{name}_q", value.shape)
        self._done[value, group] = out
        return out

    def _dequantise_for(self, conv: ir.Node, value: ir.Value, group: str) -> None:
        # One for each reader: ONNX Runtime fuses it into that, and would copy a shared one.
        name = f"{self._names[conv]}.input_dq"
        back = self._node("DequantizeLinear", [value, *self._scale_of(group)], name, value.shape)
        conv.replace_input_with(0, back)

    def _scale_of(self, group: str) -> tuple[ir.Value, ir.Value]:
        if group not in self._scales:
            low, high = _range(self._recipe.inputs, group, "the input of ")
            self._scales[group] = self._constants(group, *unsigned_grid(low, high))
        return self._scales[group]

    def _constants(self, name: str, step: float, zero: int) -> tuple[ir.Value, ir.Value]:
        return (
            constant(self._model, np.array(step, np.float32), f"{name}_scale"),
            constant(self._model, np.array(zero, np.uint8), f"{name}_zero"),
        )

    def _stored(
        self, name: str, integers: npt.NDArray[np.integer], steps: npt.NDArray[np.float32], shape: ir.Shape
    ) -> ir.Value:
        inputs = [
            constant(self._model, integers, f"{name}_q"),
            constant(self._model, steps, f"{name}_scale"),
            constant(self._model, np.zeros(steps.shape, integers.dtype), f"{name}_zero"),
        ]
        return self._node("DequantizeLinear", inputs, f"{name}_dq", shape, {"axis": 0})

    def _node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        shape: ir.Shape | None,
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        node = named_node(op, inputs, attributes, name=name)
        # The graph is sorted at the end.
        self._graph.append(node)
        out = node.outputs[0]
        out.shape = shape
        floats = op in ("DequantizeLinear", "DepthToSpace")
        out.type = ir.TensorType(ir.DataType.FLOAT if floats else ir.DataType.UINT8)
        return out


def _range(ranges: Mapping[str, Range], name: str, of: str) -> Range:
    low, high = ranges.get(name, (np.nan, np.nan))
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ExportError(
            f"the range of {of}{name} is {ranges.get(name)}; it is two finite numbers, the lower first"
        )
    return low, high


def _activation_behind(conv: ir.Node) -> ir.Node | None:
    users = [user for user, _ in conv.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type in _ACTIVATIONS else None


def _parts(concat: ir.Node) -> list[ir.Value]:
    """Return what a nested concatenation is made of."""
    found: list[ir.Value] = []
    for value in concat.inputs:
        assert value is not None
        producer = value.producer()
        found += _parts(producer) if producer is not None and producer.op_type == "Concat" else [value]
    return found


def _is_nearest(node: ir.Node) -> bool:
    # With sizes of its own it would not be the same on bytes of another layout.
    return (
        node.op_type == "Resize" and "mode" in node.attributes and node.attributes["mode"].value == "nearest"
    )


def _enlarged_by(conv: ir.Node) -> int:
    """Return by what its input has been enlarged since the last sum, so that its sides are multiples of that."""
    times, value = 1, conv.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Resize":
            scales = node.inputs[2]
            if scales is None or scales.const_value is None:
                break
            times *= int(scales.const_value.numpy()[-1])
        elif node.op_type not in _CHAIN | _ACTIVATIONS:
            break
        value = node.inputs[0]
    return times


def _is_quantised(conv: ir.Node) -> bool:
    around = [value.producer() for value in conv.inputs if value is not None]
    behind = [user.op_type for user, _ in conv.outputs[0].uses()]
    return behind == ["QuantizeLinear"] and all(
        node is not None and node.op_type == "DequantizeLinear" for node in around
    )
