"""The convolution at fault is named, and a sound graph is not blamed."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export._forms import to_uint8_form
from esrgan_deploy.export._graph import clone, save
from esrgan_deploy.export._precision import to_precision
from esrgan_deploy.export._qdq import quantise
from esrgan_deploy.export._rewrite import fold_scales, nest_concats
from esrgan_deploy.export._rrdbnet import RRDBNet
from esrgan_deploy.export._trace import trace
from esrgan_deploy.export.quantisation._explain import explain_errors
from esrgan_deploy.export.quantisation._explain_noise import Rounding, explained_power
from esrgan_deploy.export.quantisation._recipe import Recipe, weight_steps
from esrgan_deploy.export.quantisation._structure import layers

LARGEST = {"int8": 127.0, "fp8": 448.0}


@pytest.fixture(scope="module")
def net(rrdb_spec, rrdb_weights):
    """A tiny net: its fp32 graph, its layers, and a sound recipe of every convolution for a format."""
    spec = rrdb_spec(blocks=1)
    module = RRDBNet(spec).eval().requires_grad_(False)
    module.load_state_dict(rrdb_weights(spec))
    graph = trace(module, spec, opset=20)
    nest_concats(graph)
    fold_scales(graph)
    found, seen = layers(spec), {}
    for layer in found:
        module.get_submodule(layer.name).register_forward_pre_hook(
            lambda _, x, group=layer.group: seen.__setitem__(
                group, max(seen.get(group, 0.0), float(x[0].abs().max()))
            )
        )
    for picture in _pictures():
        module(torch.from_numpy(picture.transpose(0, 3, 1, 2).astype(np.float32) / 255))

    def recipe(kind, *, per_channel=True):
        return Recipe(
            formats={layer.name: kind for layer in found},
            activations={group: float(np.float16(1.01 * top / LARGEST[kind])) for group, top in seen.items()},
            weights={
                layer.name: weight_steps(
                    module.get_submodule(layer.name).weight.numpy(), layer, kind, per_channel=per_channel
                )
                for layer in found
            },
        )

    return graph, found, recipe


def _pictures():
    rng = np.random.default_rng(1)
    smooth = np.linspace(0, 255, 20)[:, None, None] * np.linspace(0.2, 1, 24)[None, :, None] * [1, 0.8, 0.5]
    return [smooth[None].astype(np.uint8), rng.integers(0, 256, (1, 20, 24, 3), np.uint8)]


def _written(net, recipe, path, *, form="float", change=lambda graph: None):
    graph, found, _ = net
    made = clone(graph)
    quantise(made, found, recipe)
    change(made)
    made = to_precision(made, "fp16")
    if form == "uint8":
        to_uint8_form(made)
    save(made, path)
    return path


@pytest.mark.parametrize(
    ("kind", "per_channel", "form"),
    [("int8", True, "float"), ("int8", False, "uint8"), ("fp8", False, "float")],
)
def test_a_sound_graph_is_not_blamed(net, tmp_path, kind, per_channel, form):
    """Blame at every graph would send its reader after faults that are not there."""
    path = _written(net, net[2](kind, per_channel=per_channel), tmp_path / "q.onnx", form=form)
    said = explain_errors(net[0], path, _pictures())
    assert said.first is None, said.table()
    assert "no convolution errs by more than 4 times what rounding explains" in said.sentence
    assert [layer.name for layer in said.layers] == [layer.name for layer in net[1]]
    for layer in said.layers:
        assert layer.kind == kind
        # And it is an explanation: not so loose that nothing could exceed it.
        assert 0.02 < layer.times < 4, said.table()
        # The ranges are those of the net that was not rounded.
        assert layer.beyond < 1e-3
        assert layer.cut == 0
        assert 0 < layer.local < 0.1 * layer.signal
    # What went before is in the total, and the first convolution has nothing before it but the picture.
    assert said.layers[0].total == pytest.approx(said.layers[0].local, rel=0.1)
    assert said.layers[-1].total > said.layers[-1].local
    worst = max(said.layers, key=lambda layer: layer.local / layer.signal)
    assert worst.name in said.sentence


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_scale_ten_times_too_small_is_named(net, tmp_path, kind):
    """It clips the values that carry the picture, and the output alone does not tell where."""
    recipe = net[2](kind)
    group = "body.0.rdb2"
    planted = recipe.activations | {group: float(np.float16(recipe.activations[group] / 10))}
    path = _written(net, dataclasses.replace(recipe, activations=planted), tmp_path / "q.onnx")
    said = explain_errors(net[0], path, _pictures())
    assert said.first is not None
    assert said.first.name == f"{group}.conv1", said.table()
    assert (
        said.first.tensor == net[0].graph.initializers[f"{group}.conv1.weight"].consumers()[0].outputs[0].name
    )
    assert said.first.beyond > 0.05
    assert "of its input lies beyond the range" in said.sentence
    assert "its step is too short" in said.sentence
    assert f"{group}.conv1 " in said.table()
    # The layers before it are sound, and those of other groups behind it are not blamed for what they were handed.
    for layer in said.layers:
        if not layer.name.startswith(group):
            assert layer.times < 4, said.table()


def test_weights_that_were_cut_off_are_named(net, tmp_path):
    """Steps for the weights of another net saturate them."""
    recipe = net[2]("int8")
    short = recipe.weights | {"conv_up1": (recipe.weights["conv_up1"] / 8).astype(np.float32)}
    path = _written(net, dataclasses.replace(recipe, weights=short), tmp_path / "q.onnx")
    said = explain_errors(net[0], path, _pictures())
    assert said.first is not None
    assert said.first.name == "conv_up1"
    assert said.first.cut > 0.5
    assert "of its weights are cut off" in said.sentence


def test_a_pair_whose_scales_differ_is_named(net, tmp_path):
    """Nothing is clipped then, and every value is wrong."""

    def change(graph):
        pair = next(
            node for node in graph.graph if node.op_type == "DequantizeLinear" and "conv_hr" in node.name
        )
        longer = ir.Value(
            name="longer",
            type=pair.inputs[1].type,
            shape=ir.Shape([]),
            const_value=ir.tensor(pair.inputs[1].const_value.numpy() * np.float32(2), name="longer"),
        )
        graph.graph.register_initializer(longer)
        pair.replace_input_with(1, longer)

    path = _written(net, net[2]("int8").only(["conv_hr", "conv_body"]), tmp_path / "q.onnx", change=change)
    said = explain_errors(net[0], path, _pictures())
    assert said.first is not None
    assert said.first.name == "conv_hr", said.table()
    assert "the steps it quantises and dequantises with differ" in said.sentence
    assert {layer.kind for layer in said.layers} == {"int8", "fp16"}


def test_an_fp16_convolution_that_overflows_is_named(net, tmp_path):
    """What stays in floating point can be at fault as well."""
    graph, found, recipe = net
    loud = clone(graph)
    for name, factor in (("conv_body.weight", 300), ("conv_up1.weight", 3e4)):
        value = loud.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
    path = _written((loud, found, recipe), recipe("int8").only(["conv_first"]), tmp_path / "q.onnx")
    said = explain_errors(loud, path, _pictures())
    assert said.first is not None
    assert said.first.name == "conv_up1", said.table()
    assert "its output is not finite" in said.sentence


def test_another_net_is_refused(net, rrdb_spec, tmp_path):
    """Layer by layer it would be compared with what it never was."""
    spec = rrdb_spec(blocks=2)
    path = _written(net, net[2]("int8"), tmp_path / "q.onnx")
    other = trace(RRDBNet(spec).eval().requires_grad_(False), spec, opset=20)
    with pytest.raises(
        ExportError, match="has 21 convolutions that are not those of the fp32 graph, which has 36"
    ):
        explain_errors(other, path, _pictures())
    with pytest.raises(ExportError, match="there is no picture"):
        explain_errors(net[0], path, [])


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_power_of_rounding_is_that_of_rounding(kind):
    """Against a convolution that was really rounded, of independent values: no bound there, but the figure."""
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(1, 16, 40, 40)), random.normal(size=(24, 16, 1, 1))
    step = 4.5 / LARGEST[kind]
    rounding = Rounding(kind=kind, step=step, ends=(-LARGEST[kind] * step, LARGEST[kind] * step), half=False)
    spacing = Rounding.spacing_of(x, step, kind)
    stored = np.rint(x / spacing) * spacing
    # The grid is the format's own.
    if kind == "fp8":
        wanted = torch.from_numpy(x / step).to(torch.float8_e4m3fn).double().numpy() * step
        np.testing.assert_allclose(stored, wanted, rtol=1e-12, atol=1e-12)

    def conv(values):
        return np.einsum("oi,nihw->nohw", weights[:, :, 0, 0], values)

    measured = np.square(conv(stored) - conv(x)).mean()
    made = explained_power(x, conv(x), weights, weights, 1.0, dataclasses.replace(rounding, kind=kind))
    assert made == pytest.approx(measured, rel=0.1)
