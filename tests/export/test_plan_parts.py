"""Plans of a trunk and a tail beside that of their graph, built by TensorRT for RTX."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from esrgan_deploy._manifest import load_manifest
from esrgan_deploy.engines import BuildOptions, ShapeRange, declared_bytes_per_pixel, engine_from_onnx
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._plan_parts import LARGEST, USUAL
from esrgan_deploy.export.graphs import clone, cuts_of, save, trunk_of

pytestmark = pytest.mark.slow

SIDE = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, rrdb_spec, rrdb_weights):
    """Write the weights of an RRDBNet, of a specification's fields."""

    def make(**fields):
        path = tmp_path_factory.mktemp("net") / "net.pth"
        torch.save(rrdb_weights(rrdb_spec(**fields)), path)
        return path

    return make


def exported(path: Path, folder: Path, **options):
    export_model(path, folder, ExportOptions(plan=True, **options))
    return {one.file: one for one in load_manifest(folder / "model.json").artefacts}


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_trunk_and_tail_are_built_beside_the_plan(checkpoint, tmp_path, form):
    """The trunk for larger pictures than the whole, the tail for tiles, in the dtype that was asked for."""
    shapes = BuildOptions(shapes=ShapeRange.parse("1x16x16:2x32x32:3x40x48"))
    made = exported(checkpoint(), tmp_path / "out", form=form, build=shapes)
    whole, trunk, tail = (made[f"model.fp16{part}.plan"] for part in ("", ".trunk", ".tail"))
    assert trunk.shapes == ((1, 16, 16), (1, *USUAL), (1, *LARGEST[0]))
    assert tail.shapes == ((1, 16, 16), (1, 132, 132), (1, 132, 132))
    for part in (trunk, tail):
        assert (part.kind, part.built_from, part.form) == ("part", "model.fp16.onnx", form)
        assert (part.flavour, part.declared_bytes_per_pixel) == ("tensorrt_rtx", None)
        assert set(part.dtypes) == {"fp16"}
        assert (tmp_path / "out" / part.file).stat().st_size == part.size
    assert trunk.dtypes["fp16"] + tail.dtypes["fp16"] == whole.dtypes["fp16"]
    assert (trunk.reach, tail.reach) == (0, 2)


def test_a_plan_of_one_size_has_a_trunk_of_that_size(checkpoint, tmp_path):
    """Its tail goes over tiles all the same, which is what saves memory; its map has half the rows here."""
    build = BuildOptions(shapes=ShapeRange.parse("1x48x64"))
    made = exported(checkpoint(scale=2, unshuffle=2), tmp_path / "out", build=build)
    assert made["model.fp16.trunk.plan"].shapes == ((1, 48, 64),) * 3
    assert (
        made["model.fp16.trunk.plan"].declared_bytes_per_pixel
        < made["model.fp16.plan"].declared_bytes_per_pixel
    )
    assert made["model.fp16.tail.plan"].shapes == ((1, 24, 32), (1, 132, 132), (1, 132, 132))


def test_a_trunk_is_no_larger_than_memory_allows(checkpoint, tmp_path):
    """A plan that asks for more than there is would fail when it is loaded."""
    build = BuildOptions(shapes=ShapeRange.parse("1x16x16:1x32x32:1x40x48"), memory_limit=2**29)
    made = exported(checkpoint(), tmp_path / "out", build=build)
    assert made["model.fp16.trunk.plan"].shapes[2] == (1, *USUAL)


def test_a_compact_net_has_no_plans_of_parts(tmp_path, compact_weights):
    """Its tail takes the picture beside the map."""
    torch.save(compact_weights(blocks=10), tmp_path / "net.pth")
    made = exported(
        tmp_path / "net.pth", tmp_path / "out", build=BuildOptions(shapes=ShapeRange.parse("1x16x16"))
    )
    assert "model.fp16.tail.onnx" in made
    assert [name for name in made if name.endswith(".plan")] == ["model.fp16.plan"]


def test_an_fp32_plan_has_a_graph_of_its_own(checkpoint, tmp_path):
    """In the form for plans; the interchange graph keeps its enlargements, and both are held against PyTorch."""
    build = BuildOptions(shapes=ShapeRange.parse("1x16x16"))
    made = exported(checkpoint(), tmp_path / "out", precisions=("fp32",), build=build)
    for part in ("", ".trunk", ".tail"):
        assert made[f"model.fp32{part}.plan"].built_from == "model.fp32.onnx"
    assert made["model.onnx"].verified is made["model.fp32.onnx"].verified is True
    assert made["model.fp32.tail.onnx"].verified is True
    enlarging = {
        file: {node.op_type for node in ir.load(tmp_path / "out" / file).graph} & {"Resize", "ConvTranspose"}
        for file in ("model.onnx", "model.fp32.onnx", "model.fp32.tail.onnx")
    }
    assert enlarging == {
        "model.onnx": {"Resize"},
        "model.fp32.onnx": {"ConvTranspose"},
        "model.fp32.tail.onnx": {"ConvTranspose"},
    }


def declared(model, path: Path) -> float:
    """Return the bytes that the kernels of a static plan move, for each pixel."""
    save(model, path)
    build = BuildOptions(shapes=ShapeRange.fixed((1, SIDE, SIDE)))
    result = engine_from_onnx(path, path.with_suffix(".plan"), build, expect_precision="fp16")
    return declared_bytes_per_pixel(result.layers, SIDE**2)


def in_parts(path: Path, folder: Path) -> tuple[float, float, float]:
    """Return what whole, trunk and tail move: of a watched graph in the uint8 form, as it is exported."""
    out = folder / "out"
    manifest = export_model(path, out, ExportOptions(form="uint8", plan=False))
    whole, tail = (ir.load(out / f"model.fp16{part}.onnx") for part in ("", ".tail"))
    cut = cuts_of(ir.load(out / "model.onnx"), manifest.spec)
    graphs = {
        "whole": whole,
        "trunk": trunk_of(clone(whole), cut),
        "tail": ir.external_data.load_to_model(tail),
    }
    return tuple(declared(one, folder / f"{name}.onnx") for name, one in graphs.items())


def test_a_net_in_parts_moves_as_many_bytes(checkpoint, tmp_path):
    """What the cut costs is the map, written and read once, where fusing over it saved that."""
    whole, trunk, tail = in_parts(checkpoint(features=64, growth=32, blocks=1), tmp_path)
    assert trunk + tail <= 1.03 * whole


def test_the_anime_model_in_parts_moves_as_many_bytes(real_net, tmp_path):
    """The same of a net that many run."""
    whole, trunk, tail = in_parts(real_net("anime_6B"), tmp_path)
    assert trunk + tail <= 1.03 * whole
