"""The second output is there, says what it should, and changes nothing else."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from esrgan_deploy._manifest import load_manifest
from esrgan_deploy._spec import METADATA_KEY
from esrgan_deploy.engines import BuildOptions, ShapeRange, declared_bytes_per_pixel, engine_from_onnx
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._cli import main
from esrgan_deploy.export._scales import recipe_of_scales
from esrgan_deploy.export.graphs import (
    clone,
    fold_scales,
    nest_concats,
    quantise,
    resize_output,
    resize_ratio,
    rounding_model,
    save,
    to_bytes,
    to_precision,
    to_uint8_form,
    trace,
    watch,
)
from esrgan_deploy.export.nets import QUANTISED, RRDBNet, layers, placement
from esrgan_deploy.export.proof import run, session_of
from esrgan_deploy.runtime import open_session
from esrgan_deploy.runtime.sessions import judge

FORMS = ("float", "uint8")
STATIC = BuildOptions(shapes=ShapeRange.parse("1x16x16"))


@pytest.fixture(scope="module")
def small(rrdb_spec):
    return rrdb_spec(features=16, growth=8, blocks=1)


@pytest.fixture(scope="module")
def traced(small):
    """Make the fp32 graph of a small net, with an opset of choice."""
    torch.manual_seed(1)
    module = RRDBNet(small).eval().requires_grad_(False)

    def make(opset=20):
        graph = trace(module, small, opset=opset)
        nest_concats(graph)
        fold_scales(graph)
        return graph

    return make


@pytest.fixture(scope="module")
def net(traced):
    return traced()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, small):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save({"params_ema": RRDBNet(small).state_dict()}, path)
    return path


def _built(net, spec, precision, form, *, watched):
    graph = clone(net)
    if precision in QUANTISED:
        scales = dict.fromkeys(placement(spec).values(), 0.02)
        torch.manual_seed(1)
        module = RRDBNet(spec)
        quantise(graph, layers(spec), recipe_of_scales(module, layers(spec), precision, scales))
    graph = to_precision(graph, precision)
    if watched:
        watch(graph)
    if form == "uint8":
        to_uint8_form(graph)
    return graph


def _batch(form, precision="fp32", shape=(3, 9, 14)):
    levels = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    levels[1] //= 2
    if form == "uint8":
        return levels
    planar = (levels / np.float32(255)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(
        planar.astype(np.float16 if precision in ("fp16", *QUANTISED) else np.float32)
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_picture_is_bit_equal_with_and_without(net, small, precision, form):
    """Were it not, the figures in the manifest would be those of another graph than before."""
    outputs = []
    for watched in (False, True):
        graph = _built(net, small, precision, form, watched=watched)
        if precision != "fp32":
            graph = rounding_model(graph, precision)
        outputs.append(run(session_of(to_bytes(graph)), _batch(form, precision)))
    (plain,), (picture, health) = outputs
    np.testing.assert_array_equal(picture, plain)
    assert health.shape == (3, 3)
    assert health.dtype == np.float32
    np.testing.assert_allclose(health[:, 2], [1, 0.5, 1], atol=0.02)
    if form == "float":
        np.testing.assert_allclose(health[:, 0], picture.astype(np.float64).mean((1, 2, 3)), rtol=2e-3)


def test_the_uint8_form_clips_in_half_precision_and_loses_nothing(net):
    """0 and 1 are exact in fp16; a clip that rounded what lies between would show in the levels."""
    half = to_precision(net, "fp16")
    exact = run(session_of(to_bytes(rounding_model(half, "fp16"))), _batch("float", "fp16"))[0]
    to_uint8_form(half)
    got = run(session_of(to_bytes(rounding_model(half, "fp16"))), _batch("uint8"))[0]
    expected = np.rint(np.clip(exact.astype(np.float32), 0, 1) * np.float32(255)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_overflow_fp16_are_seen_and_those_of_fp32_are_not(net, small, form):
    """The same weights are sound in fp32: the figure must come from the arithmetic and not from the picture."""
    loud = clone(net)
    for name, factor in {"conv_first": 1e3, "conv_up1": 30, "conv_up2": 30, "conv_last": 1e-6}.items():
        value = loud.graph.initializers[f"{name}.weight"]
        array = value.const_value.numpy() * np.float32(factor)
        value.const_value = ir.tensor(array, name=value.name)
    finite = {}
    for precision in ("fp32", "bf16", "fp16"):
        graph = _built(loud, small, precision, form, watched=True)
        if precision != "fp32":
            # ONNX Runtime alone would compute an fp16 graph in fp32 from end to end.
            graph = rounding_model(graph, precision)
        health = run(session_of(to_bytes(graph)), _batch(form, precision))[1]
        finite[precision] = bool(np.isfinite(health[:, 0]).all())
    assert finite == {"fp32": True, "bf16": True, "fp16": False}


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 18, 23])
def test_it_is_valid_in_every_opset(traced, small, tmp_path, opset):
    """Before opset 18 the axes of a reduction are an attribute, and from then on an input."""
    graph = traced(opset)
    for form in FORMS:
        for precision in ("fp16", "bf16"):
            save(_built(graph, small, precision, form, watched=True), tmp_path / f"{precision}.onnx")
        assert run(session_of(tmp_path / "fp16.onnx"), _batch(form, "fp16"))[1].shape == (3, 3)


def test_it_watches_what_is_written_and_not_what_the_net_made_of_it(net, tmp_path):
    """A picture that is resized after the figures were taken can still be broken by it."""
    graph = clone(net)
    resize_output(graph, resize_ratio(4, 3))
    watch(graph)
    picture, health = run(session_of(to_bytes(graph)), _batch("float", shape=(3, 8, 12)))
    assert picture.shape == (3, 3, 24, 36)
    np.testing.assert_allclose(health[:, 0], picture.mean((1, 2, 3)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_plans_are_built_with_it_and_move_little_more(net, small, tmp_path, precision, form):
    """Reduced over C, H and W at once, TensorRT reads the output three times and copies it to fp32 between."""
    moved, kernels = [], []
    for watched in (False, True):
        path = tmp_path / f"{watched}.onnx"
        save(_built(net, small, precision, form, watched=watched), path)
        options = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.fixed((2, 48, 64)))
        built = engine_from_onnx(path, path.with_suffix(".plan"), options)
        moved.append(declared_bytes_per_pixel(built.layers, 2 * 48 * 64))
        kernels.append(len(built.layers))
    written = [(t.name, t.dims, t.dtype) for layer in built.layers for t in layer.outputs]
    assert [(dims[:2], dtype) for name, dims, dtype in written if name == "health"] == [((2, 3), "fp32")]
    # Once the output, 96 bytes, and its rows.
    assert moved[1] - moved[0] < 120
    assert kernels[1] - kernels[0] <= 8


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_with_dynamic_shapes_is_built_with_it(net, small, tmp_path, form):
    """The number of rows is not known then, and nor is the batch."""
    path = tmp_path / "x.onnx"
    save(_built(net, small, "fp16", form, watched=True), path)
    options = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.parse("1x8x8:1x32x24:3x40x33"))
    assert engine_from_onnx(path, tmp_path / "x.plan", options).dtypes == {"fp16": 21}


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The float form, without plans."""
    folder = tmp_path_factory.mktemp("watched") / "out"
    return folder, export_model(
        checkpoint, folder, ExportOptions(precisions=("fp16", "fp32"), plan=False, build=STATIC)
    )


