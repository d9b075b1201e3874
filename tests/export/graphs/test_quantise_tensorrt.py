"""Explicit quantisation of a graph."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from esrgan_deploy._errors import CheckpointError, ExportError
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model, load_checkpoint, save_scales
from esrgan_deploy.export._scales import scales_beside, trained_recipe
from esrgan_deploy.export.graphs import (
    Recipe,
    apply_parameters_to_graph,
    clone,
    fold_scales,
    nest_concats,
    quantise,
    save,
    to_precision,
    trace,
    weight_steps,
)
from esrgan_deploy.export.nets import RRDBNet, layers, placement
from esrgan_deploy.export.proof import run, session_of
from esrgan_deploy.export.quantisation import Net, QuantiseOptions, Simulation, apply_parameters, rounded

STATIC = BuildOptions(shapes=ShapeRange.parse("1x16x16"))


@pytest.fixture(scope="module")
def traced(rrdb_spec, rrdb_weights):
    spec = rrdb_spec(features=16, growth=8, blocks=1)
    net = RRDBNet(spec).eval().requires_grad_(False)
    net.load_state_dict(rrdb_weights(spec))
    graph = trace(net, spec, opset=20)
    nest_concats(graph)
    fold_scales(graph)
    return spec, graph


def _scales(spec, step=0.02):
    return dict.fromkeys(placement(spec).values(), step)


def _recipe(spec, graph, precision, step=0.02):
    body = [layer for layer in layers(spec) if layer.place == "body"]
    weights = {layer.name: graph.graph.initializers[f"{layer.name}.weight"].const_value for layer in body}
    return Recipe(
        formats=dict.fromkeys(weights, precision),
        activations=_scales(spec, step),
        weights={
            layer.name: weight_steps(
                weights[layer.name].numpy() / layer.fold, layer, precision, per_channel=True
            )
            for layer in body
        },
    )


def _everything(net, spec, formats, *, per_channel=True, step=0.0625):
    """A recipe of every convolution; ``formats`` by place."""
    found = layers(spec)
    kinds = {layer.name: formats[layer.place] for layer in found}
    return Recipe(
        formats=kinds,
        activations=dict.fromkeys((layer.group for layer in found), step),
        weights={
            layer.name: weight_steps(
                net.get_submodule(layer.name).weight.numpy(),
                layer,
                kinds[layer.name],
                per_channel=per_channel,
            )
            for layer in found
        },
    )


def _nodes(graph, kind):
    return [node for node in graph.graph if node.op_type == kind]


@pytest.fixture(scope="module")
def module(traced, rrdb_weights):
    """Make the traced net, each call a new one."""
    spec, _ = traced

    def make():
        net = RRDBNet(spec).eval().requires_grad_(False)
        net.load_state_dict(rrdb_weights(spec))
        return net

    return make


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("base", ["fp32", "fp16"])
def test_each_feature_is_quantised_once_and_the_trunk_never(traced, tmp_path, precision, base):
    """A feature quantised for every concatenation is rounded again and again, and the trunk loses the picture."""
    spec, graph = traced
    graph = clone(graph)
    done = quantise(graph, layers(spec), _recipe(spec, graph, precision))
    assert (done.convolutions, done.of) == (15, 21)
    macs = {layer.name: layer.macs for layer in layers(spec)}
    assert done.share == pytest.approx(sum(macs[name] for name in placement(spec)) / sum(macs.values()))
    graph = to_precision(graph, base)
    # x and x1 to x4 of three dense blocks.
    assert len(_nodes(graph, "QuantizeLinear")) == 15
    assert len(_nodes(graph, "DequantizeLinear")) == 15 + 15
    quantised = [node for node in _nodes(graph, "Conv") if node.inputs[1].producer() is not None]
    assert len(quantised) == 15
    assert len(_nodes(graph, "Conv")) == 15 + 6
    for node in quantised:
        kind = node.inputs[0].producer().op_type
        assert kind in ("DequantizeLinear", "Concat"), "the input of a quantised convolution is quantised"
    save(graph, tmp_path / "q.onnx")


@pytest.mark.parametrize("formats", ["int8", "fp8", "mixed"])
def test_only_convolutions_read_what_was_rounded(traced, module, tmp_path, formats):
    """A residual sum, a resize or an activation of rounded values would round the trunk again and again."""
    spec, graph = traced
    graph = clone(graph)
    kinds = dict.fromkeys(("first", "body", "tail", "last"), formats)
    if formats == "mixed":
        kinds = {"first": "int8", "body": "fp8", "tail": "int8", "last": "int8"}
    done = quantise(graph, layers(spec), _everything(module(), spec, kinds))
    assert (done.convolutions, done.of, done.share) == (21, 21, 1.0)
    graph = to_precision(graph, "fp16")
    for back in _nodes(graph, "DequantizeLinear"):
        readers = [back]
        for node in readers:
            for user in node.outputs[0].consumers():
                assert user.op_type in ("Conv", "Concat")
                if user.op_type == "Concat":
                    readers.append(user)
    for node in _nodes(graph, "Conv"):
        name = node.inputs[1].name.removesuffix(".weight_dq")
        place = next(layer.place for layer in layers(spec) if layer.name == name)
        wanted = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}[kinds[place]]
        assert {pair.inputs[0].dtype for pair in _pairs_behind(node)} == {wanted}
    save(graph, tmp_path / "q.onnx")


def _pairs_behind(conv):
    producers = [value.producer() for value in conv.inputs[:2]]
    for node in producers:
        if node.op_type == "Concat":
            producers += [value.producer() for value in node.inputs]
    return [node for node in producers if node.op_type == "DequantizeLinear"]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_written_integers_are_those_of_the_simulation(traced, module, precision, per_channel):
    """What is searched and learned is the simulation: a graph of other integers would be another net."""
    spec, graph = traced
    net, graph = module(), clone(graph)
    recipe = _everything(
        net, spec, dict.fromkeys(("first", "body", "tail", "last"), precision), per_channel=per_channel
    )
    recipe = dataclasses.replace(recipe, parameters=_learned(net, recipe))
    apply_parameters(net, recipe)
    apply_parameters_to_graph(graph, layers(spec), recipe.parameters)
    quantise(graph, layers(spec), recipe)
    graph = to_precision(graph, "fp16")
    for layer in layers(spec):
        stored, step = _stored(graph, layer.name)
        assert step.dtype == np.float16
        assert step.shape == ((net.get_submodule(layer.name).out_channels,) if per_channel else ())
        steps = np.asarray(recipe.weights[layer.name])
        steps = torch.from_numpy(steps.reshape(-1, 1, 1, 1) if per_channel else steps)
        weight = net.get_submodule(layer.name).weight
        wanted = rounded(weight, steps, precision, weights=True) / steps
        np.testing.assert_array_equal(stored.astype(np.float32), np.rint(wanted.numpy() * 512) / 512)
        # The step itself, with the factor of the fifth convolutions.
        exact = recipe.weights[layer.name].astype(np.float64) * layer.fold
        np.testing.assert_allclose(step.astype(np.float64), exact, rtol=2e-7)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_graph_multiplies_the_trunk_as_the_simulation_does(traced, module, tmp_path, precision):
    """A factor that is missing, on a feature too, or left in the weights, is another net than the one searched."""
    spec, graph = traced
    net, graph, found = module(), clone(graph), layers(spec)
    random = np.random.default_rng(8)
    groups = {layer.group for layer in found if layer.place == "body"} | {"conv_body", "conv_up1"}
    multipliers = {
        group: np.exp(random.normal(0, 1, spec.features)).astype(np.float16).astype(np.float32)
        for group in sorted(groups)
    }
    plain = _everything(net, spec, dict.fromkeys(("first", "body", "tail", "last"), precision))
    recipe = dataclasses.replace(plain, multipliers=multipliers)
    assert quantise(graph, found, recipe).convolutions == len(found)
    muls = [node for node in _nodes(graph, "Mul") if node.inputs[1].const_value.size == spec.features]
    assert len(muls) == len(groups), "the trunk is multiplied once for each group, and features never"
    save(graph, tmp_path / "q.onnx")
    picture = np.random.default_rng(9).random((1, 3, 12, 16), np.float32)
    made = run(session_of(tmp_path / "q.onnx"), picture)[0]
    wanted, without = (
        Simulation(module(), found, one)(torch.from_numpy(picture)).numpy() for one in (recipe, plain)
    )
    apart = np.abs(without - wanted).mean()
    # A sum in another order may put a value on the other side of a step, and no more.
    assert np.abs(made - wanted).mean() < 0.1 * apart, (np.abs(made - wanted).mean(), apart)


def _learned(net, recipe):
    """Weights that were moved one step up or down, as learned rounding does, on every third place."""
    random, parameters = np.random.default_rng(3), {}
    for name, kind in recipe.formats.items():
        weight, steps = net.get_submodule(name).weight, torch.from_numpy(np.array(recipe.weights[name]))
        steps = steps.reshape(-1, 1, 1, 1) if steps.ndim else steps
        moved = torch.from_numpy(random.integers(-1, 2, weight.shape).astype(np.float32)) * steps
        parameters[f"{name}.weight"] = rounded(weight + moved, steps, kind, weights=True).numpy()
        parameters[f"{name}.bias"] = random.normal(size=weight.shape[0]).astype(np.float32)
    return parameters


def _stored(graph, name):
    found = graph.graph.initializers
    return (found[f"{name}.weight_{end}"].const_value.numpy() for end in ("q", "scale"))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_graph_computes_what_the_simulation_does(traced, module, precision):
    """Figures of the search are the simulation's; a graph that computed something else would not have them."""
    spec, graph = traced
    net, graph = module(), clone(graph)
    recipe = _everything(
        net, spec, dict.fromkeys(("first", "body", "tail", "last"), precision), step=0.0078125
    )
    if precision == "int8":
        recipe = dataclasses.replace(recipe, activations=dict.fromkeys(recipe.activations, 0.0625))
    recipe = dataclasses.replace(recipe, parameters=_learned(net, recipe))
    picture = np.random.default_rng(0).random((1, 3, 24, 20), np.float32)
    apply_parameters(net, recipe)
    exact = net(torch.from_numpy(picture)).numpy()
    apply_parameters_to_graph(graph, layers(spec), recipe.parameters)
    np.testing.assert_allclose(
        run(session_of(_bytes(graph)), picture)[0], exact, rtol=0, atol=1e-5 * np.abs(exact).max()
    )
    quantise(graph, layers(spec), recipe)
    simulation = Simulation(net, layers(spec), recipe)
    wanted = simulation(torch.from_numpy(picture)).numpy()
    made = run(session_of(_bytes(graph)), picture)[0]
    # Sums in another order now and then round an activation the other way, by a whole step.
    differences = np.abs(made - wanted)
    assert differences.mean() < 0.02 * np.abs(exact - wanted).mean()
    alone = recipe.only(["conv_first"])
    graph = clone(traced[1])
    apply_parameters_to_graph(graph, layers(spec), recipe.parameters)
    quantise(graph, layers(spec), alone)
    simulation.use(["conv_first"])
    wanted = simulation(torch.from_numpy(picture)).numpy()
    # Its input is the picture itself: nothing is left but fp32 rounding.
    made = run(session_of(_bytes(graph)), picture)[0]
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert np.abs(made - exact).max() > 1e-3 * np.abs(exact).max()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_graph_computes_the_rounding_of_its_definition(traced, precision):
    """Against numpy: inputs and weights rounded to the grid, the convolutions in float."""
    spec, graph = traced
    picture = np.random.default_rng(0).random((1, 3, 12, 9), np.float32)
    exact = run(session_of(_bytes(graph)), picture)[0]
    errors = {}
    for step in (0.05, 0.01):
        fine = clone(graph)
        quantise(fine, layers(spec), _recipe(spec, graph, precision, step))
        errors[step] = np.abs(run(session_of(_bytes(fine)), picture)[0] - exact).mean()
    assert errors[0.01] > 0
    if precision == "int8":
        assert errors[0.01] < errors[0.05], "a shorter step rounds less"
    fine = clone(graph)
    quantise(fine, layers(spec), _recipe(spec, graph, precision))
    for node in _nodes(fine, "DequantizeLinear"):
        stored = node.inputs[0].const_value
        if stored is None:
            continue
        name = node.inputs[0].name.removesuffix("_q")
        weight = graph.graph.initializers[name].const_value.numpy()
        largest = {"int8": 127, "fp8": 448}[precision]
        step = (np.abs(weight).max((1, 2, 3), keepdims=True) / largest).astype(np.float16).astype(np.float32)
        if precision == "int8":
            wanted = np.rint(weight / step).astype(np.int8)
        else:
            wanted = np.clip(weight / step, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        np.testing.assert_array_equal(stored.numpy(), wanted)
        assert np.abs(stored.numpy().astype(np.float32)).max() == largest


def _bytes(graph):
    return ir.to_proto(graph).SerializeToString()


def test_zero_points_are_signed_zeros(traced):
    """TensorRT takes an unsigned zero point for a signed one, and half of the range is lost in silence."""
    spec, graph = traced
    graph = clone(graph)
    quantise(graph, layers(spec), _recipe(spec, graph, "int8"))
    for node in [*_nodes(graph, "QuantizeLinear"), *_nodes(graph, "DequantizeLinear")]:
        zero = node.inputs[2].const_value
        assert zero.dtype == ir.DataType.INT8
        assert not zero.numpy().any()


def test_what_cannot_be_quantised_is_refused(traced, rrdb_spec):
    """A graph that was not quantised must not pass for one that was."""
    spec, graph = traced
    found, recipe = layers(spec), _recipe(spec, graph, "int8")

    def refused(match, graph=graph, found=found, **changes):
        before = _bytes(graph)
        with pytest.raises(ExportError, match=match):
            quantise(graph, found, dataclasses.replace(recipe, **changes))
        assert _bytes(graph) == before, "it is refused before it is changed"

    refused("quantises no convolution", formats={})
    scales = _scales(spec)
    del scales["body.0.rdb2"]
    refused(r"the scale of body\.0\.rdb2 is None; it is a number above 0", activations=scales)
    refused(r"the scale of body\.0\.rdb1 is nan", activations=dict.fromkeys(_scales(spec), np.nan))
    for step in (0.0, -0.02, np.inf):
        scales = _scales(spec) | {"body.0.rdb1": step}
        refused(rf"the scale of body\.0\.rdb1 is {step}; it is a number above 0", activations=scales)
    refused(r"no convolution body\.9\.rdb1\.conv1", formats=recipe.formats | {"body.9.rdb1.conv1": "int8"})
    larger = layers(rrdb_spec(features=16, growth=8, blocks=2))
    refused(
        r"no convolution with the weights body\.1\.rdb1\.conv1\.weight",
        found=larger,
        formats=recipe.formats | {"body.1.rdb1.conv1": "int8"},
    )
    refused("body.0.rdb1 is to be fp8 and int8", formats=recipe.formats | {"body.0.rdb1.conv2": "fp8"})
    refused("conv1 is to be int4; allowed: int8, fp8", formats={"body.0.rdb1.conv1": "int4"})
    refused(r"the weight steps of body\.0\.rdb1\.conv1 are None", weights={})
    wrong = recipe.weights | {"body.0.rdb1.conv1": np.ones(3, np.float32)}
    refused(r"conv1 are \(3,\); they are numbers above 0, one or 8", weights=wrong)
    for steps in (np.zeros(8, np.float32), np.float32([*[0.01] * 7, 0]), np.float32([*[0.01] * 7, -1])):
        wrong = recipe.weights | {"body.0.rdb1.conv1": steps}
        refused(r"conv1 are \(8,\); they are numbers above 0, one or 8", weights=wrong)
    refused("a graph is quantised in fp32 and made fp16 after", to_precision(graph, "fp16"))
    old = clone(graph)
    old.graph.opset_imports[""] = 18
    refused("opset 18 cannot quantise halves", old)
    old.graph.opset_imports[""] = 19
    assert quantise(old, found, recipe).convolutions == 15


def test_a_factor_that_is_not_folded_is_refused(traced, module):
    """The steps of the fifth convolutions would be five times too short, and the weights cut off at them."""
    spec, folded = traced
    graph = trace(module(), spec, opset=20)
    with pytest.raises(ExportError, match=r"the factor 0\.2 behind body\.0\.rdb1\.conv5 is not folded"):
        quantise(graph, layers(spec), _recipe(spec, folded, "int8"))


def test_parameters_that_the_graph_lacks_are_refused(traced):
    """Put nowhere, they would leave a net whose ranges and weights do not belong together."""
    spec, graph = traced
    with pytest.raises(ExportError, match=r"no parameter conv_first\.slope, which the recipe changes"):
        apply_parameters_to_graph(graph, layers(spec), {"conv_first.slope": np.ones(1, np.float32)})
    with pytest.raises(ExportError, match=r"conv_first\.bias is FLOAT \(16,\) .* float32 \(3,\)"):
        apply_parameters_to_graph(graph, layers(spec), {"conv_first.bias": np.ones(3, np.float32)})
    with pytest.raises(ExportError, match=r"conv_first\.bias is FLOAT16 \(16,\)"):
        apply_parameters_to_graph(
            to_precision(graph, "fp16"), layers(spec), {"conv_first.bias": np.ones(16, np.float32)}
        )


@pytest.fixture
def checkpoint(traced, tmp_path, rrdb_weights):
    spec, _ = traced
    path = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in rrdb_weights(spec).items()}, path)
    return spec, path


