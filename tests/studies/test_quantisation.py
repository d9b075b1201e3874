"""Quantised graphs and peers side by side: what is counted, what is judged, and what is left out."""

import json
import os
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from esrgan_deploy._bicubic import bicubic_downscale
from esrgan_deploy._errors import BenchmarkError, MediaError
from esrgan_deploy._judge import Pan
from esrgan_deploy._metrics import psnr
from esrgan_deploy.benchmarks._quantisation_bench import compare, pictures_of
from esrgan_deploy.benchmarks._quantisation_graphs import opened, quantised_share
from esrgan_deploy.benchmarks._quantisation_peers import MODELOPT_PYTHON, PeerGraph, peer_graphs
from esrgan_deploy.benchmarks._quantisation_table import markdown, text
from esrgan_deploy.benchmarks.quantisation import main
from esrgan_deploy.export._graph import save
from esrgan_deploy.export._placement import placement
from esrgan_deploy.export._precision import to_precision
from esrgan_deploy.export._qdq import quantise
from esrgan_deploy.export._rewrite import fold_scales, nest_concats
from esrgan_deploy.export._rrdbnet import RRDBNet
from esrgan_deploy.export._scales import recipe_of_scales
from esrgan_deploy.export._trace import trace
from esrgan_deploy.export.quantisation._structure import layers

PAN = Pan(side=14, margin=2)


