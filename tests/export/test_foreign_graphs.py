"""Graphs that others made, of other ranges, layouts and types: run right, exported right, or refused by name."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from esrgan_deploy import CheckpointError, EsrganDeployError, InferenceError, ModelSpec
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._cli import main as esrgan_export
from esrgan_deploy.export.nets import RRDBNet
from esrgan_deploy.runtime import Upscaler, default_model
from esrgan_deploy.runtime._cli import main as esrgan_upscale

Write = Callable[..., Path]

TYPES = {"float": TensorProto.FLOAT, "half": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
FP32 = ExportOptions(precisions=("fp32",), plan=False, build=BuildOptions(shapes=ShapeRange.parse("1x16x16")))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write y = x + x(1-x)/4 on values of 0..1, each pixel twice on each axis, in the form that is asked for."""

    def make(
        *,
        white: tuple[int, int] = (1, 1),
        layout: str = "NCHW",
        kinds: tuple[str, str] = ("float", "float"),
        size: tuple[Any, Any] = ("h", "w"),
        multiple: int = 1,
        inverse: bool = False,
        more: tuple[str, ...] = (),
        beside: bool = False,
        channels: Any = 3,
        twice: bool = True,
        old: bool = False,
        data: str = "",
    ) -> Path:
        nodes: list[Any] = []
        weights: list[Any] = []
        inner = TensorProto.FLOAT16 if "half" in kinds else TensorProto.FLOAT

        def add(kind: str, *inputs: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(kind, list(inputs), [f"v{len(nodes)}"], **attributes))
            return f"v{len(nodes) - 1}"

        def constant(value: Any, dtype: Any = None) -> str:
            dtype = dtype or (np.float16 if inner == TensorProto.FLOAT16 else np.float32)
            weights.append(numpy_helper.from_array(np.array(value, dtype), f"c{len(weights)}"))
            name: str = weights[-1].name
            return name

        # Of halves to halves, too, as exporters of mixed precision leave them.
        x = "in" if kinds[0] == "float" else add("Cast", "in", to=inner)
        if layout == "NHWC":
            x = add("Transpose", x, perm=[0, 3, 1, 2])
        x = add("Div", x, constant(white[0])) if white[0] != 1 else x
        if multiple > 1:
            x = add("DepthToSpace", add("SpaceToDepth", x, blocksize=multiple), blocksize=multiple)
        y = add("Add", x, add("Mul", add("Mul", x, add("Sub", constant(1), x)), constant(0.25)))
        y = add("Sub", constant(1), x) if inverse else y
        if beside:
            nodes.append(helper.make_node("Identity", [y], ["small"]))
            nodes.append(helper.make_node("Concat", [y, y], ["tall"], axis=2))
        if twice:
            region = constant([], np.float32) if old else ""
            y = add("Resize", y, region, constant([1, 1, 2, 2], np.float32), mode="nearest")
        y = add("Mul", y, constant(white[1])) if white[1] != 1 else y
        if layout == "NHWC":
            y = add("Transpose", y, perm=[0, 2, 3, 1])
        if kinds[1] == "uint8":
            y = add("Cast", add("Round", y), to=TensorProto.UINT8)
        nodes.append(helper.make_node("Identity", [y], ["out"]))
        nodes += [helper.make_node("Mul", [y, constant(0.5)], [name]) for name in more]

        def shape(height: Any, width: Any) -> list[Any]:
            return ["n", channels, height, width] if layout == "NCHW" else ["n", height, width, channels]

        inputs = [helper.make_tensor_value_info("in", TYPES[kinds[0]], shape(*size))]
        if old:
            inputs += [
                helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in weights
            ]
        outputs = [
            helper.make_tensor_value_info(name, TYPES[kinds[1]], shape(f"{name}_y", f"{name}_x"))
            for name in (("small", "tall") * beside + ("out", *more))
        ]
        graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
        opset, version = (12, 3) if old else (17, 8)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)
        path = tmp_path / "net.onnx"
        if data:
            onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=0)
        else:
            onnx.save(model, path)
        return path

    return make


