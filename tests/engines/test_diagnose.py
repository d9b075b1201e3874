"""TensorRT's refusals, provoked with TensorRT for RTX where that is possible, and what the user reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy.engines import BuildOptions, ShapeRange, engine_from_onnx
from esrgan_deploy.engines._diagnose import diagnose

Save = Callable[[onnx.ModelProto], Path]

SHAPES = ShapeRange.parse("1x64x64")
RANGE = ShapeRange.parse("1x16x16:1x64x64:1x128x128")


def _refused(path: Path, **options: Any) -> str:
    plan = path.with_suffix(".plan")
    asked = BuildOptions(**{"flavour": "tensorrt_rtx", "shapes": SHAPES, **options})
    with pytest.raises(EngineBuildError) as caught:
        engine_from_onnx(path, plan, asked)
    assert not list(path.parent.glob("*.plan")), "a refused build left a file"
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("tensorrt_rtx ")
    assert path.name in said
    assert said.endswith("]")
    return said


def _quantised(writer: Any, dtype: int, zero: int = 0) -> onnx.ModelProto:
    g = writer("fp16")
    scale, zeros = g.constant(0.05), g.constant(zero, dtype)

    def rounded(x: str) -> str:
        return g.node("DequantizeLinear", g.node("QuantizeLinear", x, scale, zeros), scale, zeros)

    x = g.conv("input", 3, 32)
    x = g.node("Conv", rounded(x), rounded(g.random(32, 32, 3, 3)), pads=[1] * 4)
    g.conv(g.leaky(x), 32, 3, output="output")
    return g.model()


def test_fp8_on_ampere(writer: Any, saved: Save) -> None:
    """The raw text speaks of 'HW-specific datatypes'."""
    said = _refused(saved(_quantised(writer, TensorProto.FLOAT8E4M3FN)), compute_capabilities=("8.0", "8.9"))
    assert "computes in FP8, which 8.0 does not have" in said
    assert "--compute-capabilities of 8.9 or newer" in said
    assert "fp8_e4m3" in said


@pytest.mark.parametrize(
    ("dtype", "options", "says"),
    [
        # The raw text calls bfloat16 'b16'.
        ("bf16", {"compute_capabilities": ("7.5",)}, ["bfloat16, which 7.5 does not have", "8.0 or newer"]),
        # The raw text is a loader's, about a file that the user never heard of.
        (
            "fp16",
            {"version_compatible": True},
            ["needs TensorRT's lean runtime library", "without --version-compatible"],
        ),
        # The raw text is about a CUDA driver that is too old.
        (
            "fp16",
            {"compute_capabilities": ("current",)},
            ["current means the GPU at hand, and none can be used"],
        ),
        # The raw text says 'Consider increase the allowed workspace size if applicable'.
        ("fp16", {"workspace": 1024}, ["no kernel gets by with the workspace", "larger --workspace"]),
    ],
)
def test_options_that_cannot_be_met(
    rrdb: Callable[..., Path], tmp_path: Path, dtype: str, options: dict[str, Any], says: list[str]
) -> None:
    """Of a sound graph: only the option can be at fault, and the raw text never names it."""
    if "current" in options.get("compute_capabilities", ()) and Path("/proc/driver/nvidia/version").exists():
        pytest.skip("there is a GPU here")
    path = tmp_path / "net.onnx"
    path.write_bytes(rrdb(dtype=dtype).read_bytes())
    said = _refused(path, **options)
    assert [part for part in says if part not in said] == []


def test_bytes_that_are_moved_before_they_are_cast(writer: Any, saved: Save) -> None:
    """The raw text names a node_permute that is nowhere in the graph."""
    g = writer("fp16")
    g.conv(g.node("Cast", g.node("Transpose", "input", perm=[0, 3, 1, 2]), to=g.dtype), 3, 3, output="y")
    back = g.node("Transpose", "y", perm=[0, 2, 3, 1])
    g.node("Cast", back, to=TensorProto.UINT8, output="output")
    said = _refused(saved(g.model(shape=("n", "h", "w", 3), dtype=TensorProto.UINT8)))
    assert "Cast comes first on the input and last on the output" in said
    assert "--form uint8" in said
    assert "cudaError" not in said.split("[")[0]


def test_a_bias_that_is_dequantised_from_int32(writer: Any, saved: Save) -> None:
    """ONNX Runtime's quantiser does this unless told otherwise."""
    g = writer("fp16")
    bias = g.node("DequantizeLinear", g.constant([1, 2, 3], TensorProto.INT32), g.constant(0.05))
    g.node("Conv", "input", g.random(3, 3, 3, 3), bias, pads=[1] * 4, output="output")
    assert "INT32 bias" in (said := _refused(saved(g.model())))
    assert "QuantizeBias=False" in said


