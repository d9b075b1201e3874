"""The graph passes compute what they replace."""

import dataclasses
from collections import Counter
from fractions import Fraction

import numpy as np
import onnx_ir as ir
import pytest
import torch

from esrgan_deploy._errors import ExportError
from esrgan_deploy._parity import to_levels
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs import (
    clone,
    fold_scales,
    nest_concats,
    resize_output,
    resize_ratio,
    rounding_model,
    save,
    to_bytes,
    to_precision,
    to_uint8_form,
    trace,
)
from esrgan_deploy.export.proof import resized, run, session_of

SPEC = ModelSpec(
    architecture="rrdbnet", scale=4, in_channels=3, out_channels=3, features=16, blocks=2, growth=8,
    source_sha256="",
)  # fmt: skip


def _module(spec):
    from esrgan_deploy.export.nets import RRDBNet, SRVGGNetCompact

    torch.manual_seed(3)
    module = (RRDBNet if spec.architecture == "rrdbnet" else SRVGGNetCompact)(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 1.5
    return module.eval().requires_grad_(False)


def _picture(n=1, h=8, w=12, c=3):
    return np.random.default_rng(0).random((n, c, h, w), np.float32)


def _value(name, shape):
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _constant(name, array):
    return ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))


def _model(source, result, nodes, weights=(), *, opset=20):
    """Make a graph by hand, in fractions of a second."""
    result.name, result.type = "output", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [source], [result], nodes=nodes, initializers=weights, opset_imports={"": opset}, name="net"
    )
    return ir.Model(graph, ir_version=10)


def _run(model, batch):
    return run(session_of(to_bytes(model)), batch)[0]


@pytest.fixture(scope="module")
def traced():
    module = _module(SPEC)
    return module, trace(module, SPEC)


@pytest.mark.slow
def test_nesting_is_bit_equal_and_reaches_every_grown_concatenation(traced):
    """A concat nested on the wrong prefix would feed channels in another order."""
    _, model = traced
    nested = clone(model)
    assert nest_concats(nested) == 2 * 3 * 3
    assert max(len(node.inputs) for node in nested.graph if node.op_type == "Concat") == 2
    batch = _picture()
    np.testing.assert_array_equal(_run(nested, batch), _run(model, batch))


def test_nesting_twice_changes_nothing_more(traced):
    """A pass that is not idempotent would break an .onnx of ours handed in again."""
    model = clone(traced[1])
    nest_concats(model)
    assert nest_concats(model) == 0


def test_folding_removes_the_dense_blocks_scale_and_keeps_the_others(traced):
    """Folding 0.2 where something else reads the convolution would change that reader's input."""
    _, model = traced
    folded = clone(model)
    assert fold_scales(folded) == 2 * 3
    assert Counter(node.op_type for node in folded.graph)["Mul"] == 2
    batch = _picture()
    np.testing.assert_allclose(_run(folded, batch), _run(model, batch), atol=1e-6)


@pytest.mark.parametrize("shared", ["result", "weights"])
def test_folding_leaves_what_something_else_reads(shared):
    """The unscaled result would be gone for its second reader, or the other convolution be scaled as well."""
    x = _value("input", ["n", 1, "h", "w"])
    weight = _constant("w", np.ones((1, 1, 1, 1), np.float32))
    factor = _constant("f", np.float32(0.2))
    convs = [ir.node("Conv", [x, weight]) for _ in range(1 if shared == "result" else 2)]
    scaled = ir.node("Mul", [convs[0].outputs[0], factor])
    total = ir.node("Add", [scaled.outputs[0], convs[-1].outputs[0]])
    model = _model(x, total.outputs[0], [*convs, scaled, total], [weight, factor])
    assert fold_scales(model) == 0
    np.testing.assert_allclose(_run(model, np.ones((1, 1, 2, 2), np.float32)), 1.2, rtol=1e-6)