@pytest.fixture(scope="module")
def picture() -> Any:
    """Every level of each channel, on odd sides."""
    levels = np.random.default_rng(3).permuted(np.tile(np.arange(256), (3, 1)), axis=1)
    return levels.reshape(3, 16, 16).transpose(1, 2, 0)[:15, :13].astype(np.uint8).copy()


def right(picture: Any, factor: int = 2) -> Any:
    """What the graph computes, to the last level."""
    x = picture / 255
    y = np.rint(255 * (x + x * (1 - x) / 4))
    return np.kron(y, np.ones((factor, factor, 1))).astype(np.uint8)


FORMS = {
    "0..255": {"white": (255, 255)},
    "0..1 to 0..255": {"white": (1, 255)},
    "0..255 to 0..1": {"white": (255, 1)},
    "channels last": {"layout": "NHWC"},
    "channels last, 0..255": {"layout": "NHWC", "white": (255, 255)},
    "uint8 out of 0..255": {"white": (255, 255), "kinds": ("float", "uint8")},
    "uint8 out of 0..1": {"white": (1, 255), "kinds": ("float", "uint8")},
    "uint8 in, float out": {"white": (255, 1), "kinds": ("uint8", "float")},
    "uint8 planes": {"white": (255, 255), "kinds": ("uint8", "uint8")},
    "uint8, channels last": {"white": (255, 255), "kinds": ("uint8", "uint8"), "layout": "NHWC"},
    "multiples of 32": {"white": (255, 255), "multiple": 32},
    "one size": {"white": (255, 255), "layout": "NHWC", "size": (52, 52)},
    "gray": {"white": (255, 255), "channels": 1},
    "old, initialisers as inputs": {"white": (255, 255), "old": True},
    "outputs of no enlarged picture beside it": {"beside": True},
}
NOT_FLOAT = [name for name, form in FORMS.items() if "uint8" in form.get("kinds", ())]


@pytest.mark.filterwarnings("ignore:.*more than half of every tile")
@pytest.mark.parametrize("name", FORMS)
def test_a_graph_runs_in_its_own_form(write: Write, picture: Any, name: str) -> None:
    """A picture of another range, layout or type would be blank, broken or a shade off, and nothing would say so."""
    with Upscaler(write(**FORMS[name])) as upscaler:
        np.testing.assert_array_equal(upscaler.upscale(picture), right(picture))


def test_a_float_picture_is_rounded_to_the_levels_of_a_graph_of_bytes(write: Write, picture: Any) -> None:
    """Cut off instead, every picture that is no 8-bit one would be half a level darker."""
    with Upscaler(write(white=(255, 255), kinds=("uint8", "uint8"))) as upscaler:
        made = upscaler.upscale(((np.minimum(picture, 254) + 0.6) / 255).astype(np.float32))
    np.testing.assert_allclose(made * 255, right(np.minimum(picture, 254) + 1.0), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in FORMS if name not in (*NOT_FLOAT, "one size")])
def test_a_graph_is_exported_from_its_own_form(write: Write, picture: Any, tmp_path: Path, name: str) -> None:
    """What is written would be verified against itself, in a range that no picture has."""
    form = dict(FORMS[name])
    if form.get("multiple", 1) > 16:
        form["multiple"] = 8
    manifest = export_model(write(**form), tmp_path / "out", FP32)
    assert manifest.artefacts[0].verified is True
    with Upscaler(tmp_path / "out" / "model.onnx") as upscaler:
        np.testing.assert_array_equal(upscaler.upscale(picture), right(picture))


