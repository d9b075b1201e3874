"""ONNX files that must not reach TensorRT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy.engines import ShapeRange
from esrgan_deploy.engines._graph import read_graph

Save = Callable[[onnx.ModelProto], Path]


def _refused(path: Path, said: str) -> None:
    with pytest.raises(EngineBuildError, match=said) as caught:
        read_graph(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_what_is_known_of_a_graph(rrdb: Callable[..., Path]) -> None:
    """Wrong facts here mean a wrong profile: the plan would not take the pictures it was made for."""
    graph = read_graph(rrdb())
    assert (graph.input, graph.layout, graph.channels) == ("input", "NCHW", 3)
    assert graph.fixed == (None, None, None)
    assert (graph.convolutions, graph.quantised) == (21, {})
    assert graph.tensor_shape((2, 16, 32)) == (2, 3, 16, 32)
    assert len(graph.sha256) == 64


def test_the_byte_form_is_read_as_nhwc(rrdb: Callable[..., Path]) -> None:
    """With the axes of the float form the profile would ask for three rows of pictures."""
    graph = read_graph(rrdb(form="uint8"))
    assert graph.layout == "NHWC"
    assert graph.tensor_shape((2, 16, 32)) == (2, 16, 32, 3)


def test_a_foreign_graph_keeps_its_own_names(rrdb: Callable[..., Path]) -> None:
    """Graphs of other tools call their tensors otherwise."""
    assert read_graph(rrdb(names=("LR image", "sr/0"))).input == "LR image"


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "channels"),
    [
        (("n", 3, "h", "w"), TensorProto.UINT8, "NCHW", 3),
        (("n", "h", "w", 3), TensorProto.FLOAT, "NHWC", 3),
        (("n", "h", "w", 1), TensorProto.UINT8, "NHWC", 1),
        ((1, 3, 64, 64), TensorProto.FLOAT, "NCHW", 3),
        ((1, 64, 64, 3), TensorProto.FLOAT, "NHWC", 3),
        (("n", 12, "h", "w"), TensorProto.FLOAT, "NCHW", 12),
    ],
)
def test_layout_is_where_the_channels_are(
    shape: tuple[Any, ...], dtype: int, layout: str, channels: int, saved: Save
) -> None:
    """Graphs of other tools pair dtypes and layouts as they like."""
    node = helper.make_node("Cast", ["input"], ["output"], to=TensorProto.FLOAT)
    values = [
        helper.make_tensor_value_info("input", dtype, shape),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, shape),
    ]
    opset = [helper.make_opsetid("", 20)]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    read = read_graph(saved(helper.make_model(graph, opset_imports=opset, ir_version=10)))
    assert (read.layout, read.channels) == (layout, channels)


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """TensorRT's parser calls an empty file a valid graph with no inputs, and the next line crashes."""
    _refused(tmp_path / "no.onnx", "cannot be read")
    for content, said in [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is not an ONNX file|holds no ONNX graph"),
        (b"\x00" * 100, "is not an ONNX file|holds no ONNX graph"),
    ]:
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        _refused(path, said)
    _refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(part: float, rrdb: Callable[..., Path], tmp_path: Path) -> None:
    """An interrupted copy must be called that."""
    content = rrdb().read_bytes()
    path = tmp_path / "part.onnx"
    path.write_bytes(content[: int(len(content) * part)])
    _refused(path, "Run: esrgan-export")


def test_weights_in_other_files_are_refused(rrdb: Callable[..., Path], tmp_path: Path) -> None:
    """A plan and its digest speak of one file; the second one may be missing or another."""
    model = onnx.load(rrdb())
    path = tmp_path / "outside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    _refused(path, "weights in other files")


def test_weights_of_the_wrong_length_are_refused(rrdb: Callable[..., Path], saved: Save) -> None:
    """TensorRT's parser reads past their end."""
    model = onnx.load(rrdb())
    weight = next(t for t in model.graph.initializer if t.HasField("raw_data") and len(t.raw_data) > 100)
    weight.raw_data = weight.raw_data[:-10]
    _refused(saved(model), "is not a valid ONNX graph")


