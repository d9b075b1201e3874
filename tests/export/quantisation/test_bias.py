"""Rounding with compensation."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from esrgan_deploy.export.graphs import Recipe, weight_steps
from esrgan_deploy.export.nets import RRDBNet, layers
from esrgan_deploy.export.quantisation import Simulation, apply_parameters, rounded
from esrgan_deploy.export.quantisation.weights import compensated, fitted_last
from esrgan_deploy.export.quantisation.weights._compensate import Moments, compensate, side_by_side


@pytest.fixture
def net(rrdb_spec, rrdb_weights):
    spec = rrdb_spec(blocks=1)
    module = RRDBNet(spec).eval().requires_grad_(False)
    module.load_state_dict(rrdb_weights(spec))
    return module, spec


def _pictures(count=3, size=12):
    random = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, size, size, generator=random) for _ in range(count)]


def _recipe(module, spec, kind="int8", coarse=4.0):
    chosen = layers(spec)[1:-1]
    weights = {
        layer.name: coarse
        * weight_steps(module.get_submodule(layer.name).weight.numpy(), layer, kind, per_channel=True)
        for layer in chosen
    }
    return Recipe(
        formats={layer.name: kind for layer in chosen},
        activations={layer.group: 0.05 for layer in chosen},
        weights=weights,
    )


def test_both_nets_side_by_side_are_the_two_nets(net):
    """A pass that mixes the halves, or rounds otherwise than the simulation, compensates what is not wrong."""
    module, spec = net
    recipe, pictures = _recipe(module, spec), _pictures()
    batch = torch.cat(pictures)
    exact, quantised = side_by_side(
        module, layers(spec), recipe, pictures, lambda seen: seen.run(seen.conv.weight, seen.conv.bias)
    )
    assert torch.allclose(exact, module(batch), atol=1e-5)
    simulation = Simulation(module, layers(spec), recipe)
    wanted = simulation(batch)
    simulation.detach()
    assert not torch.allclose(exact, wanted, atol=1e-3)
    assert torch.allclose(quantised, wanted, atol=1e-5)


def test_no_pictures_are_refused(net):
    """Nothing was measured, so nothing can be compensated."""
    module, spec = net
    with pytest.raises(ValueError, match="no pictures"):
        compensated(module, spec, _recipe(module, spec), [])


@pytest.mark.parametrize(
    ("kind", "per_channel"), [("int8", True), ("int8", False), ("fp8", True), ("fp8", False)]
)
def test_compensation_lowers_the_outputs_error_and_stays_on_the_grid(kind, per_channel):
    """Weights off the grid are rounded a second time by the graph, and what was compensated is lost."""
    random = torch.Generator().manual_seed(5)
    # Neighbours and channels that are alike, as in a picture.
    base = torch.nn.functional.interpolate(
        torch.rand(4, 2, 8, 8, generator=random), scale_factor=4, mode="bilinear"
    )
    x = torch.cat([base, base * 0.5 + 0.1 * torch.rand(4, 2, 32, 32, generator=random)], 1)
    weight, bias = torch.randn(6, 4, 3, 3, generator=random), torch.randn(6, generator=random)
    largest = weight.abs().amax((1, 2, 3)) if per_channel else weight.abs().max()
    steps = (largest / (15 if kind == "int8" else 448)).numpy()
    step = torch.from_numpy(np.asarray(steps))
    step = step.reshape(-1, 1, 1, 1) if per_channel else step
    moments = Moments(3, 4)
    moments.add(x, x)
    found, moved = compensate(weight, bias, step.reshape(-1, 1, 1, 1), moments, kind)
    nearest = rounded(weight, step, kind, weights=True)
    assert torch.equal(rounded(found, step, kind, weights=True), found)

    def error(w, b):
        conv = torch.nn.functional.conv2d
        return float((conv(x, w, b, padding=1) - conv(x, weight, bias, padding=1)).square().mean())

    assert error(found, moved) < 0.3 * error(nearest, bias)


def test_a_few_pixels_are_seen_as_all_are():
    """Their neighbourhoods are cut out one by one: a column in another place belongs to another weight."""
    random = torch.Generator().manual_seed(2)
    exact, quantised = (torch.rand(2, 3, 5, 7, generator=random) for _ in range(2))
    few = Moments(3, 3)
    few.add(exact, quantised, limit=30, seed=4)
    chosen = torch.randperm(70, generator=torch.Generator().manual_seed(4))[:30]
    unfolded = [
        torch.cat([columns, torch.ones(1, 30)])
        for x in (exact, quantised)
        for columns in [torch.nn.functional.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)[:, chosen]]
    ]
    torch.testing.assert_close(few.own, (unfolded[1] @ unfolded[1].T).double())
    torch.testing.assert_close(few.cross, (unfolded[0] @ unfolded[1].T).double())


def test_a_compensated_net_is_nearer(net):
    """Compensation that does not reach the net's output is not worth its minutes."""
    module, spec = net
    # Coarse weights, so that theirs is the error.
    recipe, pictures = _recipe(module, spec, coarse=16.0), _pictures(4, 24)
    batch = torch.cat(pictures)
    exact = module(batch)
    errors = []
    for parameters in ({}, compensated(module, spec, recipe, pictures)):
        apply_parameters(module, Recipe(formats={}, activations={}, weights={}, parameters=parameters))
        simulation = Simulation(module, layers(spec), recipe)
        errors.append(float((simulation(batch) - exact).square().mean()))
        simulation.detach()
    assert errors[1] < 0.5 * errors[0], errors


def test_the_last_convolution_makes_up_for_what_was_rounded_in_front_of_it(net):
    """It is the one that nothing binds to a grid: left as it is, it passes on every error that it could take back."""
    module, spec = net
    recipe = _recipe(module, spec, coarse=8.0)
    changed = fitted_last(module, spec, recipe, _pictures(4, 24))
    assert set(changed) == {"conv_last.weight", "conv_last.bias"}
    unseen = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(9))

    def error(parameters):
        other = copy.deepcopy(module)
        with_parameters = dataclasses.replace(recipe, parameters=parameters)
        apply_parameters(other, with_parameters)
        with torch.inference_mode():
            return float(
                (Simulation(other, layers(spec), with_parameters)(unseen) - module(unseen)).square().mean()
            )

    assert error(changed) < 0.8 * error({})
