"""INT8 for processors."""

import copy
from collections import Counter
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from esrgan_deploy._errors import ExportError
from esrgan_deploy._metrics import psnr
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export._write_graphs import describe
from esrgan_deploy.export.graphs import (
    Recipe,
    clone,
    fitted,
    fold_scales,
    nest_concats,
    quantise_for_processor,
    save,
    to_bytes,
    to_uint8_form,
    trace,
    unsigned_grid,
    watch,
)
from esrgan_deploy.export.graphs import _quantise_cpu as _processor
from esrgan_deploy.export.graphs._cpu_weights import LARGEST_PAIR, pairs_of
from esrgan_deploy.export.nets import Layer, RRDBNet, layers
from esrgan_deploy.export.proof import run, session_of
from esrgan_deploy.export.quantisation import Simulation, tensor_of
from esrgan_deploy.export.quantisation.calibration import aligned, low_high, observe, output_ranges
from esrgan_deploy.export.quantisation.weights._compensate import side_by_side
from esrgan_deploy.runtime import open_session


class _Net(NamedTuple):
    spec: ModelSpec
    graph: ir.Model
    ranges: dict
    outputs: dict
    pictures: list
    module: RRDBNet


@pytest.fixture(scope="module")
def net(rrdb_spec, rrdb_weights):
    spec = rrdb_spec(features=16, growth=16, blocks=1)
    module = RRDBNet(spec).eval().requires_grad_(False)
    module.load_state_dict({name: value * 0.5 for name, value in rrdb_weights(spec).items()})
    graph = trace(module, spec, opset=20)
    nest_concats(graph)
    fold_scales(graph)
    pictures = [np.random.default_rng(seed).integers(0, 256, (1, 24, 20, 3), np.uint8) for seed in range(2)]
    ranges = {group: low_high(seen) for group, seen in observe(module, layers(spec), pictures).items()}
    return _Net(spec, graph, ranges, output_ranges(module, layers(spec), pictures), pictures, module)