def _said(folder):
    """What each graph of an export says about itself, held against what it has."""
    said = {}
    for path in folder.glob("*.onnx"):
        if path.stem.endswith((".trunk", ".tail")):
            continue
        graph = onnx.load(path)
        facts = json.loads({p.key: p.value for p in graph.metadata_props}[METADATA_KEY])
        session = open_session(path)
        assert session.info.watched is facts["watched"]
        session.close()
        assert [v.name for v in graph.graph.output] == ["output", "health"][: 1 + facts["watched"]]
        said[path.name] = facts["watched"]
    return said


def _watched(manifest):
    return {artefact.file for artefact in manifest.artefacts if artefact.watched}


def test_an_export_is_watched_and_says_so(exported):
    """The runtime and the reader of a manifest ask before they rely on it."""
    folder, manifest = exported
    assert load_manifest(folder / "model.json") == manifest
    # The fp32 graph in the float form is the interchange graph, which others read.
    assert _said(folder) == {"model.onnx": False, "model.fp16.onnx": True}
    assert _watched(manifest) == {"model.fp16.onnx"}
    assert manifest.artefact("model.fp16.onnx").verified is True


@pytest.mark.slow
def test_an_export_in_the_uint8_form_is_watched_with_its_plan(exported, tmp_path):
    """There a NaN is black, and nothing else tells."""
    folder = tmp_path / "out"
    options = ExportOptions(precisions=("fp32",), form="uint8", plan=True, build=STATIC)
    manifest = export_model(exported[0] / "model.onnx", folder, options)
    assert _said(folder) == {"model.onnx": False, "model.fp32.onnx": True}
    assert _watched(manifest) == {"model.fp32.onnx", "model.fp32.plan"}
    session = open_session(folder / "model.fp32.onnx")
    slot = session.slot()
    slot.prepare((2, 8, 8))[:] = 0
    slot.start()
    assert judge(slot.finish(), session.info, 2) is None
    session.close()


@pytest.mark.slow
def test_it_can_be_left_away_and_the_figures_stay(checkpoint, exported, tmp_path):
    """For a server that takes a graph with one output only."""
    folder = tmp_path / "out"
    arguments = [str(checkpoint), "-o", str(folder), "--no-plan", "--shapes", "16x16", "--no-watchdog"]
    assert main(arguments) == 0
    without = load_manifest(folder / "model.json")
    assert _said(folder) == {"model.onnx": False, "model.fp16.onnx": False}
    assert _watched(without) == set()
    parity = exported[1].artefact("model.fp16.onnx").parity
    assert parity == without.artefact("model.fp16.onnx").parity
