"""Graphs to build from, made with onnx alone: tracing a net takes seconds and these take milliseconds."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

DTYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class GraphWriter:
    """Collects nodes and weights, and names them."""

    def __init__(self, dtype: str = "fp16") -> None:
        self.dtype = DTYPES[dtype]
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._count = itertools.count()
        self._random = np.random.default_rng(0)

    def constant(self, values: Any, dtype: int | None = None) -> str:
        name = f"c{next(self._count)}"
        values = np.asarray(values, dtype=np.float32)
        tensor = helper.make_tensor(name, dtype or self.dtype, values.shape, values.ravel().tolist())
        self.weights.append(tensor)
        return name

    def random(self, *shape: int) -> str:
        name = f"w{next(self._count)}"
        values = self._random.standard_normal(shape, dtype=np.float32) * 0.05
        np_dtype = helper.tensor_dtype_to_np_dtype(self.dtype)
        self.weights.append(numpy_helper.from_array(values.astype(np_dtype), name))
        return name

    def node(
        self, op: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        name = output or f"{op.lower()}{next(self._count)}"
        self.nodes.append(
            helper.make_node(op, inputs, [name], name=f"{name}_node", domain=domain, **attributes)
        )
        return name

    def conv(self, x: str, c_in: int, c_out: int, output: str | None = None) -> str:
        return self.node(
            "Conv", x, self.random(c_out, c_in, 3, 3), self.random(c_out), pads=[1, 1, 1, 1], output=output
        )

    def leaky(self, x: str) -> str:
        return self.node("LeakyRelu", x, alpha=0.2)

    def model(
        self,
        *,
        shape: tuple[Any, ...] = ("n", 3, "h", "w"),
        dtype: int | None = None,
        names: tuple[str, str] = ("input", "output"),
    ) -> onnx.ModelProto:
        kind = dtype or self.dtype
        out = (
            ("N", 3, "H", "W")
            if shape[1] == 3
            else ("N", "H", "W", 3)
            if shape[3] == 3
            else ("N", "C", "H", "W")
        )
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(names[0], kind, shape)],
            [helper.make_tensor_value_info(names[1], kind, out)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("made.up", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rrdb_model(
    *,
    blocks: int = 1,
    features: int = 16,
    growth: int = 8,
    nested: bool = True,
    dtype: str = "fp16",
    form: str = "float",
    size: tuple[int, int, int] | None = None,
    names: tuple[str, str] = ("input", "output"),
) -> onnx.ModelProto:
    """A x4 RRDBNet with random weights; `nested` concatenates pairwise, else each time from the start."""
    g = GraphWriter(dtype)
    fifth = g.constant(0.2)

    def dense(x: str) -> str:
        made, joined = [x], x
        for i in range(4):
            made.append(g.leaky(g.conv(joined, features + i * growth, growth)))
            joined = g.node("Concat", *((joined, made[-1]) if nested else made), axis=1)
        return g.node("Add", g.node("Mul", g.conv(joined, features + 4 * growth, features), fifth), x)

    x, end = names[0], names[1] if form == "float" else None
    if form == "uint8":
        cast = g.node("Cast", x, to=g.dtype)
        x = g.node("Transpose", g.node("Mul", cast, g.constant(1 / 255)), perm=[0, 3, 1, 2])
    first = trunk = g.conv(x, 3, features)
    for _ in range(blocks):
        inner = dense(dense(dense(trunk)))
        trunk = g.node("Add", g.node("Mul", inner, fifth), trunk)
    up = g.node("Add", g.conv(trunk, features, features), first)
    scales = g.constant([1, 1, 2, 2], TensorProto.FLOAT)
    for _ in range(2):
        resize = functools.partial(g.node, "Resize", up, "", scales, mode="nearest")
        up = resize(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        up = g.leaky(g.conv(up, features, features))
    last = g.conv(g.leaky(g.conv(up, features, features)), features, 3, output=end)
    n, h, w = size or ("n", "h", "w")
    if form == "float":
        return g.model(shape=(n, 3, h, w), names=names)
    clipped = g.node("Clip", last, g.constant(0), g.constant(1))
    scaled = g.node("Round", g.node("Mul", clipped, g.constant(255)))
    g.node("Cast", g.node("Transpose", scaled, perm=[0, 2, 3, 1]), to=TensorProto.UINT8, output=names[1])
    return g.model(shape=(n, h, w, 3), dtype=TensorProto.UINT8, names=names)


@pytest.fixture(scope="session")
def writer() -> type[GraphWriter]:
    return GraphWriter


@pytest.fixture(scope="session")
def rrdb(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write an RRDBNet and return its path; equal arguments share one file, which no test may change."""
    folder = tmp_path_factory.mktemp("rrdb")
    count = itertools.count()

    @functools.cache
    def write(**options: Any) -> Path:
        path = folder / f"net{next(count)}.onnx"
        onnx.save(rrdb_model(**options), path)
        return path

    return write


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Write a model to a file of its own."""
    count = itertools.count()

    def save(model: onnx.ModelProto) -> Path:
        path = tmp_path / f"graph{next(count)}.onnx"
        onnx.save(model, path)
        return path

    return save