def _giving_pictures(module):
    """A net of random weights, its last convolution scaled so that it gives 0..1."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        out = module(torch.from_numpy(np.random.default_rng(1).random((1, 3, 24, 20), np.float32)))
        middle, spread = out.mean((0, 2, 3)), float(np.ptp(out.numpy()))
        module.conv_last.weight.mul_(0.9 / spread)
        module.conv_last.bias.copy_((module.conv_last.bias - middle) * 0.9 / spread + 0.5)
    return module


@pytest.fixture(scope="module")
def quantised(net):
    spec, graph, ranges, outputs = net[:4]
    model, names = clone(graph), [layer.name for layer in layers(spec)[1:-1]]
    return model, quantise_for_processor(model, layers(spec), _recipe(ranges, outputs, names))


def _recipe(ranges, outputs, names, weights=None):
    return Recipe(
        formats=dict.fromkeys(names, "int8"),
        activations={},
        weights=weights or {},
        inputs=ranges,
        outputs=outputs,
    )


def _convolution(weight, bias, size=6):
    """A graph of one convolution, ``(1, C_in, 6, 6)`` in, and its layer."""
    values = [
        ir.Value(name=f"c.{kind}", const_value=ir.tensor(array), type=ir.TensorType(ir.DataType.FLOAT))
        for kind, array in (("weight", weight), ("bias", bias))
    ]
    shapes = [ir.Shape([1, channels, size, size]) for channels in (weight.shape[1], weight.shape[0])]
    source = ir.Value(name="input", type=ir.TensorType(ir.DataType.FLOAT), shape=shapes[0])
    node = ir.node("Conv", [source, *values], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, name="c")
    out = node.outputs[0]
    out.name, out.type, out.shape = "output", source.type, shapes[1]
    graph = ir.Graph([source], [out], nodes=[node], initializers=values, opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10), Layer(name="c", group="c", unit="c", place="body", macs=1.0)


@pytest.mark.parametrize(("read", "made"), [(32, 32), (32, 8), (30, 32), (16, 3), (3, 16)])
@pytest.mark.parametrize("zero", [0, 128])
def test_the_sums_are_those_of_whole_numbers_on_the_largest_inputs(read, made, zero):
    """Without VNNI two products meet in 16 bits: a graph that saturates there is another net on another machine."""
    random = np.random.default_rng(read * made)
    # Neighbours of one sign, all as large as they come, and in all about 0, so that no sum leaves the output's range.
    signs = random.choice([-1.0, 1.0], (made, 9 * read // 2 + 1)).repeat(2, axis=1)[:, : 9 * read]
    weight = signs.reshape(made, 3, 3, read).transpose(0, 3, 1, 2).astype(np.float32)
    bias = random.normal(0, 10, made).astype(np.float32)
    model, layer = _convolution(weight, bias)
    step, top = 1.0, 255 - zero
    ranges = {"c": (-zero * step, top * step)}
    reach = 255.0 * read * 9 / 4
    quantise_for_processor(model, [layer], _recipe(ranges, {"c": (-reach, reach)}, ["c"]))
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    for picture in (
        np.full((1, read, 6, 6), top, np.float32),
        np.full((1, read, 6, 6), -zero, np.float32),
        random.choice([-zero, top], (1, read, 6, 6)).astype(np.float32),
    ):
        whole = np.pad(picture.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        sums = np.zeros((1, made, 6, 6), np.int64)
        for y in range(3):
            for x in range(3):
                taps = stored["c.weight_q"][:, :, y, x].astype(np.int64)
                sums += np.einsum("nchw,oc->nohw", whole[:, :, y : y + 6, x : x + 6], taps)
        sums += stored["c.bias_q"].reshape(-1, 1, 1).astype(np.int64)
        exact = sums * stored["c.weight_scale"].reshape(-1, 1, 1).astype(np.float64)
        unit, middle = float(stored["c.output_scale"]), int(stored["c.output_zero"])
        exact = np.clip(exact, -middle * unit, (255 - middle) * unit)
        off = np.abs(run(session_of(to_bytes(model)), picture)[0] - exact).max() / unit
        assert off < 0.501, f"{off:.3f} steps off"


@pytest.mark.parametrize("channels", [32, 30, 3])
@pytest.mark.parametrize("given", [False, True])
def test_no_two_neighbouring_weights_can_saturate(channels, given):
    """However the weights lie, and whatever steps a recipe chose."""
    random = np.random.default_rng(channels)
    weight = random.standard_t(3, (8, channels, 3, 3)).astype(np.float32)
    weight[3] = 0
    steps = np.abs(weight).max((1, 2, 3)) / 127 if given else None
    integers, steps = fitted(weight, steps)
    pairs = pairs_of(integers.astype(np.int64))
    assert np.maximum(pairs, 0).sum(2).max() <= LARGEST_PAIR
    assert np.maximum(-pairs, 0).sum(2).max() <= LARGEST_PAIR
    assert np.abs(integers.astype(int)).max() <= 127
    assert not integers[3].any()
    off = np.abs(integers * steps.reshape(-1, 1, 1, 1) - weight) / steps.reshape(-1, 1, 1, 1)
    if not given:
        assert off.max() < 1.6, "rounded, and at most one further"
        # More than the 7 bits that are safe without looking.
        assert (np.abs(integers[np.abs(weight).max((1, 2, 3)) > 0]).max((1, 2, 3)) > 70).all()


@pytest.mark.slow
def test_onnx_runtime_computes_every_placed_convolution_in_integers(quantised, tmp_path):
    """A pair that is not fused costs time and computes in fp32: it would be slower than the graph it replaces."""
    model, placed = quantised
    assert (placed.convolutions, placed.of) == (19, 21)
    assert 0.9 < placed.share < 1
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == 19
    assert kinds["Conv"] + kinds["FusedConv"] == 2
    # 12 in dense blocks and 3 in the tail; conv_last reads the last.
    assert kinds["QLinearLeakyRelu"] == 15
    assert kinds["LeakyRelu"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_block_of_pixels_at_a_time_has_the_same_sums(rrdb_spec, rrdb_weights, monkeypatch, scale):
    """It is there to be faster: every pixel is the one that the convolution makes alone, borders included."""
    spec = rrdb_spec(scale=scale, features=16, growth=16, blocks=1)
    module = RRDBNet(spec).eval().requires_grad_(False)
    module.load_state_dict({name: value * 0.5 for name, value in rrdb_weights(spec).items()})
    module = _giving_pictures(module)
    graph = trace(module, spec, opset=20)
    found = layers(spec)
    pictures = [np.random.default_rng(3).integers(0, 256, (1, 24, 20, 3), np.uint8)]
    ranges = {group: low_high(seen) for group, seen in observe(module, found, pictures).items()}
    outputs = output_ranges(module, found, pictures)
    assert outputs["conv_last"] == (0.0, 1.0)
    made = []
    for most in (4, 1):
        monkeypatch.setattr(_processor, "_PHASES", most)
        model = clone(graph)
        names = [layer.name for layer in found[1:]]
        quantise_for_processor(model, found, _recipe(ranges, outputs, names))
        assert ("DepthToSpace" in {node.op_type for node in model.graph}) == (most > 1 and scale > 1)
        batch = np.random.default_rng(4).random((2, 3, 13, 10), np.float32)
        made.append(run(session_of(to_bytes(model)), batch)[0])
    assert made[0].shape == (2, 3, 13 * scale, 10 * scale)
    assert len(np.unique(made[0])) > 20
    assert np.array_equal(made[0], made[1])


def test_onnx_runtime_doubles_bytes_channels_first(quantised, tmp_path):
    """Its kernel for channels last is ten times slower, one thread, and it would move the transposition there."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(to_bytes(quantised[0]), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    makers = {name: node for node in nodes for name in node.output}
    enlarging = [node for node in nodes if node.op_type == "Resize"]
    assert len(enlarging) == 2
    for node in enlarging:
        kept = makers[node.input[0]]
        assert kept.op_type == "Reshape"
        behind = [user for user in nodes if node.output[0] in user.input]
        assert [(user.op_type, list(user.attribute[0].ints)) for user in behind] == [
            ("Transpose", [0, 2, 3, 1])
        ]


