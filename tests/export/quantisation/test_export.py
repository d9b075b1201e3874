"""From a checkpoint and photographs to a quantised graph that holds its budget, and says so."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from esrgan_deploy._errors import ExportError, MediaError, ParityError
from esrgan_deploy._manifest import load_manifest
from esrgan_deploy._metrics import bicubic_downscale
from esrgan_deploy._parity import planar
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model, load_checkpoint
from esrgan_deploy.export.nets import RRDBNet
from esrgan_deploy.export.proof import run, session_of
from esrgan_deploy.export.quantisation import QuantiseOptions, demand, load_recipe, pictures_for, tensor_of
from esrgan_deploy.export.quantisation.search import HeldLoss, Loss, SearchOptions

# A search takes ten seconds for the smallest net.
pytestmark = pytest.mark.slow

SMALL = BuildOptions(shapes=ShapeRange.parse("1x16x16:1x32x32:1x48x48"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, rrdb_spec):
    torch.manual_seed(3)
    net = RRDBNet(rrdb_spec(features=8, blocks=1, growth=4))
    with torch.no_grad():
        # Random weights hardly reach the picture otherwise.
        net.conv_last.weight.mul_(20)
    path = tmp_path_factory.mktemp("net") / "net.pth"
    torch.save(net.state_dict(), path)
    return path


def _options(photographs, *precisions, plan=False, force=False, **asked):
    return ExportOptions(
        precisions=precisions or ("int8",),
        quantise=QuantiseOptions(calibration=photographs, **asked),
        plan=plan,
        build=SMALL,
        force=force,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory, checkpoint, photographs):
    folder = tmp_path_factory.mktemp("out") / "int8"
    lines = []
    manifest = export_model(checkpoint, folder, _options(photographs), say=lines.append)
    return folder, manifest, lines


def test_a_quantised_export_says_what_it_quantised_and_what_that_costs(exported):
    """Without share and loss beside it an INT8 graph is a rumour."""
    folder, manifest, lines = exported
    graph = manifest.artefact("model.int8.onnx")
    assert graph.verified is True
    facts = graph.quantised
    assert 0 < facts["share"] <= 1
    assert facts["measured"]["to_fp32_db"] >= facts["budget_db"] == 44.5
    assert facts["measured"]["to_fp32_db"] >= 40
    assert any("of the multiply-adds" in line for line in lines)
    written = onnx.load(folder / "model.int8.onnx")
    pairs = {node.output[0] for node in written.graph.node if node.op_type == "DequantizeLinear"}
    quantised = [n for n in written.graph.node if n.op_type == "Conv" and n.input[1] in pairs]
    assert len(quantised) == facts["convolutions"] > 0


def test_the_files_of_a_quantised_export_are_listed(exported):
    """A file that the manifest does not list is neither vouched for nor tidied up."""
    folder, manifest, _ = exported
    listed = {artefact.file: artefact.kind for artefact in manifest.artefacts}
    assert listed["model.int8.scales.json"] == "scales"
    there = {path.name for path in folder.iterdir()} - {"model.json"}
    assert there == set(listed)


def test_scales_are_taken_up_again_unless_the_checkpoint_changed(exported, checkpoint, photographs, tmp_path):
    """Minutes of calibration for nothing, or worse: the scales of other weights."""
    folder, first, _ = exported
    copy = shutil.copytree(folder, tmp_path / "int8")
    lines = []
    again = export_model(checkpoint, copy, _options(photographs, force=True), say=lines.append)
    assert any("taken up" in line for line in lines)
    assert not any(line.startswith("calibrating") for line in lines)
    assert again.artefact("model.int8.onnx").sha256 == first.artefact("model.int8.onnx").sha256
    state = torch.load(checkpoint)
    state["conv_hr.bias"] += 0.01
    other = tmp_path / "other.pth"
    torch.save(state, other)
    lines.clear()
    export_model(other, copy, _options(photographs, force=True, search=False), say=lines.append)
    assert any("belongs to other weights" in line for line in lines)
    assert any(line.startswith("calibrating") for line in lines)


def test_other_options_calibrate_again(for_processors, checkpoint, photographs, tmp_path):
    """A smaller budget with the old scales would be a budget that nobody held."""
    copy, lines = shutil.copytree(for_processors.parent, tmp_path / "copy"), []
    asked = _options(photographs, "int8-cpu", force=True, budget=0.05, search=False)
    export_model(checkpoint, copy, asked, say=lines.append)
    assert any("made with other options" in line for line in lines)
    assert load_recipe(copy / "model.int8-cpu.scales.json").asked["budget"] == 0.05


def test_a_folder_without_pictures_is_an_error_and_leaves_nothing(checkpoint, tmp_path):
    """Scales of random numbers would be written and believed."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MediaError, match="can be calibrated on"):
        export_model(checkpoint, tmp_path / "out", _options(empty))
    assert list((tmp_path / "out").glob("*")) == []
    with pytest.raises(MediaError, match="is not a folder"):
        QuantiseOptions(calibration=tmp_path / "nowhere")


