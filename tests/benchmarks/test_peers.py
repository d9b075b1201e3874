"""Peers run the same net on the same input, and say how far they are from it."""

import dataclasses
import importlib.util
import json
import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch

from esrgan_deploy._errors import InferenceError, MissingDependencyError
from esrgan_deploy._spec import METADATA_KEY, ModelSpec
from esrgan_deploy.benchmarks._cli import main
from esrgan_deploy.benchmarks.peers import open_peers
from esrgan_deploy.benchmarks.peers._torch import module_from_graph
from esrgan_deploy.export._write_graphs import describe
from esrgan_deploy.export.graphs import clone, fold_scales, nest_concats, save, trace
from esrgan_deploy.export.nets import RRDBNet, SRVGGNetCompact

SPEC = ModelSpec(
    architecture="rrdbnet", scale=4, in_channels=3, out_channels=3, features=8, blocks=1, growth=4,
    source_sha256="",
)  # fmt: skip
FOLDED = dataclasses.replace(SPEC, scale=2, unshuffle=2, size_multiple=2)
COMPACT = dataclasses.replace(SPEC, architecture="srvggnetcompact", growth=0, blocks=2)

# Sums of some hundred products in fp32, in another order.
TOLERANCE = 2e-5


def _net(spec):
    torch.manual_seed(0)
    if spec is not COMPACT:
        # As `tiny_export` has it, whose trace serves here too; its biases differ from each other.
        return RRDBNet(spec).eval().requires_grad_(False)
    net = SRVGGNetCompact(spec).eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            # Slopes that differ from each other: else an exchanged one would not be seen.
            parameter += 0.05 * torch.rand_like(parameter)
    return net


def _graph(spec, path, *, fold=True):
    graph = trace(_net(spec), spec)
    nest_concats(graph)
    if fold:
        assert fold_scales(graph) == (0 if spec is COMPACT else 3)
    describe(
        graph,
        spec,
        precision="fp32",
        form="float",
        outscale=float(spec.scale),
        size_multiple=spec.size_multiple,
    )
    save(graph, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return _graph(SPEC, tmp_path_factory.mktemp("peers") / "model.onnx")


def _peers(names, path, shape=(2, 6, 10)):
    said = []
    peers = open_peers(names, path, shape, threads=1, say=said.append)
    return peers, said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino", "ncnn"])
def test_a_peer_computes_the_same_net_on_the_same_input(name, model):
    """A ratio between two different nets, or two different pictures, would be worth nothing."""
    needed = {"ncnn": ("ncnn", "pnnx")}.get(name, (name,))
    for package in needed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'esrgan-deploy[peers]'")
    (peer,), said = _peers([name], model)
    assert said == []
    assert peer.name == name
    assert peer.version
    assert "fp32" in peer.provider
    assert peer.difference < TOLERANCE
    assert peer.difference < 1e-3 * float(_net(SPEC)(torch.rand(1, 3, 6, 10)).abs().max())
    assert peer.run() is not None
    peer.close()
    peer.close()


@pytest.mark.slow
def test_a_compiled_net_is_the_same_net(tmp_path):
    """The compiler may reorder sums and nothing else."""
    # The net with the fewest kernels: cold, those of dense blocks compile for minutes.
    (peer,), _ = _peers(["torch-compile"], _graph(COMPACT, tmp_path / "model.onnx"), (1, 6, 10))
    assert "compiled" in peer.provider
    assert peer.difference < TOLERANCE
    peer.close()


def test_a_peer_on_a_gpu_says_its_card_and_precision(model):
    """fp16 on a card beside fp32 on a processor, both called torch, would be no comparison."""
    (peer,), _ = _peers(["torch"], model)
    assert (torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU") in peer.provider
    peer.close()


def test_run_returns_the_whole_batch_enlarged(model):
    """A peer that runs one picture of a batch of two would look twice as fast."""
    (torch_peer, ort_peer), _ = _peers(["torch", "onnxruntime"], model)
    assert tuple(torch_peer.run().shape) == ort_peer.run().shape == (2, 3, 24, 40)
    np.testing.assert_allclose(np.asarray(torch_peer.run().float().cpu()), ort_peer.run(), atol=5e-3)
    for peer in (torch_peer, ort_peer):
        peer.close()


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SPEC, FOLDED, COMPACT], ids=["rrdb", "rrdb x2plus", "compact"])
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
def test_a_graph_becomes_the_module_that_it_came_from(spec, fold, tmp_path):
    """0.2 folded twice, or channels in another order, is another net under the same name."""
    rebuilt = module_from_graph(_graph(spec, tmp_path / "model.onnx", fold=fold)).state_dict()
    original = _net(spec).state_dict()
    assert rebuilt.keys() == original.keys()
    for name, value in original.items():
        # Folding and taking out again rounds twice.
        torch.testing.assert_close(rebuilt[name], value, rtol=2e-7, atol=0, msg=name)