def test_scales_of_another_precision_or_of_other_weights_are_refused(checkpoint):
    """They would clip or waste the range, and nothing would say so."""
    spec, path = checkpoint

    def read(precision):
        found = load_checkpoint(path)
        return trained_recipe(path, Net(module=found.module(), spec=found.spec), precision)

    assert read("int8") is None
    save_scales(path, "int8", _scales(spec))
    assert read("int8").recipe.activations == _scales(spec)
    with pytest.raises(CheckpointError, match="holds scales for int8; fp8 was asked for"):
        read("fp8")
    written = scales_beside(path).read_text()
    # As it was written before there was one format of scales.
    old = {"precision": "int8", "weights_sha256": "0" * 64, "activations": _scales(spec)}
    for damaged in ("{", json.dumps(old), written.replace('"body.0.rdb1": 0.02', '"body.0.rdb1": -1.0')):
        scales_beside(path).write_text(damaged)
        with pytest.raises(
            ExportError, match=r"model\.scales\.json cannot be used .*Remove it, and calibrate again"
        ):
            read("int8")
    scales_beside(path).write_text(written)
    weights = {name: value.clone() for name, value in load_file(path).items()}
    weights["conv_last.bias"] += 1
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        read("int8")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantised_export_builds_a_plan_whose_convolutions_are_quantised(checkpoint, tmp_path, precision):
    """The builder reports what it chose; fp16 in disguise would be slower than asked and no one would know."""
    spec, path = checkpoint
    # Random weights make large activations: a step that holds them all.
    save_scales(path, precision, _scales(spec, {"int8": 0.1, "fp8": 0.03}[precision]))
    manifest = export_model(
        path, tmp_path / "out", ExportOptions(precisions=(precision,), plan=True, build=STATIC)
    )
    graph, plan = (
        next(a for a in manifest.artefacts if a.file == f"model.{precision}.{kind}")
        for kind in ("onnx", "plan")
    )
    assert graph.precision == plan.precision == precision
    assert plan.dtypes[precision] == 15
    assert {entry["on"] for entry in graph.parity} == {"noise", "golden"}
    assert all(entry["finite"] for entry in graph.parity)


