"""What a recipe holds, and what of it survives on disk."""

import dataclasses
import json

import numpy as np
import pytest

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.graphs import Recipe, storable, weight_steps
from esrgan_deploy.export.nets import LEAST_STEP, layers
from esrgan_deploy.export.quantisation import KeptRecipe, load_recipe, save_recipe
from esrgan_deploy.export.quantisation._recipe_file import parameters_beside


def _kept(**changes):
    recipe = Recipe(
        formats={"a": "int8", "b": "fp8"},
        activations={"g": 0.03125},
        weights={"a": np.array([0.5, 0.25], np.float32), "b": np.array(0.125, np.float32)},
        parameters={"a.bias": np.array([1.5, -2.0], np.float32)},
        remainders={"g": (0, 7)},
        multipliers={"g": np.array([0.5, 3.0], np.float32)},
        inputs={"g": (-0.1, 1.7)},
        outputs={"a": (-3.3, 2.0)},
    )
    recipe = dataclasses.replace(recipe, **changes)
    return KeptRecipe(recipe=recipe, weights_sha256="0" * 64, asked={"budget": 0.1}, facts={"loss": 0.01})


def test_a_recipe_is_the_same_after_it_was_kept(tmp_path):
    """A scale that changes on its way through the file gives another picture than the one that was measured."""
    path = tmp_path / "model.int8.scales.json"
    files = save_recipe(path, _kept())
    assert [file.name for file in files] == ["model.int8.scales.json", "model.int8.weights.safetensors"]
    again = load_recipe(path)
    assert again.asked == {"budget": 0.1}
    assert again.facts == {"loss": 0.01}
    assert again.recipe.formats == _kept().recipe.formats
    assert again.recipe.activations == _kept().recipe.activations
    for name, steps in _kept().recipe.weights.items():
        assert again.recipe.weights[name].shape == steps.shape
        assert np.array_equal(again.recipe.weights[name], steps)
    assert np.array_equal(again.recipe.parameters["a.bias"], [1.5, -2.0])
    assert again.recipe.remainders == {"g": (0, 7)}
    assert again.recipe.multiplied("g", 3).tolist() == [0.5, 3.0, 1.0]
    assert again.recipe.multiplied("another", 2).tolist() == [1.0, 1.0]
    assert again.recipe.inputs == {"g": (-0.1, 1.7)}
    assert again.recipe.outputs == {"a": (-3.3, 2.0)}


def test_the_file_of_scales_has_a_line_for_each(tmp_path):
    """Scales that nobody can read cannot be looked over."""
    path = tmp_path / "model.int8.scales.json"
    save_recipe(path, _kept(parameters={}))
    assert '    "a": [0.5, 0.25],' in path.read_text().splitlines()
    assert not parameters_beside(path).exists()


def test_other_parameters_than_those_it_was_kept_with_are_refused(tmp_path):
    """Weights of another run with these steps would be rounded to a grid that is not theirs."""
    path = tmp_path / "model.int8.scales.json"
    save_recipe(path, _kept())
    other = tmp_path / "other.int8.scales.json"
    save_recipe(other, _kept(parameters={"a.bias": np.zeros(2, np.float32)}))
    parameters_beside(other).replace(parameters_beside(path))
    with pytest.raises(ExportError, match="not the file that it was written with"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 7),
        ("activations", {"g": 0.0}),
        ("activations", {"g": float("nan")}),
        ("weights", {"a": [1.0]}),
        ("formats", {"a": "int4", "b": "fp8"}),
        ("activations", [1]),
    ],
)
def test_a_damaged_file_of_scales_is_one_line(tmp_path, key, value):
    """A zero, a NaN or a missing table would become a black picture."""
    path = tmp_path / "model.int8.scales.json"
    save_recipe(path, _kept())
    data = json.loads(path.read_text())
    data[key] = value
    path.write_text(json.dumps(data))
    with pytest.raises(ExportError, match="cannot be used as scales") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_steps_are_those_that_half_precision_holds(rrdb_spec):
    """A step that the graph rounds on writing is another than the one that was measured."""
    fold = 0.2
    steps = storable(np.array([0.1, 1e-9, 3.3e-3]), fold)
    stored = (steps.astype(np.float64) * fold).astype(np.float16)
    assert np.array_equal((stored.astype(np.float64) / fold).astype(np.float32), steps)
    assert stored.min() >= LEAST_STEP
    layer = next(layer for layer in layers(rrdb_spec()) if layer.fold != 1.0)
    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    each, one = (weight_steps(weight, layer, "int8", per_channel=flag) for flag in (True, False))
    assert each.shape == (8,)
    assert one.shape == ()
    # At the largest weight the integer is 127, to the rounding of the step.
    assert np.abs(weight).max() / float(one) == pytest.approx(127, rel=1e-3)


def test_the_structure_names_every_convolution_with_its_cost(rrdb_spec):
    """A convolution that is left out is quantised by nobody, and its cost is missing from the share."""
    from torch import nn

    from esrgan_deploy.export.nets import RRDBNet

    for spec in (rrdb_spec(), rrdb_spec(scale=2, unshuffle=2), rrdb_spec(scale=3)):
        found = layers(spec)
        there = {name for name, module in RRDBNet(spec).named_modules() if isinstance(module, nn.Conv2d)}
        assert {layer.name for layer in found} == there
        assert 2 * sum(layer.macs for layer in found) == pytest.approx(spec.flops_per_pixel)
