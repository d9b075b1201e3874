"""More bits for a few input channels of an FP8 convolution: what the rounding left of them is read too."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.graphs import Recipe, constant
from esrgan_deploy.export.nets import Layer
from esrgan_deploy.export.quantisation._simulation import run_watched

__all__ = ["add_remainders", "with_remainders"]


def with_remainders(
    module: nn.Module,
    layers: Sequence[Layer],
    recipe: Recipe,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    count: int = 4,
) -> Recipe:
    """Choose the channels whose rounding weighs most in each FP8 convolution that has a group of its own.

    E4M3 has three bits behind the first, and its error is a part of the value. The tail carries the picture itself
    through a few channels, far from 0 and seen by every weight, and those make nearly all of the error. With
    ``Q(x) + Q(x - Q(x))`` they have seven bits, at the cost of ``count`` more input channels, also in FP8. The idea
    is that of LLM.int8() (Dettmers et al., arXiv:2208.07339), which takes such channels out of the product.

    Args:
        module: The generator in fp32, with the recipe's parameters.
        layers: Its convolutions.
        recipe: Formats and steps.
        pictures: ``(1, H, W, C)`` uint8 to look at.
        count: Channels of each convolution, the same for all: tensor cores like multiples of 4 or 8.
    """
    names = [name for name in _alone(layers) if recipe.formats.get(name) == "fp8"]
    power: dict[str, Tensor] = {}

    def watch(name: str, x: Tensor) -> None:
        power[name] = power.get(name, torch.zeros(x.shape[1])) + x.square().mean((0, 2, 3))

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, taken, name=name: watch(name, taken[0])
        )
        for name in names
    ]
    run_watched(module, hooks, pictures)
    chosen = {}
    for name, seen in power.items():
        weight = module.get_submodule(name).get_parameter("weight").detach()
        weighs = seen * weight.square().sum((0, 2, 3))
        chosen[name] = tuple(sorted(weighs.argsort(descending=True)[:count].tolist()))
    return dataclasses.replace(recipe, remainders=chosen)


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
    strange = set(recipe.remainders) - set(_alone(layers))
    if strange:
        raise ExportError(
            f"{sorted(strange)[0]} is no group of one convolution, so it has no remainders. Calibrate again"
        )
    convolutions = {
        node.inputs[1].name.removesuffix(".weight_dq"): node
        for node in model.graph
        if node.op_type == "Conv" and node.inputs[1] is not None and node.inputs[1].name is not None
    }
    for name, channels in wanted.items():
        if name not in convolutions:
            raise ExportError(
                f"the graph has no quantised convolution {name}, whose remainders it is to read"
            )
        if channels:
            _read_twice(model, convolutions[name], name, channels)
    return sum(1 for channels in wanted.values() if channels)


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
    exact = ir.node("Gather", [whole, index], {"axis": 1}, name=f"{name}_twice_exact")
    rounded = ir.node("Gather", [taken, index], {"axis": 1}, name=f"{name}_twice_rounded")
    left = ir.node("Sub", [exact.outputs[0], rounded.outputs[0]], name=f"{name}_twice_left")
    down = ir.node("QuantizeLinear", [left.outputs[0], step, zero], name=f"{name}_twice_q")
    up = ir.node("DequantizeLinear", [down.outputs[0], step, zero], name=f"{name}_twice_dq")
    both = ir.node("Concat", [taken, up.outputs[0]], {"axis": 1}, name=f"{name}_twice_both")
    nodes = [exact, rounded, left, down, up, both]
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = node.name, taken.type
        node.outputs[0].shape = _of_channels(taken.shape, len(channels))
    assert back.inputs[0] is not None
    down.outputs[0].type = back.inputs[0].type
    stored = held.inputs[0]
    assert stored is not None
    assert stored.const_value is not None
    array = stored.const_value.numpy()
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


def _alone(layers: Sequence[Layer]) -> list[str]:
    return [layer.name for layer in layers if layer.group == layer.name]
