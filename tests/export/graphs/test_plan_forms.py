"""The forms for plans compute what the graph did, and touch nothing else."""

import dataclasses
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from esrgan_deploy.engines import BuildOptions, ShapeRange, declared_bytes_per_pixel, engine_from_onnx
from esrgan_deploy.export.graphs import (
    Recipe,
    clone,
    cut_graph,
    cuts_of,
    fold_scales,
    form_for_plans,
    nest_concats,
    quantise,
    rounding_model,
    save,
    to_bytes,
    to_precision,
    trace,
    weight_steps,
)
from esrgan_deploy.export.nets import empty_net, layers
from esrgan_deploy.export.proof import run, session_of

SIZES = ((1, 1, 1), (2, 1, 3), (1, 7, 5), (3, 4, 9))
REPEATED = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
PADDED = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}


def constant(name, array):
    return ir.Value(name=name, const_value=ir.tensor(np.asarray(array, np.float32), name=name))


def node(op, inputs, attributes=None):
    return ir.node(op, inputs, attributes or {})


def model_of(nodes, weights, *, channels=5, outputs=None):
    """Make a graph of nodes that begin with the value ``input`` of `source`."""
    outputs = outputs or [nodes[-1].outputs[0]]
    for number, value in enumerate(outputs):
        value.name, value.type = f"output_{number}", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [nodes[0].inputs[0]], outputs, nodes=nodes, initializers=weights, opset_imports={"": 20}, name="net"
    )
    return ir.Model(graph, ir_version=10)


def source(channels=5):
    return ir.Value(
        name="input", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", channels, "h", "w"])
    )