def _scene(height, width, seed=0):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / a + x / b) for a, b in random.uniform(3, 20, (3, 2))]
    return (128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def _module(spec):
    torch.manual_seed(0)
    module = RRDBNet(spec).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if name.endswith("weight"):
            parameter *= 3
    module.conv_last.bias += 0.5
    return module


def _traced(module, spec):
    graph = trace(module, spec)
    nest_concats(graph)
    fold_scales(graph)
    return graph


@pytest.fixture(scope="module")
def net(tmp_path_factory, rrdb_spec):
    """A tiny RRDBNet whose output is a picture, as fp32, fp16 and int8 graphs."""
    folder = tmp_path_factory.mktemp("net")
    spec = rrdb_spec(blocks=1)
    module = _module(spec)
    graph = _traced(module, spec)
    save(graph, folder / "model.onnx")
    save(to_precision(graph, "fp16"), folder / "model.fp16.onnx")
    # Two of the dense blocks; what is left is known.
    recipe = recipe_of_scales(module, layers(spec), "int8", dict.fromkeys(placement(spec).values(), 0.02))
    chosen = [name for name in recipe.formats if "rdb3" not in name]
    assert quantise(graph, layers(spec), recipe.only(chosen)).convolutions == 10
    half = to_precision(graph, "int8")
    save(half, folder / "model.int8.onnx")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A set with LR and HR, in a folder for its scale, and a folder of HR pictures alone."""
    folder = tmp_path_factory.mktemp("sets")
    paired, plain = folder / "Pairs" / "x4", folder / "Plain"
    for inner in (paired / "LR", paired / "HR", plain):
        inner.mkdir(parents=True)
    for number in range(3):
        truth = _scene(64, 72, number)
        Image.fromarray(truth).save(paired / "HR" / f"{number}.png")
        Image.fromarray(bicubic_downscale(truth, 4)).save(paired / "LR" / f"{number}.png")
        # No multiple of four.
        Image.fromarray(_scene(67, 75, 10 + number)).save(plain / f"{number}.png")
    return paired, plain


def _made(nodes, weights, *, dtype=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", dtype, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("output", dtype, ["n", 3, "h", "w"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_the_share_is_that_of_the_multiply_adds(net):
    """Counted by layers, or at one resolution, a graph that leaves the slow tail alone would look done."""
    share = quantised_share(onnx.load(net / "model.int8.onnx"))
    assert (share.convolutions, share.quantised, share.formats) == (21, 10, {"int8": 10})
    # By hand, per LR pixel, without the nine taps that all have.
    block = sum((8 + number * 4) * 4 for number in range(4)) + (8 + 4 * 4) * 8
    tail = 8 * 8 + 4 * 8 * 8 + 16 * 8 * 8 + 16 * 8 * 8 + 16 * 8 * 3
    assert share.macs == pytest.approx(2 * block / (3 * 8 + 3 * block + tail))
    rest = [f"body.0.rdb3.conv{number}" for number in range(1, 6)]
    assert share.left == ("conv_first", *rest, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
    plain = quantised_share(onnx.load(net / "model.onnx"))
    assert (plain.quantised, plain.macs, plain.pairs, len(plain.left)) == (0, 0.0, 0, 21)


@pytest.mark.parametrize(
    ("between", "weights_too", "counted"),
    [("Identity", True, True), ("Identity", False, False), ("LeakyRelu", True, False)],
)
def test_only_a_convolution_of_dequantised_input_and_weights_counts(between, weights_too, counted):
    """Fp16 weights, or arithmetic in between, and no engine runs that convolution in integers."""
    pair = ["step", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["input", *pair], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *pair], ["dq"]),
        helper.make_node(between, ["dq"], ["moved"]),
        helper.make_node("DequantizeLinear", ["w_q", *pair], ["w_dq"]),
        helper.make_node("Conv", ["moved", "w_dq" if weights_too else "w"], ["output"], pads=[1, 1, 1, 1]),
    ]
    if not weights_too:
        del nodes[3]
    weights = {"step": np.float32(0.01), "zero": np.uint8(0)}
    if weights_too:
        weights["w_q"] = np.ones((3, 3, 3, 3), np.uint8)
    else:
        weights["w"] = np.ones((3, 3, 3, 3), np.float32)
    share = quantised_share(_made(nodes, {name: np.asarray(array) for name, array in weights.items()}))
    assert (share.quantised == 1, share.formats) == (counted, {"uint8": 1} if counted else {})


@pytest.mark.parametrize(("second", "counted"), [("dq", True), ("input", False)])
def test_a_concatenation_counts_where_all_of_it_is_quantised(second, counted):
    """One part in half precision makes the whole convolution run in half precision."""
    pair = ["step", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["input", *pair], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *pair], ["dq"]),
        helper.make_node("Concat", ["dq", second], ["both"], axis=1),
        helper.make_node("DequantizeLinear", ["w_q", *pair], ["w_dq"]),
        helper.make_node("Conv", ["both", "w_dq"], ["output"], pads=[1, 1, 1, 1]),
    ]
    weights = {"step": np.array(0.01, np.float32), "zero": np.array(0, np.int8)}
    share = quantised_share(_made(nodes, {**weights, "w_q": np.ones((3, 6, 3, 3), np.int8)}))
    assert (share.quantised == 1, share.macs) == (counted, float(counted))


def test_a_half_precision_graph_is_really_rounded(tmp_path):
    """ONNX Runtime would compute it in fp32 on a processor, and show a picture that no GPU makes."""
    nodes = [
        helper.make_node("Add", ["input", "large"], ["sum"]),
        helper.make_node("Sub", ["sum", "large"], ["output"]),
    ]
    onnx.save(_made(nodes, {"large": np.float16(128)}, dtype=TensorProto.FLOAT16), tmp_path / "net.onnx")
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=-1)
    with opened(tmp_path / "net.onnx", threads=1) as graph:
        levels = np.unique(graph.upscale(picture))
    assert graph.scale == 1
    assert graph.arithmetic == "fp32 convolutions, every tensor rounded to fp16 (ONNX Runtime CPU)"
    # Halves are an eighth apart at 128.
    assert levels.tolist() == [0, 32, 64, 96, 128, 159, 191, 223, 255]


def test_sets_are_read_in_pairs_or_made_from_hr(sets):
    """LR made otherwise than the benchmark's would make every figure incomparable."""
    paired, plain = sets
    found = pictures_of(paired, 4, most=2)
    assert [one.name for one in found] == ["0.png", "1.png"]
    np.testing.assert_array_equal(found[1].truth, _scene(64, 72, 1))
    np.testing.assert_array_equal(found[1].lr, bicubic_downscale(_scene(64, 72, 1), 4))
    made = pictures_of(plain, 4)
    assert [one.truth.shape for one in made] == [(64, 72, 3)] * 3
    np.testing.assert_array_equal(made[2].lr, bicubic_downscale(_scene(67, 75, 12)[:64, :72], 4))
    with pytest.raises(MediaError, match="holds no pictures"):
        pictures_of(plain.parent, 4)
    with pytest.raises(MediaError, match="is not a folder"):
        pictures_of(plain / "none", 4)


def test_graphs_are_judged_on_every_set_against_the_reference(net, sets):
    """A row under the wrong set or the wrong graph is worse than none."""
    graphs = {"half": net / "model.fp16.onnx", "ours": net / "model.int8.onnx"}
    gone = PeerGraph(name="gone", why="not installed")
    figures = compare(net / "model.onnx", graphs, sets, peers=[gone], pictures=2, pan=PAN, threads=1)
    assert {name: one["pictures"] for name, one in figures["sets"].items()} == {"Pairs": 2, "Plain": 2}
    half, ours, peer = figures["methods"]
    assert (half["name"], ours["name"], peer) == (
        "half",
        "ours",
        {"name": "gone", "left_out": "not installed"},
    )
    assert ours["share"]["formats"] == {"int8": 10}
    assert ours["arithmetic"].startswith("fp32 sums of int8 inputs and weights")
    assert half["sets"]["Plain"]["to_reference"]["psnr"] > ours["sets"]["Plain"]["to_reference"]["psnr"]
    with opened(net / "model.onnx", threads=1) as fine, opened(net / "model.int8.onnx", threads=1) as coarse:
        shown = pictures_of(sets[1], 4, most=2)
        a, b = (np.concatenate([graph.upscale(one.lr) for one in shown]) for graph in (fine, coarse))
    for figure, expected in [("psnr", psnr(a, b)), ("bias", (b.astype(float) - a).mean(axis=(0, 1)))]:
        assert ours["sets"]["Plain"]["to_reference"][figure] == pytest.approx(expected, abs=1e-6)
    assert ours["sets"]["Pairs"]["flicker"] > 0
    assert ours["sets"]["Pairs"]["loss"] == pytest.approx(
        figures["sets"]["Pairs"]["psnr_y"] - ours["sets"]["Pairs"]["psnr_y"], abs=1e-9
    )


def test_the_reference_is_the_fp32_graph(net, sets):
    """Against a graph that is quantised itself, every other would look perfect or damned by chance."""
    for name in ("model.int8.onnx", "model.fp16.onnx"):
        with pytest.raises(BenchmarkError, match="the reference is the fp32 graph"):
            compare(net / name, {}, sets)
    with pytest.raises(BenchmarkError, match="give each set once"):
        compare(net / "model.onnx", {}, [sets[0], sets[0]])
    (sets[0].parent / "text.onnx").write_text("no graph")
    with pytest.raises(BenchmarkError, match="no ONNX graph"):
        compare(sets[0].parent / "text.onnx", {}, sets)


def test_onnxruntime_quantises_the_same_graph_by_its_defaults(net, sets, tmp_path):
    """A peer that is set up otherwise than its users do is a straw man."""
    crops = [one.lr[None] for one in pictures_of(sets[1], 4)]
    said = []
    made = peer_graphs(["onnxruntime"], net / "model.onnx", crops, tmp_path, say=said.append)
    assert [peer.name.split(", ")[1] for peer in made] == ["MinMax (its default)", "Entropy", "Percentile"]
    assert [peer.why for peer in made] == [""] * 3
    assert len(said) == 3
    share = quantised_share(onnx.load(made[0].path))
    assert (share.quantised, share.formats) == (21, {"int8": 21})
    # The step of the input is that of the crops: it was calibrated on them, and on all of them.
    model = onnx.load(made[0].path)
    step = next(one for one in model.graph.initializer if one.name == "input_scale")
    low, high = min(crop.min() for crop in crops), max(crop.max() for crop in crops)
    assert low > 0
    assert numpy_helper.to_array(step) == pytest.approx(high / 255 / 255, rel=1e-5)
    figures = compare(net / "model.onnx", {}, sets[:1], peers=made, pictures=1, threads=1)
    for row in figures["methods"]:
        assert row["arithmetic"] == "fp32 graph with int8 Q/DQ pairs, as ONNX Runtime CPU runs it"
        assert 15 < row["sets"]["Pairs"]["to_reference"]["psnr"] < 70


@pytest.mark.slow
def test_modelopt_quantises_the_same_graph_by_its_defaults(rrdb_spec, sets, tmp_path):
    """It runs in an environment of its own, which nothing else here would notice to be broken."""
    if not os.environ.get(MODELOPT_PYTHON):
        pytest.skip(f"no interpreter with nvidia-modelopt is named by {MODELOPT_PYTHON}")
    crops = [one.lr[None] for one in pictures_of(sets[1], 4)]
    # Convolutions of few channels it leaves alone.
    model = tmp_path / "model.onnx"
    spec = rrdb_spec(features=32, growth=32, blocks=1)
    save(_traced(_module(spec), spec), model)
    made = peer_graphs(["modelopt"], model, crops, tmp_path, threads=1)
    assert [peer.why for peer in made] == [""] * 3
    shares = [quantised_share(onnx.load(peer.path)) for peer in made]
    assert [one.formats for one in shares] == [{"int8": 21}, {"int8": 21}, {"fp8": 19}]
    assert shares[2].left == ("conv_first", "conv_last")
    # It writes beside the graph that it is given.
    assert list(tmp_path.glob("model[._]*")) == [model]
    figures = compare(model, {}, sets[:1], peers=made, pictures=1, threads=1)
    for row in figures["methods"]:
        assert row["arithmetic"].startswith("fp32 sums of")
        assert 15 < row["sets"]["Pairs"]["to_reference"]["psnr"] < 70


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "exit status 3: it says nothing"),
        (
            "echo one >&2; echo ImportError: no modelopt >&2; exit 1",
            "exit status 1: ImportError: no modelopt",
        ),
        ("echo modelopt 9.9", "it reports success and has written nothing"),
    ],
)
def test_a_peer_that_fails_is_a_line_in_the_table(net, tmp_path, script, why):
    """One broken environment must not cost an hour of figures of all the others."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    crops = [_scene(16, 16)[None]]
    made = peer_graphs(["modelopt"], net / "model.onnx", crops, tmp_path, modelopt_python=python)
    assert [(peer.path, peer.why) for peer in made] == [(None, why)] * 3


def test_a_peer_that_quantised_nothing_is_left_out(net, tmp_path):
    """Seen of nvidia-modelopt: a success without one Q/DQ node, which then loses nothing at all."""
    python = tmp_path / "python"
    copy = (
        "import json, shutil, sys; task = json.loads(sys.argv[3]); shutil.copy(task['model'], task['output'])"
    )
    python.write_text(f'#!/bin/sh\n{sys.executable} -c "{copy}" "$@" && echo modelopt 9.9\n')
    python.chmod(0o755)
    made = peer_graphs(
        ["modelopt"], net / "model.onnx", [_scene(16, 16)[None]], tmp_path, modelopt_python=python
    )
    assert {peer.why for peer in made} == {"it reports success and has quantised no convolution"}
    assert made[0].name == "nvidia-modelopt 9.9 int8, entropy (its default)"


def test_a_peer_that_is_not_here_says_how_to_get_it(net, tmp_path, monkeypatch):
    """Without a word the table would seem complete."""
    monkeypatch.delenv(MODELOPT_PYTHON, raising=False)
    (peer,) = peer_graphs(["modelopt"], net / "model.onnx", [], tmp_path)
    assert peer.path is None
    assert MODELOPT_PYTHON in peer.why
    with pytest.raises(BenchmarkError, match="no peer tensorflow; the peers are onnxruntime, modelopt"):
        peer_graphs(["tensorflow"], net / "model.onnx", [], tmp_path)


def test_the_command_writes_text_json_and_markdown(net, sets, tmp_path, capsys, monkeypatch):
    """What goes into the documentation is what was measured, with the command that measured it."""
    monkeypatch.delenv(MODELOPT_PYTHON, raising=False)
    seen = tmp_path / "seen"
    seen.mkdir()
    for number in range(2):
        Image.fromarray(_scene(120, 120, 20 + number)).save(seen / f"{number}.png")
    given = f"--reference {net}/model.onnx --graph ours={net}/model.int8.onnx --graph {net}/model.fp16.onnx"
    given += f" --sets {sets[0]} --pictures 1 --threads 1 --peers modelopt --calibration {seen} --panned 0"
    argv = given.split()
    written = [tmp_path / "figures.json", tmp_path / "figures.md"]
    assert main([*argv, "--json", str(written[0]), "--markdown", str(written[1])]) == 0
    shown = capsys.readouterr().out
    figures = json.loads(written[0].read_text())
    assert (figures["schema"], figures["pan"]) == (1, None)
    assert figures["environment"]["packages"]["onnxruntime"]
    assert f"ours={net / 'model.int8.onnx'}" in figures["command"]
    assert "from the folder seen" in figures["calibration"]
    assert [row["name"] for row in figures["methods"]] == ["ours", "model.fp16", "nvidia-modelopt"]
    assert shown.strip() == text(figures).strip()
    assert written[1].read_text() == markdown(figures)
    ours = figures["methods"][0]
    cells = (
        f"| ours | {ours['share']['macs']:.1%} | {ours['sets']['Pairs']['loss']:+.3f} "
        f"| {ours['sets']['Pairs']['ssim_change']:+.4f} | {ours['sets']['Pairs']['to_reference']['psnr']:.2f} |"
    )
    assert cells in written[1].read_text()
    assert "| nvidia-modelopt | – | – |" in written[1].read_text()
    assert "nvidia-modelopt: left out, no interpreter has it" in shown
    assert (
        "10 of 21 convolutions quantised (10 with int8 inputs), all but conv_first, 5 in body, conv_body"
        in shown
    )


def test_unusable_arguments_are_refused(net, capsys):
    """A second graph of one name would silently replace the first."""
    graph = f"a={net / 'model.fp16.onnx'}"
    argv = ["--reference", str(net / "model.onnx"), "--sets", "none"]
    for more, what in [
        (["--graph", graph, "--graph", graph], "one name twice"),
        (["--pictures", "0"], "--pictures: 0 is under 1"),
        (["--panned", "-1"], "--panned: -1 is under 0"),
    ]:
        with pytest.raises(SystemExit):
            main([*argv, *more])
        assert what in capsys.readouterr().err
