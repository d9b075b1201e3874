"""Rounding learned against the fp32 net."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from esrgan_deploy import ModelSpec
from esrgan_deploy._parity import planar
from esrgan_deploy.export.graphs import Recipe, weight_steps
from esrgan_deploy.export.nets import Layer, RRDBNet, SRVGGNetCompact, layers
from esrgan_deploy.export.quantisation import Simulation, apply_parameters, rounded
from esrgan_deploy.export.quantisation.calibration import _activation_scales as _ranges
from esrgan_deploy.export.quantisation.weights import reconstruct
from esrgan_deploy.export.quantisation.weights._learn import BATCH, BUDGET, CROP, LEAST_STEPS, _steps
from esrgan_deploy.export.quantisation.weights._learn_unit import Unit

COMPACT = ModelSpec(
    architecture="srvggnetcompact", scale=4, in_channels=3, out_channels=3, features=8, blocks=5, growth=0,
    source_sha256="0" * 64,
)  # fmt: skip


def pictures(count: int = 6, size: int = 24) -> list[np.ndarray]:
    random = np.random.default_rng(5)
    coarse = random.integers(0, 256, (count, 1, size // 4, size // 4, 3), dtype=np.uint8)
    return list(coarse.repeat(4, 2).repeat(4, 3))


def recipe_of(module: nn.Module, spec: ModelSpec, kind: str, *, coarser: float = 1.0) -> Recipe:
    """All but the first and the last convolution, per channel, with weight steps so many times as large."""
    found = [layer for layer in layers(spec) if layer.place not in ("first", "last")]
    observed = _ranges.observe(module, layers(spec), pictures())
    return Recipe(
        formats={layer.name: kind for layer in found},
        activations=_ranges.activation_steps(observed, {layer.group: kind for layer in found}, "max"),
        weights={layer.name: steps_of(module, layer, kind) * np.float32(coarser) for layer in found},
    )


def steps_of(module: nn.Module, layer: Layer, kind: str) -> np.ndarray:
    weight = module.get_submodule(layer.name).get_parameter("weight").detach().numpy()
    return weight_steps(weight, layer, kind, per_channel=True)


def error(module: nn.Module, spec: ModelSpec, recipe: Recipe, seen: list[np.ndarray]) -> float:
    """Mean squared error of the quantised net against the fp32 net, over pictures."""
    changed = copy.deepcopy(module)
    apply_parameters(changed, recipe)
    simulation = Simulation(changed, layers(spec), recipe)
    batch = torch.from_numpy(np.concatenate([planar(picture) for picture in seen]))
    with torch.inference_mode():
        return float((simulation(batch) - module(batch)).square().mean())


@pytest.fixture(scope="module")
def nets(rrdb_spec: Callable[..., ModelSpec]) -> dict[str, tuple[nn.Module, ModelSpec]]:
    torch.manual_seed(3)
    spec = rrdb_spec(blocks=1)
    return {
        "rrdbnet": (RRDBNet(spec).eval().requires_grad_(False), spec),
        "compact": (SRVGGNetCompact(COMPACT).eval().requires_grad_(False), COMPACT),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("rrdbnet", "int8"), ("rrdbnet", "fp8"), ("compact", "fp8")])
def test_learned_rounding_is_nearer_to_the_fp32_net(nets: Any, name: str, kind: str) -> None:
    """Learning would do no better than plain rounding on pictures not seen, or leave the weights' grid."""
    module, spec = nets[name]
    # As coarse as 4 bits, so that the weights are what errs.
    recipe = recipe_of(module, spec, kind, coarser=16.0 if kind == "int8" else 1.0)
    found = reconstruct(module, layers(spec), recipe, pictures(), steps=30)
    assert found.formats == recipe.formats
    other = [picture[:, ::-1] for picture in pictures(8)[6:]]
    plain, learned = error(module, spec, recipe, other), error(module, spec, found, other)
    assert learned < 0.8 * plain, (learned, plain)
    changed = [name for name in found.formats if f"{name}.weight" in found.parameters]
    assert changed
    for name in changed:
        weight = torch.from_numpy(found.parameters[f"{name}.weight"])
        steps = torch.from_numpy(found.weights[name]).reshape(-1, 1, 1, 1)
        assert torch.equal(weight, rounded(weight, steps, kind, weights=True)), name


