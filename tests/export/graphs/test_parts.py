"""A graph is cut where it is narrow, what the parts are is read from it, and they compute what it does."""

import dataclasses
import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch

from esrgan_deploy import ModelSpec, Upscaler
from esrgan_deploy._manifest import load_manifest
from esrgan_deploy._spec import METADATA_KEY
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._cli import main
from esrgan_deploy.export._write_graphs import describe, write_parts
from esrgan_deploy.export.graphs import (
    Recipe,
    append,
    clone,
    cut_graph,
    cuts_of,
    fold_scales,
    nest_concats,
    quantise,
    save,
    to_precision,
    trace,
    weight_steps,
)
from esrgan_deploy.export.nets import empty_net, layers
from esrgan_deploy.export.proof import verify_parts
from esrgan_deploy.runtime.sessions import Block, PartsInfo

HUNDREDTH = 0.01 / 255


def compact(blocks: int) -> ModelSpec:
    return ModelSpec(
        architecture="srvggnetcompact", scale=4, in_channels=3, out_channels=3, features=8, blocks=blocks, growth=0,
        source_sha256="0" * 64,
    )  # fmt: skip


def traced(spec: ModelSpec) -> ir.Model:
    torch.manual_seed(3)
    net = empty_net(spec).to_empty(device="cpu")
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return trace(net.eval().requires_grad_(False), spec)


@pytest.fixture(scope="module")
def net(rrdb_spec):
    spec = rrdb_spec(blocks=3)
    return traced(spec), spec


def test_an_rrdbnet_is_cut_between_its_rrdbs(net):
    """Fifteen convolutions each, with the first and the last one of the trunk at its ends; two for the tail."""
    model, spec = net
    parts = cut_graph(model, cuts_of(model, spec))
    assert parts.blocks == (
        Block(16, ((-1, 1),)),
        Block(15, ((0, 1),)),
        # The long residual, of what the first one began with.
        Block(16, ((1, 1), (0, 1))),
    )
    assert (parts.reach, parts.scale, parts.channels, parts.step) == (2, 4, 8, 1)
    assert [value.name for value in parts.tail.graph.inputs] == ["features"]


def test_a_folded_picture_has_two_rows_for_one(rrdb_spec):
    """Of Real-ESRGAN's x2 net the trunk works on half the rows."""
    spec = rrdb_spec(scale=2, unshuffle=2)
    model = traced(spec)
    parts = cut_graph(model, cuts_of(model, spec))
    assert parts.blocks[0] == Block(16, ((-1, 2),))
    assert (parts.reach, parts.scale, parts.step) == (2, 4, 2)


def test_a_compact_net_keeps_the_picture_for_its_tail():
    """It is enlarged by repetition and added at the end, and is no use in the trunk."""
    spec = compact(20)
    model = traced(spec)
    parts = cut_graph(model, cuts_of(model, spec))
    assert [block.reach for block in parts.blocks] == [8, 8, 5]
    assert (parts.reach, parts.scale) == (1, 4)
    assert [value.name for value in parts.tail.graph.inputs] == ["features", "input"]


def test_what_cannot_be_cut_is_not(net):
    """Names that are not there, another architecture, a node that reads all of the picture."""
    model, spec = net
    cut = cuts_of(model, spec)
    other = clone(model)
    other.graph.initializers["body.1.rdb1.conv1.weight"].name = "nobody's"
    assert cuts_of(other, spec) is None
    assert cuts_of(model, ModelSpec.from_json({**spec.to_json(), "architecture": "onnx"})) is None
    wide = clone(model)
    wide.graph.outputs[0] = append(wide, "GlobalAveragePool", [wide.graph.outputs[0]], name="mean")
    assert cut_graph(wide, cut) is None


@pytest.fixture(scope="module")
def exports(tmp_path_factory, rrdb_spec):
    """Export a net of a specification, float or uint8, in two precisions."""
    made = {}

    def make(spec: ModelSpec, form: str):
        key = (spec, form)
        if key not in made:
            folder = tmp_path_factory.mktemp("parts")
            torch.manual_seed(5)
            net = empty_net(spec).to_empty(device="cpu")
            for parameter in net.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            torch.save(net.state_dict(), folder / "net.pth")
            options = ExportOptions(precisions=("fp32", "fp16"), form=form, plan=False)
            export_model(folder / "net.pth", folder / "out", options)
            made[key] = folder / "out"
        return made[key]

    return make


@pytest.mark.parametrize(("kind", "form"), [("x4", "float"), ("x2 folded", "uint8"), ("compact", "float")])
def test_parts_compute_what_the_graph_does(exports, rrdb_spec, noise_of, kind, form):
    """In the arithmetic of each precision, as the manifest says, and in strips of a picture of odd sizes."""
    spec = {"x4": rrdb_spec(), "x2 folded": rrdb_spec(scale=2, unshuffle=2), "compact": compact(10)}[kind]
    folder = exports(spec, form)
    parts = [one for one in load_manifest(folder / "model.json").artefacts if one.kind == "part"]
    graphs = {"model.onnx", "model.fp16.onnx", *(["model.fp32.onnx"] if form == "uint8" else [])}
    assert {one.built_from for one in parts} == graphs
    for one in parts:
        assert one.verified, one
        for figures in one.parity:
            assert figures["max_abs"] <= (HUNDREDTH if one.form == "float" else 1 / 255)
            assert figures["off_by_0"] >= 0.99999
    lr = noise_of(53, 37)
    for model in ("model.onnx", "model.fp32.onnx") if form == "uint8" else ("model.onnx",):
        # An odd number: of a folded picture one row fewer.
        with Upscaler(folder / model, tile=0) as whole, Upscaler(folder / model, strip=13) as strips:
            np.testing.assert_array_equal(whole.upscale(lr), strips.upscale(lr))


