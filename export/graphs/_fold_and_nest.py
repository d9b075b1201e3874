"""Rewrites that leave the mathematics as it is and give compilers a graph that they run faster.

Each works on any graph of the family, whoever wrote it, and returns how often it applied.
"""

import numpy as np
import onnx_ir as ir

from esrgan_deploy.export.graphs._edit import array_of, stand_in

__all__ = ["fold_input", "fold_scales", "nest_concats"]


def nest_concats(model: ir.Model) -> int:
    """Write the dense blocks' concatenations nested: ``cat(cat(x, a), b)`` for ``cat(x, a, b)``.

    Equal bit for bit. With each concatenation grown from the one before it, TensorRT keeps a dense block's
    features in one buffer, and every convolution reads a prefix of it in place; flat, each concatenation is a
    copy (``--explain`` shows the bytes).

    Returns:
        The number of concatenations rewritten.
    """
    seen: dict[tuple[int, tuple[ir.Value | None, ...]], ir.Value] = {}
    rewritten = 0
    for node in model.graph:
        if node.op_type != "Concat":
            continue
        axis, inputs = node.attributes["axis"].as_int(), tuple(node.inputs)
        for length in range(len(inputs) - 1, 1, -1):
            prefix = seen.get((axis, inputs[:length]))
            if prefix is not None:
                node.resize_inputs(1 + len(inputs) - length)
                for i, value in enumerate((prefix, *inputs[length:])):
                    node.replace_input_with(i, value)
                rewritten += 1
                break
        # Under the flat inputs, so that longer ones find it whatever its own form is now.
        seen[axis, inputs] = node.outputs[0]
    return rewritten


def fold_scales(model: ir.Model) -> int:
    """Fold a constant factor behind a convolution into its weights and bias.

    ``0.2 · conv(x)`` is ``conv`` with 0.2 times the weights: equal to fp32 rounding. This is the residual
    scaling of the dense blocks. The one around three dense blocks scales a sum and stays.

    Returns:
        The number of multiplications that are gone.
    """
    folded = 0
    for node in list(model.graph):
        if node.op_type != "Mul":
            continue
        factor, conv = _factor_and_conv(node)
        if factor is None or conv is None:
            continue
        for i in range(1, len(conv.inputs)):
            parameter = conv.inputs[i]
            assert parameter is not None
            array = array_of(parameter)
            # In double precision and rounded once.
            scaled = (array.astype(np.float64) * factor).astype(array.dtype)
            parameter.const_value = ir.tensor(scaled, name=parameter.name)
        stand_in(node.outputs[0], conv.outputs[0])
        model.graph.remove(node, safe=True)
        folded += 1
    return folded


def fold_input(model: ir.Model, factor: int) -> None:
    """Put the pixel-unshuffle in front of a graph that reads already folded channels.

    SpaceToDepth orders its channels (row, column, colour) and PyTorch's pixel_unshuffle (colour, row, column),
    so the input channels of the convolutions that read it are permuted: equal bit for bit.

    Args:
        model: A float graph whose input has ``C·factor²`` channels.
        factor: Block size.
    """
    graph = model.graph
    folded = graph.inputs[0]
    assert folded.shape is not None
    channels = folded.shape[1]
    assert isinstance(channels, int)
    colours = channels // factor**2
    order = np.arange(channels).reshape(colours, factor, factor).transpose(1, 2, 0).reshape(-1)
    for node in folded.consumers():
        weight = node.inputs[1]
        assert node.op_type == "Conv", node.op_type
        assert weight is not None
        permuted = np.ascontiguousarray(array_of(weight)[:, order])
        weight.const_value = ir.tensor(permuted, name=weight.name)
    picture = ir.Value(
        name="input",
        type=folded.type,
        shape=ir.Shape(["batch", colours, "height", "width"]),
    )
    fold = ir.node("SpaceToDepth", [picture], {"blocksize": factor}, name="unshuffle")
    folded.replace_all_uses_with(fold.outputs[0])
    graph.inputs[0] = picture
    fold.outputs[0].name = "unshuffled"
    fold.outputs[0].type = picture.type
    first = next(iter(graph))
    graph.insert_before(first, fold)


def _factor_and_conv(node: ir.Node) -> tuple[float | None, ir.Node | None]:
    factor, conv = None, None
    for value in node.inputs:
        if value is None:
            continue
        constant = ir.convenience.get_const_tensor(value)
        producer = value.producer()
        if constant is not None and constant.size == 1:
            factor = float(constant.numpy().reshape(()))
        elif producer is not None and producer.op_type == "Conv" and _may_be_scaled(producer):
            conv = producer
    return factor, conv


def _may_be_scaled(conv: ir.Node) -> bool:
    # Only where nothing else reads the convolution's result or shares its weights.
    if len(conv.outputs[0].uses()) != 1 or conv.outputs[0].is_graph_output():
        return False
    parameters = [value for value in conv.inputs[1:] if value is not None]
    return all(value.const_value is not None and len(value.uses()) == 1 for value in parameters)
