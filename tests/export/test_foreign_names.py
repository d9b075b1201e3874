"""Graphs of other exporters may call anything what this package calls its own, and end in anything."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._cli import main

Arrays = dict[str, npt.NDArray[np.generic]]

STEPS = 80
"""Values, weights and nodes that a graph can give names to."""

# Of the passes that write only what is measured, not what is kept.
INSIDE = {"input_as_fp32", "h0_rounded", "h0_again", "output_exact", "probe_abs_0", "probe_max_0"}

SETTINGS = {
    "uint8 and smaller": {"form": "uint8", "outscale": 1.5},
    "float and larger": {"form": "float", "outscale": 3.0},
}


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Arrays,
    *,
    ends: tuple[str, str] = ("x", "y"),
    batch: str = "n",
    inner: Sequence[str] = (),
) -> Path:
    """Write a graph that doubles the sides; values of `inner` are declared ``(batch, 3, height, width)``."""
    source = helper.make_tensor_value_info(ends[0], TensorProto.FLOAT, [batch, 3, "h", "w"])
    result = helper.make_tensor_value_info(ends[1], TensorProto.FLOAT, [batch, 3, "hh", "ww"])
    graph = helper.make_graph(
        list(nodes),
        "theirs",
        [source],
        [result],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, "height", "width"])
            for name in inner
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _weights(out: int = 12) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(0).standard_normal((out, 3, 3, 3)) * 0.1).astype(np.float32)


def _chain(path: Path, names: Sequence[str], *, of: str) -> Path:
    """Write a chain of additions with `names` for its weights, or for its values and its nodes."""
    assert len(names) <= STEPS
    names = [*names, *(f"theirs{i}" for i in range(STEPS - len(names)))]
    weights: Arrays = {"first": _weights()}
    nodes = [helper.make_node("Conv", ["output", "first"], ["h0"], pads=[1] * 4, name="conv")]
    last = "h0"
    for i, name in enumerate(names):
        value, weight = (f"v{i}", name) if of == "weights" else (name, f"w{i}")
        weights[weight] = np.full((1, 12, 1, 1), 1e-3 * (i % 7 - 3), np.float32)
        nodes.append(helper.make_node("Add", [last, weight], [value], name=value))
        last = value
    nodes.append(helper.make_node("DepthToSpace", [last], ["given"], blocksize=2, name="shuffle"))
    return _save(path, nodes, weights, ends=("output", "given"))


def _picture() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (1, 8, 12, 3), np.uint8)


def _run(path: Path) -> list[npt.NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    batch: npt.NDArray[np.generic] = _picture()
    if source.type != "tensor(uint8)":
        half = source.type == "tensor(float16)"
        batch = (batch.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float16 if half else np.float32)
    return list(session.run(None, {source.name: batch}))


def _levels(path: Path) -> npt.NDArray[np.float32]:
    """Return what a graph of either form makes of the picture, in levels, channels last."""
    made = _run(path)[0]
    if made.dtype == np.uint8:
        return made.astype(np.float32)
    clipped = np.clip(made.astype(np.float32), 0, 1) * np.float32(255)
    return np.rint(clipped).transpose(0, 2, 3, 1)


def _export(model: Path, folder: Path, **options: object) -> list[Path]:
    """Export and return the graphs, of which every one is verified."""
    build = BuildOptions(shapes=ShapeRange.fixed((1, 16, 16)))
    wanted = ExportOptions(plan=False, build=build, **{"precisions": ("fp32",), **options})
    made = export_model(model, folder, wanted)
    graphs = [artefact for artefact in made.artefacts if artefact.kind == "onnx"]
    assert [artefact.file for artefact in graphs if not artefact.verified] == []
    return [folder / artefact.file for artefact in graphs]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Exports of the chain whose names are nobody else's, by setting."""
    folder = tmp_path_factory.mktemp("plain")
    chain = _chain(folder / "chain.onnx", [], of="values")
    made = {
        name: _export(chain, folder / name, precisions=("fp16",), **options)
        for name, options in SETTINGS.items()
    }
    return made.__getitem__


