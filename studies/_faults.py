"""Faults to plant into a traced graph, each of the kind that an exporter, a pass or a reader of weights makes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Fault", "faults"]

Fault = tuple[Callable[[ir.Model], ir.Model], bool]
"""Changes a graph and returns it; and False where it is the clip of the uint8 form that is lost, which is judged."""

Array = npt.NDArray[np.float32]


def faults(spec: Any) -> dict[str, Fault]:
    """Return the faults that can be planted into a net, by what they are.

    Args:
        spec: Of an RRDBNet or SRVGGNetCompact, whose names of layers are known.
    """
    deep = spec.architecture == "rrdbnet"
    # Convolutions stand at even places of a compact net's body, activations between them.
    trunk = f"body.{spec.blocks // 2}.rdb2.conv3" if deep else f"body.{spec.blocks // 2 * 2}"
    first, last = ("conv_first", "conv_last") if deep else ("body.0", f"body.{2 * spec.blocks + 2}")
    tail = "conv_hr" if deep else last
    found: dict[str, Callable[[ir.Model], None]] = {
        f"sign of the largest weight, {'conv_hr' if deep else 'last'}": _of(f"{tail}.weight", _turned),
        "sign of the largest weight, trunk": _of(f"{trunk}.weight", _turned),
        "bias lost, first": _of(f"{first}.bias", np.zeros_like),
        "bias lost, trunk": _of(f"{trunk}.bias", np.zeros_like),
        f"bias lost, {'conv_hr' if deep else 'last'}": _of(f"{tail}.bias", np.zeros_like),
        "two channels swapped, conv_body" if deep else "two channels swapped, trunk": _swapped(
            "conv_body" if deep else trunk
        ),
        "red and blue swapped, in": _of(f"{first}.weight", lambda a: a[:, ::-1]),
        "moved by a pixel, trunk": _of(f"{trunk}.weight", lambda a: np.roll(a, 1, 3)),
        "one slope halved, trunk": _slope(spec.blocks // 2),
        "a level too bright": _of(f"{last}.bias", lambda a: a + np.float32(1 / 255)),
        "a level too dark": _of(f"{last}.bias", lambda a: a - np.float32(1 / 255)),
        "half a level too bright": _of(f"{last}.bias", lambda a: a + np.float32(0.5 / 255)),
    }
    if deep:
        found["two channels swapped, trunk"] = _swapped(trunk)
        found["red and blue swapped, out"] = _reversed(last)
        found["moved by a pixel, conv_up2"] = _of("conv_up2.weight", lambda a: np.roll(a, 1, 3))
        found["one residual scale lost"] = _unscaled
    return {
        **{name: (_planting(change), True) for name, change in found.items()},
        "clip lost, uint8 form": (lambda graph: graph, False),
    }


def _planting(change: Callable[[ir.Model], None]) -> Callable[[ir.Model], ir.Model]:
    def plant(graph: ir.Model) -> ir.Model:
        change(graph)
        return graph

    return plant


def _of(name: str, made: Callable[[Array], Array]) -> Callable[[ir.Model], None]:
    def change(graph: ir.Model) -> None:
        value = graph.graph.initializers[name]
        assert value.const_value is not None
        array = np.ascontiguousarray(made(value.const_value.numpy().copy()), np.float32)
        value.const_value = ir.tensor(array, name=name)

    return change


def _turned(weight: Array) -> Array:
    weight.reshape(-1)[np.abs(weight).argmax()] *= -1
    return weight


def _swapped(layer: str) -> Callable[[ir.Model], None]:
    return _both(layer, lambda a: a[[1, 0, *range(2, len(a))]])


def _reversed(layer: str) -> Callable[[ir.Model], None]:
    return _both(layer, lambda a: a[::-1])


def _both(layer: str, made: Callable[[Array], Array]) -> Callable[[ir.Model], None]:
    def change(graph: ir.Model) -> None:
        _of(f"{layer}.weight", made)(graph)
        _of(f"{layer}.bias", made)(graph)

    return change


def _slope(block: int) -> Callable[[ir.Model], None]:
    def change(graph: ir.Model) -> None:
        leaky = [node for node in graph.graph if node.op_type == "LeakyRelu"]
        if leaky:
            # Twelve of them in a block.
            leaky[12 * block].attributes["alpha"] = ir.AttrFloat32("alpha", 0.1)
            return
        nodes = [node for node in graph.graph if node.op_type == "PRelu"]
        slopes = nodes[block].inputs[1]
        assert slopes is not None
        assert slopes.const_value is not None
        slopes.const_value = ir.tensor(slopes.const_value.numpy() / np.float32(2), name=slopes.name)

    return change


def _unscaled(graph: ir.Model) -> None:
    scales = [node for node in graph.graph if node.op_type == "Mul"]
    node = scales[len(scales) // 2]
    source = next(one for one in node.inputs if one is not None and one.const_value is None)
    node.outputs[0].replace_all_uses_with(source)
