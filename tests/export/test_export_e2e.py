"""The main job, on real checkpoints, real ONNX Runtime and real TensorRT for RTX builds."""

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from esrgan_deploy._errors import EngineBuildError, ExportError, ParityError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._manifest import load_manifest
from esrgan_deploy._spec import METADATA_KEY
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._cli import main
from esrgan_deploy.export.nets import RRDBNet

STATIC = BuildOptions(shapes=ShapeRange.parse("1x16x16"))


@pytest.fixture(scope="module")
def small_spec(rrdb_spec):
    return rrdb_spec(features=16, growth=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, small_spec):
    """A small RRDB with random weights of a size that gives a picture-like range."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save({"params_ema": RRDBNet(small_spec).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Everything that an export makes, in both precisions."""
    folder = tmp_path_factory.mktemp("out") / "made"
    options = ExportOptions(
        precisions=("fp16", "bf16"),
        plan=True,
        build=BuildOptions(shapes=ShapeRange.parse("1x8x8:1x32x24:3x40x33")),
    )
    return folder, export_model(checkpoint, folder, options)


@pytest.mark.slow
def test_every_artefact_is_listed_verified_and_as_it_was_written(exported):
    """The manifest is the proof: one that speaks of other files, or leaves one out, proves nothing."""
    folder, manifest = exported
    names = {path.name for path in folder.iterdir()} - {"model.json"}
    assert names == {artefact.file for artefact in manifest.artefacts}
    assert names == {
        "model.golden.npz",
        *(f"model{part}.onnx" for part in ("", ".trunk", ".tail")),
        *(
            f"model.{precision}{part}.{kind}"
            for precision in ("fp16", "bf16")
            for part in ("", ".trunk", ".tail")
            for kind in ("onnx", "plan")
        ),
    }
    for artefact in manifest.artefacts:
        assert artefact.sha256 == sha256_of(folder / artefact.file)
        if artefact.file.endswith(".onnx"):
            assert artefact.verified is True
        if artefact.kind == "onnx":
            assert {figures["on"].split(" ")[0] for figures in artefact.parity} >= {"noise", "golden"}
        elif not artefact.file.endswith(".onnx"):
            assert artefact.verified is None
    assert load_manifest(folder / "model.json") == manifest


def test_dynamic_shapes_are_proven_at_one_pixel_odd_sizes_batches_and_the_corners(exported):
    """A size that was baked in while tracing would only show at another size."""
    _, manifest = exported
    shapes = next(f for f in manifest.artefact("model.onnx").parity if f["on"].startswith("shapes"))
    tried = set(shapes["on"].split(" ")[1:])
    assert {"1x1x1", "1x17x9", "3x5x11", "1x8x8", "3x40x33", "3x8x33", "1x40x8", "1x32x24"} <= tried
    assert shapes["finite"]
    assert shapes["breaches"] == []


def test_the_plans_convolutions_have_the_dtype_that_was_asked_for(exported):
    """TensorRT would build fp32 convolutions from a graph that was not converted, and say nothing."""
    _, manifest = exported
    for precision in ("fp16", "bf16"):
        plan = manifest.artefact(f"model.{precision}.plan")
        assert plan.dtypes == {precision: 36}
        assert plan.shapes == ((1, 8, 8), (1, 32, 24), (3, 40, 33))
        assert plan.flavour == "tensorrt_rtx"


