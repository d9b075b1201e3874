"""A graph cut where it is narrow: a trunk that runs over strips of rows, and a tail that runs over tiles.

The reach of an RRDBNet (347 convolutions one after another) lies in its trunk, its memory in its tail, whose maps
have sixteen pixels for each of the picture and whose reach is two. Cut there, neither needs what the other does: the
tail runs over small tiles, and the trunk over strips of the picture's full width, each RRDB keeping the few
rows that it needs of the strip before. Nothing is computed from less than the whole graph has: no seam can show.
"""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs._edit import (
    FEATURES,
    ancestors,
    begin_at,
    clone,
    constant,
    convolutions,
    drop_unused,
    end_at,
    named_node,
    value_named,
)
from esrgan_deploy.export.nets import layers
from esrgan_deploy.runtime.sessions import PICTURE, Block

__all__ = ["Cut", "Parts", "cut_graph", "cuts_of", "trunk_of"]

# Neither moves a pixel nor reads its neighbours.
_POINTWISE = {
    "Add", "Cast", "Clip", "Concat", "DequantizeLinear", "Div", "Identity", "LeakyRelu", "Max", "Min", "Mul", "PRelu",
    "QuantizeLinear", "Relu", "Round", "Sub",
}  # fmt: skip

_TO_THE_END = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where a trunk is cut into blocks, and where it ends.

    Attributes:
        values: Names of the values between blocks, in the order in which they are made; the tail reads the last.
    """

    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """A graph in two, with what a runtime has to know to run them.

    Attributes:
        trunk: Takes the graph's input (new rows of the picture), ``rows`` (int64, where each block begins and ends)
            and the rows that each block kept; gives `FEATURES` and the rows to keep.
        tail: Takes `FEATURES`, and the picture where the net adds it at the end; gives the graph's output.
        blocks: Of the trunk, in order.
        reach: Of the tail, in rows of `FEATURES`.
        scale: Output pixels for each of `FEATURES`, per axis.
        channels: Of `FEATURES`.
    """

    trunk: ir.Model
    tail: ir.Model
    blocks: tuple[Block, ...]
    reach: int
    scale: int
    channels: int

    @property
    def step(self) -> int:
        """Rows of the picture for each row of `FEATURES`."""
        return max(step for block in self.blocks for _, step in block.inputs)

    @property
    def reads_picture(self) -> bool:
        """Whether the tail takes the picture too."""
        return len(self.tail.graph.inputs) > 1


def cuts_of(model: ir.Model, spec: ModelSpec) -> Cut | None:
    """Find where a graph can be cut, by the names that its convolutions have; None where they are not all there.

    An RRDBNet is cut between its RRDBs, and its tail begins in front of the first enlargement. Cut inside them, a
    strip would compute fewer rows twice, but ONNX Runtime, which adds a dense block's input within the convolution,
    would round otherwise; between them both compute the same to the bit. An SRVGGNetCompact is cut every `EVERY`
    convolutions, and its tail is the last one with the enlargement behind it.

    Args:
        model: A float-form graph in fp32, before it is quantised: the names stand at the weights.
        spec: Of the net.
    """
    if spec.architecture not in ("rrdbnet", "srvggnetcompact"):
        return None
    nodes, found = convolutions(model.graph), layers(spec)
    if any(layer.name not in nodes for layer in found):
        return None
    if spec.architecture == "rrdbnet":
        names = [layer.name for layer in found if layer.name.endswith(".rdb1.conv1")]
        ends = [nodes[name].inputs[0] for name in names[1:]]
        up = next((node for node in model.graph if node.op_type == "Resize"), nodes["conv_hr"])
        ends.append(up.inputs[0])
    else:
        names = [layer.name for layer in found]
        ends = [nodes[name].inputs[0] for name in names[EVERY:-1:EVERY]]
        ends.append(nodes[names[-1]].inputs[0])
    return Cut(tuple(value.name for value in ends if value is not None and value.name is not None))


EVERY = 8
"""Convolutions in a block of an SRVGGNetCompact: a block of few computes few rows twice, and copies all of them."""


def cut_graph(model: ir.Model, cut: Cut) -> Parts | None:
    """Cut a graph; None where something in it reads more of the picture than can be told.

    Args:
        model: In the float form and its final precision, not watched; it is not changed.
        cut: From `cuts_of` the fp32 graph that it was made from.
    """
    model = clone(model)
    # Not every value has a shape after rewriting, and what is kept of one needs its channels.
    common.ShapeInferencePass()(model)
    try:
        _, behind = _blocks(model, cut)
        reach, scale = _tail_reach(behind)
        trunk, table = _trunk(clone(model), cut)
    except _NotLocalError:
        return None
    features = value_named(model, cut.values[-1])
    channels = features.shape[1] if features.shape is not None else None
    assert isinstance(channels, int)
    tail = clone(model)
    begin_at(tail, value_named(tail, cut.values[-1]), FEATURES)
    return Parts(trunk=trunk, tail=tail, blocks=table, reach=reach, scale=scale, channels=channels)


def trunk_of(model: ir.Model, cut: Cut) -> ir.Model:
    """Return the trunk in one piece, of a graph in either form and watched or not, which is changed."""
    # Not every value has a shape, and an output needs one.
    common.ShapeInferencePass()(model)
    return end_at(model, value_named(model, cut.values[-1]), FEATURES)


class _NotLocalError(Exception):
    """A node reads what lies anywhere in the picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    """Nodes in their order, what they read and give; and every value that depends on the picture."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    varying: frozenset[ir.Value]


def _blocks(model: ir.Model, cut: Cut) -> tuple[list[_Block], _Block]:
    """Return the blocks of the trunk, each with what it reads of others, and what lies behind them."""
    graph = model.graph
    order = {node: place for place, node in enumerate(graph)}
    done: set[ir.Node] = set()
    found, moving = set(graph.inputs), set()
    for node in graph:
        if any(value in found for value in node.inputs):
            found.update(node.outputs)
            moving.add(node)
    varying = frozenset(found)
    blocks = []
    for end in [value_named(model, name) for name in cut.values] + [graph.outputs[0]]:
        # What is made of constants alone stays where it is.
        own = (ancestors(end) & moving) - done
        done |= own
        group = tuple(sorted(own, key=order.__getitem__))
        read = dict.fromkeys(
            value
            for node in group
            for value in node.inputs
            if value is not None and value in varying and value.producer() not in own
        )
        made = tuple(
            value
            for node in group
            for value in node.outputs
            if value.is_graph_output() or any(user not in own for user, _ in value.uses())
        )
        blocks.append(_Block(nodes=group, inputs=tuple(read), outputs=made, varying=varying))
    return blocks[:-1], blocks[-1]


def _trunk(model: ir.Model, cut: Cut) -> tuple[ir.Model, tuple[Block, ...]]:
    """Let each block keep the last rows of what it reads, so that a strip needs no row of the one before again."""
    graph, picture = model.graph, model.graph.inputs[0]
    blocks, behind = _blocks(model, cut)
    maker = {value: number for number, block in enumerate(blocks) for value in block.outputs}
    table: list[Block] = []
    kept_states: list[ir.Value] = []
    position = 0
    rows = ir.Value(name="rows", type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(rows)
    bound = _Bounds(model, rows)
    features = value_named(model, cut.values[-1])
    latest: dict[ir.Value, ir.Value] = {picture: picture}
    for block in blocks:
        reach, step = _block_reach(block)
        inputs, front = [], []
        for value in block.inputs:
            name = f"kept_{len(kept_states)}"
            state = ir.Value(name=name, type=value.type, shape=_open_rows(value, name))
            graph.inputs.append(state)
            both = named_node("Concat", [state, latest[value]], {"axis": 2}, name=f"{state.name}_and_new")
            feed = _slice(both.outputs[0], bound(position), bound(position + 1), bound, f"{state.name}_fed")
            keep = _slice(both.outputs[0], bound(position + 2), bound.end, bound, f"{state.name}_next")
            position += 3
            front += [both, feed, keep]
            for node in block.nodes:
                for index, read in enumerate(node.inputs):
                    if read is value:
                        node.replace_input_with(index, feed.outputs[0])
            keep.outputs[0].type, keep.outputs[0].shape = value.type, _open_rows(value, f"{state.name}_next")
            kept_states.append(keep.outputs[0])
            inputs.append((maker.get(value, PICTURE), step if value is picture else 1))
        graph.insert_before(block.nodes[0], front)
        for value in block.outputs:
            new = _slice(value, bound(position), bound(position + 1), bound, f"{value.name}_new")
            graph.insert_after(block.nodes[-1], new)
            latest[value] = new.outputs[0]
            new.outputs[0].type = value.type
        position += 2
        table.append(Block(reach, tuple(inputs)))
    made = latest[features]
    made.name, made.shape = FEATURES, _open_rows(features, FEATURES)
    rows.shape = ir.Shape([position])
    bound.split(position)
    for node in behind.nodes:
        graph.remove(node, safe=False)
    graph.outputs[:] = [made, *kept_states]
    drop_unused(graph)
    # Of the whole graph all values have the picture's rows, and ONNX Runtime would let one take another's memory.
    for value in (value for node in graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    return model, tuple(table)


class _Bounds:
    """The numbers in ``rows``, one after another, as values that Slice takes."""

    def __init__(self, model: ir.Model, rows: ir.Value) -> None:
        self._model, self._rows, self._known = model, rows, dict[int, ir.Value]()
        self.axis = constant(model, np.array([2], np.int64), "axis_of_rows")
        self.end = constant(model, np.array([_TO_THE_END], np.int64), "to_the_end")

    def __call__(self, place: int) -> ir.Value:
        if place not in self._known:
            self._known[place] = ir.Value(name=f"row_{place}", type=self._rows.type, shape=ir.Shape([1]))
        return self._known[place]

    def split(self, number: int) -> None:
        """Put the node that takes ``rows`` apart in front of all that use them."""
        node = ir.node("Split", [self._rows], {"num_outputs": number}, num_outputs=number, name="rows_apart")
        for place, value in self._known.items():
            node.outputs[place].name, node.outputs[place].type = value.name, value.type
            value.replace_all_uses_with(node.outputs[place])
        for place, output in enumerate(node.outputs):
            output.name = output.name or f"row_{place}"
        first = next(iter(self._model.graph))
        self._model.graph.insert_before(first, node)


def _slice(value: ir.Value, start: ir.Value, stop: ir.Value, bound: _Bounds, name: str) -> ir.Node:
    return named_node("Slice", [value, start, stop, bound.axis], name=name)


def _open_rows(value: ir.Value, name: str | None) -> ir.Shape:
    assert value.shape is not None
    return ir.Shape([value.shape[0], value.shape[1], f"{name}_rows", value.shape[3]])


def _block_reach(block: _Block) -> tuple[int, int]:
    """Return how many rows a block reads beyond those that it makes, and rows of its input for each of its own."""
    needs = {value: _needs(block, value, 1) for value in block.inputs}
    step = math.prod(
        node.attributes["blocksize"].as_int() for node in block.nodes if node.op_type == "SpaceToDepth"
    )
    # Each input is held in rows of the block: of a folded picture `step` of its rows are one.
    reach = max(max(-start, stop - step) / step for start, stop in needs.values())
    return math.ceil(reach), step


def _tail_reach(tail: _Block) -> tuple[int, int]:
    scale = _scale(tail)
    needs = [_needs(tail, value, scale) for value in tail.inputs]
    return max(max(-start, stop - 1) for start, stop in needs), scale


def _scale(tail: _Block) -> int:
    scale = Fraction(1)
    # Along the main line: what enlarges there.
    value: ir.Value | None = tail.outputs[0]
    while value is not None and value.producer() in set(tail.nodes):
        node = value.producer()
        assert node is not None
        scale *= _factor(node)
        value = next((one for one in node.inputs if one in tail.varying), None)
    if scale.denominator != 1:
        raise _NotLocalError
    return int(scale)


def _factor(node: ir.Node) -> Fraction:
    if node.op_type == "Resize":
        if node.attributes.get("mode") is not None and node.attributes["mode"].as_string() != "nearest":
            raise _NotLocalError
        scales = node.inputs[2]
        if scales is None or scales.const_value is None:
            raise _NotLocalError
        factor = Fraction(float(scales.const_value.numpy()[2]))
        if factor.denominator != 1:
            raise _NotLocalError
        return factor
    if node.op_type == "DepthToSpace":
        return Fraction(node.attributes["blocksize"].as_int())
    if node.op_type == "SpaceToDepth":
        return Fraction(1, node.attributes["blocksize"].as_int())
    if node.op_type == "ConvTranspose":
        return Fraction(_spread(node)[1])
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        _conv_reach(node)
        return Fraction(1)
    if node.op_type not in _POINTWISE:
        raise _NotLocalError
    return Fraction(1)


def _needs(block: _Block, source: ir.Value, rows: int) -> tuple[int, int]:
    """Return the rows ``[start, stop)`` of an input that the first rows of a block's outputs are made of."""
    wanted: dict[ir.Value, tuple[int, int]] = dict.fromkeys(block.outputs, (0, rows))
    for node in reversed(block.nodes):
        spans = [wanted[value] for value in node.outputs if value in wanted]
        if not spans:
            continue
        start, stop = min(a for a, _ in spans), max(b for _, b in spans)
        factor = _factor(node)
        if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
            reach = _conv_reach(node)
            start, stop = start - reach, stop + reach
        elif node.op_type == "ConvTranspose":
            side, stride, pad = _spread(node)
            # Row i of the input is in rows stride * i - pad and the next `side` of the output.
            start, stop = -((side - 1 - pad - start) // stride), (stop - 1 + pad) // stride + 1
        elif factor > 1:
            start, stop = start // int(factor), -(-stop // int(factor))
        elif factor < 1:
            start, stop = int(start / factor), int(stop / factor)
        for value in node.inputs:
            if value is not None and value in block.varying:
                old = wanted.get(value, (start, stop))
                wanted[value] = min(old[0], start), max(old[1], stop)
    return wanted.get(source, (0, 0))


def _conv_reach(node: ir.Node) -> int:
    kernel = node.attributes.get("kernel_shape")
    weight = node.inputs[3 if node.op_type == "QLinearConv" else 1]
    sides = kernel.as_ints() if kernel is not None else list(weight.shape)[2:]  # type: ignore[union-attr, arg-type]
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else [0] * 4
    steps = [node.attributes[name].as_ints() for name in ("strides", "dilations") if name in node.attributes]
    padded = all(side % 2 and pad == side // 2 for side, pad in zip([*sides, *sides], pads, strict=True))
    if not padded or any(set(step) != {1} for step in steps):
        raise _NotLocalError
    return int(sides[0]) // 2


def _spread(node: ir.Node) -> tuple[int, int, int]:
    """Return the side of a transposed convolution's kernel, its stride, and what it cuts off at each border.

    Raises:
        _NotLocalError: It gives another size than its stride times what it reads, or the axes differ.
    """
    how = {name: attribute.value for name, attribute in node.attributes.items()}
    sides, strides, pads = (set(how.get(name, (0,))) for name in ("kernel_shape", "strides", "pads"))
    if (
        len(sides) != 1
        or len(strides) != 1
        or len(pads) != 1
        or {"output_padding", "output_shape"} & set(how)
    ):
        raise _NotLocalError
    side, stride, pad = int(sides.pop()), int(strides.pop()), int(pads.pop())
    if side - 2 * pad != stride or set(how.get("dilations", (1,))) != {1}:
        raise _NotLocalError
    return side, stride, pad
