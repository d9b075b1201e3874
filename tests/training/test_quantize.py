"""Quantisation-aware finetuning: it trains what the export then writes."""

import json

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file

from esrgan_deploy._errors import TrainingError
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model, load_checkpoint
from esrgan_deploy.export._scales import scales_beside
from esrgan_deploy.export.graphs import fold_scales, nest_concats, quantise, to_bytes, trace
from esrgan_deploy.export.nets import layers
from esrgan_deploy.export.proof import run, session_of
from esrgan_deploy.export.quantisation import load_recipe
from esrgan_deploy.training import train
from esrgan_deploy.training._trainer import _quantisation
from esrgan_deploy.training.models import FakeQuantisation, generator
from esrgan_deploy.training.models._fake_quant import rounded

STATIC = BuildOptions(shapes=ShapeRange.parse("1x16x16"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("precision", "stored"), [("int8", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)]
)
def test_the_rounding_is_that_of_quantizelinear_to_the_bit(precision, stored):
    """Halves, both ends of the range and beyond: what is trained has to be what is run."""
    step = 0.0078125
    values = np.concatenate([np.arange(-600, 601, 0.5) * step, [9.9, -9.9], np.linspace(-1, 1, 999)]).astype(
        np.float32
    )
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [step]), helper.make_tensor("z", stored, [], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    wanted = run(session_of(model.SerializeToString()), values)[0]
    got = rounded(torch.from_numpy(values), torch.tensor(step), precision).numpy()
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_gradients_pass_inside_the_range_and_stop_beyond_it(precision):
    """The rounding itself has none; a value that is clipped cannot be mended by growing."""
    x = torch.tensor([0.3, -5.0, 1000.0, -1000.0], requires_grad=True)
    rounded(x, torch.tensor(0.1), precision).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.fixture
def start(small, tmp_path):
    """Make a model of a few seconds' training to quantise."""
    return train(small(steps=40, save_every=40, output=tmp_path / "fp32"), say=lambda _: None).weights


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("architecture", ["rrdbnet", "srvggnetcompact"])
def test_the_export_computes_what_was_trained(small, tmp_path, precision, architecture):
    """The Q/DQ pairs stand where the training rounded, with its scales."""
    keys = {"architecture": architecture, "blocks": 2 if architecture == "srvggnetcompact" else 1}
    first = train(small(steps=20, save_every=20, output=tmp_path / "fp32", **keys), say=lambda _: None)
    config = small(start=first.weights, quantize=precision, steps=6, output=tmp_path / "q", **keys)
    trained = train(config, say=lambda _: None)
    manifest = export_model(
        trained.weights, tmp_path / "out", ExportOptions(precisions=(precision,), plan=False, build=STATIC)
    )
    graph = next(artefact for artefact in manifest.artefacts if artefact.precision == precision)
    assert graph.verified, graph.parity
    checkpoint = load_checkpoint(trained.weights)
    recipe = load_recipe(scales_beside(trained.weights)).recipe
    net = checkpoint.module()
    # As the trainer makes it: with the factors that the graph's weights carry.
    quantisation = _quantisation(config)
    quantisation.load_state_dict({"steps": recipe.activations})
    quantisation.attach(net)
    picture = np.random.default_rng(0).random((1, 3, 24, 20), np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(picture)).numpy()
        exact = checkpoint.module()(torch.from_numpy(picture)).numpy()
    # The pass on the fp32 graph: what the written one rounds to halves besides would hide the difference.
    traced = trace(checkpoint.module(), checkpoint.spec, opset=20)
    nest_concats(traced)
    fold_scales(traced)
    quantise(traced, layers(checkpoint.spec), recipe)
    made = run(session_of(to_bytes(traced)), picture)[0]
    assert np.abs(made - wanted).mean() < 0.05 * np.abs(exact - wanted).mean()


def test_finetuning_brings_the_quantised_net_back_towards_its_teacher(small, start, tmp_path):
    """Otherwise rounding after the training would do as well."""
    config = small(
        start=start, quantize="int8", steps=120, save_every=120, log_every=20, output=tmp_path / "q"
    )
    train(config, say=lambda _: None)
    losses = [json.loads(line)["l1"] for line in (config.output / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]


def test_the_scales_are_measured_once_and_kept_in_the_state(small, start):
    """Measured anew at a resume they would be those of other weights."""
    config = small(start=start, quantize="int8")
    weights = train(config, say=lambda _: None).weights
    before = load_recipe(scales_beside(weights)).recipe.activations
    assert len(before) == 3
    assert all(0 < scale < 1 for scale in before.values())
    train(small(start=start, quantize="int8", steps=9, resume=True), say=lambda _: None)
    assert load_recipe(scales_beside(weights)).recipe.activations == before


def test_calibration_takes_the_percentile_and_not_the_outlier(small):
    """One value in a hundred thousand must not cost all others a longer step."""
    net = generator(small(features=64))
    groups = {"body.0.rdb1.conv1": "body.0.rdb1"}
    seen = {}
    net.get_submodule("body.0.rdb1").register_forward_pre_hook(
        lambda _, inputs: seen.setdefault("x", inputs[0])
    )
    quantisation = FakeQuantisation(groups, "int8")
    quantisation.attach(net)
    picture = torch.rand(1, 3, 64, 64)
    quantisation.calibrate(net, iter([picture]))
    magnitudes = seen["x"].abs().flatten()
    wanted = float(torch.quantile(magnitudes, 0.9999)) / 127
    assert quantisation.scales["body.0.rdb1"] == pytest.approx(wanted, rel=0.02)
    assert quantisation.scales["body.0.rdb1"] < float(magnitudes.max()) / 127


def test_quantising_without_a_model_to_start_from_is_refused(small):
    """From random weights there is nothing to keep."""
    with pytest.raises(
        TrainingError, match="quantize is int8 and start names no model; give the fp32 one with --start"
    ):
        small(quantize="int8")


def test_the_weights_stay_those_of_a_plain_checkpoint(small, start):
    """Every tool reads them; only the scales are new."""
    weights = train(small(start=start, quantize="fp8"), say=lambda _: None).weights
    assert load_file(weights).keys() == load_file(start).keys()