def test_a_quantised_constant_of_a_multiplication(writer: Any, saved: Save) -> None:
    """ONNX Runtime's quantiser does this to the 0.2 of every residual."""
    g = writer("fp16")
    stored, scale, zero = g.constant(4, TensorProto.INT8), g.constant(0.05), g.constant(0, TensorProto.INT8)
    g.node("Mul", "input", g.node("DequantizeLinear", stored, scale, zero), output="output")
    said = _refused(saved(g.model()))
    assert f"quantises the constant {stored!r}" in said
    assert "op_types_to_quantize=['Conv']" in said


def test_asymmetric_quantisation(writer: Any, saved: Save) -> None:
    """The raw text talks of an accelerator that no desktop has."""
    said = _refused(saved(_quantised(writer, TensorProto.INT8, zero=3)))
    assert "asymmetrically" in said
    assert "symmetric activations and weights" in said


def test_two_dtypes_in_one_operator(writer: Any, saved: Save) -> None:
    """A half-converted graph builds nowhere, since plans are strongly typed."""
    g = writer("fp16")
    g.node("Add", g.conv("input", 3, 3), g.constant(1.0, TensorProto.FLOAT), output="output")
    model = g.model()
    assert "mixes Half and Float" in _refused(saved(model))


def test_an_operator_that_tensorrt_does_not_know(writer: Any, saved: Save) -> None:
    """The raw text asks whether a plugin's namespace is correct."""
    g = writer("fp16")
    g.node("Odd", "input", output="output", domain="made.up")
    assert "operator that TensorRT does not know" in _refused(saved(g.model()))


def test_sides_that_a_pixel_unshuffle_cannot_fold(writer: Any, saved: Save) -> None:
    """Without a GPU an error about the driver follows it in the log, and must not be what is said."""
    g = writer("fp16")
    g.conv(g.node("SpaceToDepth", "input", blocksize=2), 12, 3, output="output")
    said = _refused(saved(g.model()), shapes=ShapeRange.parse("1x33x33"))
    assert "multiples of the model's pixel-unshuffle factor" in said
    assert "driver" not in said


def test_an_error_that_is_not_known_is_not_taken_for_a_missing_gpu(writer: Any, saved: Save) -> None:
    """On a machine without a GPU the log ends in 'cudaError 35' whatever went wrong."""
    g = writer("fp16")
    g.node("Conv", "input", g.random(3, 3, 99, 99), output="output")
    said = _refused(saved(g.model()))
    assert "needs a GPU" not in said
    assert "report the text in brackets" in said


def test_a_build_that_fails_leaves_what_was_there(writer: Any, saved: Save) -> None:
    """--force may replace a plan by a better one, never by nothing."""
    path = saved(_quantised(writer, TensorProto.INT8, zero=3))
    plan = path.with_suffix(".plan")
    plan.write_text("old")
    with pytest.raises(EngineBuildError):
        engine_from_onnx(path, plan, BuildOptions(flavour="tensorrt_rtx", shapes=RANGE), force=True)
    assert plan.read_text() == "old"
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, plan.name]