def test_the_golden_pairs_are_pytorchs_own(exported, checkpoint):
    """They stand for PyTorch where it is not installed."""
    folder, _ = exported
    from esrgan_deploy.export.checkpoints import load_checkpoint

    module = load_checkpoint(checkpoint).module()
    with np.load(folder / "model.golden.npz", allow_pickle=False) as golden:
        names = {name.split(".")[0] for name in golden.files}
        assert len(names) == 4
        for name in names:
            lr = golden[f"{name}.input"]
            assert lr.dtype == np.uint8
            planar = torch.from_numpy(lr.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
            np.testing.assert_allclose(golden[f"{name}.output"], module(planar).numpy(), atol=1e-6)


def test_the_written_graph_carries_its_facts_and_no_path(exported):
    """Without the manifest the graph alone must say what it is; and it must not tell where it was made."""
    folder, manifest = exported
    graph = onnx.load(folder / "model.fp16.onnx")
    facts = json.loads({p.key: p.value for p in graph.metadata_props}[METADATA_KEY])
    assert facts["precision"] == "fp16"
    assert facts["spec"]["source_sha256"] == manifest.spec.source_sha256
    assert [value.name for value in graph.graph.input] == ["input"]
    assert [value.name for value in graph.graph.output] == ["output", "health"]
    assert not any(node.doc_string or node.metadata_props for node in graph.graph.node)


def test_nothing_is_overwritten_without_force(exported, checkpoint):
    """An hour of building would be gone for a forgotten -o."""
    folder, _ = exported
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ExportError, match=r"already holds model\.onnx.*--force"):
        export_model(checkpoint, folder, ExportOptions(plan=False, build=STATIC))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_failed_build_leaves_nothing_and_what_was_there_stays(checkpoint, tmp_path):
    """A half-written folder would look like a finished one."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"precious")
    (folder / "notes.txt").write_text("mine")
    options = ExportOptions(plan=True, force=True, build=BuildOptions(shapes=ShapeRange.parse("4x4096x4096")))
    with pytest.raises(EngineBuildError, match="tensor of"):
        export_model(checkpoint, folder, options)
    assert (folder / "model.onnx").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "notes.txt"]


def test_force_replaces_and_takes_stale_artefacts_away(exported, checkpoint, tmp_path):
    """A plan of the model before would lie beside a manifest that does not know it."""
    folder = tmp_path / "again"
    export_model(checkpoint, folder, ExportOptions(precisions=("bf16",), plan=False, build=STATIC))
    (folder / "notes.txt").write_text("mine")
    export_model(
        checkpoint, folder, ExportOptions(precisions=("fp32",), plan=False, force=True, build=STATIC)
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.golden.npz",
        "model.json",
        "model.onnx",
        "model.tail.onnx",
        "model.trunk.onnx",
        "notes.txt",
    ]


def test_an_exported_graph_can_be_exported_again_in_the_uint8_form(exported, tmp_path):
    """An .onnx is accepted as input; ours must come out the same net."""
    folder, first = exported
    again = export_model(
        folder / "model.onnx",
        tmp_path / "out",
        ExportOptions(form="uint8", outscale=2, plan=False, build=STATIC),
    )
    assert again.spec.architecture == "rrdbnet"
    assert again.spec.flops_per_pixel == first.spec.flops_per_pixel
    made = again.artefact("model.fp16.onnx")
    assert (made.form, made.outscale, made.verified) == ("uint8", 2.0, True)
    graph = onnx.load(tmp_path / "out" / "model.fp16.onnx")
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert graph.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def _export_quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(*arguments, **options)


def test_a_foreign_graph_is_measured(tmp_path):
    """Of a third party's .onnx nothing is known but what running it shows."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2)).eval()
    path = tmp_path / "theirs.onnx"
    _export_quietly(
        net,
        (torch.zeros(1, 3, 8, 8),),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: "n", 2: "h", 3: "w"},),
    )
    manifest = export_model(path, tmp_path / "out", ExportOptions(plan=False, build=STATIC))
    assert (manifest.spec.architecture, manifest.spec.scale, manifest.spec.in_channels) == ("onnx", 2, 3)
    assert all(a.verified for a in manifest.artefacts if a.kind == "onnx")


@pytest.mark.slow
def test_a_breach_is_exit_1_with_the_figures_and_marked_artefacts(small_spec, tmp_path, monkeypatch, capsys):
    """fp16 overflows on these weights: the picture would be black, and nobody would have said so."""
    torch.manual_seed(1)
    net = RRDBNet(small_spec)
    with torch.no_grad():
        # Features of 1e5 that the last convolution brings back: harmless in fp32, infinity in fp16.
        net.conv_first.weight *= 1e3
        net.conv_up1.weight *= 30
        net.conv_up2.weight *= 30
        net.conv_last.weight *= 1e-6
    torch.save(net.state_dict(), tmp_path / "loud.pth")
    monkeypatch.chdir(tmp_path)
    assert main(["loud.pth", "-o", "out", "--no-plan", "--shapes", "16x16"]) == 1
    said = capsys.readouterr()
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("esrgan-export: not verified: model.fp16.onnx on noise")
    assert "NaN or an infinity" in last
    assert "warning: activations of conv_up2 reach" in said.err
    assert "BREACH" in said.out
    manifest = load_manifest(tmp_path / "out" / "model.json")
    assert manifest.artefact("model.fp16.onnx").verified is False
    assert manifest.artefact("model.onnx").verified is True