def test_a_graph_with_two_inputs_is_refused(rrdb: Callable[..., Path], saved: Save) -> None:
    """The second one would get no profile and no data."""
    model = onnx.load(rrdb())
    model.graph.input.append(helper.make_tensor_value_info("strength", TensorProto.FLOAT, (1,)))
    _refused(saved(model), r"has 2 inputs \(input, strength\)")


def test_weights_listed_as_inputs_do_not_count_as_inputs(rrdb: Callable[..., Path], saved: Save) -> None:
    """Old exporters list every weight among the inputs."""
    model = onnx.load(rrdb())
    for tensor in model.graph.initializer:
        model.graph.input.insert(0, helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert read_graph(saved(model)).input == "input"


def test_inputs_that_are_no_picture_batch_are_refused(rrdb: Callable[..., Path], saved: Save) -> None:
    """Without a rank of 4 and a channel count there is no profile to build."""
    model = onnx.load(rrdb())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "c"
    _refused(saved(model), "does not say how many channels")
    model = onnx.load(rrdb())
    del model.graph.input[0].type.tensor_type.shape.dim[3]
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Identity", ["input"], ["output"]))
    _refused(saved(model), "has 3 dimensions")


def _quantised(
    writer: Any, zero: int | None, *, weights: bool = False, constant_node: bool = False, **q: Any
) -> onnx.ModelProto:
    g = writer("fp16")
    scale = g.constant(0.05)
    zeros: list[str] = []
    if zero is not None:
        zeros = [g.constant(0, zero)]
        if constant_node:
            tensor = g.weights.pop()
            zeros = [g.node("Constant", value=tensor)]
    if weights:
        stored = g.constant([[[[1] * 3] * 3] * 3] * 3, TensorProto.UINT8)
        weight = g.node("DequantizeLinear", stored, scale)
        g.node("Conv", "input", weight, pads=[1] * 4, output="output")
    else:
        quantised = g.node("QuantizeLinear", "input", scale, *zeros, **q)
        g.conv(g.node("DequantizeLinear", quantised, scale, *zeros), 3, 3, output="output")
    return g.model()


@pytest.mark.parametrize(
    "options",
    [
        {"zero": TensorProto.UINT8},
        {"zero": TensorProto.UINT8, "constant_node": True},
        {"zero": None},
        {"zero": None, "weights": True},
    ],
)
def test_uint8_quantisation_is_refused(options: dict[str, Any], writer: Any, saved: Save) -> None:
    """TensorRT takes it for INT8 with a warning and builds a plan that clips half of the range."""
    _refused(
        saved(_quantised(writer, **options)), "quantises to UINT8, which TensorRT silently reads as INT8"
    )


def test_int8_quantisation_passes_and_is_counted(writer: Any, saved: Save) -> None:
    """A check that refuses every quantised graph would be as wrong."""
    assert read_graph(saved(_quantised(writer, TensorProto.INT8))).quantised == {"int8": 1}


def test_sizes_that_the_file_rules_out_are_refused(rrdb: Callable[..., Path]) -> None:
    """TensorRT finds this only after the whole graph was read, in terms of profiles."""
    graph = read_graph(rrdb(size=(1, 32, 32)))
    graph.refuse_outside(ShapeRange.parse("1x32x32"))
    with pytest.raises(EngineBuildError, match="fixed to a batch, height and width of 1x32x32"):
        graph.refuse_outside(ShapeRange.parse("1x16x16:1x32x32:1x64x64"))
    partly = read_graph(rrdb(size=("n", 32, "w")))
    partly.refuse_outside(ShapeRange.parse("1x32x8:2x32x32:4x32x64"))
    with pytest.raises(EngineBuildError, match=r"of \*x32x\*"):
        partly.refuse_outside(ShapeRange.parse("1x33x32"))