@pytest.mark.parametrize("op", ["Add", "Div", "Pow"])
def test_only_a_multiplication_is_folded(op):
    """A graph of another exporter may add a constant to a convolution: taken for a factor it would scale it."""
    x, weight, factor = _value("input", [1, 1, "h", "w"]), np.ones((1, 1, 1, 1), np.float32), np.float32(0.2)
    conv = ir.node("Conv", [x, _constant("w", weight)])
    changed = ir.node(op, [conv.outputs[0], _constant("f", factor)])
    model = _model(x, changed.outputs[0], [conv, changed], [conv.inputs[1], changed.inputs[1]])
    assert fold_scales(model) == 0
    assert [node.op_type for node in model.graph] == ["Conv", op]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "unshuffle"), [(2, 2), (1, 4)])
def test_space_to_depth_stands_for_pixel_unshuffle(scale, unshuffle):
    """The two order their channels differently: unpermuted weights would give another picture."""
    spec = dataclasses.replace(SPEC, scale=scale, unshuffle=unshuffle, size_multiple=unshuffle, blocks=1)
    module = _module(spec)
    model = trace(module, spec)
    counts = Counter(node.op_type for node in model.graph)
    assert counts["SpaceToDepth"] == 1
    assert counts["Reshape"] == counts["Transpose"] == 0
    batch = _picture(2, 4 * unshuffle, 3 * unshuffle)
    np.testing.assert_allclose(_run(model, batch), module(torch.from_numpy(batch)).numpy(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [24, 32, 64])
def test_a_net_of_wide_windows_is_traced(multiple):
    """An example whose sides such a net cannot take would make every export of it fail."""

    class Windows(torch.nn.Module):
        def forward(self, x):
            n, c, h, w = x.shape
            m = multiple
            parts = x.reshape(n, c, h // m, m, w // m, m)
            return (parts - parts.mean((3, 5), keepdim=True)).reshape(n, c, h, w)

    spec = dataclasses.replace(SPEC, architecture="windows", scale=1, size_multiple=multiple)
    batch = _picture(1, 2 * multiple, 4 * multiple)
    expected = Windows()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(_run(trace(Windows().eval(), spec), batch), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 18, 23])
def test_every_opset_computes_the_same(opset):
    """An operator whose meaning changed between sets would show here."""
    spec = dataclasses.replace(SPEC, blocks=1)
    module = _module(spec)
    model = trace(module, spec, opset=opset)
    assert model.graph.opset_imports[""] == opset
    batch = _picture()
    np.testing.assert_allclose(_run(model, batch), module(torch.from_numpy(batch)).numpy(), atol=1e-6)


def test_an_unknown_opset_is_refused():
    """torch.onnx would fall back to another one with a warning."""
    with pytest.raises(ExportError, match="opset 16 is not written; 17 to 23"):
        trace(_module(SPEC), SPEC, opset=16)


def test_what_the_checker_refuses_is_an_error_and_leaves_no_file(tmp_path):
    """A graph that nothing loads must not stand where a graph is looked for."""
    x = _value("input", [1, 3, "h", "w"])
    node = ir.node("NoSuchOperator", [x])
    node.outputs[0].shape = x.shape
    model = _model(x, node.outputs[0], [node])
    with pytest.raises(ExportError, match=r"bad\.onnx is not valid ONNX .*NoSuchOperator"):
        save(model, tmp_path / "bad.onnx")
    assert list(tmp_path.iterdir()) == []


def test_no_source_path_is_left_in_the_graph(traced, tmp_path):
    """The exporter writes stack traces with the paths of the machine that exported."""
    model = clone(traced[1])
    save(model, tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in data
    assert b"stack_trace" not in data


@pytest.mark.parametrize("outscale", [1, 2, 3, 1.5, 2.5, 6, 8])
def test_outscale_is_pytorchs_antialiased_bicubic(traced, outscale):
    """The phases of the strided convolution, or its border, would be off by a part of a pixel."""
    module, model = traced
    ratio = resize_ratio(4, outscale)
    shrunk = clone(model)
    multiple = resize_output(shrunk, ratio)
    assert multiple == (ratio.denominator if ratio < 1 else 1)
    batch = _picture(2, 8, 12)
    with torch.inference_mode():
        expected = resized(module(torch.from_numpy(batch)), ratio).numpy()
    got = _run(shrunk, batch)
    assert got.shape[2:] == (8 * outscale, 12 * outscale)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("ratio", "sides"),
    [
        ("1/2", ("2*height", "2*width")),
        ("1/4", ("height", "width")),
        ("5/8", ("floor(5/2*height)", "floor(5/2*width)")),
        ("3/2", ("6*height", "6*width")),
    ],
)
def test_a_resized_output_says_its_size(ratio, sides):
    """Whoever allocates for it, or reads the graph in a viewer, would go by another size."""
    x = _value("input", [1, 3, "height", "width"])
    node = ir.node("Resize", [x, None, _constant("scales", np.float32([1, 1, 4, 4]))], {"mode": "nearest"})
    node.outputs[0].shape = ir.Shape([1, 3, "4*height", "4*width"])
    model = _model(x, node.outputs[0], [node], [node.inputs[2]])
    resize_output(model, Fraction(ratio))
    written = ir.from_proto(ir.to_proto(model))
    assert written.graph.outputs[0].name == "output"
    assert tuple(map(str, written.graph.outputs[0].shape)) == ("1", "3", *sides)
    to_uint8_form(model)
    assert tuple(map(str, model.graph.outputs[0].shape)) == ("1", *sides, "3")


def test_resized_shrinks_as_the_benchmark_pictures_were_shrunk():
    """The reference itself would be wrong: this holds it to a second, integer implementation."""
    from esrgan_deploy._metrics import bicubic_downscale

    picture = np.random.default_rng(1).integers(40, 200, (24, 36, 3), np.uint8)
    planar = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32))
    got = resized(planar, Fraction(1, 4))[0].numpy().transpose(1, 2, 0)
    assert np.abs(got - bicubic_downscale(picture, 4)).max() <= 1.01


