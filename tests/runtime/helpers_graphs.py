"""Small ONNX graphs whose answer is known without running them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["write_graph"]

FLOAT = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


class _Graph:
    """Collects nodes; each call returns the name of what it makes."""

    def __init__(self, dtype: int) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.numpy_dtype = np.float16 if dtype == TensorProto.FLOAT16 else np.float32

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        name = f"c{len(self.initializers)}"
        array = np.asarray(value, dtype or self.numpy_dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def resize(self, x: str, factor: float, mode: str) -> str:
        scales = self.constant([1, 1, factor, factor], np.float32)
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        if mode == "linear":
            how = {"coordinate_transformation_mode": "half_pixel"}
        return self("Resize", x, "", scales, mode=mode, **how)


def write_graph(
    path: Path,
    body: Callable[[Any, str], str],
    *,
    channels: int = 3,
    dtype: str = "fp32",
    form: str = "float",
    size: tuple[Any, Any, Any] = ("batch", "height", "width"),
    metadata: str | None = None,
) -> Path:
    """Write a graph of the given body in either I/O form; ``size`` fixes batch, height and width."""
    kind = FLOAT[dtype]
    graph = _Graph(kind)
    n, h, w = size
    if form == "uint8":
        x = graph("Transpose", graph("Cast", "input", to=kind), perm=[0, 3, 1, 2])
        y = body(graph, graph("Div", x, graph.constant(255.0)))
        y = graph("Clip", y, graph.constant(0.0), graph.constant(1.0))
        y = graph("Round", graph("Mul", y, graph.constant(255.0)))
        y = graph("Cast", graph("Transpose", y, perm=[0, 2, 3, 1]), to=TensorProto.UINT8)
        source = helper.make_tensor_value_info("input", TensorProto.UINT8, [n, h, w, channels])
        target = helper.make_tensor_value_info("output", TensorProto.UINT8, ["n", "h", "w", channels])
    else:
        y = body(graph, "input")
        source = helper.make_tensor_value_info("input", kind, [n, channels, h, w])
        target = helper.make_tensor_value_info("output", kind, ["n", channels, "h", "w"])
    graph.nodes.append(helper.make_node("Identity", [y], ["output"]))
    made = helper.make_graph(graph.nodes, "net", [source], [target], graph.initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    if metadata is not None:
        helper.set_model_props(model, {"esrgan_deploy": metadata})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def nearest(scale: float = 4) -> Callable[[Any, str], str]:
    """Every pixel becomes a square of itself."""
    return lambda g, x: g.resize(x, scale, "nearest")


def convolved(scale: int = 2, layers: int = 3, channels: int = 3, seed: int = 0) -> Callable[[Any, str], str]:
    """A net that sees ``layers`` pixels to each side."""
    rng = np.random.default_rng(seed)

    def body(g: Any, x: str) -> str:
        features = channels
        for layer in range(layers):
            made = channels * scale**2 if layer == layers - 1 else 8
            weight = rng.normal(0, 1 / np.sqrt(9 * features), (made, features, 3, 3))
            x = g("Conv", x, g.constant(weight), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            features = made
            if layer < layers - 1:
                x = g("LeakyRelu", x, alpha=0.2)
        shift = g("Add", x, g.constant(0.5))
        return g("DepthToSpace", shift, blocksize=scale, mode="CRD")

    return body


def unshuffled(factor: int = 2) -> Callable[[Any, str], str]:
    """Fold, convolve, unfold to twice the size: heights and widths must be multiples of ``factor``."""
    inner = convolved(scale=2 * factor, layers=2, channels=3)

    def body(g: Any, x: str) -> str:
        folded = g("SpaceToDepth", x, blocksize=factor)
        mix = np.random.default_rng(9).normal(0, 0.3, (3, 3 * factor**2, 1, 1))
        return inner(g, g("Conv", folded, g.constant(mix), kernel_shape=[1, 1]))

    return body


def shrunk(outscale: float) -> Callable[[Any, str], str]:
    """An x4 net whose output is resized inside the graph, as for an outscale other than its own."""
    inner = convolved(scale=4, layers=2)
    return lambda g, x: g.resize(inner(g, x), outscale / 4, "linear")


def broken() -> Callable[[Any, str], str]:
    """A net that makes NaN of anything bright."""

    def body(g: Any, x: str) -> str:
        dark = g("Sub", g.constant(0.5), x)
        return g.resize(g("Sqrt", dark), 4, "nearest")

    return body