# Texts that cannot be provoked here: this package always sets a profile, never asks for a refit and checks
# shapes, targets and quantisation first; others need full TensorRT and a GPU.
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape "
            "inputs, but no optimization profile has been defined. In validate at network.cpp:4023)",
            "was given no range. Run: with --shapes min:opt:max",
        ),
        (
            "onnxOpImporters.cpp:1980: TensorRT supports QuantizeLinear/DequantizeLinear with UINT8 "
            "zero_point only on DLA (version >= 3.16). Defaulting to INT8 instead.",
            "quantises to UINT8",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: "
            "attachExceptionMsgToGraph] MyelinCheckException: graph_jit.cpp:278: CHECK(status == "
            "CUDA_SUCCESS) failed. )",
            "can be refitted is built with a GPU only",
        ),
        (
            "IBuilderConfig::setComputeCapability: Error Code 3: API Usage Error (Parameter check failed, "
            "condition: false. Compute capability is invalid or not supported. In validateComputeCapability)",
            "Run: with 7.5, 8.0, 8.6",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Input tensor input has static "
            "dimensions that don't match kMIN dimensions in profile index 0. Input dimensions are "
            "[1,3,32,32] but profile dimensions are [1,3,64,64].",
            r"fixed to an input of [1,3,32,32] and the plan was to take [1,3,64,64]",
        ),
        (
            "Invalid optimization profiles for input tensors input, please ensure that the optimization "
            "profiles satisfy MIN<=OPT<=MAX.",
            "not in order",
        ),
        (
            "[MATRIX_MULTIPLY]_output: tensor volume exceeds (2^31)-1, dimensions are [4,65536,65536])",
            "more elements than TensorRT counts",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any "
            "implementation for node {ForeignNode[a...b]}.)",
            "smaller largest size in --shapes",
        ),
        ("Requested amount of GPU memory (1073741824 bytes) could not be allocated.", "memory is full"),
        (
            "In node 0 (parseNode): INVALID_GRAPH: Assertion failed: (ctx->tensors().count(inputName)): Node "
            "input was not registered.",
            "reads a tensor that nothing makes",
        ),
        (
            "(deserializeOnnxModel): MODEL_DESERIALIZE_FAILED: Failed to parse the ONNX model.",
            "file is damaged",
        ),
        (
            "CUDA initialization failure with error: 35. Please check your CUDA installation",
            "finds no driver that fits. Run: on a machine with an NVIDIA GPU",
        ),
        (
            "Cannot compile for target(s) sm80, sm120, because the model contains HW-specific datatypes: "
            "fp4_e2m1.",
            "computes in fp4_e2m1, which 8.0, 12.0 does not have",
        ),
    ],
)
def test_texts_that_are_known_from_elsewhere(text: str, said: str) -> None:
    """Each of them has an answer that the text itself does not give."""
    line = diagnose([text], subject="tensorrt 11.4 cannot build net.onnx")
    assert said in line
    assert line.startswith("tensorrt 11.4 cannot build net.onnx: ")
    assert text[:40] in line


def test_the_cause_is_said_and_not_what_follows_from_it() -> None:
    """On a machine without a GPU every error is followed by one about the driver."""
    driver = "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)"
    line = diagnose(["Non-zero zero point is not supported", driver, "--- End node ---"], subject="x")
    assert "asymmetrically" in line
    assert line.endswith("[Non-zero zero point is not supported]")
    unknown = diagnose(["something new", driver], subject="x")
    assert unknown.endswith("[something new]")
    assert "needs a GPU" not in unknown
    assert "finds no driver that fits" in diagnose([driver], subject="x")


def test_an_unknown_text_is_passed_on_in_one_line() -> None:
    """What nobody foresaw has to reach the report of the user."""
    line = diagnose(["--- Begin node ---\nx", "something\n  new", "--- End node ---"], subject="x")
    assert line.endswith("[something new]")
    assert "\n" not in line
    assert diagnose([], subject="x").endswith("[nothing was logged]")
    assert len(diagnose(["y" * 5000], subject="x")) < 500