def ops(model):
    return Counter(one.op_type for one in model.graph)


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def enlarging(
    resize=None, conv=None, *, scales=(1, 1, 2, 2), kernel=3, group=1, again=False, bias=True, given=7
):
    """Return a convolution behind an enlargement, as a graph with all that may differ from the pattern."""
    random, x = np.random.default_rng(0), source()
    weights = [
        constant("scales", scales),
        constant("up.weight", random.normal(size=(given, 5 // group, kernel, kernel))),
        constant("up.bias", random.normal(size=given)),
    ]
    larger = node("Resize", [x, None, weights[0]], REPEATED | (resize or {}))
    how = PADDED | {"group": group, "kernel_shape": [kernel] * 2} | (conv or {})
    made = node("Conv", [larger.outputs[0], *weights[1 : 3 if bias else 2]], how)
    bent = node("LeakyRelu", [made.outputs[0]], {"alpha": 0.2})
    nodes, outputs = [larger, made, bent], [bent.outputs[0]]
    if again:
        nodes.append(node("Neg", [larger.outputs[0]]))
        outputs.append(nodes[-1].outputs[0])
    return model_of(nodes, weights if bias else weights[:2], outputs=outputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "resize",
    [{}, {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}],
    ids=["PyTorch's", "ONNX's default"],
)
def test_a_convolution_behind_an_enlargement_runs_on_the_small_map(resize, bias):
    """A kernel that is turned, shifted or summed in another way is wrong at the border or everywhere."""
    model = enlarging(resize, bias=bias)
    planned = clone(model)
    assert form_for_plans(planned, "fp32").transposed == 1
    assert ops(planned) == {"ConvTranspose": 1, "LeakyRelu": 1}
    before, after = session_of(to_bytes(model)), session_of(to_bytes(planned))
    for n, height, width in SIZES:
        batch = noise(n, 5, height, width)
        np.testing.assert_allclose(run(after, batch)[0], run(before, batch)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "other",
    [
        {"resize": {"mode": "linear"}},
        {"resize": {"nearest_mode": "ceil"}},
        {"resize": {"axes": [2, 3, 0, 1]}},
        {"scales": (1, 1, 3, 3)},
        {"scales": (1, 1, 2, 1)},
        {"kernel": 5, "conv": {"pads": [2, 2, 2, 2]}},
        {"conv": {"pads": [0, 0, 0, 0]}},
        {"conv": {"dilations": [2, 2], "pads": [2, 2, 2, 2]}},
        {"conv": {"strides": [2, 2]}},
        {"group": 5, "given": 10},
        {"again": True},
    ],
    ids=lambda other: " ".join(map(str, other)),
)
def test_what_is_not_that_pattern_stays(other):
    """Each of these computes something else, or would have its enlarged map made twice."""
    model = enlarging(**other)
    before = ops(model)
    assert form_for_plans(model, "fp32").transposed == 0
    assert ops(model) == before


def test_an_enlargement_of_a_size_that_is_given_later_stays():
    """What it enlarges by is not known."""
    model = enlarging()
    larger = next(iter(model.graph))
    larger.inputs[2].const_value = None
    del model.graph.initializers["scales"]
    model.graph.inputs.append(larger.inputs[2])
    assert form_for_plans(model, "fp32").transposed == 0


def bent(slopes, *, shared=False):
    """Return two convolutions with a PReLU between them."""
    random, x, width = np.random.default_rng(0), source(), len(slopes)
    weights = [
        constant("a.weight", random.normal(size=(width, 5, 3, 3))),
        constant("a.bias", random.normal(size=width)),
        constant("slope", np.reshape(slopes, (width, 1, 1))),
        constant("b.weight", random.normal(size=(3, width, 3, 3))),
    ]
    first = node("Conv", [x, *weights[:2]], PADDED)
    prelu = node("PRelu", [first.outputs[0], weights[2]])
    last = node("Conv", [prelu.outputs[0], weights[3]], PADDED)
    nodes, outputs = [first, prelu, last], [last.outputs[0]]
    if shared:
        nodes.append(node("Neg", [prelu.outputs[0]]))
        outputs.append(nodes[-1].outputs[0])
    return model_of(nodes, weights, outputs=outputs)


def test_prelu_is_a_maximum_whatever_its_slopes():
    """For a slope above 1 the maximum is the wrong one of the two, unless the channel's sign is changed around it."""
    model = bent([0.3, -1.4, 1.0, 0.0, 1.7, 2.5])
    planned = clone(model)
    assert form_for_plans(planned, "fp32").maxima == 1
    assert ops(planned) == {"Conv": 2, "Mul": 1, "Max": 1}
    batch = noise(2, 5, 6, 7)
    wanted, made = (run(session_of(to_bytes(one)), batch)[0] for one in (model, planned))
    np.testing.assert_array_equal(made, wanted)


def test_prelu_that_two_read_is_a_maximum_only_without_a_change_of_signs():
    """The other reader would see the channel turned over."""
    steep, gentle = bent([0.3, 1.7], shared=True), bent([0.3, -1.7], shared=True)
    before = to_bytes(steep)
    assert form_for_plans(steep, "fp32").maxima == 0
    assert to_bytes(steep) == before
    assert form_for_plans(gentle, "fp32").maxima == 1


@pytest.fixture(scope="module")
def net(rrdb_spec, rrdb_weights):
    """Trace an RRDBNet and return its interchange graph with its specification and module."""
    spec = rrdb_spec()
    module = empty_net(spec)
    module.load_state_dict(rrdb_weights(spec), assign=True)
    model = trace(module.eval().requires_grad_(False), spec)
    nest_concats(model)
    fold_scales(model)
    return model, spec, module


def test_an_rrdbnet_takes_all_forms_once(net):
    """Two enlargements, and the end of each block; a second time nothing is left to do."""
    model, spec, _ = net
    planned = clone(model)
    found = form_for_plans(planned, "fp32")
    assert (found.transposed, found.maxima, found.halved) == (2, 0, spec.blocks)
    assert set(vars(form_for_plans(planned, "fp32")).values()) == {0}
    batch = noise(1, 3, 9, 5)
    wanted, made = (run(session_of(to_bytes(one)), batch)[0] for one in (model, planned))
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_halves_change_no_bit_in_half_precision(net, precision):
    """Twice a number and half of it has the same digits; another factor would round."""
    model, _, _ = net
    plain, planned = clone(model), clone(model)
    assert form_for_plans(planned, precision).transposed == (0 if precision == "bf16" else 2)
    # All but the enlargements, whose weights are rounded as sums.
    for one in (plain, planned):
        body = next(value for node in one.graph for value in node.outputs
                    if any(user.op_type in ("Resize", "ConvTranspose") for user in value.consumers()))  # fmt: skip
        body.type, body.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 8, "h", "w"])
        one.graph.outputs[:] = [body]
    batch = np.float16(noise(1, 3, 9, 5)) if precision == "fp16" else noise(1, 3, 9, 5)
    wanted, made = (
        run(session_of(to_bytes(rounding_model(to_precision(one, precision), precision))), batch)[0]
        for one in (plain, planned)
    )
    np.testing.assert_array_equal(made, wanted)


def test_a_tail_of_transposed_convolutions_reaches_as_far(net):
    """A reach that is too short shows as a seam, one that is too long is computed for nothing."""
    model, spec, _ = net
    cut = cuts_of(model, spec)
    wide = cut_graph(model, cut)
    planned = clone(model)
    form_for_plans(planned, "fp32")
    small = cut_graph(planned, cut)
    assert (small.reach, small.scale, small.channels) == (wide.reach, wide.scale, wide.channels) == (2, 4, 8)
    assert small.blocks == wide.blocks
    assert ops(small.tail)["ConvTranspose"] == 2


def test_a_tail_whose_enlargement_is_of_another_size_is_not_cut(net):
    """How far it reaches was not worked out."""
    model, spec, _ = net
    planned = clone(model)
    form_for_plans(planned, "fp32")
    odd = next(one for one in planned.graph if one.op_type == "ConvTranspose")
    odd.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
    assert cut_graph(planned, cuts_of(model, spec)) is None


def test_a_quantised_convolution_keeps_its_form(net):
    """Sums of weights do not lie on the grid of their steps."""
    model, spec, module = net
    found = layers(spec)
    steps = {
        layer.name: weight_steps(
            module.get_submodule(layer.name).weight.detach().numpy(), layer, "int8", per_channel=True
        )
        for layer in found
    }
    recipe = Recipe(
        formats=dict.fromkeys(steps, "int8"),
        activations={layer.group: 2.0**-6 for layer in found},
        weights=steps,
    )
    graph = clone(model)
    quantise(graph, found, recipe.only([name for name in steps if name != "conv_up2"]))
    assert form_for_plans(graph, "int8").transposed == 1
    assert ops(graph)["Resize"] == 1


def built(model, precision, folder, side=32):
    save(to_precision(model, precision), folder / "net.onnx")
    build = BuildOptions(shapes=ShapeRange.fixed((1, side, side)))
    return engine_from_onnx(
        folder / "net.onnx", folder / "net.plan", build, force=True, expect_precision=precision
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_tensorrt_builds_each_precision(net, tmp_path, precision):
    """It refuses a transposed convolution in bf16, and one that its log hides escapes the check of dtypes."""
    model, spec, _ = net
    planned = clone(model)
    form_for_plans(planned, precision)
    assert built(planned, precision, tmp_path).dtypes == {precision: len(layers(spec))}


@pytest.mark.slow
@pytest.mark.parametrize(("compact", "less"), [(False, 0.78), (True, 0.65)], ids=["rrdbnet", "compact"])
def test_a_plan_moves_fewer_bytes(rrdb_spec, rrdb_weights, compact_weights, tmp_path, compact, less):
    """What the forms were chosen for."""
    spec = rrdb_spec(features=64, growth=32, blocks=1)
    weights = compact_weights(features=64, blocks=3) if compact else rrdb_weights(spec)
    if compact:
        spec = dataclasses.replace(spec, architecture="srvggnetcompact", blocks=3, growth=0)
    module = empty_net(spec)
    module.load_state_dict(weights, assign=True)
    plain = trace(module.eval().requires_grad_(False), spec)
    nest_concats(plain)
    fold_scales(plain)
    planned = clone(plain)
    form_for_plans(planned, "fp16")
    before, after = (
        declared_bytes_per_pixel(built(one, "fp16", tmp_path).layers, 32 * 32) for one in (plain, planned)
    )
    assert after <= less * before
