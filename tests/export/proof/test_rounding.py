"""What rounding costs is measured by nothing that exports, and a fault beyond it is refused."""

import dataclasses
from fractions import Fraction

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from esrgan_deploy._parity import BOUNDS, Comparer, beyond_rounding, judged
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export.graphs import (
    clone,
    fold_scales,
    form_for_plans,
    nest_concats,
    save,
    to_precision,
    trace,
)
from esrgan_deploy.export.nets import RRDBNet
from esrgan_deploy.export.proof import (
    golden_pictures,
    noise_pictures,
    reference_of_module,
    reference_pairs,
    rounded_reference,
    rounding_costs,
    verify_graph,
)

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class _Ends(nn.Module):
    """Operators that make a tensor, change one in place, look into one, and give several."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("number", torch.tensor(3))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        made = picture * self.scale
        torch.nn.functional.leaky_relu_(made, -0.2)
        red, rest = made[:, :1], made[:, 1:]
        red += 1 / 3
        return torch.cat([red, *torch.var_mean(rest, 1, keepdim=True)], 1)


@pytest.mark.parametrize("precision", HALF)
def test_every_tensor_is_rounded_and_written_where_it_was(precision):
    """One that keeps its digits costs nothing, and a view that became a copy leaves the picture as it was."""
    half = HALF[precision]

    def rounded(tensor):
        return torch.as_tensor(tensor).to(half).float()

    batch = np.random.default_rng(0).uniform(-1, 1, (1, 3, 6, 5)).astype(np.float32)
    module = _Ends()
    out = rounded_reference(module, precision)(batch)
    made = rounded(rounded(batch) * rounded(0.3))
    made = rounded(torch.where(made < 0, -0.2 * made, made))
    spread, mean = (rounded(one) for one in torch.var_mean(made[:, 1:], 1, keepdim=True))
    expected = torch.cat([rounded(made[:, :1] + 1 / 3), spread, mean], 1)
    assert (out == expected.numpy()).all()
    assert module.scale.item() == pytest.approx(0.3, rel=1e-7)


def test_a_resize_is_part_of_what_rounds():
    """The graph of another final size would be held against pictures of the net's own."""
    batch = np.random.default_rng(0).uniform(0, 1, (1, 3, 8, 8)).astype(np.float32)
    module, half = nn.Identity(), Fraction(1, 2)
    out = rounded_reference(module, "bf16", half)(batch)
    exact = reference_of_module(module, half)(batch)
    assert out.shape == exact.shape == (1, 3, 4, 4)
    assert 0 < np.abs(out - exact).max() < 2**-7


def test_there_is_no_cost_of_a_format_that_has_bounds_of_its_own():
    """A quantised graph is held to a budget, and fp32 to the order of its sums."""
    assert not any(rounding_costs(nn.Identity(), name, {}) for name in BOUNDS)
    assert rounding_costs(nn.Identity(), "fp32", {"golden": {}}) == {}


@pytest.fixture(scope="module")
def net(rrdb_spec):
    """A net of two blocks that makes pictures, its graph, and what it makes of the pictures of an export."""
    torch.manual_seed(1)
    spec = rrdb_spec(blocks=2, features=16, growth=8)
    module = RRDBNet(spec).eval().requires_grad_(False)
    for name, value in module.named_parameters():
        if name.endswith("bias"):
            value.uniform_(-0.1, 0.1)
    module.conv_last.weight.mul_(8)
    module.conv_last.bias.fill_(0.4)
    pictures = {"noise": noise_pictures(3), "golden": golden_pictures(3)}
    reference = reference_of_module(module)
    sets = {on: reference_pairs(reference, chosen) for on, chosen in pictures.items()}
    return module, trace(module, spec), sets


FAULTS = {
    "a level": ("conv_last.bias", lambda bias: bias + 1 / 255),
    "half a level of one colour": ("conv_last.bias", lambda bias: bias - [0, 0, 0.5 / 255]),
    "a bias": ("conv_hr.bias", np.zeros_like),
    "a channel": ("conv_body.weight", lambda weight: weight[[1, 0, *range(2, len(weight))]]),
    "a pixel": ("conv_up2.weight", lambda weight: np.roll(weight, 1, 3)),
}


@pytest.mark.parametrize("precision", HALF)
def test_rounding_passes_and_a_fault_does_not(net, precision, tmp_path):
    """Bounds that refuse rounding are switched off by who needs the format, and those that pass all prove nothing."""
    module, graph, sets = net
    costs = rounding_costs(module, precision, sets)

    def found(name="conv_last.bias", change=lambda same: same):
        wrong = clone(graph)
        value = wrong.graph.initializers[name]
        array = np.ascontiguousarray(change(value.const_value.numpy()), np.float32)
        value.const_value = ir.tensor(array, name=name)
        nest_concats(wrong)
        fold_scales(wrong)
        form_for_plans(wrong, precision)
        save(to_precision(wrong, precision), tmp_path / "model.onnx")
        return verify_graph(tmp_path / "model.onnx", precision, sets)

    sound = found()
    assert judged(sound, precision, "float", costs)[1]
    for one in sound:
        bound, cost = beyond_rounding(costs[one.on]), costs[one.on]
        # Half of the power, of the shift and of the share is left.
        assert 2 * one.rms**2 < (255 / 10 ** (bound.min_psnr / 20)) ** 2, (one, cost)
        assert 2 * one.off_by_more <= 1 - bound.min_within_one, (one, cost)
    for name, change in FAULTS.values():
        figures, held = judged(found(name, change), precision, "float", costs)
        assert not held, (name, figures)


