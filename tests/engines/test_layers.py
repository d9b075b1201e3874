"""What is read from the builder's log."""

from collections.abc import Callable
from pathlib import Path

import pytest

from esrgan_deploy._flavour import open_flavour
from esrgan_deploy.engines import (
    BuildOptions,
    Layer,
    ShapeRange,
    Tensor,
    declared_bytes_per_pixel,
)
from esrgan_deploy.engines._compile import compile_graph
from esrgan_deploy.engines._graph import read_graph
from esrgan_deploy.engines._layers import convolution_dtypes, kernel_table, parse_layers

SIDE = 128
Layers = tuple[Layer, ...]

# As full TensorRT 10 and 8 log the same things; neither can be run here.
FULL_10 = """Layers:
Name: Reformatting CopyNode for Input Tensor 0 to conv + relu, LayerType: Reformat, Inputs: [ { Name: \
input, Location: Device, Dimensions: [1,3,8,8], Format/Datatype: Half }], Outputs: [ { Name: Reformatted \
Input Tensor 0 to conv + relu, Location: Device, Dimensions: [1,3,8,8], Format/Datatype: Half }], \
ParameterType: Reformat, Origin: REFORMAT, TacticValue: 0x00000000000003e8, StreamId: 0, Metadata:
Name: conv + relu, LayerType: CaskConvolution, Inputs: [ { Name: Reformatted Input Tensor 0 to conv + relu, \
Location: Device, Dimensions: [1,3,8,8], Format/Datatype: Half }], Outputs: [ { Name: y, Location: Device, \
Dimensions: [1,64,8,8], Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], \
ParameterType: Convolution, Kernel: [3,3], Weights: {"Type": "Half", "Count": 1728}, HasBias: 1, \
TacticName: sm80_xmma_fprop, StreamId: 0, Metadata: [ONNX Layer: conv]"""


def _built(net: Path, shapes: str) -> Layers:
    options = BuildOptions(shapes=ShapeRange.parse(shapes))
    return compile_graph(read_graph(net), options, open_flavour("tensorrt_rtx")).layers


@pytest.fixture(scope="module")
def nested(rrdb: Callable[..., Path]) -> Layers:
    return _built(rrdb(blocks=2, features=64, growth=32), f"1x{SIDE}x{SIDE}")


@pytest.fixture(scope="module")
def flat(rrdb: Callable[..., Path]) -> Layers:
    return _built(rrdb(blocks=2, features=64, growth=32, nested=False), f"1x{SIDE}x{SIDE}")


def test_nested_concatenation_moves_at_least_a_fifth_less(nested: Layers, flat: Layers) -> None:
    """The compiler works in place on nested concatenations only: the reason for the rewrite in export."""
    pixels = SIDE * SIDE
    kept = declared_bytes_per_pixel(nested, pixels) / declared_bytes_per_pixel(flat, pixels)
    print(f"nested moves {kept:.3f} of what flat moves")
    assert kept <= 0.8


def test_traffic_is_that_of_the_recorded_measurement(nested: Layers, flat: Layers) -> None:
    """Tensors counted twice, or weights counted, would shift every figure; within 2 % for other versions."""
    pixels = SIDE * SIDE
    assert declared_bytes_per_pixel(flat, pixels) == pytest.approx(40_118, rel=0.02)
    assert declared_bytes_per_pixel(nested, pixels) == pytest.approx(29_622, rel=0.02)


def test_the_copies_vanish_from_the_nested_plan(nested: Layers, flat: Layers) -> None:
    """The table has to show where the difference comes from: 24 copies."""
    copies = {row.kind: row.count for row in kernel_table(flat, SIDE * SIDE)}
    assert copies["Conc"] == 24
    assert "Conc" not in {row.kind for row in kernel_table(nested, SIDE * SIDE)}


def test_the_table_adds_up(nested: Layers) -> None:
    """A kernel that the table drops is traffic that nobody looks for."""
    rows = kernel_table(nested, SIDE * SIDE)
    assert sum(row.count for row in rows) == len(nested)
    total = declared_bytes_per_pixel(nested, SIDE * SIDE)
    assert sum(row.bytes_per_pixel for row in rows) == pytest.approx(total)
    assert [row.bytes_per_pixel for row in rows] == sorted(
        (row.bytes_per_pixel for row in rows), reverse=True
    )


def test_every_convolution_is_counted_once_with_its_dtype(nested: Layers, flat: Layers) -> None:
    """A convolution that is missed escapes the check of the precision."""
    assert convolution_dtypes(nested) == {"fp16": 36}
    assert convolution_dtypes(flat) == {"fp16": 36}


def test_a_dynamic_plan_has_dtypes_and_no_bytes(rrdb: Callable[..., Path]) -> None:
    """Multiplying dimensions of -1 gives a number that means nothing."""
    layers = _built(rrdb(), "1x16x16:1x32x32:2x64x64")
    assert convolution_dtypes(layers) == {"fp16": 21}
    with pytest.raises(ValueError, match="dynamic dimensions"):
        declared_bytes_per_pixel(layers, 1)


def test_layers_of_full_tensorrt_are_read() -> None:
    """Its log has other keys, and dtypes within formats."""
    reformat, conv = parse_layers(FULL_10)
    assert (reformat.kind, reformat.convolution, reformat.dtype) == ("Reformat", False, "fp16")
    assert (conv.kind, conv.convolution, conv.dtype) == ("CaskConvolution", True, "fp16")
    assert conv.outputs == (Tensor(name="y", dims=(1, 64, 8, 8), dtype="fp16"),)
    assert (conv.read, conv.written) == (3 * 64 * 2, 64 * 64 * 2)


def test_a_tensor_that_is_read_twice_is_one_read() -> None:
    """x + x reads x once from memory."""
    x = Tensor(name="x", dims=(2, 3), dtype="fp32")
    part = Tensor(name="x", dims=(2, 2), dtype="fp32")
    layer = Layer(name="", kind="", inputs=(x, x, part), weights=(), outputs=(x,), convolution=False)
    assert (layer.read, layer.written) == (24 + 16, 24)


def test_the_dtype_of_a_kernel_is_the_narrowest_that_computes() -> None:
    """An int8 convolution also reads its fp16 residual; bytes of a picture are no precision."""

    def dtype(*dtypes: str) -> str:
        tensors = tuple(Tensor(name=d, dims=(1,), dtype=d) for d in dtypes)
        return Layer(name="", kind="", inputs=tensors, weights=(), outputs=(), convolution=True).dtype

    assert dtype("fp16", "int8") == "int8"
    assert dtype("uint8", "fp16", "fp32") == "fp16"
    assert dtype("uint8") == "uint8"
    assert dtype() == ""


def test_a_log_without_layers_has_none() -> None:
    """An empty message is what a flavour that does not log them leaves."""
    assert parse_layers("") == ()
    assert parse_layers("Layers:\n\nI/O Tensors:\n Name: input, IOMode: Input") == ()
