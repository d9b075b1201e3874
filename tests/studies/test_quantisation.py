"""Quantised graphs and peers side by side: what is counted, what is judged, and what is left out."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from esrgan_deploy._metrics import bicubic_downscale, psnr
from esrgan_deploy.export import load_checkpoint
from esrgan_deploy.export._scales import recipe_of_scales
from esrgan_deploy.export.graphs import fold_scales, nest_concats, quantise, save, to_precision, trace
from esrgan_deploy.export.nets import layers, placement
from studies.__main__ import main
from studies.quantisation.graphs import opened, quantised_share
from studies.quantisation.peers import MODELOPT_PYTHON, peer_graphs


def _scene(height, width, seed=0):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / a + x / b) for a, b in random.uniform(3, 20, (3, 2))]
    return (128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def net(tmp_path_factory, checkpoint):
    """The net as fp32, fp16 and int8 graphs."""
    folder = tmp_path_factory.mktemp("net")
    loaded = load_checkpoint(checkpoint)
    module, spec = loaded.module(), loaded.spec
    graph = trace(module, spec)
    nest_concats(graph)
    fold_scales(graph)
    save(graph, folder / "model.onnx")
    save(to_precision(graph, "fp16"), folder / "model.fp16.onnx")
    # Two of the dense blocks; what is left is known.
    recipe = recipe_of_scales(module, layers(spec), "int8", dict.fromkeys(placement(spec).values(), 0.02))
    chosen = [name for name in recipe.formats if "rdb3" not in name]
    assert quantise(graph, layers(spec), recipe.only(chosen)).convolutions == 10
    save(to_precision(graph, "int8"), folder / "model.int8.onnx")
    return folder


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """A set with LR and HR, in a folder for its scale."""
    folder = tmp_path_factory.mktemp("sets") / "Pairs" / "x4"
    for inner in ("LR", "HR"):
        (folder / inner).mkdir(parents=True)
    for number in range(2):
        truth = _scene(164, 172, number)
        Image.fromarray(truth).save(folder / "HR" / f"{number}.png")
        Image.fromarray(bicubic_downscale(truth, 4)).save(folder / "LR" / f"{number}.png")
    return folder


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


@pytest.mark.slow
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


def test_graphs_and_peers_are_judged_against_the_reference(net, paired, tmp_path, capsys, monkeypatch):
    """A row under the wrong graph is worse than none; without a word on a missing peer it would seem complete."""
    monkeypatch.delenv(MODELOPT_PYTHON, raising=False)
    seen = tmp_path / "seen"
    seen.mkdir()
    for number in range(2):
        Image.fromarray(_scene(120, 120, 20 + number)).save(seen / f"{number}.png")
    given = f"--reference {net}/model.onnx --graph ours={net}/model.int8.onnx --graph {net}/model.fp16.onnx"
    given += f" --sets {paired} --threads 1 --peers modelopt --calibration {seen} --panned 1"
    assert main(["quantisation", *given.split(), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["sets"]["Pairs"]["pictures"] == 2
    assert "from the folder seen" in figures["calibration"]
    ours, half, peer = figures["methods"]
    assert [one["name"] for one in (ours, half, peer)] == ["ours", "model.fp16", "nvidia-modelopt"]
    assert ours["arithmetic"].startswith("fp32 sums of int8 inputs and weights")
    found = {one["name"]: one["sets"]["Pairs"] for one in (ours, half)}
    assert found["model.fp16"]["to_reference"]["psnr"] > found["ours"]["to_reference"]["psnr"]
    with opened(net / "model.onnx", threads=1) as fine, opened(net / "model.int8.onnx", threads=1) as coarse:
        shown = [np.asarray(Image.open(path)) for path in sorted((paired / "LR").iterdir())]
        a, b = (np.concatenate([graph.upscale(lr) for lr in shown]) for graph in (fine, coarse))
    assert found["ours"]["to_reference"]["psnr"] == pytest.approx(psnr(a, b), abs=1e-6)
    assert found["ours"]["flicker"] > 0
    loss = figures["sets"]["Pairs"]["psnr_y"] - found["ours"]["psnr_y"]
    assert found["ours"]["loss"] == pytest.approx(loss, abs=1e-9)
    said = " ".join(capsys.readouterr().out.split())
    assert f"| ours | {ours['share']['macs']:.1%} | {loss:+.3f} |" in said
    assert "| nvidia-modelopt | – | – |" in said
    assert (
        f"nvidia-modelopt: left out, no interpreter has it: name one by --modelopt-python or {MODELOPT_PYTHON}"
        in said
    )
    assert (
        "ours: 10 of 21 convolutions quantised (10 with int8 inputs), all but conv_first, 5 in body, conv_body"
        in said
    )


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ("--reference {net}/model.int8.onnx --sets {paired}", 1, "the reference is the fp32 graph"),
        ("--reference {net}/model.onnx --sets {paired} {paired}", 2, "give each set once"),
        ("--reference {net}/model.onnx --sets {paired} --graph a=x --graph a=y", 2, "one name twice"),
        ("--reference {paired}/HR/0.png --sets {paired}", 1, "no ONNX graph"),
        ("--reference {net}/model.onnx --sets {paired} --peers tensorflow", 2, "there is no tensorflow"),
    ],
)
def test_what_cannot_be_compared_is_refused(net, paired, capsys, options, status, why):
    """Against a graph that is quantised itself, every other would look perfect or damned by chance."""
    try:
        ended = main(["quantisation", *options.format(net=net, paired=paired).split()])
    except SystemExit as stopped:
        ended = stopped.code
    assert ended == status
    assert why in capsys.readouterr().err


def test_onnxruntime_quantises_the_same_graph_by_its_defaults(net, tmp_path):
    """A peer that is set up otherwise than its users do is a straw man."""
    crops = [_scene(16, 18, number)[None] for number in range(3)]
    made = peer_graphs(["onnxruntime"], net / "model.onnx", crops, tmp_path)
    assert [peer.name.split(", ")[1] for peer in made] == ["MinMax (its default)", "Entropy", "Percentile"]
    assert [peer.why for peer in made] == [""] * 3
    model = onnx.load(made[0].path)
    share = quantised_share(model)
    assert (share.quantised, share.formats) == (21, {"int8": 21})
    # The step of the input is that of the crops: it was calibrated on them, and on all of them.
    step = next(one for one in model.graph.initializer if one.name == "input_scale")
    assert numpy_helper.to_array(step) == pytest.approx(np.max(crops) / 255 / 255, rel=1e-5)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "exit status 3: it says nothing"),
        (
            "echo one >&2; echo ImportError: no modelopt >&2; exit 1",
            "exit status 1: ImportError: no modelopt",
        ),
        ("echo modelopt 9.9", "it reports success and has written nothing"),
        # Seen of nvidia-modelopt: a success without one Q/DQ node, which then loses nothing at all.
        ("{copy} && echo modelopt 9.9", "it reports success and has quantised no convolution"),
    ],
)
def test_a_peer_that_fails_is_a_line_in_the_table(net, tmp_path, script, why):
    """One broken environment must not cost an hour of figures of all the others."""
    copy = (
        "import json, shutil, sys; task = json.loads(sys.argv[3]); shutil.copy(task['model'], task['output'])"
    )
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n" + script.replace("{copy}", f'{sys.executable} -c "{copy}" "$@"') + "\n")
    python.chmod(0o755)
    crops = [_scene(16, 16)[None]]
    made = peer_graphs(["modelopt"], net / "model.onnx", crops, tmp_path, modelopt_python=python)
    assert {peer.why for peer in made} == {why}
    assert len(made) == 3