def test_a_quantised_trunk_passes_blocks_that_have_no_row_yet(net, noise_of, tmp_path):
    """A strip lower than the reach gives later blocks nothing, and what multiplies the trunk must bear that."""
    model, spec = net
    model = clone(model)
    nest_concats(model)
    fold_scales(model)
    cut, found = cuts_of(model, spec), [layer for layer in layers(spec) if layer.place == "body"]
    weights = {
        layer.name: model.graph.initializers[f"{layer.name}.weight"].const_value.numpy() for layer in found
    }
    groups = {layer.group for layer in found}
    recipe = Recipe(
        formats=dict.fromkeys(weights, "int8"),
        activations=dict.fromkeys(groups, 0.02),
        weights={
            layer.name: weight_steps(weights[layer.name] / layer.fold, layer, "int8", per_channel=True)
            for layer in found
        },
        multipliers={group: np.full(spec.features, 1.5, np.float32) for group in groups},
    )
    assert quantise(model, layers(spec), recipe).convolutions == len(found)
    model = to_precision(model, "fp16")
    describe(model, spec, precision="int8", form="float", outscale=spec.scale, size_multiple=1)
    save(model, tmp_path / "model.int8.onnx")
    write_parts(model, cut, tmp_path / "model.int8.onnx", form="float", watchdog=False)
    figures = verify_parts(tmp_path / "model.int8.onnx", "int8", {"noise": noise_of(40, 30)[None]})
    assert (figures["breaches"], figures["max_abs"]) == ([], 0.0)


def test_parts_share_the_weights_of_their_graph(exports, rrdb_spec):
    """A second copy of RealESRGAN_x4plus would be 67 MB for each precision."""
    folder = exports(rrdb_spec(), "float")
    for name in ("trunk", "tail"):
        model = ir.load(folder / f"model.{name}.onnx")
        large = [
            one.const_value for one in model.graph.initializers.values() if one.const_value.nbytes >= 256
        ]
        assert large
        assert all(isinstance(one, ir.ExternalTensor) and one.location == "model.onnx" for one in large)


@pytest.mark.parametrize("fault", ["a reach too short", "another weight", "another tail"])
def test_a_wrong_part_is_found(exports, rrdb_spec, noise_of, tmp_path, fault):
    """The proof of the parts must fail where they are not the graph's."""
    folder = tmp_path / "out"
    shutil.copytree(exports(rrdb_spec(), "float"), folder)
    pictures = {"noise": noise_of(40, 30)[None]}
    assert not verify_parts(folder / "model.onnx", "fp32", pictures)["breaches"]
    for name in ("trunk", "tail"):
        model = ir.external_data.load_to_model(ir.load(folder / f"model.{name}.onnx"))
        if fault == "a reach too short":
            known = json.loads(model.metadata_props[METADATA_KEY])
            known["blocks"][1]["reach"] //= 4
            model.metadata_props[METADATA_KEY] = PartsInfo.from_json(json.dumps(known)).to_json()
        weight = {"another weight": "body.1.rdb2.conv3.weight", "another tail": "conv_hr.weight"}.get(
            fault, ""
        )
        if weight in model.graph.initializers:
            value = model.graph.initializers[weight]
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.05), name=weight)
        save(model, folder / f"model.{name}.onnx")
    assert verify_parts(folder / "model.onnx", "fp32", pictures)["breaches"]


def test_an_export_whose_parts_are_wrong_is_not_verified(rrdb_weights, rrdb_spec, tmp_path, monkeypatch):
    """What the proof finds is in the manifest and in the exit status, or nobody would know."""
    torch.save(rrdb_weights(rrdb_spec()), tmp_path / "net.pth")

    def too_short(*graph):
        parts = cut_graph(*graph)
        return dataclasses.replace(parts, blocks=(parts.blocks[0], Block(2, parts.blocks[1].inputs)))

    monkeypatch.setattr("esrgan_deploy.export._write_graphs.cut_graph", too_short)
    status = main(
        [str(tmp_path / "net.pth"), "-o", str(tmp_path / "out"), "--precision", "fp32", "--no-plan"]
    )
    assert status == 1
    manifest = load_manifest(tmp_path / "out" / "model.json")
    assert manifest.artefact("model.onnx").verified is True
    assert manifest.artefact("model.trunk.onnx").verified is False
    assert manifest.artefact("model.tail.onnx").verified is False


@pytest.fixture(scope="module")
def noise_of():
    return lambda *size: np.random.default_rng(7).integers(0, 256, (*size, 3), np.uint8)