@pytest.mark.slow
def test_an_export_without_scales_is_calibrated_on_drawn_pictures_and_says_so(checkpoint, tmp_path):
    """Never on random numbers, and never without a word: photographs calibrate better."""
    _, path = checkpoint
    lines = []
    quick = QuantiseOptions(search=False, rounding="nearest")
    options = ExportOptions(precisions=("int8",), plan=False, build=STATIC, quantise=quick)
    manifest = export_model(path, tmp_path / "out", options, say=lines.append)
    assert any("drawn pictures stand in" in line for line in lines)
    assert "drawn by this package" in manifest.artefact("model.int8.onnx").quantised["pictures"]


def test_the_dense_blocks_are_placed_and_the_body_of_a_compact_net_without_its_ends(rrdb_spec):
    """The first and the last convolution carry the picture itself."""
    groups = placement(rrdb_spec(blocks=2))
    assert len(groups) == 30
    assert groups["body.1.rdb3.conv5"] == "body.1.rdb3"
    compact = dataclasses.replace(rrdb_spec(), architecture="srvggnetcompact", blocks=3, growth=0)
    assert list(placement(compact)) == ["body.2", "body.4", "body.6"]
    with pytest.raises(ExportError, match="swinir cannot be quantised"):
        placement(dataclasses.replace(compact, architecture="swinir"))


@pytest.mark.slow
def test_scales_that_a_training_left_serve_the_second_export_as_they_served_the_first(checkpoint, tmp_path):
    """The first export's own file hid them, and the net was calibrated on drawn pictures instead."""
    spec, path = checkpoint
    save_scales(path, "int8", _scales(spec, 0.1))
    options = ExportOptions(precisions=("int8",), plan=False, build=STATIC, force=True)
    first, second = (export_model(path, tmp_path / "out", options) for _ in range(2))
    asked = [manifest.artefact("model.int8.onnx").quantised["asked"] for manifest in (first, second)]
    assert asked == [{"format": "int8", "training": True}] * 2
    assert second.artefact("model.int8.onnx").sha256 == first.artefact("model.int8.onnx").sha256