@pytest.mark.parametrize("unit", ["body.0.rdb1", "body.0.rdb3.conv5", "conv_body", "conv_up1", "conv_last"])
def test_the_simulation_rounds_as_onnx_runtime_does(net, unit):
    """Weights are compensated and units returned by what it says: it is to err where the graph errs.

    Of one unit: a sum that is a hair beside a tie goes the other way, and behind ten convolutions all others do.
    """
    spec = net.spec
    found = layers(spec)
    names = [layer.name for layer in found if unit in (layer.name, layer.unit)]
    picture = np.random.default_rng(9).integers(0, 256, (1, 17, 23, 3), np.uint8)
    module = _giving_pictures(net.module)
    ranges, outputs = aligned(net.ranges, output_ranges(module, found, net.pictures), spec)
    graph = trace(module, spec, opset=20)
    fold_scales(graph)
    model = clone(graph)
    weights = {name: fitted(module.get_submodule(name).weight.numpy())[1] for name in names}
    recipe = _recipe(ranges, outputs, names, weights)
    quantise_for_processor(model, found, recipe)
    exact, made = (
        run(session_of(to_bytes(each)), tensor_of(picture).numpy())[0].clip(0, 1) for each in (graph, model)
    )
    simulated = Simulation(copy.deepcopy(module), found, recipe)(tensor_of(picture)).numpy().clip(0, 1)
    own, apart = np.square(made - exact).mean(), np.square(made - simulated).mean()
    assert apart < own / 30, f"{10 * np.log10(own / apart):.1f} dB"
    # Weights are fitted in a run of both nets side by side, which is to round likewise.
    _, beside = side_by_side(
        module, found, recipe, [tensor_of(picture)], lambda seen: seen.run(seen.conv.weight, seen.conv.bias)
    )
    assert np.abs(beside.numpy().clip(0, 1) - simulated).mean() < np.sqrt(own) / 30


def test_both_sides_of_an_activation_of_the_tail_get_one_step(net):
    """The picture passes there, above 0, and would be rounded twice."""
    spec, ranges, outputs = net.spec, net.ranges, net.outputs
    read, made = aligned(ranges, outputs, spec)
    for maker, reader in (("conv_up1", "conv_up2"), ("conv_up2", "conv_hr"), ("conv_hr", "conv_last")):
        assert unsigned_grid(*read[reader])[0] == pytest.approx(unsigned_grid(*made[maker])[0], rel=1e-5)
        for now, before in ((read[reader], ranges[reader]), (made[maker], outputs[maker])):
            assert now[0] <= before[0] + 1e-6
            assert now[1] >= before[1] - 1e-6
    blocks = [layer for layer in layers(spec) if layer.place == "body" and layer.name[-1] in "1234"]
    fitting = [layer for layer in blocks if made[layer.name] != outputs[layer.name]]
    assert fitting
    for layer in fitting:
        step = unsigned_grid(*ranges[layer.group])[0]
        assert unsigned_grid(*made[layer.name])[0] == pytest.approx(step, rel=1e-5)
        # Nothing is cut off but what was before.
        assert made[layer.name][0] <= outputs[layer.name][0] + 1e-6
        assert made[layer.name][1] >= outputs[layer.name][1] - 1e-6
    others = set(ranges) - {"conv_up2", "conv_hr", "conv_last"}
    assert {group: read[group] for group in others} == {group: ranges[group] for group in others}