@pytest.mark.parametrize("name", [*NOT_FLOAT, "one size"])
def test_what_cannot_be_exported_is_named_with_what_runs_it(write: Write, tmp_path: Path, name: str) -> None:
    """A user would not learn that the graph runs as it is, and might find half an export."""
    path = write(**FORMS[name])
    with pytest.raises(
        CheckpointError, match=r"(is uint8|fixed at 52x52).*esrgan-upscale .*--model .*net\.onnx"
    ):
        export_model(path, tmp_path / "out", FP32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("white", [1, 255])
def test_the_range_of_a_trained_net_is_measured(picture: Any, tmp_path: Path, white: int) -> None:
    """Trained nets give greys back in the wrong range too, a little off: the picture would be a shade off as well."""
    model = onnx.load(default_model())
    del model.metadata_props[:]
    ends = model.graph.input[0].name, model.graph.output[0].name
    for node in model.graph.node:
        for names, end in ((node.input, ends[0]), (node.output, ends[1])):
            names[:] = [f"{end}_of_1" if name == end else name for name in names]
    model.graph.initializer.append(numpy_helper.from_array(np.array(white, np.float32), "white"))
    model.graph.node.insert(0, helper.make_node("Div", [ends[0], "white"], [f"{ends[0]}_of_1"]))
    model.graph.node.append(helper.make_node("Mul", [f"{ends[1]}_of_1", "white"], [ends[1]]))
    onnx.save(model, tmp_path / "net.onnx")
    with Upscaler(default_model()) as known, Upscaler(tmp_path / "net.onnx") as foreign:
        difference = foreign.upscale(picture).astype(int) - known.upscale(picture)
        assert np.abs(difference).max() <= 1
        assert ("its own form" in foreign.info.provider) == (white == 255)


def test_a_half_graph_is_exported_with_its_own_weights(write: Write, picture: Any, tmp_path: Path) -> None:
    """It was refused; computed in fp32, its picture is the exact one, for its weights are."""
    export_model(write(kinds=("half", "half")), tmp_path / "out", FP32)
    with Upscaler(tmp_path / "out" / "model.onnx") as upscaler:
        np.testing.assert_array_equal(upscaler.upscale(picture), right(picture))


def test_a_layout_that_stays_open_is_asked_for(write: Write, picture: Any) -> None:
    """Taken as planes without a word, its columns would be enlarged as channels."""
    path = write(layout="NHWC", channels="c", twice=False)
    with pytest.raises(InferenceError, match="as NCHW and as NHWC; say which: --layout"):
        Upscaler(path)
    with Upscaler(path, layout="NHWC") as upscaler:
        np.testing.assert_array_equal(upscaler.upscale(picture), right(picture, 1))


def test_an_output_that_stays_open_is_asked_for(write: Write, picture: Any, tmp_path: Path) -> None:
    """The first of two enlarged pictures is as likely the wrong one."""
    path = write(more=("darker",))
    for attempt in (lambda: Upscaler(path), lambda: export_model(path, tmp_path / "out", FP32)):
        with pytest.raises(
            InferenceError, match=r"pictures as outputs \(out, darker\); say which: --output-name"
        ):
            attempt()
    with pytest.raises(InferenceError, match="no picture 'other', only out, darker"):
        Upscaler(path, output_name="other")
    with Upscaler(path, output_name="darker", range=1) as upscaler:
        assert upscaler.upscale(picture).mean() < right(picture).mean() * 0.6
    options = dataclasses.replace(FP32, output_name="out")
    export_model(path, tmp_path / "out", options)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert {name for node in graph.node for name in node.output} <= read


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("white", [1, 255])
def test_a_range_that_stays_open_is_asked_for(write: Write, picture: Any, white: int, kind: str) -> None:
    """A net that gives no grey back tells no range: a guess is a blank picture in one case of two."""
    path = write(white=(white, 255), kinds=("float", kind), inverse=True)
    with pytest.raises(InferenceError, match=r"gives no grey back .* say its range: --range"):
        Upscaler(path)
    with Upscaler(path, range=(white, 255)) as upscaler:
        np.testing.assert_array_equal(upscaler.upscale(picture)[::2, ::2], 255 - picture)


def test_a_range_that_was_taken_and_not_measured_is_said(write: Write, picture: Any, capsys: Any) -> None:
    """Nobody would look at the range when the picture is wrong."""
    path = write(inverse=True)
    with Upscaler(path) as upscaler:
        np.testing.assert_array_equal(upscaler.upscale(picture)[::2, ::2], 255 - picture)
        assert "its greys tell no range, taken as 0..1" in upscaler.info.provider


def test_a_graph_that_runs_on_no_grey_is_not_taken_for_one_of_a_range(tmp_path: Path) -> None:
    """That the measurement failed says nothing of the range: taken as 0..1, it was a guess."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["in"], ["level"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "level"], ["seen"]),
            helper.make_node("Resize", ["seen", "", "scales"], ["out"], mode="nearest"),
        ],
        "net",
        [helper.make_tensor_value_info("in", TensorProto.UINT8, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3, "y", "x"])],
        [
            numpy_helper.from_array(np.zeros(9, np.float32), "table"),
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        ],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(InferenceError, match=r"ran on no grey picture .*--range 1 or 255, and --layout"):
        Upscaler(path)


def test_what_describes_foreign_graphs_is_refused_where_it_says_nothing(tmp_path: Path) -> None:
    """An option without effect is taken for one that has it."""
    # Whatever else its writer knows of: fields of four and of eight bytes that have no name here.
    (tmp_path / "net.onnx").write_bytes(b"\xfd\x07zzzz\xf9\x07zzzzzzzz" + default_model().read_bytes())
    for model in (default_model(), tmp_path / "net.onnx"):
        with pytest.raises(InferenceError, match="says itself what it takes and gives"):
            Upscaler(model, range=255)
    with pytest.raises(ValueError, match=r"for \.onnx graphs, and net\.pth is none"):
        Upscaler(tmp_path / "net.pth", layout="NHWC")
    with pytest.raises(ValueError, match="range is 7; white is 1 or 255"):
        Upscaler(range=7)
    with pytest.raises(CheckpointError, match=r"for \.onnx graphs"):
        export_model(None, tmp_path / "out", ExportOptions(plan=False, range=255))
    with pytest.raises(CheckpointError, match="says itself what it takes and gives"):
        export_model(default_model(), tmp_path / "out", ExportOptions(plan=False, range=255))


def test_the_commands_take_what_stays_open(
    write: Write, picture: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusals name flags; without them a user of the commands could not go on."""
    path = write(layout="NHWC", channels="c", twice=False, white=(1, 255), more=("darker",))
    Image.fromarray(picture).save(tmp_path / "in.png")
    said = ["--range", "1:255", "--layout", "NHWC", "--output-name", "out"]
    for model in (str(path), str(tmp_path / "out" / "model.onnx")):
        if model != str(path):
            assert esrgan_export([str(path), "-o", str(tmp_path / "out"), "--no-plan", *said]) == 0
            assert "its own form is NHWC 0..1 to 0..255, written as NCHW 0..1" in capsys.readouterr().err
            said = []
        out = str(tmp_path / "big.png")
        assert esrgan_upscale([str(tmp_path / "in.png"), "-o", out, "--force", "--model", model, *said]) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(out)), right(picture, 1))
    for command in (esrgan_export, esrgan_upscale):
        for wrong in ("7", "1:2", "1:1:1", "white"):
            with pytest.raises(SystemExit) as caught:
                raise SystemExit(command([str(tmp_path / "in.png"), "--range", wrong]))
            assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("open_it", ["run", "export"])