def test_a_checkpoint_is_read_as_it_is(tmp_path):
    """What has no graph yet is compared as well."""
    torch.save(_net(SPEC).state_dict(), tmp_path / "net.pth")
    peers, _ = _peers(["torch", "onnxruntime"], tmp_path / "net.pth", (1, 5, 7))
    assert [peer.name for peer in peers] == ["torch", "onnxruntime"]
    assert all(peer.difference < TOLERANCE for peer in peers)
    assert list(tmp_path.iterdir()) == [tmp_path / "net.pth"]
    for peer in peers:
        peer.close()


def test_an_artefact_is_compared_by_the_fp32_graph_beside_it(model, tmp_path):
    """A plan cannot be run by others, and a half-precision graph is not what they would run."""
    (tmp_path / "net.onnx").write_bytes(model.read_bytes())
    (tmp_path / "net.fp16.plan").write_bytes(b"opaque")
    (peer,), _ = _peers(["onnxruntime"], tmp_path / "net.fp16.plan")
    assert peer.difference == 0.0
    peer.close()
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(InferenceError, match=r"net\.onnx is not there.*give the checkpoint"):
        _peers(["onnxruntime"], tmp_path / "net.fp16.plan")


def test_what_is_not_installed_is_left_out_with_the_command(model, monkeypatch):
    """One missing package must not cost the comparison with the others."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    peers, said = _peers(["openvino", "onnxruntime"], model)
    assert [peer.name for peer in peers] == ["onnxruntime"]
    (line,) = said
    assert "openvino is left out" in line
    assert "pip install 'esrgan-deploy[peers]'" in line
    peers[0].close()
    with pytest.raises(MissingDependencyError, match=r"pip install 'esrgan-deploy\[peers\]'"):
        _peers(["openvino"], model)


def test_a_foreign_graph_is_refused_by_torch_in_one_line(model, tmp_path):
    """What the graph does not say cannot be rebuilt, and a guess would be measured as if it were the net."""
    graph = clone(ir.load(model))
    graph.metadata_props.clear()
    save(graph, tmp_path / "foreign.onnx")
    with pytest.raises(InferenceError, match=r"Give the \.pth") as error:
        _peers(["torch"], tmp_path / "foreign.onnx")
    assert "\n" not in str(error.value)
    peers, _ = _peers(["onnxruntime"], tmp_path / "foreign.onnx")
    peers[0].close()


def test_a_rebuilt_module_that_computes_something_else_is_refused(model, tmp_path):
    """Metadata that lies would put another net's speed beside this one."""
    graph = clone(ir.load(model))
    last = graph.graph.initializers["conv_up1.weight"]
    # The graph computes with other weights than those that carry the names.
    for use in list(last.uses()):
        doubled = ir.node("Add", [last, last], name="doubled")
        graph.graph.insert_before(use.node, doubled)
        use.node.replace_input_with(use.idx, doubled.outputs[0])
        doubled.outputs[0].name = "doubled"
    save(graph, tmp_path / "model.onnx")
    with pytest.raises(InferenceError, match=r"computes something else"):
        _peers(["torch"], tmp_path / "model.onnx")


def test_a_resized_graph_is_no_module(model, tmp_path):
    """The net alone makes another size than the graph."""
    graph = clone(ir.load(model))
    facts = json.loads(graph.metadata_props[METADATA_KEY]) | {"outscale": 2.0}
    graph.metadata_props[METADATA_KEY] = json.dumps(facts)
    save(graph, tmp_path / "model.onnx")
    with pytest.raises(InferenceError, match=r"resizes the net's 4 to 2"):
        module_from_graph(tmp_path / "model.onnx")


def test_threads_of_torch_are_put_back(model):
    """They are the whole process', and another measurement follows."""
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    peers = open_peers(["torch"], model, (1, 6, 6), threads=other)
    assert torch.get_num_threads() == other
    peers[0].close()
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_peers_run_the_graph_of_the_same_name(tiny_export, tmp_path, capsys):
    """Of "net v1.5.fp16.onnx" the graph is "net v1.5.onnx", and never another version's "net v1.onnx"."""
    shutil.copy(tiny_export / "model.fp16.onnx", tmp_path / "net v1.5.fp16.onnx")
    shutil.copy(tiny_export / "model.onnx", tmp_path / "net v1.5.onnx")
    (tmp_path / "net v1.onnx").write_bytes(b"another")
    measured = ["--peers", "onnxruntime", "--shape", "1x16x16", "--seconds", "0.1", "--no-peaks"]
    assert main([str(tmp_path / "net v1.5.fp16.onnx"), *measured]) == 0
    assert "onnxruntime" in capsys.readouterr().out
