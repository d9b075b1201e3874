"""A quantised graph as something that enlarges pictures, and how much of it is quantised."""

import contextlib
import dataclasses
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime import Upscaler

__all__ = ["FP32", "Opened", "Share", "opened", "quantised_share"]

FP32 = "fp32 (ONNX Runtime CPU)"
"""`Opened.arithmetic` of a plain fp32 graph."""

Picture = npt.NDArray[np.uint8]

# What only moves values: what was quantised in front of it is quantised behind it.
_MOVES = {"Concat", "DepthToSpace", "Identity", "Resize", "Slice", "SpaceToDepth", "Split", "Transpose"}

# A multiple of everything that a net may want its sides to be multiples of.
_SIDE = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """How much of a graph is quantised.

    Attributes:
        convolutions: All of them.
        quantised: Those whose input and weights are both dequantised in front of them.
        macs: Their share of all multiply-adds, 0..1.
        formats: By dtype of the quantised input (``"int8"``, ``"uint8"``, ``"fp8"``): how many.
        pairs: QuantizeLinear nodes, those of weights among them.
        left: Names of the others, by their weights.
    """

    convolutions: int
    quantised: int
    macs: float
    formats: dict[str, int]
    pairs: int
    left: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A graph that is ready to enlarge pictures.

    Attributes:
        upscale: ``(H, W, 3)`` uint8 to ``(H·s, W·s, 3)`` uint8.
        scale: HR pixels per LR pixel and axis.
        multiple: What the sides of a batch have to be multiples of.
        arithmetic: What really computes, in words.
        share: How much of it is quantised.
    """

    upscale: Callable[[Picture], Picture]
    scale: int
    multiple: int
    arithmetic: str
    share: Share


@contextlib.contextmanager
def opened(path: Path, *, threads: int | None = None) -> Iterator[Opened]:
    """Open a graph in ONNX Runtime on the processor, with every half-precision tensor really rounded.

    ONNX Runtime would compute an fp16 graph in fp32 there. An fp32 graph with Q/DQ pairs runs as it is: ONNX
    Runtime makes integer kernels of those that it can.

    Args:
        path: The .onnx file, either form.
        threads: Of ONNX Runtime; None lets it choose.

    Yields:
        What it makes of pictures; closed at the end of the block.

    Raises:
        BenchmarkError: It is no graph, or its scale is no whole number.
        InferenceError: ONNX Runtime refuses it.
        MissingDependencyError: A package is not installed.
    """
    onnx, ir = require("onnx", extra="export"), require("onnx_ir", extra="export")
    from esrgan_deploy.export.graphs import measured_as, rounding_model

    try:
        model = onnx.load(path)
    except Exception as error:  # the class of protobuf's error depends on which protobuf is installed
        raise BenchmarkError(f"{path} is no ONNX graph that can be read ({one_line(error)[:120]})") from error
    share = quantised_share(model)
    # Other tools need not write down the dtypes between the nodes, by which half precision is known.
    graph = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))
    half = _half(ir, graph)
    with tempfile.TemporaryDirectory(prefix="esrgan-bench-") as name:
        runs, arithmetic = path, FP32
        if share.quantised:
            kinds = " and ".join(share.formats)
            arithmetic = f"fp32 graph with {kinds} Q/DQ pairs, as ONNX Runtime CPU runs it"
        if half:
            runs = Path(name) / path.name
            # The dtype is what the rounding needs to know; Q/DQ pairs stay as they are in any precision.
            ir.save(rounding_model(graph, half), runs)
            arithmetic = measured_as(_named(share) or half)
        with Upscaler(runs, tile=0, edge="zero", providers=["cpu"], threads=threads) as upscaler:
            scale = float(upscaler.info.scale)
            if scale != int(scale):
                raise BenchmarkError(f"{path} enlarges {scale:g} times; a whole number is needed to judge it")
            yield Opened(
                upscale=upscaler.upscale,
                scale=int(scale),
                multiple=upscaler.info.size_multiple,
                arithmetic=arithmetic,
                share=share,
            )


def quantised_share(model: Any) -> Share:
    """Count what is quantised, with multiply-adds from the shapes that ONNX infers for one small picture.

    A convolution counts where its input comes from DequantizeLinear nodes, with nothing between but what moves
    values, and its weights do likewise.

    Args:
        model: An ``onnx.ModelProto``; it is not changed.
    """
    shapes, dtypes = _inferred(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    found: list[tuple[str, float, str]] = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            macs = float(math.prod(shapes[node.output[0]][2:]) * math.prod(shapes[node.input[1]]))
            stored = [_stored(makers, dtypes, name) for name in node.input[:2]]
            found.append((_name(makers, node), macs, stored[0] if all(stored) else ""))
    total = sum(macs for _, macs, _ in found) or 1.0
    return Share(
        convolutions=len(found),
        quantised=sum(bool(kind) for _, _, kind in found),
        macs=sum(macs for _, macs, kind in found if kind) / total,
        formats=dict(Counter(kind for _, _, kind in found if kind)),
        pairs=sum(node.op_type == "QuantizeLinear" for node in model.graph.node),
        left=tuple(name for name, _, kind in found if not kind),
    )


def _name(makers: dict[str, Any], conv: Any) -> str:
    name = conv.input[1]
    while name in makers:
        name = makers[name].input[0]
    # Quantisers append to the name of the weights.
    return str(name).partition(".weight")[0]


def _stored(makers: dict[str, Any], dtypes: dict[str, str], name: str) -> str:
    # The dtype that a tensor was dequantised from; empty where any part of it was not.
    node = makers.get(name)
    if node is None:
        return ""
    if node.op_type == "DequantizeLinear":
        return dtypes.get(node.input[0], "")
    if node.op_type not in _MOVES:
        return ""
    data = node.input if node.op_type == "Concat" else node.input[:1]
    kinds = {_stored(makers, dtypes, part) for part in data}
    return kinds.pop() if len(kinds) == 1 else ""


def _inferred(model: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    onnx = require("onnx", extra="export")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    # What a file declares is symbolic, or of another size.
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_value = 1 if axis == 0 else _SIDE
    graph = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    shapes, dtypes = {}, {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        shapes[value.name] = tuple(size.dim_value for size in tensor.shape.dim)
        dtypes[value.name] = _dtype(onnx, tensor.elem_type)
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        dtypes[tensor.name] = _dtype(onnx, tensor.data_type)
    return shapes, dtypes


def _dtype(onnx: Any, number: int) -> str:
    return str(onnx.TensorProto.DataType.Name(number)).lower().replace("float8e4m3fn", "fp8")


def _half(ir: Any, model: Any) -> str:
    values = [value for node in model.graph for value in node.outputs]
    dtypes = {value.dtype for value in [*values, *model.graph.inputs, *model.graph.initializers.values()]}
    if ir.DataType.FLOAT16 in dtypes:
        return "fp16"
    return "bf16" if ir.DataType.BFLOAT16 in dtypes else ""


def _named(share: Share) -> str:
    kinds = set(share.formats)
    return kinds.pop() if len(kinds) == 1 and kinds <= {"int8", "fp8"} else ""