@pytest.mark.slow
def test_a_checkpoint_that_puts_out_nan_is_refused(small_spec, tmp_path):
    """Every comparison with a NaN is false, so nothing would ever breach."""
    net = RRDBNet(small_spec)
    with torch.no_grad():
        net.conv_last.weight.fill_(3e38)
        net.conv_last.bias.fill_(3e38)
    torch.save(net.state_dict(), tmp_path / "broken.pth")
    with pytest.raises(ParityError, match="NaN or an infinity"):
        options = ExportOptions(precisions=("fp32",), plan=False, build=STATIC)
        export_model(tmp_path / "broken.pth", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_verified_images_are_judged_as_well(checkpoint, tmp_path):
    """--images adds the user's own pictures to the proof, unreadable ones left out."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"not a picture")
    (folder / "c.txt").write_text("nor this")
    manifest = export_model(
        checkpoint, tmp_path / "out", ExportOptions(plan=False, images=folder, build=STATIC)
    )
    figures = [f for f in manifest.artefact("model.fp16.onnx").parity if f["on"] == "images"]
    assert [f["pictures"] for f in figures] == [1]


@pytest.mark.parametrize("name", ["out", "file"])
def test_an_output_that_cannot_be_written_is_one_line(checkpoint, tmp_path, capsys, name):
    """A traceback after two minutes would be all that is left of the work."""
    target = tmp_path / name
    target.write_text("in the way")
    inner = target if name == "out" else target / "deeper"
    assert main([str(checkpoint), "-o", str(inner), "--no-plan"]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("esrgan-export: ")
    assert target.read_text() == "in the way"


@pytest.mark.slow
def test_the_official_anime_model_ends_verified_with_a_plan(assets: Path, tmp_path):
    """The first of the issue's own demands, on the official file."""
    manifest = export_model(
        assets / "models" / "realesr-animevideov3.pth",
        tmp_path / "out",
        ExportOptions(plan=True, build=BuildOptions(shapes=ShapeRange.parse("1x16x16:1x64x64:1x96x96"))),
    )
    assert (manifest.spec.architecture, manifest.spec.blocks) == ("srvggnetcompact", 16)
    assert manifest.artefact("model.fp16.onnx").verified is True
    assert manifest.artefact("model.fp16.plan").dtypes == {"fp16": 18}


def test_a_session_of_the_runtime_is_verified_as_the_graphs_are(exported):
    """It is how a plan is held against PyTorch where there is a GPU: shown on ONNX Runtime's session."""
    from esrgan_deploy.runtime import open_session
    from esrgan_deploy.runtime.sessions import verify_session

    folder, _ = exported
    with np.load(folder / "model.golden.npz", allow_pickle=False) as golden:
        names = sorted({name.split(".")[0] for name in golden.files})
        pairs = {name: (golden[f"{name}.input"], golden[f"{name}.output"]) for name in names}
    session = open_session(folder / "model.onnx")
    (good,), left_out = verify_session(session, {"golden": pairs})
    assert (good.pictures, left_out) == (4, 0)
    assert good.max_abs < 1e-5
    wrong = {name: (lr, hr + np.float32(0.1)) for name, (lr, hr) in pairs.items()}
    (bad,), _ = verify_session(session, {"golden": wrong})
    assert bad.max_abs == pytest.approx(0.1, abs=1e-3)
    session.close()


def test_a_range_that_cannot_work_is_refused_before_the_proof(checkpoint, tmp_path):
    """Minutes of verification would be thrown away for a number that was known at the start."""
    said = []
    options = ExportOptions(
        plan=True, build=BuildOptions(shapes=ShapeRange.parse("1x64x64"), memory_limit=1000)
    )
    with pytest.raises(EngineBuildError, match="activations"):
        export_model(checkpoint, tmp_path / "out", options, say=said.append)
    assert not [line for line in said if "verifying" in line]


def test_a_graph_is_not_said_to_be_held_against_pytorch(exported, tmp_path):
    """A graph handed in is compared with itself in ONNX Runtime: called PyTorch, the proof would be false."""
    said = []
    options = ExportOptions(precisions=("fp32",), plan=False, build=STATIC)
    manifest = export_model(exported[0] / "model.onnx", tmp_path / "out", options, say=said.append)
    assert not [line for line in said if "PyTorch" in line]
    assert manifest.artefact("model.golden.npz").note == "outputs of the graph as it came, in ONNX Runtime"
    with pytest.raises(ExportError, match="keeps it; leave --opset 18 away"):
        export_model(exported[0] / "model.onnx", tmp_path / "other", ExportOptions(opset=18, plan=False))


def test_a_broken_outscale_tells_what_sizes_it_takes(exported, tmp_path):
    """x1.5 of a x4 net makes 3 pixels of 8: an odd side would lose its last row, in silence."""
    options = ExportOptions(outscale=1.5, plan=False, build=STATIC)
    manifest = export_model(exported[0] / "model.onnx", tmp_path / "out", options)
    for name in ("model.onnx", "model.fp16.onnx"):
        artefact = manifest.artefact(name)
        assert (artefact.outscale, artefact.size_multiple, artefact.verified) == (1.5, 2, True)
    odd = ExportOptions(outscale=1.5, plan=False, build=BuildOptions(shapes=ShapeRange.parse("1x15x16")))
    with pytest.raises(EngineBuildError, match="multiples of 2"):
        export_model(exported[0] / "model.onnx", tmp_path / "odd", odd)


def test_a_shape_that_costs_minutes_is_left_out_and_said_so(exported):
    """Left out without a word, the report would claim a corner that nobody ran."""
    from esrgan_deploy.export.proof import verify_shapes

    def reference(batch):
        return np.kron(batch[:, :3], np.ones((1, 1, 4, 4), np.float32))

    comparison, left_out = verify_shapes(
        exported[0] / "model.onnx",
        reference,
        [(1, 16, 16), (4, 512, 512)],
        channels=3,
        multiple=1,
        flops_per_pixel=10**6,
    )
    assert left_out == ["4x512x512 was not run here: 1.0 TFLOP"]
    assert "1x16x16" in comparison.on
    assert "512" not in comparison.on
    # The net is not a nearest-neighbour one: a comparison that looked at nothing would call them equal.
    assert comparison.max_abs > 0.01


def test_explain_lists_the_kernels_of_the_graph_that_is_built(exported, tmp_path, capsys):
    """Of the fp32 graph, or of none, the bytes would be those of another plan."""
    asked = ["--no-plan", "--shapes", "16x16", "--explain", "32x48"]
    assert main([str(exported[0] / "model.onnx"), "-o", str(tmp_path / "out"), *asked]) == 0
    said = capsys.readouterr().out
    assert "model.fp16.onnx at 1x32x48, tensorrt_rtx" in said
    assert "convolutions: 36 in fp16" in said
    assert "declared traffic:" in said


@pytest.mark.slow
def test_a_plan_of_one_size_has_a_golden_picture_of_that_size(rrdb_spec, rrdb_weights, tmp_path):
    """Without one, verify=True could say nothing about it on the machine that runs it."""
    spec = rrdb_spec(features=8, growth=4, blocks=1)
    torch.save(rrdb_weights(spec), tmp_path / "net.pth")
    build = BuildOptions(shapes=ShapeRange.parse("2x64x48"))
    export_model(tmp_path / "net.pth", tmp_path / "out", ExportOptions(plan=True, build=build))
    with np.load(tmp_path / "out" / "model.golden.npz") as golden:
        assert golden["fitted.input"].shape == (2, 64, 48, 3)
        assert golden["fitted.output"].shape == (2, 3, 256, 192)
        assert not np.array_equal(golden["fitted.input"][0], golden["fitted.input"][1])
    several = BuildOptions(shapes=ShapeRange.parse("1x16x16:1x32x32:1x48x48"))
    export_model(tmp_path / "net.pth", tmp_path / "open", ExportOptions(plan=False, build=several))
    with np.load(tmp_path / "open" / "model.golden.npz") as golden:
        assert "fitted.input" not in golden