def test_learned_weights_are_one_of_the_two_neighbours(nets: Any) -> None:
    """A learned weight would be further from the net's own than the next number of the grid."""
    module, spec = nets["compact"]
    recipe = recipe_of(module, spec, "int8", coarser=8.0)
    found = reconstruct(module, layers(spec), recipe, pictures(), steps=20)
    for name, steps in recipe.weights.items():
        original = module.get_submodule(name).get_parameter("weight").numpy()
        moved = np.abs(found.parameters.get(f"{name}.weight", original) - original)
        assert (moved <= steps.reshape(-1, 1, 1, 1) * 1.001).all(), name


def test_the_same_seed_gives_the_same_recipe_and_the_net_stays(nets: Any) -> None:
    """Two runs would differ, or the net that was handed in would be changed or left with other convolutions."""
    module, spec = nets["rrdbnet"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    recipe = recipe_of(module, spec, "int8", coarser=16.0)
    one, two = (reconstruct(module, layers(spec), recipe, pictures(), steps=5, seed=7) for _ in range(2))
    assert one.parameters.keys() == two.parameters.keys()
    assert all(np.array_equal(one.parameters[name], two.parameters[name]) for name in one.parameters)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any("forward" in part.__dict__ for part in module.modules())


def test_what_gets_worse_is_left_as_it_was(nets: Any) -> None:
    """A part that learning made worse on crops held back would be kept."""
    module, spec = nets["rrdbnet"]
    recipe = recipe_of(module, spec, "int8")
    lines: list[str] = []
    found = reconstruct(module, layers(spec), recipe, pictures(), steps=0, say=lines.append)
    assert found.parameters == {}
    assert len(lines) == 4
    assert all("left as it was" in line for line in lines), lines


def test_only_what_the_recipe_quantises_is_learned(nets: Any) -> None:
    """Rounding would be learned of convolutions that stay in half precision, other than the last."""
    module, spec = nets["rrdbnet"]
    recipe = recipe_of(module, spec, "int8", coarser=16.0).only(["body.0.rdb2.conv3", "conv_up2"])
    found = reconstruct(module, layers(spec), recipe, pictures(), steps=30)
    touched = {name.rpartition(".")[0] for name in found.parameters}
    assert touched == {"body.0.rdb2.conv3", "conv_up2", "conv_last"}


def test_a_recipe_of_nothing_comes_back(nets: Any) -> None:
    """Learning would fail where there is nothing to learn."""
    module, spec = nets["compact"]
    recipe = dataclasses.replace(recipe_of(module, spec, "int8"), formats={})
    assert reconstruct(module, layers(spec), recipe, pictures()) is recipe


def test_steps_follow_from_the_cost(nets: Any, rrdb_spec: Callable[..., ModelSpec]) -> None:
    """Learning a net of 23 blocks would take an hour, or a small one would stop before it has learned anything."""
    found = layers(rrdb_spec(blocks=23, features=64, growth=32))
    recipe = Recipe(formats={layer.name: "int8" for layer in found[1:-1]}, activations={}, weights={})

    def steps(place: str) -> int:
        unit = next(layer.unit for layer in found if layer.place == place)
        inside = tuple(
            layer for layer in found if layer.place == place and (place == "tail" or layer.unit == unit)
        )
        return _steps(Unit(name=unit, layers=inside, run=nets["compact"][0]), found, recipe, 48)

    assert steps("body") < LEAST_STEPS <= steps("tail")
    macs = sum(layer.macs for layer in found if layer.place in ("tail", "last"))
    assert 6 * macs * BATCH * CROP**2 * steps("tail") <= BUDGET / 2
    found = layers(rrdb_spec(blocks=2, features=32, growth=32))
    recipe = Recipe(formats={layer.name: "int8" for layer in found[1:-1]}, activations={}, weights={})
    assert min(steps("body"), steps("tail")) >= 100