def test_missing_weights_are_named_as_the_graph_names_them(
    write: Write, tmp_path: Path, open_it: str
) -> None:
    """A guessed name sends a user looking for a file that never was."""
    path = write(data="weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(EsrganDeployError, match=r"keeps its weights in \S*/weights\.bin, which is not there"):
        Upscaler(path) if open_it == "run" else export_model(path, tmp_path / "out", FP32)


@pytest.mark.parametrize(("taken", "made"), [(4, 4), (1, 3)])
def test_a_net_of_other_channels_is_refused_before_it_is_exported(
    tmp_path: Path, taken: int, made: int
) -> None:
    """It was verified, and the next command that the export named could not run it."""
    spec = ModelSpec(
        architecture="rrdbnet", scale=4, in_channels=taken, out_channels=made, features=8, blocks=1, growth=4,
        source_sha256="0" * 64,
    )  # fmt: skip
    torch.save({"params": RRDBNet(spec).state_dict()}, tmp_path / "net.pth")
    for attempt in (
        lambda: export_model(tmp_path / "net.pth", tmp_path / "out", FP32),
        lambda: Upscaler(tmp_path / "net.pth"),
    ):
        with pytest.raises(EsrganDeployError, match=rf"makes {made} channels of {taken}; .*\(RGB\)"):
            attempt()
    assert not (tmp_path / "out").exists()


def test_what_comes_next_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The graph that was found to be wrong was the one to go on with."""
    nodes = [
        helper.make_node("Mul", ["in", "loud"], ["v0"]),
        helper.make_node("Mul", ["v0", "loud"], ["v1"]),
        helper.make_node("Mul", ["v1", "quiet"], ["v2"]),
        helper.make_node("Mul", ["v2", "quiet"], ["v3"]),
        helper.make_node("Resize", ["v3", "", "scales"], ["out"], mode="nearest"),
    ]
    floats = {"loud": 1e3, "quiet": 1e-3, "scales": [1, 1, 2, 2]}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3, "y", "x"])],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in floats.items()],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    esrgan_export([str(path), "-o", str(tmp_path / "out"), "--no-plan", "--shapes", "16x16"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next:"))
    assert line.endswith(f"--model {tmp_path / 'out' / 'model.onnx'}")


REFUSED_RUN = {"ext": r"ext\.onnx\.data, which is not there"}
REFUSED_EXPORT = REFUSED_RUN | {
    "nchw_u8": "in_x is uint8",
    "u8out_255in": "out_y is uint8",
    "nhwc_fixed": "fixed at 50x50",
}
GRAPHS = (
    *("ext", "extra", "float255", "fp16", "ir3_op11"),
    *("nchw_u8", "nhwc_fixed", "nhwc_float255", "out255", "u8out_255in"),
)


def expected_of(name: str, small: Any, path: Path) -> Any:
    """The exact picture; of graphs that cut off or round to fp16 themselves, what they make of the same picture."""
    if "u8" in name:
        x = small / 255
        return np.kron(np.floor(255 * (x + x * (1 - x) / 4) + 1e-4), np.ones((4, 4, 1))).astype(np.uint8)
    if name == "fp16":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        x = (small.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float16)
        made = np.clip(session.run(None, {"in_x": x})[0][0].astype(np.float32), 0, 1)
        return np.rint(made * np.float32(255)).astype(np.uint8).transpose(1, 2, 0)
    return right(small, 4)


@pytest.mark.filterwarnings("ignore:.*more than half of every tile")
@pytest.mark.parametrize("way", ["esrgan-upscale", "Upscaler", "esrgan-export"])
@pytest.mark.parametrize("name", GRAPHS)
def test_reported_graphs_are_exact_or_refused_in_the_right_words(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, way: str
) -> None:
    """What people reported: blank pictures, wrong shades, and refusals that blame the weights."""
    path, source = assets / "reports" / f"{name}.onnx", assets / "reports" / "small.png"
    small = np.asarray(Image.open(source))
    refused = (REFUSED_EXPORT if way == "esrgan-export" else REFUSED_RUN).get(name)
    if way == "Upscaler":
        if refused:
            with pytest.raises(InferenceError, match=refused):
                Upscaler(path)
            return
        with Upscaler(path) as upscaler:
            made = upscaler.upscale(small)
    else:
        model = path
        if way == "esrgan-export":
            model = tmp_path / "out" / "model.onnx"
            quick = ["--no-plan", "--precision", "fp32", "--shapes", "16x16"]
            status = esrgan_export([str(path), *quick, "-o", str(model.parent)])
        if way == "esrgan-upscale" or not status:
            status = esrgan_upscale([str(source), "--model", str(model), "-o", str(tmp_path / "big.png")])
        if refused:
            assert status == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"{way}: ")
            assert re.search(refused, line)
            return
        assert status == 0
        made = np.asarray(Image.open(tmp_path / "big.png"))
    # Exported in fp32, the fp16 net has no rounding left.
    expected = right(small, 4) if way == "esrgan-export" else expected_of(name, small, path)
    np.testing.assert_array_equal(made, expected)
