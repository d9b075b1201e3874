"""Small steps on an ONNX graph that the passes share."""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from esrgan_deploy._errors import ExportError
from esrgan_deploy._files import replaced_atomically

__all__ = [
    "FEATURES",
    "ancestors",
    "append",
    "array_of",
    "begin_at",
    "clone",
    "constant",
    "convolutions",
    "drop_unused",
    "end_at",
    "name_apart",
    "named_node",
    "save",
    "stand_in",
    "to_bytes",
    "value_named",
]


_WORTH_SHARING = 256
"""Bytes of a tensor: what says where it lies elsewhere takes some fifty."""

FEATURES = "features"
"""What a trunk gives and a tail takes, first of its inputs."""


def named_node(
    op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object] | None = None, *, name: str
) -> ir.Node:
    """Return a node outside the graph, whose one output has its name; see `name_apart`."""
    node = ir.node(op, inputs, dict(attributes or {}), name=name)  # type: ignore[arg-type]
    node.outputs[0].name = name
    return node


def append(
    model: ir.Model,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, object] | None = None,
    *,
    name: str,
) -> ir.Value:
    """Add a `named_node` at the end of the graph and return its output."""
    node = named_node(op, inputs, attributes, name=name)
    model.graph.append(node)
    return node.outputs[0]


def constant(model: ir.Model, array: npt.NDArray[np.generic], name: str) -> ir.Value:
    """Add an initialiser and return its value, whose name is another one where an initialiser has it already."""
    name = _unused(name, model.graph.initializers)
    # Not ascontiguousarray, which turns a scalar into a vector.
    array = np.array(array, order="C")
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def array_of(value: ir.Value | None) -> npt.NDArray[Any]:
    """Return what a constant holds."""
    assert value is not None
    assert value.const_value is not None
    array: npt.NDArray[Any] = value.const_value.numpy()
    return array


def convolutions(graph: ir.Graph) -> dict[str, ir.Node]:
    """Return the convolutions by the names of their weights, without ``.weight``."""
    return {
        node.inputs[1].name.removesuffix(".weight"): node
        for node in graph
        if node.op_type == "Conv" and node.inputs[1] is not None and node.inputs[1].name is not None
    }


def ancestors(value: ir.Value) -> set[ir.Node]:
    """Return every node that a value is made with."""
    found: set[ir.Node] = set()
    ahead = [value.producer()]
    while ahead:
        node = ahead.pop()
        if node is None or node in found:
            continue
        found.add(node)
        ahead += [read.producer() for read in node.inputs if read is not None]
    return found


def value_named(model: ir.Model, name: str) -> ir.Value:
    """Return what a node of the graph makes under a name.

    Raises:
        StopIteration: None does.
    """
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def begin_at(model: ir.Model, value: ir.Value, name: str) -> None:
    """Let a graph read under a name what a node made, and drop what made it."""
    graph = model.graph
    given = ir.Value(name=name, type=value.type, shape=value.shape)
    value.name = f"{value.name}_left"
    value.replace_all_uses_with(given)
    drop_unused(graph)
    graph.inputs[:] = [given, *(value for value in graph.inputs if value.uses())]


def end_at(model: ir.Model, value: ir.Value, name: str) -> ir.Model:
    """Let a graph, which is changed and returned, put out under a name what a node makes, and nothing else."""
    model.graph.outputs[:] = [value]
    value.name = name
    drop_unused(model.graph)
    return model


def drop_unused(graph: ir.Graph) -> None:
    """Remove nodes that nothing reads, last first, and then the initialisers that nothing reads."""
    for node in reversed(list(graph)):
        if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def stand_in(old: ir.Value, new: ir.Value) -> None:
    """Let one value take another's place: its readers, and as an output of the graph its name, type and shape."""
    if old.is_graph_output():
        new.name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def name_apart(model: ir.Model) -> None:
    """Give each value and each node a name that no other has, those inside branches and loops included.

    The passes call what they add by fixed names, and a graph of another exporter may use any of them for its own.
    That does no harm as long as a graph is held as objects, so that it is called here, before one is written. The
    graph's inputs and outputs keep their names, for they are asked for by them.
    """
    graph = model.graph
    values: list[ir.Value] = [*graph.inputs, *graph.outputs]
    nodes: list[ir.Node] = []
    for one in (graph, *graph.subgraphs()):
        values += [*one.inputs, *one.initializers.values()]
        for node in one:
            nodes.append(node)
            values += node.outputs
    _rename_doubles(dict.fromkeys(values))
    _rename_doubles(nodes)


def clone(model: ir.Model) -> ir.Model:
    """Return a copy whose nodes and values are its own."""
    return ir.serde.deserialize_model(_proto(model))


def to_bytes(model: ir.Model) -> bytes:
    """Serialise a graph."""
    data: bytes = _proto(model).SerializeToString()
    return data


def save(model: ir.Model, path: Path, *, beside: Path | None = None) -> None:
    """Check a graph and write it as one file, whole or not at all.

    Args:
        model: The graph.
        path: Where it goes.
        beside: A graph in the same folder that holds the same weights: those are read from there, by where they lie
            in it, and not written again.

    Raises:
        ExportError: The ONNX checker refuses it.
        OSError: The folder cannot be written.
    """
    proto = _proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{path.name} is not valid ONNX ({str(error).splitlines()[0]}). Try another --opset"
        ) from error
    if beside is not None:
        _share(proto.graph.initializer, beside)
    with replaced_atomically(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def _share(tensors: Iterable[onnx.TensorProto], other: Path) -> None:
    held, after = other.read_bytes(), 0
    for tensor in tensors:
        data = tensor.raw_data
        if len(data) < _WORTH_SHARING:
            continue
        # Most stand there in the same order; looking for each from the beginning takes seconds.
        place = held.find(data, after)
        place = held.find(data, 0, after) if place < 0 else place
        if place >= 0:
            after = place + len(data)
            where = {"location": other.name, "offset": str(place), "length": str(len(data))}
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in where.items())


def _proto(model: ir.Model) -> onnx.ModelProto:
    name_apart(model)
    return ir.serde.serialize_model(model)


def _rename_doubles(things: Collection[ir.Value] | Collection[ir.Node]) -> None:
    # The first keeps a name. An output that is left away has none.
    names = {thing.name for thing in things}
    held: set[str] = set()
    for thing in things:
        if thing.name and thing.name in held:
            thing.name = _unused(thing.name, names)
            names.add(thing.name)
        elif thing.name:
            held.add(thing.name)


def _unused(name: str, names: Container[str | None]) -> str:
    return name if name not in names else next(new for i in count(1) if (new := f"{name}_{i}") not in names)
