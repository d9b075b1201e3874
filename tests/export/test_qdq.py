"""Explicit quantisation of a graph."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import save_file

from esrgan_deploy._errors import CheckpointError, ExportError
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._graph import clone, save
from esrgan_deploy.export._ort import run, session_of
from esrgan_deploy.export._placement import placement
from esrgan_deploy.export._precision import to_precision
from esrgan_deploy.export._qdq import quantise
from esrgan_deploy.export._rewrite import fold_scales, nest_concats
from esrgan_deploy.export._rrdbnet import RRDBNet
from esrgan_deploy.export._scales import load_scales, save_scales, scales_beside
from esrgan_deploy.export._trace import trace


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


def _nodes(graph, kind):
    return [node for node in graph.graph if node.op_type == kind]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("base", ["fp32", "fp16"])
def test_each_feature_is_quantised_once_and_the_trunk_never(traced, tmp_path, precision, base):
    """A feature quantised for every concatenation is rounded again and again, and the trunk loses the picture."""
    spec, graph = traced
    graph = to_precision(graph, base)
    assert quantise(graph, precision, placement(spec), _scales(spec)) == 15
    # x and x1 to x4 of three dense blocks.
    assert len(_nodes(graph, "QuantizeLinear")) == 15
    assert len(_nodes(graph, "DequantizeLinear")) == 15 + 15
    for node in _nodes(graph, "Add"):
        assert all(
            value.producer() is None or value.producer().op_type != "DequantizeLinear"
            for value in node.inputs
        )
    quantised = [node for node in _nodes(graph, "Conv") if node.inputs[1].producer() is not None]
    assert len(quantised) == 15
    assert len(_nodes(graph, "Conv")) == 15 + 6
    for node in quantised:
        kind = node.inputs[0].producer().op_type
        assert kind in ("DequantizeLinear", "Concat"), "the input of a quantised convolution is quantised"
    save(graph, tmp_path / "q.onnx")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_graph_computes_the_rounding_of_its_definition(traced, precision):
    """Against numpy: inputs and weights rounded to the grid, the convolutions in float."""
    spec, graph = traced
    picture = np.random.default_rng(0).random((1, 3, 12, 9), np.float32)
    exact = run(session_of(_bytes(graph)), picture)[0]
    errors = {}
    for step in (0.05, 0.01):
        fine = clone(graph)
        quantise(fine, precision, placement(spec), _scales(spec, step))
        errors[step] = np.abs(run(session_of(_bytes(fine)), picture)[0] - exact).mean()
    assert errors[0.01] > 0
    if precision == "int8":
        assert errors[0.01] < errors[0.05], "a shorter step rounds less"
    fine = clone(graph)
    quantise(fine, precision, placement(spec), _scales(spec))
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
    quantise(graph, "int8", placement(spec), _scales(spec))
    for node in [*_nodes(graph, "QuantizeLinear"), *_nodes(graph, "DequantizeLinear")]:
        zero = node.inputs[2].const_value
        assert zero.dtype == ir.DataType.INT8
        assert not zero.numpy().any()


def test_what_cannot_be_quantised_is_refused(traced, rrdb_spec):
    """A graph that was not quantised must not pass for one that was."""
    spec, graph = traced
    with pytest.raises(ExportError, match=r"the scale of body\.0\.rdb2 is None; it is a number above 0"):
        scales = _scales(spec)
        del scales["body.0.rdb2"]
        quantise(clone(graph), "int8", placement(spec), scales)
    with pytest.raises(ExportError, match=r"no convolution with the weights body\.1\.rdb1\.conv1\.weight"):
        larger = rrdb_spec(features=16, growth=8, blocks=2)
        quantise(clone(graph), "int8", placement(larger), _scales(larger))
    old = clone(graph)
    old.graph.opset_imports[""] = 18
    with pytest.raises(ExportError, match="opset 18 cannot quantise halves"):
        quantise(old, "int8", placement(spec), _scales(spec))


@pytest.fixture
def checkpoint(traced, tmp_path, rrdb_weights):
    spec, _ = traced
    path = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in rrdb_weights(spec).items()}, path)
    return spec, path


def test_scales_are_kept_beside_the_weights_and_go_with_them(checkpoint):
    """Scales of other weights would clip or waste the range, and nothing would say so."""
    spec, path = checkpoint
    with pytest.raises(
        CheckpointError,
        match=r"int8 needs activation scales and .*model\.scales\.json is not there.*--quantize int8",
    ):
        load_scales(path, "int8")
    save_scales(path, "int8", _scales(spec))
    assert load_scales(path, "int8") == _scales(spec)
    with pytest.raises(CheckpointError, match="holds scales for int8; fp8 was asked for"):
        load_scales(path, "fp8")
    facts = json.loads(scales_beside(path).read_text())
    scales_beside(path).write_text(json.dumps(facts | {"activations": {"body.0.rdb1": -1.0}}))
    with pytest.raises(CheckpointError, match="activations is a table of numbers above 0"):
        load_scales(path, "int8")
    scales_beside(path).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as scales"):
        load_scales(path, "int8")
    save_scales(path, "int8", _scales(spec))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        load_scales(path, "int8")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantised_export_builds_a_plan_whose_convolutions_are_quantised(checkpoint, tmp_path, precision):
    """The builder reports what it chose; fp16 in disguise would be slower than asked and no one would know."""
    spec, path = checkpoint
    # Random weights make large activations: a step that holds them all.
    save_scales(path, precision, _scales(spec, {"int8": 0.1, "fp8": 0.03}[precision]))
    manifest = export_model(path, tmp_path / "out", ExportOptions(precisions=(precision,), plan=True))
    graph, plan = (
        next(a for a in manifest.artefacts if a.file == f"model.{precision}.{kind}")
        for kind in ("onnx", "plan")
    )
    assert graph.precision == plan.precision == precision
    assert plan.dtypes[precision] == 15
    assert {entry["on"] for entry in graph.parity} == {"noise", "golden"}
    assert all(entry["finite"] for entry in graph.parity)


def test_an_export_without_scales_says_how_to_make_them(checkpoint, tmp_path):
    """And leaves nothing."""
    _, path = checkpoint
    with pytest.raises(CheckpointError, match="esrgan-train --start"):
        export_model(path, tmp_path / "out", ExportOptions(precisions=("int8",), plan=False))
    assert not (tmp_path / "out").exists()


def test_the_dense_blocks_are_placed_and_the_body_of_a_compact_net_without_its_ends(rrdb_spec):
    """The first and the last convolution carry the picture itself."""
    groups = placement(rrdb_spec(blocks=2))
    assert len(groups) == 30
    assert groups["body.1.rdb3.conv5"] == "body.1.rdb3"
    compact = dataclasses.replace(rrdb_spec(), architecture="srvggnetcompact", blocks=3, growth=0)
    assert list(placement(compact)) == ["body.2", "body.4", "body.6"]
    with pytest.raises(ExportError, match="swinir cannot be quantised"):
        placement(dataclasses.replace(compact, architecture="swinir"))