def _figures(noise, *, shift=0.0, far=0.0, by=5, on="golden"):
    """What rounding of a standard deviation in levels leaves of a picture, moved, a share of it far off."""
    random = np.random.default_rng(0)
    reference = random.uniform(0.2, 0.8, (1, 3, 64, 64)).astype(np.float32)
    error = random.normal(0, noise, reference.shape) + shift
    error.reshape(-1)[: round(far * error.size)] += np.resize([by, -by], round(far * error.size))
    comparer = Comparer(on, "by hand", structure=False)
    comparer.add("picture", reference, reference + error.astype(np.float32) / 255)
    return comparer.result()


@pytest.mark.parametrize(
    ("cost", "other", "on", "breach"),
    [
        ({"noise": 0.5}, {"noise": 0.7}, "golden", None),
        ({"noise": 0.1, "far": 0.03, "by": 4}, {"far": 0.15}, "golden", None),
        ({"noise": 0.1, "far": 0.03, "by": 4}, {"far": 0.235}, "golden", "PSNR"),
        ({"noise": 0.1}, {"noise": 1.0}, "noise", None),
        ({"noise": 0.1}, {"noise": 1.3}, "noise", "PSNR"),
        ({"noise": 0.5}, {"shift": 0.4}, "golden", None),
        ({"noise": 0.5}, {"shift": 0.6}, "golden", "colour shift"),
        ({"noise": 0.5}, {"shift": -0.1}, "golden", "colour shift"),
        ({"noise": 0.5}, {"shift": 0.6}, "noise", None),
        ({"noise": 0.1, "far": 0.01, "by": 2}, {"far": 0.06}, "golden", None),
        ({"noise": 0.1, "far": 0.01, "by": 2}, {"far": 0.09}, "golden", "within one level"),
    ],
)
def test_each_measure_of_rounding_has_its_room(cost, other, on, breach):
    """As much as two sound roundings differ by, and not more; a mean counts from where rounding puts it."""
    steady = {**cost, "shift": 0.0 if on == "noise" else 0.3}
    alone, measured = _figures(**steady, on=on), _figures(**{**steady, **other}, on=on)
    figures, held = judged([measured], "bf16", "float", {on: alone})
    assert held == (breach is None)
    assert figures[0]["rounding"]["psnr"] == alone.psnr
    assert figures[0]["rounding"]["bias"] == list(alone.bias)
    if breach is not None:
        assert breach in figures[0]["breaches"][0]
        assert figures[0]["breaches"][0].endswith("beyond what rounding to bf16 costs")


@pytest.mark.parametrize(
    ("other", "held", "with_sums"),
    [
        ({"noise": 0.7}, False, True),
        ({"noise": 1.4}, False, False),
        ({"shift": 0.55}, False, True),
        ({"shift": 0.75}, False, False),
        ({"far": 0.005}, False, True),
    ],
)
def test_who_rounds_sums_too_has_twice_the_room(other, held, with_sums):
    """A plan whose kernels add in fp16 is no fault, and one a level off is."""
    steady = {"noise": 0.05, "shift": 0.3}
    alone, measured = _figures(**steady), _figures(**{**steady, **other})
    costs = {"golden": alone}
    assert judged([measured], "bf16", "float", costs)[1] == held
    assert judged([measured], "bf16", "float", costs, sums=True)[1] == with_sums


def test_a_few_samples_far_off_are_seen_where_rounding_leaves_none():
    """One wrong weight of a feature that is rare moves no mean and little power."""
    cost = _figures(0.2)
    figures, held = judged([_figures(0.2, far=0.0005)], "fp16", "float", {"golden": cost})
    assert not held
    assert "within one level" in figures[0]["breaches"][0]


def test_a_net_that_rounding_does_not_touch_may_still_round_a_sample_the_other_way():
    """No cost at all would be a bound of infinitely many decibels."""
    cost = _figures(0.0)
    assert cost.psnr == float("inf")
    nearly = dataclasses.replace(cost, psnr=70.0, off_by_0=0.995, off_by_1=0.005, bias=(0.01, 0.0, 0.0))
    assert nearly.breaches(beyond_rounding(cost)) == []
    assert dataclasses.replace(nearly, psnr=60.0).breaches(beyond_rounding(cost)) != []


@pytest.mark.slow
def test_a_real_net_in_bf16_is_verified(real_net, tmp_path):
    """Noise becomes a flat colour of a GAN's, 0.8 levels away in bf16: rounding, and no fault."""
    manifest = export_model(real_net("anime_6B"), tmp_path, ExportOptions(precisions=("bf16",), plan=False))
    artefact = manifest.artefact("model.bf16.onnx")
    shift = {figures["on"]: max(map(abs, figures["bias"])) for figures in artefact.parity}
    assert artefact.verified
    assert shift["noise"] > 0.5 > shift["golden"]
