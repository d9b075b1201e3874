"""An ONNX file as the builder has to know it, and what can be wrong with it before TensorRT sees it."""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy._optional import require
from esrgan_deploy.engines._shapes import Shape, ShapeRange

__all__ = ["Graph", "read_graph"]

# Shapes, scales and axes are small and decide the shapes of other tensors; weights are neither.
_SMALL = 64
_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """What is known of an ONNX file.

    Attributes:
        path: Where it was read.
        content: Its bytes: what is checked, hashed and parsed is the same, whatever happens to the file.
        sha256: Their digest, 64 hexadecimal digits.
        skeleton: The ``ModelProto`` with its weights replaced by their shapes.
        input: Name of the first input that is no weight.
        layout: ``"NCHW"`` or ``"NHWC"``.
        channels: Channels of that input.
        fixed: ``(N, H, W)`` that the file declares; None where an axis is dynamic.
        convolutions: Number of convolutions.
        quantised: Number of those whose input is dequantised in front of them, by the dtype it was quantised to:
            ``"int8"`` or ``"fp8"``. A concatenation may stand between.
    """

    path: Path
    content: bytes = dataclasses.field(repr=False)
    sha256: str
    skeleton: Any = dataclasses.field(repr=False)
    input: str
    layout: Literal["NCHW", "NHWC"]
    channels: int
    fixed: tuple[int | None, int | None, int | None]
    convolutions: int
    quantised: Mapping[str, int]

    def tensor_shape(self, shape: Shape) -> tuple[int, int, int, int]:
        """Return the dimensions of the input for a batch of ``(N, H, W)``."""
        n, height, width = shape
        if self.layout == "NCHW":
            return n, self.channels, height, width
        return n, height, width, self.channels

    def refuse_outside(self, shapes: ShapeRange) -> None:
        """Refuse sizes that the file itself rules out.

        Raises:
            EngineBuildError: The file declares a size on an axis and the range asks for another.
        """
        for shape in (shapes.min, shapes.opt, shapes.max):
            if any(own not in (None, asked) for own, asked in zip(self.fixed, shape, strict=True)):
                declared = "x".join("*" if own is None else str(own) for own in self.fixed)
                raise EngineBuildError(
                    f"{self.path} is fixed to a batch, height and width of {declared} and the plan is to "
                    f"take {shapes}. Run: with --shapes of that size, or export the checkpoint again with "
                    "dynamic shapes"
                )


