"""Forms of a graph that TensorRT makes fewer kernels of, and ONNX Runtime on a processor no faster ones.

Each is exact where it applies, and leaves alone what is not written as it knows it, such as quantised convolutions.
They were chosen by the kernels that TensorRT for RTX logs, and the bytes that those declare.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy.export.graphs._edit import array_of, constant, drop_unused, named_node

__all__ = ["PlanForms", "form_for_plans"]

_DOUBLING = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}
"""Coordinates and rounding with which nearest neighbours of x2 repeat each pixel: PyTorch's, and ONNX's default."""

# Of the four places of a 4x4 kernel's side, which of the three it adds up; a transposed convolution runs backwards.
_SUMS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanForms:
    """How often each form applied.

    Attributes:
        transposed: Convolutions behind an enlargement, see `form_for_plans`.
        maxima: PReLU.
        halved: Convolutions at the end of a block.
    """

    transposed: int
    maxima: int
    halved: int


def form_for_plans(model: ir.Model, precision: str) -> PlanForms:
    """Write a graph as plans are best built of it.

    - A 3×3 convolution after nearest x2 becomes a 4×4 transposed convolution of stride 2 on the small map: 4
      multiplications for 9, and the enlarged map, four times as large, is neither written nor read. Its weights are
      sums of one, two or four of the old ones, in double precision, so that `to_precision` rounds them once.
    - PReLU, ``x < 0 ? a·x : x``, becomes ``max(x, a·x)``, which TensorRT puts into the convolution's kernel. For a
      slope above 1 that would be the other one of the two: there what the channel holds changes its sign, in the
      convolution that makes it and in the one that reads it, which changes no rounding.
    - The convolution at the end of a block of dense blocks, whose sum is scaled before the second residual is added,
      gives twice as much and a Mul of 0.5 takes it back: no bit changes, but TensorRT reads the residual where it
      lies, and copies it first where convolution and sum touch.

    A quantised convolution keeps its form. Sums of its weights do not lie on their grid, and TensorRT for RTX 1.7.1
    computes a transposed convolution between Q/DQ pairs in fp16 anyway; in bf16 it has none at all, and refuses the
    graph.

    Args:
        model: A float-form graph in fp32, rewritten (`fold_scales`) and, if it is to be, quantised; it is changed.
        precision: What it will be in, as `to_precision` takes it.
    """
    forms = PlanForms(
        transposed=0 if precision == "bf16" else _transpose_enlargements(model),
        maxima=_write_maxima(model),
        halved=_halve_ends(model),
    )
    if forms.transposed or forms.maxima or forms.halved:
        drop_unused(model.graph)
    return forms


def _transpose_enlargements(model: ir.Model) -> int:
    found = 0
    for resize in [node for node in model.graph if _doubles(node)]:
        conv = _only_reader(resize.outputs[0])
        if conv is None or not _is_plain(conv) or conv.inputs[0] is not resize.outputs[0]:
            continue
        weight = conv.inputs[1]
        assert weight is not None
        # (C_out, C_in, 3, 3) to (C_in, C_out, 4, 4).
        summed = np.einsum("oiyx,ay,bx->ioab", array_of(weight).astype(np.float64), _SUMS, _SUMS)
        wide = constant(model, summed.astype(array_of(weight).dtype), f"{weight.name}_enlarging")
        how = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        node = named_node(
            "ConvTranspose", [resize.inputs[0], wide, *conv.inputs[2:]], how, name=f"{conv.name}_enlarging"
        )
        _replace(model, conv, [node])
        model.graph.remove(resize, safe=True)
        found += 1
    return found


def _write_maxima(model: ir.Model) -> int:
    found = 0
    for prelu in [node for node in model.graph if node.op_type == "PRelu"]:
        source, slope = prelu.inputs
        if source is None or slope is None or slope.const_value is None:
            continue
        above = array_of(slope).reshape(-1) > 1
        if above.any() and not _turn(prelu, above):
            continue
        scaled = named_node("Mul", [source, slope], name=f"{prelu.name}_scaled")
        scaled.outputs[0].type, scaled.outputs[0].shape = prelu.outputs[0].type, prelu.outputs[0].shape
        _replace(
            model, prelu, [scaled, named_node("Max", [source, scaled.outputs[0]], name=prelu.name or "")]
        )
        found += 1
    return found


def _turn(prelu: ir.Node, channels: npt.NDArray[np.bool_]) -> bool:
    """Change the sign of what channels hold around a PReLU, if what makes and reads them is one convolution each."""
    source = prelu.inputs[0]
    maker = None if source is None else source.producer()
    reader = _only_reader(prelu.outputs[0])
    if maker is None or reader is None or _only_reader(maker.outputs[0]) is not prelu:
        return False
    if not (_is_own(maker) and _is_own(reader)) or len(array_of(maker.inputs[1])) != len(channels):
        return False
    signs = np.where(channels, np.float32(-1), np.float32(1))
    for value in maker.inputs[1:]:
        if value is not None:
            _scale(value, signs.reshape(-1, *[1] * (array_of(value).ndim - 1)))
    assert reader.inputs[1] is not None
    _scale(reader.inputs[1], signs.reshape(1, -1, 1, 1))
    return True


def _halve_ends(model: ir.Model) -> int:
    found, half = 0, None
    for mul in [node for node in model.graph if node.op_type == "Mul"]:
        conv = _scaled_sum(mul)
        if conv is None:
            continue
        half = half or constant(model, np.array(0.5, array_of(conv.inputs[1]).dtype), "half")
        for value in conv.inputs[1:]:
            if value is not None:
                _scale(value, np.float32(2))
        made = conv.outputs[0]
        [(total, place)] = made.uses()
        node = named_node("Mul", [made, half], name=f"{conv.name}_halved")
        node.outputs[0].type, node.outputs[0].shape = made.type, made.shape
        total.replace_input_with(place, node.outputs[0])
        model.graph.insert_after(conv, node)
        found += 1
    return found


def _scaled_sum(mul: ir.Node) -> ir.Node | None:
    """Return the convolution of ``factor · (conv + residual)`` where another residual is added behind."""
    given = [value for value in mul.inputs if value is not None]
    factors = [one for value in given if (one := ir.convenience.get_const_tensor(value)) is not None]
    totals = [maker for value in given if (maker := value.producer()) is not None and maker.op_type == "Add"]
    behind = _only_reader(mul.outputs[0])
    if (
        len(factors) != 1
        or factors[0].size != 1
        or len(totals) != 1
        or behind is None
        or behind.op_type != "Add"
    ):
        return None
    makers = [value.producer() for value in totals[0].inputs if value is not None]
    return next(
        (
            conv
            for conv in makers
            if conv is not None and _is_own(conv) and _only_reader(conv.outputs[0]) is totals[0]
        ),
        None,
    )


def _doubles(node: ir.Node) -> bool:
    if (
        node.op_type != "Resize"
        or len(node.inputs) < 3
        or any(value is not None for value in node.inputs[3:])
    ):
        return False
    how = {name: node.attributes[name].value for name in node.attributes}
    given = node.inputs[2]
    scales = None if given is None else ir.convenience.get_const_tensor(given)
    coordinates = how.get("coordinate_transformation_mode", "half_pixel")
    return (
        how.get("mode", "nearest") == "nearest"
        and (coordinates, how.get("nearest_mode", "round_prefer_floor")) in _DOUBLING
        and "axes" not in how
        and scales is not None
        and scales.numpy().tolist() == [1, 1, 2, 2]
    )


def _is_plain(node: ir.Node) -> bool:
    """Whether a node is a convolution of 3×3 that gives as many pixels as it reads, its weights at hand."""
    how = {name: node.attributes[name].value for name in node.attributes}
    return (
        node.op_type == "Conv"
        and node.inputs[1] is not None
        and node.inputs[1].const_value is not None
        and tuple(array_of(node.inputs[1]).shape[2:]) == (3, 3)
        and list(how.get("pads", ())) == [1, 1, 1, 1]
        and all(set(how.get(name, (1,))) == {1} for name in ("strides", "dilations"))
        and how.get("group", 1) == 1
        and how.get("auto_pad", "NOTSET") == "NOTSET"
    )


def _is_own(node: ir.Node) -> bool:
    """Whether a node is a convolution whose parameters nothing else reads."""
    parameters = [value for value in node.inputs[1:] if value is not None]
    return (
        node.op_type == "Conv"
        and ("group" not in node.attributes or node.attributes["group"].as_int() == 1)
        and all(value.const_value is not None and len(value.uses()) == 1 for value in parameters)
    )


def _only_reader(value: ir.Value) -> ir.Node | None:
    users = [node for node, _ in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _scale(value: ir.Value, factor: npt.NDArray[np.float32] | np.float32) -> None:
    # By powers of two and signs only.
    array = array_of(value)
    value.const_value = ir.tensor((array * factor).astype(array.dtype), name=value.name)


def _replace(model: ir.Model, old: ir.Node, new: list[ir.Node]) -> None:
    """Put nodes in the place of one; the last gives what it gave, under its name, for graphs are cut by names."""
    was, made = old.outputs[0], new[-1].outputs[0]
    made.name, made.type, made.shape = was.name, was.type, was.shape
    model.graph.insert_before(old, new)
    was.replace_all_uses_with(made, replace_graph_outputs=True)
    model.graph.remove(old, safe=True)