def test_a_graph_that_was_handed_in_is_not_calibrated(exported, photographs, tmp_path):
    """Its weights have no names that the pass knows."""
    folder, _, _ = exported
    with pytest.raises(ExportError, match="calibrated on a checkpoint"):
        export_model(folder / "model.onnx", tmp_path / "out", _options(photographs))


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), 101.0])
def test_a_budget_that_means_nothing_is_refused(budget):
    """A negative budget would return everything to half precision and call that INT8."""
    with pytest.raises(ExportError, match="budget is"):
        QuantiseOptions(budget=budget)


def test_a_loss_over_the_budget_is_a_breach(exported):
    """The graph rounds more than the simulation: what was searched may lose more than the budget when measured."""
    from esrgan_deploy.export._prove_quantised import over_budget

    _, manifest, _ = exported
    graph = manifest.artefact("model.int8.onnx")
    wanted = SearchOptions(budget=0.1)
    within = Loss(psnr_y=30.0, loss=0.1, fidelity=60.0, worst=50.0, shift=0.0, noise=0.0)
    assert over_budget(graph, within, wanted) == graph
    breached = over_budget(graph, dataclasses.replace(within, loss=0.11), wanted)
    assert breached.verified is False
    with pytest.raises(ParityError, match=r"0\.110 dB of PSNR-Y lost"):
        dataclasses.replace(manifest, artefacts=(breached,)).raise_if_breached()


def test_what_a_quantised_export_says_survives_the_manifest(exported):
    """The proof must be there for whoever opens the folder later."""
    folder, manifest, _ = exported
    again = load_manifest(folder / "model.json")
    assert again.artefact("model.int8.onnx").quantised == json.loads(
        json.dumps(manifest.artefact("model.int8.onnx").quantised)
    )
    kept = load_recipe(folder / "model.int8.scales.json")
    assert kept.facts["measured"] == again.artefact("model.int8.onnx").quantised["measured"]
    assert kept.facts["frontier"]


def test_int8_and_fp8_become_plans_with_convolutions_of_their_dtype(checkpoint, photographs, tmp_path):
    """A plan that quietly computes in half precision is no INT8 plan."""
    options = _options(photographs, "int8", "fp8", plan=True, search=False)
    options = dataclasses.replace(options, watchdog=False)
    manifest = export_model(checkpoint, tmp_path / "out", options)
    for precision in ("int8", "fp8"):
        plan = manifest.artefact(f"model.{precision}.plan")
        graph = manifest.artefact(f"model.{precision}.onnx")
        assert plan.dtypes[precision] >= graph.quantised["convolutions"]