def read_graph(path: Path) -> Graph:
    """Read and check an ONNX file.

    Args:
        path: One file that holds its weights.

    Raises:
        EngineBuildError: It is missing, empty, damaged, keeps weights in other files, does not take one batch
            of pictures, or is quantised in a way that TensorRT would silently misread.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx", extra="export")
    content = _content(path)
    model = _parsed(onnx, path, content)
    _refuse_external(onnx, path, model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise EngineBuildError(
            f"{path} is not a valid ONNX graph ({_first_line(error)}). Run: esrgan-export again"
        ) from error
    _refuse_uint8_quantisation(onnx, path, model.graph)
    value = _only_input(path, model.graph)
    layout, channels, fixed = _declared(onnx, path, value)
    return Graph(
        path=path,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        skeleton=_skeleton(onnx, model),
        input=value.name,
        layout=layout,
        channels=channels,
        fixed=fixed,
        convolutions=sum(node.op_type in ("Conv", "ConvTranspose") for node in model.graph.node),
        quantised=_quantised_convolutions(onnx, model.graph),
    )


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineBuildError(
            f"{path} cannot be read ({error.strerror}). Run: esrgan-export to make it"
        ) from error
    if not content:
        raise EngineBuildError(f"{path} is empty. Run: esrgan-export again")
    return content


def _parsed(onnx: Any, path: Path, content: bytes) -> Any:
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the class of protobuf's error depends on which protobuf is installed
        raise EngineBuildError(
            f"{path} is not an ONNX file, or only a part of one ({_first_line(error)}). Run: esrgan-export "
            "again"
        ) from error
    if not model.graph.node or not model.graph.output:
        # Text, HTML among it, can decode as a message of unknown fields and no graph.
        raise EngineBuildError(f"{path} holds no ONNX graph. Run: esrgan-export again")
    return model


def _refuse_external(onnx: Any, path: Path, model: Any) -> None:
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise EngineBuildError(
            f"{path} keeps {len(outside)} weights in other files ({outside[0].name!r} first); a plan is "
            "built from one "
            'file. Run: python -c \'import onnx; onnx.save(onnx.load("in.onnx"), "out.onnx")\''
        )


def _refuse_uint8_quantisation(onnx: Any, path: Path, graph: Any) -> None:
    # TensorRT's parser takes UINT8 zero points for INT8 with a mere warning; the plan clips half the range.
    dtypes = dict(_constant_dtypes(graph))
    for node in graph.node:
        if _stored_dtype(onnx, node, dtypes) == onnx.TensorProto.UINT8:
            raise EngineBuildError(
                f"{path}: {node.op_type} {node.name or node.output[0]!r} quantises to UINT8, which TensorRT "
                "silently reads as INT8, so that half of the range is clipped. Allowed: INT8 and FP8 E4M3 with "
                "zero points of 0. Run: esrgan-export --precision int8 and build from model.int8.onnx; "
                "model.int8-cpu.onnx is for processors"
            )


def _stored_dtype(onnx: Any, node: Any, dtypes: Mapping[str, int]) -> int | None:
    # Of the integers that a node makes or reads; None where it does neither, or they come from another node.
    if node.op_type not in (_QUANTISE, _DEQUANTISE):
        return None
    zero = node.input[2] if len(node.input) > 2 else ""
    if node.op_type == _DEQUANTISE:
        return dtypes.get(zero, dtypes.get(node.input[0]))
    asked = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    # UINT8 is the standard's default.
    return dtypes.get(zero) if zero else asked or int(onnx.TensorProto.UINT8)


def _quantised_convolutions(onnx: Any, graph: Any) -> dict[str, int]:
    dtypes, makers = (
        dict(_constant_dtypes(graph)),
        {output: node for node in graph.node for output in node.output},
    )
    counts: collections.Counter[str] = collections.Counter()
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type == "Concat":
            maker = makers.get(maker.input[0])
        if maker is None or maker.op_type != _DEQUANTISE:
            continue
        stored = _stored_dtype(onnx, maker, dtypes)
        if stored is None and maker.input[0] in makers:
            stored = _stored_dtype(onnx, makers[maker.input[0]], dtypes)
        name = onnx.TensorProto.DataType.Name(stored or 0).lower()
        counts["fp8" if name == "float8e4m3fn" else name] += 1
    return dict(sorted(counts.items()))


def _constant_dtypes(graph: Any) -> Iterator[tuple[str, int]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t.data_type


def _only_input(path: Path, graph: Any) -> Any:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise EngineBuildError(
            f"{path} has {len(inputs)} inputs ({names}); a graph that enlarges pictures has one"
        )
    return inputs[0]


def _declared(
    onnx: Any, path: Path, value: Any
) -> tuple[Literal["NCHW", "NHWC"], int, tuple[int | None, int | None, int | None]]:
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    if len(dims) != 4:
        raise EngineBuildError(
            f"{path}: the input {value.name!r} has {len(dims)} dimensions; a batch of pictures has 4"
        )
    n, *rest = dims
    # Bytes come as NHWC, floats as NCHW; where that reading has no channel count, the other one may have.
    first, last = (rest[0], tuple(rest[1:])), (rest[2], tuple(rest[:2]))
    nhwc = tensor.elem_type == onnx.TensorProto.UINT8
    if (last if nhwc else first)[0] not in (1, 3, 4) and (first if nhwc else last)[0] in (1, 3, 4):
        nhwc = not nhwc
    channels, (height, width) = last if nhwc else first
    if not channels:
        raise EngineBuildError(
            f"{path}: the input {value.name!r} does not say how many channels it has. "
            "Run: esrgan-export from the checkpoint"
        )
    return ("NHWC" if nhwc else "NCHW"), channels, (n, height, width)


def _skeleton(onnx: Any, model: Any) -> Any:
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    graph = skeleton.graph
    named = {value.name for value in graph.input}
    del graph.initializer[:]
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    # Shapes that a file declares are symbolic, or those of another size.
    del graph.value_info[:]
    return skeleton


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
