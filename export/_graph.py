"""Small steps on an ONNX graph that the passes share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from esrgan_deploy._errors import ExportError
from esrgan_deploy._files import replaced_atomically

__all__ = ["append", "clone", "constant", "drop_unused", "save", "to_bytes"]


def append(
    model: ir.Model,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, object] | None = None,
    *,
    name: str,
) -> ir.Value:
    """Add a node at the end of the graph and return its one output, which has the node's name."""
    node = ir.node(op, inputs, dict(attributes or {}), name=name)  # type: ignore[arg-type]
    model.graph.append(node)
    node.outputs[0].name = name
    return node.outputs[0]


def constant(model: ir.Model, array: npt.NDArray[np.generic], name: str) -> ir.Value:
    """Add an initialiser and return its value."""
    # Not ascontiguousarray, which turns a scalar into a vector.
    array = np.array(array, order="C")
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def drop_unused(graph: ir.Graph) -> None:
    """Remove nodes that nothing reads, last first, and then the initialisers that nothing reads."""
    for node in reversed(list(graph)):
        if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def clone(model: ir.Model) -> ir.Model:
    """Return a copy whose nodes and values are its own."""
    return ir.serde.deserialize_model(ir.serde.serialize_model(model))


def to_bytes(model: ir.Model) -> bytes:
    """Serialise a graph."""
    data: bytes = ir.serde.serialize_model(model).SerializeToString()
    return data


def save(model: ir.Model, path: Path) -> None:
    """Check a graph and write it as one file, whole or not at all.

    Raises:
        ExportError: The ONNX checker refuses it.
        OSError: The folder cannot be written.
    """
    proto = ir.serde.serialize_model(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{path.name} is not valid ONNX ({str(error).splitlines()[0]}). Try another --opset"
        ) from error
    with replaced_atomically(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