def test_a_block_has_one_grid_and_the_trunk_none(quantised):
    """A feature requantised for each concatenation is rounded again and again; so is a trunk of bytes."""
    model, _ = quantised
    concats = [node for node in model.graph if node.op_type == "Concat"]
    assert len(concats) == 12
    for node in concats:
        kinds = {value.producer().op_type for value in node.inputs}
        assert kinds == {"QuantizeLinear"}
        assert len({value.producer().inputs[1].name for value in node.inputs}) == 1
    for node in model.graph:
        if node.op_type == "Add":
            trunk = [value.producer().op_type for value in node.inputs]
            assert "QuantizeLinear" not in trunk
            assert trunk != ["DequantizeLinear"] * 2


def test_nothing_is_lost_at_the_borders_and_the_fold_is_heeded(net, quantised):
    """Borders are padded with 0, which has to be a level; a fifth convolution gives a fifth of the module's."""
    spec, ranges, outputs = net.spec, net.ranges, net.outputs
    model, _ = quantised
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    for layer in layers(spec)[1:-1]:
        low, high = ranges[layer.group]
        step, zero = float(stored[f"{layer.group}_scale"]), int(stored[f"{layer.group}_zero"])
        assert abs((0 - zero) * step - low) <= 0.51 * step
        assert abs((255 - zero) * step - high) <= 0.51 * step
        if layer.fold != 1:
            low, high = outputs[layer.name]
            assert stored[f"{layer.name}.output_scale"] == pytest.approx(0.2 * (high - low) / 255)


def test_the_picture_is_kept_in_both_forms_and_the_runtime_opens_it(net, quantised, tmp_path):
    """On pictures of the kind that it was calibrated on; a wrong zero point or fold is 20 dB worse."""
    spec, graph = net.spec, net.graph
    model = clone(quantised[0])
    picture = np.random.default_rng(9).integers(0, 256, (1, 17, 23, 3), np.uint8)
    planar = picture.transpose(0, 3, 1, 2).astype(np.float32) / 255
    wanted, made = (run(session_of(to_bytes(each)), planar)[0] for each in (graph, model))
    noise = psnr(wanted, made, peak=float(np.ptp(wanted)))
    assert noise > 38, f"{noise:.1f} dB"
    watch(model)
    to_uint8_form(model)
    describe(model, spec, precision="int8-cpu", form="uint8", outscale=4.0, size_multiple=1)
    save(model, tmp_path / "model.int8-cpu.onnx")
    session = open_session(tmp_path / "model.int8-cpu.onnx")
    assert session.info.precision == "int8-cpu"
    assert session.info.watched
    levels = np.rint(made.clip(0, 1) * 255).transpose(0, 2, 3, 1)
    assert np.abs(session.run(picture).astype(int) - levels).max() <= 1
    session.close()


def test_what_cannot_be_quantised_is_refused(net, rrdb_spec):
    """A graph that was not quantised must not pass for one that was."""
    spec, graph, ranges, outputs = net[:4]
    found = layers(spec)

    def attempt(ranges, outputs, names):
        return quantise_for_processor(clone(graph), found, _recipe(ranges, outputs, names))

    with pytest.raises(ExportError, match="no convolution is to be quantised"):
        attempt(ranges, outputs, [])
    with pytest.raises(ExportError, match=r"no convolution with the weights body\.7\.rdb1\.conv1\.weight"):
        attempt(ranges, outputs, ["body.7.rdb1.conv1"])
    with pytest.raises(ExportError, match=r"the range of the input of conv_up1 is None"):
        attempt({}, outputs, ["conv_up1"])
    with pytest.raises(ExportError, match=r"the range of the output of conv_up1 is \(0\.0, nan\)"):
        attempt(ranges, outputs | {"conv_up1": (0.0, float("nan"))}, ["conv_up1"])


def test_the_output_range_gives_up_what_the_activation_makes_small(rrdb_spec):
    """Held in full, a few far negative values would coarsen all that the activation lets through."""
    spec = rrdb_spec(blocks=1)
    torch.manual_seed(0)
    module = RRDBNet(spec).eval().requires_grad_(False)
    pictures = [np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)]
    # One value in a hundred thousand falls far below the rest.
    module.conv_hr.register_forward_hook(
        lambda _, __, out: torch.where(out < out.quantile(1e-5), out - 20 * out.std(), out)
    )
    seen = {}
    for name in ("conv_hr", "conv_body"):
        module.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: (float(out.min()), float(out.max()))})
        )
    found = output_ranges(module, layers(spec), pictures)
    assert found["conv_body"] == (min(seen["conv_body"][0], 0), max(seen["conv_body"][1], 0))
    assert 0.7 * seen["conv_hr"][0] < found["conv_hr"][0] < 0
