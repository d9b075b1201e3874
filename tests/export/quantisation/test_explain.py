"""Layer by layer: the convolution at fault is named, and those behind it are not blamed."""

import dataclasses
import functools

import numpy as np
import onnx_ir as ir
import pytest
import torch

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.graphs import (
    Recipe,
    add_remainders,
    clone,
    fold_scales,
    form_for_plans,
    nest_concats,
    quantise,
    save,
    to_precision,
    to_uint8_form,
    trace,
    weight_steps,
)
from esrgan_deploy.export.nets import RRDBNet, layers
from esrgan_deploy.export.quantisation._explain import errors_table, layer_errors

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


def _features(net):
    return net[0].graph.initializers["conv_body.weight"].const_value.shape[0]


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
def test_every_convolution_adds_what_rounding_adds(net, tmp_path, kind, per_channel, form):
    """Errors that are not there would send their reader after faults that are not there."""
    path = _written(net, net[2](kind, per_channel=per_channel), tmp_path / "q.onnx", form=form)
    found = layer_errors(net[0], path, kind, _pictures())
    assert [layer.name for layer in found] == [layer.name for layer in net[1]]
    for layer in found:
        assert layer.kind == kind
        assert -80 < layer.own < -20, errors_table(found)
    # What went before is in the total, and the first convolution has nothing before it but the picture.
    assert found[0].total == pytest.approx(found[0].own, abs=0.5)
    assert found[-1].total > found[-1].own
    worst = max(found, key=lambda layer: layer.own)
    assert f"{worst.name} adds most for its output" in errors_table(found)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_forms_for_plans_and_multiplied_trunks_are_no_errors(net, tmp_path, kind):
    """A convolution that is doubled, transposed or reads a multiplied map computes what the fp32 one does."""
    recipe = net[2](kind)
    kept = [
        layer
        for layer in net[1]
        if layer.place in ("first", "last") or layer.enlarges or "rdb3" in layer.name
    ]
    names = [layer.name for layer in net[1] if layer not in kept]
    factors = np.array([0.25, 4.0] * 8, np.float32)[: _features(net)]
    groups = {layer.group for layer in net[1] if layer.place == "body" and layer not in kept}
    many = dataclasses.replace(recipe.only(names), multipliers=dict.fromkeys(groups, factors))
    change = functools.partial(form_for_plans, precision="fp16")
    found = layer_errors(net[0], _written(net, many, tmp_path / "q.onnx", change=change), kind, _pictures())
    assert [layer.name for layer in found] == [layer.name for layer in net[1]]
    own = {layer.name: layer.own for layer in found}
    assert max(own[layer.name] for layer in kept) < -55, errors_table(found)
    # Spread four times and more apart, the coarse channels err, and no more than that.
    assert max(own[name] for name in names) < -5, errors_table(found)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_scale_ten_times_too_small_is_named(net, tmp_path, kind):
    """It clips the values that carry the picture, and the output alone does not tell where."""
    recipe = net[2](kind)
    group = "body.0.rdb2"
    planted = recipe.activations | {group: float(np.float16(recipe.activations[group] / 10))}
    sound, cut = (
        layer_errors(net[0], _written(net, one, tmp_path / "q.onnx"), kind, _pictures())
        for one in (recipe, dataclasses.replace(recipe, activations=planted))
    )
    assert max(cut, key=lambda layer: layer.own).name.startswith(group), errors_table(cut)
    # Those of other groups behind it are not blamed for what they were handed.
    for before, after in zip(sound, cut, strict=True):
        if not after.name.startswith(group):
            assert after.own == pytest.approx(before.own, abs=3), errors_table(cut)


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
    found = layer_errors(net[0], path, "int8", _pictures())
    assert max(found, key=lambda layer: layer.own).name == "conv_hr", errors_table(found)
    assert {layer.kind for layer in found} == {"int8", "fp16"}


def test_channels_that_are_read_twice_err_less(net, tmp_path):
    """The channels behind the others would be taken for another net's, or their gain be missed."""
    graph, found, recipe = net
    twice = dataclasses.replace(recipe("fp8"), remainders={"conv_hr": (0, 1, 2, 3, 4, 5, 6, 7)})
    once, more = (
        {layer.name: layer.own for layer in layer_errors(graph, path, "fp8", _pictures())}
        for path in (
            _written(net, recipe("fp8"), tmp_path / "once.onnx"),
            _written(net, twice, tmp_path / "twice.onnx", change=lambda it: add_remainders(it, found, twice)),
        )
    )
    assert more["conv_hr"] < once["conv_hr"] - 1
    assert more["conv_up1"] == pytest.approx(once["conv_up1"], abs=0.1)


def test_an_output_that_is_not_finite_is_named(net, tmp_path):
    """What stays in floating point can be at fault as well."""
    graph, found, recipe = net
    loud = clone(graph)
    for name, factor in (("conv_body.weight", 300), ("conv_up1.weight", 3e4)):
        value = loud.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
    path = _written((loud, found, recipe), recipe("int8").only(["conv_first"]), tmp_path / "q.onnx")
    said = layer_errors(loud, path, "int8", _pictures())
    first = next(layer for layer in said if layer.total == np.inf)
    assert first.name == "conv_up2", "the one that reads what conv_up1 gave in half precision"


@pytest.mark.slow
def test_another_net_is_refused(net, rrdb_spec, tmp_path):
    """Layer by layer it would be compared with what it never was."""
    spec = rrdb_spec(blocks=2)
    path = _written(net, net[2]("int8"), tmp_path / "q.onnx")
    other = trace(RRDBNet(spec).eval().requires_grad_(False), spec, opset=20)
    with pytest.raises(
        ExportError, match="has 21 convolutions that are not those of the fp32 graph, which has 36"
    ):
        layer_errors(other, path, "int8", _pictures())