@pytest.fixture(scope="module")
def ours(plain: Callable[[str], list[Path]]) -> list[str]:
    """Every name that an export added."""
    names = set(INSIDE)
    for setting in SETTINGS:
        for graph in (onnx.load(path).graph for path in plain(setting)):
            names |= {tensor.name for tensor in graph.initializer} | {node.name for node in graph.node}
            names |= {name for node in graph.node for name in (*node.input, *node.output)}
    theirs = ("theirs", "v", "w")
    names = {name for name in names if name and name.rstrip("0123456789") not in theirs}
    names -= {"first", "conv", "h0", "shuffle", "output"}
    assert {"health", "peak", "low", "outscale_pads", "outscale_factors", "input", "to_uint8"} <= names
    # A name that is given instead must not be there either.
    return sorted(
        names | {f"{name}_1" for name in ("health", "low", "outscale_factors", "outscale_pads", "peak")}
    )


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("of", ["values", "weights"])
def test_names_of_a_graph_may_be_those_that_are_added(of, setting, plain, ours, tmp_path):
    """A net whose author calls a tensor "low" or "health" could not be exported, or ended in a traceback."""
    made = _export(
        _chain(tmp_path / "chain.onnx", ours, of=of),
        tmp_path / "out",
        precisions=("fp16",),
        **SETTINGS[setting],
    )
    for path, same in zip(made, plain(setting), strict=True):
        for array, expected in zip(_run(path), _run(same), strict=True):
            np.testing.assert_array_equal(array, expected)
        graph = onnx.load(path).graph
        ends = [value.name for value in (*graph.input, *graph.output)]
        assert ends == ["input", "output", "health"][: len(ends)]
        nodes = [node.name for node in graph.node]
        assert len(set(nodes)) == len(nodes)


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_names_inside_a_branch_may_be_those_that_are_added(form, ours, tmp_path):
    """A name may not be given again outside a branch either, which nothing but the written graph shows."""
    nodes, last = [], "h0"
    for name in ours:
        nodes.append(helper.make_node("Relu", [last], [name], name=name))
        last = name
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (last, "other")]
    yes = helper.make_graph(nodes, "yes", [], ends[:1])
    no = helper.make_graph([helper.make_node("Neg", ["h0"], ["other"])], "no", [], ends[1:])
    path = _save(
        tmp_path / "branch.onnx",
        [
            helper.make_node("Conv", ["x", "first"], ["h0"], pads=[1] * 4),
            helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
            helper.make_node("Greater", ["mean", "limit"], ["bright"]),
            helper.make_node("If", ["bright"], ["h1"], then_branch=yes, else_branch=no),
            helper.make_node("DepthToSpace", ["h1"], ["y"], blocksize=2),
        ],
        {"first": _weights(), "limit": np.float32(0.1)},
    )
    for made in _export(path, tmp_path / "out", form=form):
        np.testing.assert_array_equal(_levels(made), _levels(path))


def test_half_precision_of_a_branch_is_refused_with_what_can_be_run(tmp_path, capsys):
    """Nothing of another opset helps a graph whose branches stay fp32."""
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b")]
    yes = helper.make_graph([helper.make_node("Relu", ["up"], ["a"])], "yes", [], inner[:1])
    no = helper.make_graph([helper.make_node("Neg", ["up"], ["b"])], "no", [], inner[1:])
    path = _save(
        tmp_path / "branch.onnx",
        [
            helper.make_node("Resize", ["x", "", "sides"], ["up"], mode="nearest"),
            helper.make_node("If", ["yes"], ["y"], then_branch=yes, else_branch=no),
        ],
        {"yes": np.array(True), "sides": np.float32([1, 1, 2, 2])},
    )
    assert main([str(path), "-o", str(tmp_path / "out"), "--no-plan"]) == 1
    assert "the graph holds If" in (said := capsys.readouterr().err)
    assert "--precision fp32" in said
    assert "--opset" not in said


