"""Dense blocks as one wide convolution for each source, instead of one convolution for each concatenation."""

import collections
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy.export._graph import constant, stand_in

__all__ = ["regroup"]

# What hands on as many channels as it gets.
_ELEMENTWISE = {"Add", "LeakyRelu", "Mul", "PRelu", "Relu", "Resize"}


def regroup(model: ir.Model) -> int:
    """Replace convolutions of concatenations by wide convolutions of their parts, whose results are added.

    A convolution of ``cat(x, a, b)`` is the sum of three convolutions, of x, a and b, each with its share of
    the weights. Gathered by source, all that is computed from x in a dense block of 5 convolutions is one
    convolution to ``4·growth + features`` channels, which is then split. Equal up to the order of the sums.
    The concatenations are gone; the partial sums are written and read instead. Whether that is worth it is
    for ``benchmarks.graph_forms`` to say: no artefact is made so.

    Args:
        model: A float-form graph, its weights initialisers; changed in place. Nested and flat ones do.

    Returns:
        The number of wide convolutions made.
    """
    widths = _Widths()
    groups = _groups(model, widths)
    partial: dict[tuple[ir.Node, ir.Value], ir.Value] = {}
    wide = 0
    for source, pieces in groups.items():
        wide += len(pieces) > 1
        # The first source of a convolution carries its bias, so that it is added once.
        made = _widened(model, source, pieces, f"regrouped_{len(partial)}")
        for piece, value in zip(pieces, made, strict=True):
            partial[piece.conv, source] = value
    for conv, parts in _parts_by_conv(groups).items():
        total = partial[conv, parts[0]]
        for i, source in enumerate(parts[1:]):
            node = ir.node("Add", [total, partial[conv, source]], name=f"{conv.name}_sum{i}")
            model.graph.insert_before(conv, node)
            total = node.outputs[0]
            total.name = f"{conv.outputs[0].name}_sum{i}"
            total.type = conv.outputs[0].type
        stand_in(conv.outputs[0], total)
        model.graph.remove(conv, safe=True)
    _drop_unused(model)
    return wide


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """The share of a convolution that reads one source: its input channels ``start`` to ``stop``."""

    conv: ir.Node
    start: int
    stop: int