@pytest.mark.parametrize("outscale", [0.123456, 3.14159, 2 + 1 / 17, 0, -2])
def test_an_outscale_that_is_no_small_ratio_is_refused(outscale):
    """Rounded to a near ratio in silence it would give another size than asked for."""
    with pytest.raises(ExportError, match="outscale"):
        resize_ratio(4, outscale)


def test_uint8_form_rounds_and_clips_as_a_saved_picture(traced):
    """A cast before the clip is undefined, and truncation darkens by half a level."""
    module, model = traced
    graph = clone(model)
    to_uint8_form(graph)
    ends = [node.op_type for node in graph.graph]
    assert ends[0] == "Cast"
    assert ends[-1] == "Cast"
    picture = np.random.default_rng(2).integers(0, 256, (2, 7, 9, 3), np.uint8)
    planar = torch.from_numpy(picture.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    expected = to_levels(module(planar).numpy())
    assert expected.min() == 0.0
    got = _run(graph, picture)
    assert got.dtype == np.uint8
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 1e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_graph_is_valid_and_leaves_no_float32_tensor_but_the_resize_factors(traced, tmp_path, precision):
    """An fp32 island at four times the size would cost more than the rest of the net saves."""
    graph = to_precision(traced[1], precision)
    assert not [node for node in graph.graph if node.op_type == "Cast"]
    wide = [v for v in graph.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert all(use.node.op_type == "Resize" for v in wide for use in v.uses())
    assert graph.graph.inputs[0].dtype == graph.graph.outputs[0].dtype != ir.DataType.FLOAT
    # bfloat16 convolutions exist from opset 22 on only: the checker would refuse them.
    save(graph, tmp_path / "half.onnx")


def test_weights_are_refused_only_beyond_what_fp16_holds():
    """65504 is its last number, of either sign."""
    for largest, fits in ((65504, True), (-65504, True), (65536, False), (-65536, False)):
        x = _value("input", [1, 1, "h", "w"])
        weight = _constant("w", np.full((1, 1, 1, 1), largest, np.float32))
        conv = ir.node("Conv", [x, weight])
        model = _model(x, conv.outputs[0], [conv], [weight])
        if fits:
            made = to_precision(model, "fp16").graph.initializers["w"].const_value
            assert made.numpy().item() == largest
        else:
            with pytest.raises(ExportError, match=r"w holds 6\.554e\+04, over the 65504"):
                to_precision(model, "fp16")


@pytest.mark.parametrize("opset", [17, 21, 22, 23])
def test_bf16_has_the_opset_that_knows_its_convolutions(opset):
    """Before 22 there are none, and later ones are what was asked for."""
    x = _value("input", [1, 1, "h", "w"])
    weight = _constant("w", np.ones((1, 1, 1, 1), np.float32))
    conv = ir.node("Conv", [x, weight])
    model = _model(x, conv.outputs[0], [conv], [weight], opset=opset)
    assert to_precision(model, "bf16").graph.opset_imports[""] == max(opset, 22)


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_rounding_model_really_rounds_where_the_runtime_would_not(traced, form):
    """Measured in fp32 behind the casts, an fp16 graph would look better than it is."""
    _, model = traced
    half = to_precision(model, "fp16")
    if form == "uint8":
        to_uint8_form(half)
        batch = np.random.default_rng(2).integers(0, 256, (1, 16, 16, 3), np.uint8)
    else:
        batch = _picture(1, 16, 16).astype(np.float16)
    rounded = rounding_model(half, "fp16")
    assert [v.dtype for v in rounded.graph.inputs] == [v.dtype for v in half.graph.inputs]
    assert [v.dtype for v in rounded.graph.outputs] == [v.dtype for v in half.graph.outputs]
    stored = _run(rounded, batch)
    assert stored.dtype == (np.uint8 if form == "uint8" else np.float16)
    if form == "float":
        exact = _run(model, batch.astype(np.float32))
        once = np.abs(exact.astype(np.float16).astype(np.float32) - exact).mean()
        kept = np.abs(_run(half, batch).astype(np.float32) - exact).mean()
        real = np.abs(stored.astype(np.float32) - exact).mean()
        assert real > 1.3 * kept
        assert real < 20 * once


def test_rounding_model_is_numpys_half_arithmetic():
    """A tensor left in fp32, or rounded twice, would differ from the same sums done by hand in numpy."""
    half = ir.TensorType(ir.DataType.FLOAT16)
    x = ir.Value(name="input", type=half, shape=ir.Shape([1, 1, 2, 2]))
    factor = ir.Value(name="f", type=half, const_value=ir.tensor(np.float16(0.1), name="f"))
    times = ir.node("Mul", [x, factor])
    total = ir.node("Add", [times.outputs[0], x])
    for node in (times, total):
        node.outputs[0].type, node.outputs[0].name = half, f"{node.op_type}_out"
    total.outputs[0].name = "output"
    total.outputs[0].shape = ir.Shape([1, 1, 2, 2])
    graph = ir.Graph([x], total.outputs, nodes=[times, total], initializers=[factor], opset_imports={"": 20})
    value = np.float16([[[[0.3, 1.7], [1000.3, 6e-5]]]])
    expected = (value * np.float16(0.1)).astype(np.float16) + value
    np.testing.assert_array_equal(
        _run(rounding_model(ir.Model(graph, ir_version=10), "fp16"), value), expected
    )


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_bf16_is_measured_coarser_than_fp16(traced, form):
    """With eight bits less of mantissa it must show, or nothing was rounded."""
    _, model = traced
    batch = np.random.default_rng(2).integers(0, 256, (1, 16, 16, 3), np.uint8)
    planar = batch.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    exact = _run(model, planar)
    errors = {}
    for precision in ("fp16", "bf16"):
        half = to_precision(model, precision)
        if form == "uint8":
            to_uint8_form(half)
            got = _run(rounding_model(half, precision), batch).astype(float)
            errors[precision] = np.abs(got - to_levels(exact)).mean()
        else:
            picture = planar.astype(np.float16) if precision == "fp16" else planar
            errors[precision] = np.abs(_run(rounding_model(half, precision), picture) - exact).mean()
    assert 3 * errors["fp16"] < errors["bf16"] < 30 * errors["fp16"]
