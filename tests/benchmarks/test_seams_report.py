"""What `esrgan-bench --seams` measures, says and keeps."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esrgan_deploy._manifest import Artefact, Manifest, save_manifest
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.benchmarks._options import BenchOptions
from esrgan_deploy.benchmarks.report import run_seams, seams_table
from esrgan_deploy.runtime.tiling._choice import load_tiling


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A graph of one 5x5 convolution x1 with the manifest beside it."""
    return write(tmp_path, ("n", "h", "w"))


def write(folder: Path, size: tuple[Any, Any, Any]) -> Path:
    import onnx

    weight = np.random.default_rng(0).normal(0, 0.2, (3, 3, 5, 5)).astype(np.float32)
    picture = "float[{},3,{},{}]".format(*size)
    graph = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]>
        net ({picture} input) => ({picture} output) {{ output = Conv<pads = [2, 2, 2, 2]>(input, w) }}""")
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = folder / "model.onnx"
    onnx.save(graph, path)
    spec = ModelSpec(
        architecture="onnx", scale=1, in_channels=3, out_channels=3, features=0, blocks=0, growth=0, source_sha256=""
    )  # fmt: skip
    artefact = Artefact.from_file(path, kind="onnx")
    save_manifest(Manifest(spec=spec, source="a.onnx", artefacts=(artefact,)), folder / "model.json")
    return path


def test_the_curve_is_measured_chosen_from_kept_and_printed(model):
    """A figure that is printed and not kept has to be measured again by everyone."""
    seams = run_seams(model, BenchOptions())
    assert seams["choice"]["halo"] == 2
    assert seams["kept"] == "model.json"
    kept = load_tiling(model)
    assert kept is not None
    assert kept.to_json() == seams["curve"]
    # It lies in the results' JSON, and is printed from there.
    text = seams_table(json.loads(json.dumps(seams)))
    line = next(line for line in text.splitlines() if line.endswith("<- under half a level from here on"))
    assert line.split()[0] == "2"
    assert "halo 2, where seams were measured" in text
    assert text.endswith("kept in the manifest: model.json")


def test_the_rim_of_one_colour_is_measured_with_and_without_its_edge_repeated(model):
    """A halo that hides the seams may leave a rim, and nobody would know how wide it has to be."""
    seams = run_seams(model, BenchOptions())
    assert seams["rim"]["zero"] > 20
    assert seams["rim"]["repeat"] < 0.01
    line = next(line for line in seams_table(seams).splitlines() if line.startswith("edge: "))
    assert f"by {seams['rim']['zero']:.1f} with zeros" in line
    assert "the halo of 2" in line


def test_nothing_is_kept_where_it_has_no_place(model, tmp_path):
    """A measurement must not end in an error because a model was given without its manifest."""
    (tmp_path / "bare").mkdir()
    bare = Path(shutil.copy(model, tmp_path / "bare" / "model.onnx"))
    assert "no manifest" in run_seams(bare, BenchOptions())["kept"]


def test_a_net_of_one_size_is_left_out_with_the_reason(tmp_path):
    """It takes nothing untiled to compare with; the other artefacts of the run still have theirs."""
    seams = run_seams(write(tmp_path, (1, 64, 48)), BenchOptions())
    assert "takes 48x64 to 48x64 pixels" in seams["skipped"]
    assert "not measured" in seams_table(seams)


@pytest.mark.slow
def test_strips_are_held_against_the_picture_in_one_piece(tiny_export, wrong_parts, tmp_path):
    """None is what the right parts differ by, and what nobody who measured nothing would say of wrong ones."""
    right = run_seams(Path(shutil.copytree(tiny_export, tmp_path / "right")) / "model.onnx", BenchOptions())
    assert right["strips"]["largest"] <= 0.01
    assert right["strips"]["samples"] <= 1e-5
    assert "as large pictures go: 0.0000 levels at most, 0.0000% of" in seams_table(right)
    wrong = run_seams(wrong_parts, BenchOptions())["strips"]
    assert wrong["largest"] > 1
    assert wrong["samples"] > 0
