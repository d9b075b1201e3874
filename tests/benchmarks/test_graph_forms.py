"""The graph forms are one net, and the figures are of them."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.benchmarks.graph_forms import main
from esrgan_deploy.export._graph import clone, to_bytes
from esrgan_deploy.export._ort import run, session_of
from esrgan_deploy.export._regroup import regroup
from esrgan_deploy.export._rewrite import fold_scales, nest_concats
from esrgan_deploy.export._rrdbnet import RRDBNet
from esrgan_deploy.export._trace import trace

SPEC = ModelSpec(
    architecture="rrdbnet",
    scale=2,
    in_channels=3,
    out_channels=3,
    features=6,
    blocks=1,
    growth=4,
    source_sha256="",
)


@pytest.fixture(scope="module")
def flat():
    torch.manual_seed(0)
    return trace(RRDBNet(SPEC).eval().requires_grad_(False), SPEC)


def _picture():
    return np.random.default_rng(0).random((2, 3, 9, 7), np.float32)


def _made(graph, batch):
    proto = onnx.load_from_string(to_bytes(graph))
    onnx.checker.check_model(proto, full_check=True)
    return run(session_of(to_bytes(graph)), batch)[0]


def _shapes(graph):
    return [tuple(node.inputs[1].shape) for node in graph.graph if node.op_type == "Conv"]


@pytest.mark.parametrize("form", ["flat", "nested and folded"])
def test_regrouped_is_the_same_net_up_to_the_order_of_sums(flat, form):
    """A share of the weights at the wrong source gives a picture all the same, and another one."""
    graph = clone(flat)
    if form != "flat":
        nest_concats(graph)
        fold_scales(graph)
    assert regroup(graph) == 3 * 4
    assert not any(node.op_type == "Concat" for node in graph.graph)
    expected = _made(flat, _picture())
    np.testing.assert_allclose(_made(graph, _picture()), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_regrouped_is_the_same_net_in_double_precision(flat):
    """What fp32 hides as rounding is an error where 1e-13 is the rounding."""
    outputs = []
    for rewrite in (False, True):
        graph = clone(flat)
        if rewrite:
            assert regroup(graph)
        outputs.append(_in_double(graph, _picture()[:1, :, :4, :5]))
    assert outputs[0].dtype == np.float64
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-14)
    assert np.abs(outputs[0]).max() > 1e-3


def test_regrouped_is_bit_equal_where_no_sum_rounds():
    """With whole numbers the order of sums cannot matter, so that every bit has to be there."""
    rng = np.random.default_rng(1)
    channels = 3
    x = ir.Value(name="input", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 3, "h", "w"]))
    sources, weights, nodes = [x], [], []
    for i, made in enumerate((4, 4, 5)):
        weight = rng.integers(-1, 2, (made, channels, 3, 3)) * (rng.random((made, channels, 3, 3)) < 0.3)
        values = [
            ir.Value(name=f"{name}{i}", const_value=ir.tensor(array.astype(np.float32), name=f"{name}{i}"))
            for name, array in (("w", weight), ("b", rng.integers(-9, 9, made)))
        ]
        weights += values
        source = sources[0]
        if len(sources) > 1:
            nodes.append(ir.node("Concat", sources, {"axis": 1}))
            source = nodes[-1].outputs[0]
        nodes.append(ir.node("Conv", [source, *values], {"pads": [1, 1, 1, 1]}))
        nodes.append(ir.node("LeakyRelu", [nodes[-1].outputs[0]], {"alpha": 0.25}))
        sources.append(nodes[-1].outputs[0])
        channels += made
    for i, node in enumerate(nodes):
        node.outputs[0].name = f"v{i}"
    last = nodes[-1].outputs[0]
    last.type, last.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 5, "h", "w"])
    graph = ir.Graph([x], [last], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="dense")
    model = ir.Model(graph, ir_version=10)
    batch = rng.integers(0, 8, (1, 3, 6, 5)).astype(np.float32)
    expected = _made(model, batch)
    rewritten = clone(model)
    assert regroup(rewritten) == 2
    np.testing.assert_array_equal(_made(rewritten, batch), expected)
    assert len(np.unique(expected)) > 20


def test_each_source_has_one_wide_convolution(flat):
    """One for each consumer would be the same sums, and not the form that is measured."""
    graph = clone(flat)
    regroup(graph)
    f, g = SPEC.features, SPEC.growth
    wanted = [(f + 4 * g, f), *((f + (3 - i) * g, g) for i in range(3)), (f, g)]
    dense = [shape[:2] for shape in _shapes(graph)][1:16]
    assert dense == wanted * 3
    count = sum(np.prod(shape) for shape in _shapes(flat))
    assert sum(np.prod(shape) for shape in _shapes(graph)) == count


def test_what_is_no_dense_block_is_left_alone():
    """A convolution of another stride cannot be widened with its neighbours."""
    x = ir.Value(name="input", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 2, "h", "w"]))
    weight = ir.Value(name="w", const_value=ir.tensor(np.ones((1, 4, 3, 3), np.float32), name="w"))
    relu = ir.node("Relu", [x])
    both = ir.node("Concat", [x, relu.outputs[0]], {"axis": 1})
    conv = ir.node("Conv", [both.outputs[0], weight], {"pads": [1, 1, 1, 1], "strides": [2, 2]})
    graph = ir.Graph(
        [x], conv.outputs, nodes=[relu, both, conv], initializers=[weight], opset_imports={"": 20}
    )
    assert regroup(ir.Model(graph, ir_version=10)) == 0
    assert [node.op_type for node in graph] == ["Relu", "Concat", "Conv"]


@pytest.mark.slow
def test_the_command_measures_every_form(tmp_path, capsys):
    """The default is chosen by these figures."""
    torch.manual_seed(0)
    torch.save(RRDBNet(SPEC).state_dict(), tmp_path / "net.pth")
    path = tmp_path / "forms.json"
    options = ["--side", "32", "--seconds", "0.2", "--threads", "1", "--quantised", "--json", str(path)]
    assert main([str(tmp_path / "net.pth"), *options]) == 0
    figures = json.loads(path.read_text())
    names = {"flat", "nested", "nested, 0.2 folded", "regrouped", "regrouped, 0.2 folded"}
    assert figures["forms"].keys() == figures["difference"].keys() == names
    assert figures["difference"]["nested"] == 0.0
    assert max(figures["difference"].values()) < 1e-5 * max(1.0, figures["largest_output"])
    forms = figures["forms"]
    assert forms["nested"]["bytes_per_pixel"] < forms["flat"]["bytes_per_pixel"]
    quantised = figures["quantised"]
    assert len(quantised) == 2 * 2 * 4
    # Convolutions of 4 and 6 channels among them.
    assert quantised["fp8, per tensor, all"]["convolutions"] == {"fp8": 20}
    assert quantised["int8, per channel, body"]["convolutions"] == {"fp16": 5, "int8": 15}
    assert 0.5 < quantised["fp8, per tensor, body"]["share"] < quantised["fp8, per tensor, all"]["share"] == 1
    times = figures["times"]["processor"]
    assert "ONNX Runtime" in times["on"]
    assert times["forms"].keys() == names
    assert set(times["forms"]["flat"]) == {"seconds", "of_flat", "low", "high"}
    assert times["forms"]["flat"]["of_flat"] == 1.0
    assert len({len(form["seconds"]) for form in times["forms"].values()}) == 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in {*names, *quantised})


def _in_double(graph, batch):
    proto = onnx.load_from_string(to_bytes(graph))
    # The scales of a Resize are fp32 by definition.
    scales = {node.input[2] for node in proto.graph.node if node.op_type == "Resize"}
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in scales:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(
                    onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name
                )
            )
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return ReferenceEvaluator(proto).run(None, {"input": batch.astype(np.float64)})[0]