class _Widths:
    """Channels of values, followed back to the convolution or the input that made them."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, int] = {}

    def __call__(self, value: ir.Value) -> int:
        # A loop, for a net of 23 blocks is deeper than Python's stack.
        todo = [value]
        while todo:
            top = todo[-1]
            missing = [one for one in _made_of(top) if one not in self._known]
            if missing and top not in self._known:
                todo += missing
                continue
            todo.pop()
            self._known.setdefault(top, self._channels(top))
        return self._known[value]

    def _channels(self, value: ir.Value) -> int:
        node = value.producer()
        if node is not None and node.op_type == "Conv":
            weight = node.inputs[1]
            shape = None if weight is None else weight.shape
            return int(shape[0]) if shape is not None and isinstance(shape[0], int) else 0
        parts = _made_of(value)
        if parts:
            return sum(self._known[part] for part in parts)
        channels = value.shape[1] if value.shape is not None and len(value.shape) == 4 else 0
        # 0 is unknown, and what it reaches is left alone.
        return channels if isinstance(channels, int) else 0


def _made_of(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    if node is None:
        return []
    inputs = [one for one in node.inputs if one is not None and one.const_value is None]
    if node.op_type == "Concat":
        return inputs
    return inputs[:1] if node.op_type in _ELEMENTWISE else []


def _groups(model: ir.Model, widths: _Widths) -> dict[ir.Value, list[_Piece]]:
    # A convolution that reads one source alone joins those of the concatenations that contain it.
    groups: dict[ir.Value, list[_Piece]] = collections.defaultdict(list)
    single: dict[ir.Value, list[_Piece]] = collections.defaultdict(list)
    for node in model.graph:
        if node.op_type != "Conv" or not _is_plain(node) or node.inputs[0] is None:
            continue
        sources = _leaves(node.inputs[0])
        sizes = [widths(source) for source in sources]
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        if 0 in sizes or sum(sizes) != weight.const_value.shape[1] or len(set(sources)) != len(sources):
            continue
        ends = np.cumsum(sizes)
        for source, size, end in zip(sources, sizes, ends, strict=True):
            target = groups if len(sources) > 1 else single
            target[source].append(_Piece(conv=node, start=int(end) - size, stop=int(end)))
    for source, pieces in single.items():
        if source in groups:
            groups[source] = pieces + groups[source]
    return groups


def _parts_by_conv(groups: dict[ir.Value, list[_Piece]]) -> dict[ir.Node, list[ir.Value]]:
    found: dict[ir.Node, list[tuple[int, ir.Value]]] = collections.defaultdict(list)
    for source, pieces in groups.items():
        for piece in pieces:
            found[piece.conv].append((piece.start, source))
    return {
        conv: [source for _, source in sorted(parts, key=lambda part: part[0])]
        for conv, parts in found.items()
    }


def _leaves(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    if node is None or node.op_type != "Concat" or node.attributes["axis"].as_int() != 1:
        return [value]
    return [leaf for part in node.inputs if part is not None for leaf in _leaves(part)]


def _is_plain(conv: ir.Node) -> bool:
    # 3x3, stride 1, padded by 1: what the dense blocks are made of, and what can be widened together.
    attributes = conv.attributes
    same = all(
        list(attributes[name].as_ints()) == wanted
        for name, wanted in (("strides", [1, 1]), ("dilations", [1, 1]), ("pads", [1, 1, 1, 1]))
        if name in attributes
    )
    weight = conv.inputs[1]
    return (
        same
        and "pads" in attributes
        and ("group" not in attributes or attributes["group"].as_int() == 1)
        and ("auto_pad" not in attributes or attributes["auto_pad"].as_string() == "NOTSET")
        and all(one is None or one.const_value is not None for one in conv.inputs[1:])
        and weight is not None
        and weight.const_value is not None
        and list(weight.const_value.shape[2:]) == [3, 3]
    )


def _widened(model: ir.Model, source: ir.Value, pieces: list[_Piece], name: str) -> list[ir.Value]:
    weights, biases, sizes = [], [], []
    for piece in pieces:
        weight = _array(piece.conv.inputs[1])
        bias = _array(piece.conv.inputs[2]) if len(piece.conv.inputs) > 2 else None
        weights.append(weight[:, piece.start : piece.stop])
        carried = bias if bias is not None and piece.start == 0 else np.zeros(len(weight), weight.dtype)
        biases.append(carried)
        sizes.append(len(weight))
    inputs = [source, constant(model, np.concatenate(weights), f"{name}.weight")]
    bias = np.concatenate(biases)
    if bias.any():
        inputs.append(constant(model, bias, f"{name}.bias"))
    conv = ir.node("Conv", inputs, {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, name=name)
    nodes = [conv]
    conv.outputs[0].name, conv.outputs[0].type = name, source.type
    made = [conv.outputs[0]]
    if len(pieces) > 1:
        lengths = constant(model, np.array(sizes, np.int64), f"{name}.sizes")
        split = ir.node(
            "Split", [made[0], lengths], {"axis": 1}, num_outputs=len(sizes), name=f"{name}_split"
        )
        nodes.append(split)
        made = list(split.outputs)
        for i, value in enumerate(made):
            value.name, value.type = f"{name}_{i}", source.type
    producer = source.producer()
    if producer is None:
        model.graph.insert_before(next(iter(model.graph)), nodes)
    else:
        model.graph.insert_after(producer, nodes)
    return made


def _array(value: ir.Value | None) -> npt.NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _drop_unused(model: ir.Model) -> None:
    for node in reversed(list(model.graph)):
        if node.op_type == "Concat" and not any(out.uses() or out.is_graph_output() for out in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            model.graph.initializers.pop(name)