def test_the_graph_for_processors_is_verified_and_runs(checkpoint, photographs, tmp_path):
    """It computes in integers here too, so its proof is of what it really does; TensorRT never sees it."""
    from esrgan_deploy import Upscaler

    folder = tmp_path / "out"
    manifest = export_model(checkpoint, folder, _options(photographs, "int8-cpu", plan=True))
    graph = manifest.artefact("model.int8-cpu.onnx")
    assert graph.verified is True
    assert graph.quantised["convolutions"] > 0
    assert graph.quantised["measured"]["loss_db"] <= 0.1
    assert not list(folder.glob("*.plan"))
    kinds = {node.op_type for node in onnx.load(folder / "model.int8-cpu.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    recipe = load_recipe(folder / "model.int8-cpu.scales.json").recipe
    stored = {value.name: value for value in onnx.load(folder / "model.int8-cpu.onnx").graph.initializer}
    for name in set(recipe.formats) - {"conv_last"}:
        fold = 0.2 if name.endswith("conv5") else 1.0
        steps = onnx.numpy_helper.to_array(stored[f"{name}.weight_scale"])
        assert steps == pytest.approx(recipe.weights[name] * fold, rel=1e-6), "the steps that were fitted to"
    with Upscaler(folder / "model.int8-cpu.onnx") as up:
        assert up.upscale(np.full((20, 24, 3), 90, np.uint8)).shape == (80, 96, 3)


@pytest.fixture(scope="module")
def for_processors(tmp_path_factory, checkpoint, photographs):
    """A graph for processors that nothing was searched for."""
    folder = tmp_path_factory.mktemp("out") / "int8-cpu"
    export_model(checkpoint, folder, _options(photographs, "int8-cpu", search=False))
    return folder / "model.int8-cpu.onnx"


def test_the_graph_for_processors_has_its_mean_error_taken_out(for_processors, checkpoint, photographs):
    """It rounds outputs a little to one side; a whole picture would take on a tint.

    Tolerance: 0.02 levels on the pictures that it was calibrated on; left in, it is 0.045 there.
    """
    read = load_checkpoint(checkpoint)
    module, session, errors = read.module(), session_of(for_processors), []
    for lr in pictures_for(read.spec, QuantiseOptions(calibration=photographs)).fit[:16]:
        made = run(session, planar(lr))[0].clip(0, 1)
        errors.append((made - module(torch.from_numpy(planar(lr))).clamp(0, 1).numpy()).mean((0, 2, 3)))
    assert np.abs(np.mean(errors, axis=0)).max() * 255 < 0.02


def test_explaining_a_quantised_graph_compares_it_layer_by_layer(checkpoint, photographs, tmp_path):
    """A convolution that is not in the table may be the one that costs the parity."""
    from esrgan_deploy.export.quantisation import explain_quantised

    options = _options(photographs, method="max", search=False)
    manifest = export_model(checkpoint, tmp_path / "out", options)
    text = explain_quantised(tmp_path / "out", manifest.artefact("model.int8.onnx"), manifest)
    for name in ("conv_first", "body.0.rdb1.conv1", "conv_hr", "conv_last"):
        assert name in text
    assert " adds most for its output" in text


@pytest.fixture(scope="module")
def judges():
    """Held pictures of a net whose output is the truth, and of one that is far from it."""
    random = np.random.default_rng(0)
    truth = bicubic_downscale(random.integers(0, 256, (1, 128, 128, 3), np.uint8)[0], 2)[None]
    lr = bicubic_downscale(truth[0], 2)[None]
    exact = tensor_of(truth)
    return {"psnr": HeldLoss([(lr, truth)], [exact]), "gan": HeldLoss([(lr, truth)], [1 - exact])}


@pytest.mark.parametrize(
    ("net", "budget", "breached", "holds"),
    [
        ("psnr", None, {"loss": 0.11}, {"loss": 0.1, "worst": 20.0, "shift": 1.0}),
        ("psnr", None, {"fidelity": 44.4}, {"fidelity": 44.5}),
        ("psnr", 0.3, {"loss": 0.31}, {"loss": 0.3}),
        ("psnr", 50.0, {"fidelity": 49.9}, {"loss": 5.0, "fidelity": 50.0}),
        ("gan", None, {"fidelity": 44.4}, {"loss": 5.0, "fidelity": 44.5}),
        ("gan", None, {"worst": 35.9}, {"worst": 36.0}),
        ("gan", None, {"shift": 0.31}, {"shift": 0.3}),
        ("gan", 0.1, {"loss": 0.11}, {"worst": 20.0}),
    ],
)
def test_a_budget_is_of_the_truth_or_of_the_fp32_picture(judges, net, budget, breached, holds):
    """A GAN's net is far from the truth, and what it loses against that says nothing of what shows."""
    wanted = demand(QuantiseOptions(budget=budget), judges[net])
    good = Loss(psnr_y=30.0, loss=0.0, fidelity=60.0, worst=50.0, shift=0.0, noise=0.0)
    assert wanted.allows(dataclasses.replace(good, **holds))
    (phrase,) = wanted.breaches(dataclasses.replace(good, **breached))
    assert f"{next(iter(breached.values())):.1f}" in phrase


def test_a_budget_that_is_neither_is_refused():
    """Fifteen dB lost is a ruin, and kept one too."""
    with pytest.raises(ExportError, match="neither a loss of up to 10 dB"):
        QuantiseOptions(budget=15.0)


def test_an_fp8_graph_reads_the_remainders_of_its_recipe(checkpoint, photographs, tmp_path):
    """Without them the graph is not the one that was simulated, and its tail is far worse."""
    options = _options(photographs, "fp8", rounding="nearest", remainders=2, search=False)
    export_model(checkpoint, tmp_path / "out", options)
    graph = onnx.load(tmp_path / "out" / "model.fp8.onnx").graph
    kept = load_recipe(tmp_path / "out" / "model.fp8.scales.json").recipe
    assert {len(channels) for channels in kept.remainders.values()} == {2}
    # Eight channels, and two of them once more.
    read = [tensor.dims[1] for tensor in graph.initializer if len(tensor.dims) == 4]
    assert read.count(10) == len(kept.remainders) == 2


def test_every_flag_reaches_its_option(photographs):
    """A budget that is read and dropped is a budget that nobody holds."""
    from esrgan_deploy._command_line import read_options

    line = (
        "--precision fp8 --budget 0.3 --no-search --method mse --weights per-channel --rounding compensated"
    )
    line += f" --remainders 3 --parts all --no-equalise --calibration {photographs}"
    assert read_options(ExportOptions, line.split(), prog="", epilog="").quantise == QuantiseOptions(
        calibration=photographs,
        budget=0.3,
        search=False,
        method="mse",
        per_channel=True,
        rounding="compensated",
        remainders=3,
        parts="all",
        equalise=False,
    )
    assert read_options(ExportOptions, [], prog="", epilog="") == ExportOptions()


def test_the_bench_measures_the_graph_for_processors_as_it_runs(for_processors):
    """Rounding casts between its integer kernels would measure a graph that nobody runs."""
    from esrgan_deploy.benchmarks.measure._quality import _really_rounding

    with _really_rounding(for_processors) as (path, arithmetic):
        assert path == for_processors
        assert arithmetic.startswith("int8 as it runs")


def test_scales_of_another_denoise_strength_are_not_taken_up(compact_weights, photographs, tmp_path):
    """Steps and rewritten weights of one interpolation would be those of another net, verified and wrong."""
    paths = [tmp_path / "general.pth", tmp_path / "wdn.pth"]
    for seed, path in enumerate(paths):
        torch.save({"params": compact_weights(seed=seed)}, path)
    kept = []
    for strength in (0.5, 0.25):
        options = ExportOptions(
            precisions=("int8",),
            quantise=QuantiseOptions(calibration=photographs, search=False, rounding="nearest"),
            plan=False,
            build=SMALL,
            force=True,
            denoise_strength=strength,
            denoise_with=paths[1],
        )
        lines = []
        export_model(paths[0], tmp_path / "out", options, say=lines.append)
        assert any(line.startswith("calibrating int8") for line in lines)
        kept.append(load_recipe(tmp_path / "out" / "model.int8.scales.json").weights_sha256)
    assert kept[0] != kept[1]


def test_units_return_until_the_graph_holds_and_scales_are_of_what_was_written_last(
    photographs, rrdb_spec, tmp_path
):
    """Where half precision alone loses too much all rounds are spent, and scales were of no written graph."""
    torch.manual_seed(3)
    net = RRDBNet(rrdb_spec(features=8, blocks=4, growth=4))
    with torch.no_grad():
        net.conv_last.weight.mul_(20)
        # So far from 0 the numbers of half precision are far apart, and those of the simulation are not.
        net.conv_hr.bias.fill_(100.0)
        net.conv_last.weight[:, ::2] = -net.conv_last.weight[:, 1::2]
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    lines = []
    options = _options(photographs, rounding="nearest", equalise=False, budget=10.0)
    manifest = export_model(path, tmp_path / "out", options, say=lines.append)
    written = [line for line in lines if line.startswith("model.int8.onnx: ")]
    assert len(written) > 11, "the case needs all rounds"
    kept = load_recipe(tmp_path / "out" / "model.int8.scales.json")
    facts = manifest.artefact("model.int8.onnx").quantised
    counted = [int(line.split(":")[1].split()[0]) for line in written]
    assert counted == sorted(set(counted), reverse=True)
    assert counted[-1] == facts["convolutions"]
    assert any("; a unit more returns" in line for line in lines)
    assert len(kept.recipe.formats) == facts["convolutions"] == kept.facts["convolutions"]


def test_a_graph_for_processors_is_explained_too(checkpoint, tmp_path, capsys):
    """The command made everything, and then failed on the one graph whose last convolution has another shape."""
    from esrgan_deploy.export._cli import main

    command = [str(checkpoint), "-o", str(tmp_path / "out"), "--precision", "int8-cpu", "--explain"]
    quick = ["--no-search", "--no-plan", "--rounding", "nearest", "--shapes", "16x16"]
    assert main([*command, *quick]) in (0, None)
    shown = capsys.readouterr().out
    for name in ("conv_first", "body.0.rdb1.conv1", "conv_hr"):
        assert name in shown


def test_what_returns_to_half_precision_costs_nothing(exported, checkpoint, photographs, tmp_path):
    """With weights fitted to a net that is quantised whole, the search found no choice near to fp32."""
    folder, _, _ = exported
    options = _options(photographs, search=False, parts="dense")
    export_model(checkpoint, tmp_path / "out", options)
    (dense,) = _frontier(tmp_path / "out")
    (returned,) = [point for point in _frontier(folder) if point["convolutions"] == dense["convolutions"]]
    assert returned["share"] == dense["share"]
    # Not equal: the channels were balanced for more convolutions there.
    assert returned["to_fp32_db"] == pytest.approx(dense["to_fp32_db"], abs=1.5)


def _frontier(folder):
    data = json.loads((folder / "model.int8.scales.json").read_text(encoding="utf-8"))
    return data["facts"]["frontier"]
