"""Explicit quantisation: QuantizeLinear and DequantizeLinear pairs, as TensorRT reads them."""

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.graphs._edit import array_of, constant, convolutions, drop_unused, named_node
from esrgan_deploy.export.graphs._recipe import Recipe
from esrgan_deploy.export.nets import LARGEST, Layer, Quantised, counted

__all__ = ["add_remainders", "apply_parameters_to_graph", "quantise"]

_STORED = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
_LEAST_OPSET = 19


def quantise(model: ir.Model, layers: Sequence[Layer], recipe: Recipe) -> Quantised:
    """Put Q/DQ pairs on the input of each convolution of a recipe, and its weights behind a DequantizeLinear.

    Symmetric. An input that is a concatenation is quantised before it, tensor by tensor with the group's one
    step: the same values, and each feature is quantised once however many convolutions read it. Residual sums
    keep reading the tensor that was not quantised. What a group's first channels are multiplied with stands in
    front of its quantiser alone, so that others that read them have them as they were: kernels that quantise
    multiply at no cost, and TensorRT for RTX declares the same bytes.

    Any convolution can be quantised, those of 3 channels too: TensorRT for RTX 1.7.1 builds the first and the last
    one of an RRDBNet as FP8 kernels, and pads 3 input channels to 4. (NVIDIA's ModelOpt leaves out all of 16 channels
    or fewer.) That they are fast there, nobody has measured.

    The integers are those of the fp32 weights, so half precision comes afterwards (`to_precision`), which then
    changes no step. They are those of the simulation, except that a weight of a fifth convolution may go the other
    way where it lies halfway between two steps to fp32 rounding: the graph has it times `Layer.fold`.

    Args:
        model: A float-form graph in fp32, opset 19 or later, rewritten (`fold_scales`), with the recipe's
            parameters (`apply_parameters_to_graph`); it is changed.
        layers: All convolutions of the net; the graph has them by their weights, ``NAME.weight``.
        recipe: What is quantised, and with which steps.

    Raises:
        ExportError: The recipe quantises nothing, or names what is not in the net or the graph; a step is missing
            or no number above 0; the opset is older; the graph is not fp32 or its residual scales are not folded.
    """
    opset = model.graph.opset_imports[""]
    if opset < _LEAST_OPSET:
        raise ExportError(
            f"opset {opset} cannot quantise halves; run again with --opset {_LEAST_OPSET} or later"
        )
    if not recipe.formats:
        raise ExportError(
            "the recipe quantises no convolution. Run: with a larger --budget, or --precision fp16"
        )
    known, nodes = {layer.name: layer for layer in layers}, convolutions(model.graph)
    for name in recipe.formats:
        _refuse_unfit(name, known, nodes, recipe)
    pass_ = _Pass(model, recipe)
    chosen = [layer for layer in layers if layer.name in recipe.formats]
    for layer in chosen:
        node = nodes[layer.name]
        assert node.inputs[0] is not None
        node.replace_input_with(0, pass_.activation(node.inputs[0], layer, recipe.formats[layer.name]))
        node.replace_input_with(1, pass_.weight(node, layer))
    drop_unused(model.graph)
    return counted(layers, recipe.formats)