def test_sizes_of_a_graph_may_have_the_names_that_are_added(tmp_path):
    """An author whose "height" is that of the result had ONNX Runtime put both sizes into one buffer, and fail."""
    path = _save(
        tmp_path / "sizes.onnx",
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Neg", ["r"], ["q"]),
            helper.make_node("Resize", ["q", "", "sides"], ["up"], mode="nearest"),
            helper.make_node("Neg", ["up"], ["s"]),
            helper.make_node("Abs", ["s"], ["t"]),
            helper.make_node("Relu", ["t"], ["y"]),
        ],
        {"sides": np.float32([1, 1, 2, 2])},
        batch="batch",
        inner=("up", "s", "t"),
    )
    (made,) = _export(path, tmp_path / "out")
    np.testing.assert_array_equal(_run(made)[0], _run(path)[0])


def test_a_resized_export_can_be_resized_again(plain, tmp_path):
    """The first one's constants have the names that the second one gives."""
    model, _ = plain("float and larger")
    (made,) = _export(model, tmp_path / "out", outscale=1.0)
    assert _levels(made).shape == _picture().shape


@pytest.mark.parametrize("name", ["y", "output"])
def test_a_scaled_convolution_may_be_the_output(name, tmp_path):
    """Folded, the convolution stood there in its own name, without a type, and the graph was called invalid."""
    path = _save(
        tmp_path / "scaled.onnx",
        [
            helper.make_node("Resize", ["x", "", "sides"], ["up"], mode="nearest"),
            helper.make_node("Conv", ["up", "last"], ["c"], pads=[1] * 4),
            helper.make_node("Mul", ["c", "factor"], [name]),
        ],
        {"last": _weights(3), "factor": np.float32([0.5]), "sides": np.float32([1, 1, 2, 2])},
        ends=("x", name),
    )
    exact, half = _export(path, tmp_path / "out", precisions=("fp16",))
    assert [node.op_type for node in onnx.load(exact).graph.node] == ["Resize", "Conv"]
    assert onnx.load(exact).graph.output[0].name == "output"
    np.testing.assert_allclose(_run(exact)[0], _run(path)[0], atol=1e-6)
    assert np.abs(_levels(half) - _levels(path)).max() <= 1
    for made in _export(path, tmp_path / "resized", outscale=1.5):
        assert _levels(made).shape == (1, 12, 18, 3)


def test_a_graph_that_computes_its_sizes_is_written_in_half_precision(tmp_path):
    """Exporters that leave types away had their whole numbers declared fp16."""
    path = _save(
        tmp_path / "shape.onnx",
        [
            helper.make_node("Shape", ["x"], ["sides"], start=2),
            helper.make_node("Mul", ["sides", "two"], ["doubled"]),
            helper.make_node("Shape", ["x"], ["first"], end=2),
            helper.make_node("Concat", ["first", "doubled"], ["all"], axis=0),
            helper.make_node("Resize", ["x", "", "", "all"], ["y"], mode="nearest"),
        ],
        {"two": np.int64([2])},
    )
    for made in _export(path, tmp_path / "out", precisions=("fp16",)):
        np.testing.assert_array_equal(_levels(made), _levels(path))


def test_the_default_operators_may_be_named(tmp_path):
    """An opset of "ai.onnx" is one of "", and ended in a traceback."""
    path = _save(
        tmp_path / "named.onnx",
        [helper.make_node("Resize", ["x", "", "sides"], ["y"], mode="nearest")],
        {"sides": np.float32([1, 1, 2, 2])},
    )
    model = onnx.load(path)
    for entry in (*model.opset_import, *model.graph.node):
        entry.domain = "ai.onnx"
    onnx.save(model, path)
    (made,) = _export(path, tmp_path / "out")
    np.testing.assert_array_equal(_run(made)[0], _run(path)[0])
