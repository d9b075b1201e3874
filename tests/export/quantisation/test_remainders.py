"""Input channels that an FP8 convolution reads twice."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from esrgan_deploy import ExportError, ModelSpec
from esrgan_deploy._parity import planar
from esrgan_deploy.export.graphs import (
    Recipe,
    add_remainders,
    fold_scales,
    nest_concats,
    quantise,
    to_bytes,
    trace,
    weight_steps,
)
from esrgan_deploy.export.nets import RRDBNet, layers
from esrgan_deploy.export.proof import run, session_of
from esrgan_deploy.export.quantisation import Simulation
from esrgan_deploy.export.quantisation.calibration import _activation_scales as _ranges
from esrgan_deploy.export.quantisation.weights import with_remainders

TAIL = ("conv_body", "conv_up1", "conv_up2", "conv_hr")


def picture() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (1, 12, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tail(rrdb_spec: Callable[..., ModelSpec]) -> tuple[RRDBNet, ModelSpec, Recipe]:
    """A small net and the recipe that quantises its tail in FP8."""
    torch.manual_seed(2)
    spec = rrdb_spec(blocks=1)
    module = RRDBNet(spec).eval().requires_grad_(False)
    found = [layer for layer in layers(spec) if layer.name in TAIL]
    observed = _ranges.observe(module, layers(spec), [picture()])
    recipe = Recipe(
        formats=dict.fromkeys(TAIL, "fp8"),
        activations=_ranges.activation_steps(observed, dict.fromkeys(TAIL, "fp8"), "max"),
        weights={
            layer.name: weight_steps(
                module.get_submodule(layer.name).get_parameter("weight").numpy(),
                layer,
                "fp8",
                per_channel=False,
            )
            for layer in found
        },
    )
    return module, spec, recipe


@pytest.mark.slow
def test_the_graph_computes_what_the_simulation_does(tail: Any) -> None:
    """The exported graph would read other channels again, or with other weights, than what was judged."""
    module, spec, recipe = tail
    twice = with_remainders(module, layers(spec), recipe, [picture()], count=3)
    assert {name: len(channels) for name, channels in twice.remainders.items()} == dict.fromkeys(TAIL, 3)
    graph = trace(module, spec, opset=20)
    nest_concats(graph)
    fold_scales(graph)
    quantise(graph, layers(spec), twice)
    assert add_remainders(graph, layers(spec), twice) == len(TAIL)
    x = planar(picture())
    (made,) = run(session_of(to_bytes(graph)), x)
    simulated = Simulation(module, layers(spec), twice)
    wanted = simulated(torch.from_numpy(x)).numpy()
    plain = Simulation(module, layers(spec), recipe)(torch.from_numpy(x)).numpy()
    plain_error = np.abs(plain - wanted).max()
    # A sum that differs in its last bit may round the other way once.
    assert np.abs(made - wanted).mean() < 0.02 * plain_error, (np.abs(made - wanted).max(), plain_error)
    simulated.detach()


def test_reading_all_channels_twice_leaves_little_of_the_rounding(tail: Any) -> None:
    """The remainder would be added with the wrong sign or step, and lose instead of gain."""
    module, spec, recipe = tail
    x = torch.from_numpy(planar(picture()))
    exact = module(x)
    errors = []
    for count in (0, 2, 8):
        twice = with_remainders(module, layers(spec), recipe, [picture()], count=count)
        simulation = Simulation(module, layers(spec), twice)
        # Weights that need no rounding, so that only the inputs err.
        simulation._rounded = {name: module.get_submodule(name).get_parameter("weight") for name in TAIL}
        errors.append(float((simulation(x) - exact).square().mean()))
        simulation.detach()
    assert errors[2] < errors[0] / 50, errors
    assert errors[2] < errors[1] < errors[0], errors


def test_remainders_of_a_dense_block_are_refused(tail: Any) -> None:
    """A feature that five convolutions share would be read twice by one of them only."""
    module, spec, recipe = tail
    wrong = dataclasses.replace(recipe, remainders={"body.0.rdb1": (1,)})
    with pytest.raises(ExportError, match=r"body\.0\.rdb1 is no group of one convolution"):
        add_remainders(trace(module, spec, opset=20), layers(spec), wrong)