def apply_parameters_to_graph(
    model: ir.Model, layers: Sequence[Layer], parameters: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Put the parameters that a recipe changed into the rewritten fp32 graph, which is changed.

    Args:
        model: In fp32, after `fold_scales` and before `to_precision` and `quantise`.
        layers: All convolutions of the net.
        parameters: Of the module, by name; the graph takes them times `Layer.fold`.

    Raises:
        ExportError: A parameter is not one of a convolution, or the graph has none of that name and shape.
    """
    folds = {f"{layer.name}.{kind}": layer.fold for layer in layers for kind in ("weight", "bias")}
    for name, array in parameters.items():
        value = model.graph.initializers.get(name)
        if name not in folds or value is None or value.const_value is None:
            raise ExportError(f"the graph has no parameter {name}, which the recipe changes")
        if tuple(value.const_value.shape) != array.shape or value.dtype != ir.DataType.FLOAT:
            raise ExportError(
                f"{name} is {value.dtype} {tuple(value.const_value.shape)} in the graph; the recipe has "
                f"float32 {array.shape}"
            )
        # In double precision and rounded once, as `fold_scales` does.
        scaled = (array.astype(np.float64) * folds[name]).astype(np.float32)
        value.const_value = ir.tensor(scaled, name=name)


def add_remainders(model: ir.Model, layers: Sequence[Layer], recipe: Recipe) -> int:
    """Write the remainders of a recipe into a graph that is quantised; returns of how many convolutions.

    Args:
        model: After `quantise`, in fp32; it is changed.
        layers: All convolutions of the net.
        recipe: With which it was quantised.

    Raises:
        ExportError: The recipe has remainders of a group with several convolutions, or the graph lacks one.
    """
    wanted = {name: list(channels) for name, channels in recipe.remainders.items() if name in recipe.formats}
    strange = set(recipe.remainders) - {layer.name for layer in layers if layer.group == layer.name}
    if strange:
        raise ExportError(
            f"{sorted(strange)[0]} is no group of one convolution, so it has no remainders. Calibrate again"
        )
    nodes = convolutions(model.graph)
    for name, channels in wanted.items():
        node = nodes.get(f"{name}.weight_dq")
        if node is None:
            raise ExportError(
                f"the graph has no quantised convolution {name}, whose remainders it is to read"
            )
        if channels:
            _read_twice(model, node, name, channels)
    return sum(1 for channels in wanted.values() if channels)


class _Pass:
    def __init__(self, model: ir.Model, recipe: Recipe) -> None:
        self._model, self._graph, self._recipe = model, model.graph, recipe
        self._done: dict[tuple[ir.Value, str], ir.Value] = {}

    def activation(self, value: ir.Value, layer: Layer, kind: str, *, first: bool = True) -> ir.Value:
        """Return the quantised and dequantised tensor; made once for each group that reads it.

        Args:
            value: What is read, or a part of it.
            layer: By which convolution.
            kind: The format.
            first: Whether it holds the group's first channels.
        """
        if (value, layer.group) in self._done:
            return self._done[value, layer.group]
        producer = value.producer()
        if producer is not None and producer.op_type == "Concat":
            parts = [
                self.activation(part, layer, kind, first=first and part is producer.inputs[0])
                for part in producer.inputs
                if part is not None
            ]
            axis = {"axis": producer.attributes["axis"].as_int()}
            node = named_node("Concat", parts, axis, name=f"{value.name}_of_{layer.group}")
            self._place(node, after=value, like=value)
            out = node.outputs[0]
        else:
            multiplied = self._multiplied(value, layer.group) if first else value
            out = self._pair(multiplied, layer.group, kind)
        self._done[value, layer.group] = out
        return out

    def _multiplied(self, value: ir.Value, group: str) -> ir.Value:
        factors = self._recipe.multipliers.get(group)
        if factors is None:
            return value
        name = f"{value.name}_of_{group}_multiplied"
        held = constant(self._model, factors.reshape(1, -1, 1, 1), f"{name}_by")
        node = named_node("Mul", [value, held], name=name)
        self._place(node, after=value, like=value)
        return node.outputs[0]

    def _pair(self, value: ir.Value, group: str, kind: str) -> ir.Value:
        name = f"{value.name}_of_{group}"
        step = constant(self._model, np.array(self._recipe.activations[group], np.float32), f"{name}_scale")
        zero = constant(self._model, _stored(np.zeros((), np.float32), kind), f"{name}_zero")
        quantised = named_node("QuantizeLinear", [value, step, zero], name=f"{name}_q")
        self._place(quantised, after=value, like=value)
        quantised.outputs[0].type = ir.TensorType(_STORED[kind])
        back = named_node("DequantizeLinear", [quantised.outputs[0], step, zero], name=f"{name}_dq")
        self._place(back, after=quantised.outputs[0], like=value)
        return back.outputs[0]

    def weight(self, conv: ir.Node, layer: Layer) -> ir.Value:
        """Return the dequantised weights of a convolution."""
        value, kind = conv.inputs[1], self._recipe.formats[layer.name]
        assert value is not None
        steps = _folded(self._recipe.weights[layer.name], layer)
        exact: npt.NDArray[np.float32] = array_of(value)
        factors = self._recipe.multiplied(layer.group, exact.shape[1]).reshape(1, -1, 1, 1)
        shares = exact / (steps.reshape(-1, 1, 1, 1) * factors)
        stored = constant(self._model, _stored(shares, kind), f"{value.name}_q")
        step = constant(self._model, steps, f"{value.name}_scale")
        zero = constant(self._model, _stored(np.zeros(steps.shape, np.float32), kind), f"{value.name}_zero")
        axis = {"axis": 0} if steps.ndim else {}
        node = named_node("DequantizeLinear", [stored, step, zero], axis, name=f"{value.name}_dq")
        self._graph.insert_before(conv, node)
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        return node.outputs[0]

    def _place(self, node: ir.Node, *, after: ir.Value, like: ir.Value) -> None:
        out = node.outputs[0]
        out.type, out.shape = like.type, like.shape
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


def _refuse_unfit(
    name: str, known: Mapping[str, Layer], nodes: Mapping[str, ir.Node], recipe: Recipe
) -> None:
    if name not in known:
        raise ExportError(f"the net has no convolution {name}, which the recipe quantises")
    if name not in nodes:
        raise ExportError(
            f"the graph has no convolution with the weights {name}.weight, which is to be quantised"
        )
    layer, conv = known[name], nodes[name]
    step = recipe.activations.get(layer.group)
    if step is None or not 0.0 < step < np.inf:
        raise ExportError(f"the scale of {layer.group} is {step}; it is a number above 0")
    weight = conv.inputs[1]
    assert weight is not None
    if weight.dtype != ir.DataType.FLOAT:
        raise ExportError(
            f"{weight.name} is {weight.dtype}; a graph is quantised in fp32 and made fp16 after"
        )
    steps = recipe.weights.get(name)
    assert weight.shape is not None
    if steps is None or steps.shape not in ((), (weight.shape[0],)) or not (steps > 0).all():
        raise ExportError(
            f"the weight steps of {name} are {None if steps is None else steps.shape}; they are numbers above 0, "
            f"one or {weight.shape[0]}"
        )
    if recipe.formats[name] not in _STORED:
        raise ExportError(f"{name} is to be {recipe.formats[name]}; allowed: {', '.join(_STORED)}")
    mates = {
        kind for other, kind in recipe.formats.items() if other in known and known[other].group == layer.group
    }
    if len(mates) > 1:
        raise ExportError(f"{layer.group} is to be {' and '.join(sorted(mates))}; a group has one format")
    if layer.fold != 1.0 and any(node.op_type == "Mul" for node in conv.outputs[0].consumers()):
        raise ExportError(
            f"the factor {layer.fold} behind {name} is not folded into its weights (fold_scales)"
        )


def _folded(steps: npt.NDArray[np.float32], layer: Layer) -> npt.NDArray[np.float32]:
    # Exact where `storable` made them.
    return (steps.astype(np.float64) * layer.fold).astype(np.float16).astype(np.float32)


def _stored(shares: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.generic]:
    largest = LARGEST[kind]
    if kind == "int8":
        return np.clip(np.rint(shares), -largest, largest).astype(np.int8)
    return np.clip(shares, -largest, largest).astype(ml_dtypes.float8_e4m3fn)


def _read_twice(model: ir.Model, conv: ir.Node, name: str, channels: list[int]) -> None:
    taken, weight = conv.inputs[0], conv.inputs[1]
    assert taken is not None
    assert weight is not None
    back, held = taken.producer(), weight.producer()
    assert back is not None
    assert held is not None
    quantise = back.inputs[0].producer() if back.inputs[0] is not None else None
    assert quantise is not None
    whole, step, zero = quantise.inputs
    assert whole is not None
    index = constant(model, np.array(channels, np.int64), f"{name}_twice")
    exact = named_node("Gather", [whole, index], {"axis": 1}, name=f"{name}_twice_exact")
    rounded = named_node("Gather", [taken, index], {"axis": 1}, name=f"{name}_twice_rounded")
    left = named_node("Sub", [exact.outputs[0], rounded.outputs[0]], name=f"{name}_twice_left")
    down = named_node("QuantizeLinear", [left.outputs[0], step, zero], name=f"{name}_twice_q")
    up = named_node("DequantizeLinear", [down.outputs[0], step, zero], name=f"{name}_twice_dq")
    both = named_node("Concat", [taken, up.outputs[0]], {"axis": 1}, name=f"{name}_twice_both")
    nodes = [exact, rounded, left, down, up, both]
    for node in nodes:
        node.outputs[0].type = taken.type
        node.outputs[0].shape = _of_channels(taken.shape, len(channels))
    assert back.inputs[0] is not None
    down.outputs[0].type = back.inputs[0].type
    stored = held.inputs[0]
    assert stored is not None
    array = array_of(stored)
    wide = np.concatenate([array, array[:, channels]], axis=1)
    both.outputs[0].shape = _of_channels(taken.shape, wide.shape[1])
    held.replace_input_with(0, constant(model, wide, f"{stored.name}_twice"))
    weight.shape = ir.Shape(wide.shape)
    if not stored.uses():
        del model.graph.initializers[str(stored.name)]
    model.graph.insert_before(conv, nodes)
    conv.replace_input_with(0, both.outputs[0])


def _of_channels(shape: ir.Shape | None, count: int) -> ir.Shape | None:
    if shape is None:
        return None
    dims = list(shape)
    dims[1] = count
    return ir.Shape(dims)
