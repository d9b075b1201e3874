"""From a net to the recipe that quantises all that can be: each option does what it says."""

import copy

import numpy as np
import pytest
import torch

from esrgan_deploy.export.graphs import unsigned_grid
from esrgan_deploy.export.graphs._cpu_weights import LARGEST_PAIR, pairs_of
from esrgan_deploy.export.nets import RRDBNet, layers
from esrgan_deploy.export.quantisation import Preparation, QuantiseOptions

TAIL = {"conv_body", "conv_up1", "conv_up2", "conv_hr"}


@pytest.fixture(scope="module")
def prepared(rrdb_spec, rrdb_weights):
    """Prepare a small net: ``prepared("int8", rounding="nearest")``; each recipe is made once."""
    spec = rrdb_spec(blocks=1)
    module = RRDBNet(spec).eval().requires_grad_(False)
    module.load_state_dict(rrdb_weights(spec))
    random = np.random.default_rng(2)
    pictures = [random.integers(0, 256, (1, 24, 24, 3), np.uint8) for _ in range(4)]
    made = {}

    def make(kind, *, unsigned=False, **asked):
        key = (kind, unsigned, *sorted(asked.items()))
        if key not in made:
            work = preparation(kind, unsigned=unsigned, **asked)
            made[key] = work.rounded(work.scaled())
        return made[key]

    def preparation(kind, *, unsigned=False, seen=pictures, **asked):
        return Preparation(
            module=copy.deepcopy(module),
            spec=spec,
            layers=layers(spec),
            kind=kind,
            options=QuantiseOptions(**asked),
            pictures=seen,
            unsigned=unsigned,
        )

    make.preparation = preparation
    return make


def _changed(recipe, other):
    names = set(recipe.parameters) | set(other.parameters)
    return {
        name
        for name in names
        if name not in recipe.parameters
        or name not in other.parameters
        or not np.array_equal(recipe.parameters[name], other.parameters[name])
    }


def test_the_ends_stay_in_half_precision_unless_they_are_asked_for(prepared):
    """They carry the picture itself."""
    inner = prepared("int8", rounding="nearest", equalise=False)
    assert not {"conv_first", "conv_last"} & set(inner.formats)
    assert {"conv_first", "conv_last"} <= set(
        prepared("int8", rounding="nearest", equalise=False, parts="all").formats
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_dense_blocks_can_be_quantised_alone(prepared, kind):
    """They are where eight bits cost next to nothing."""
    recipe = prepared(kind, rounding="nearest", parts="dense")
    assert len(recipe.formats) == 15
    assert all(name.startswith("body.0.rdb") for name in recipe.formats)
    assert recipe.remainders == {}


def test_equalising_changes_parameters_and_leaving_it_out_changes_none(prepared):
    """An option that does nothing would be measured as one that helps nothing."""
    assert prepared("int8", rounding="nearest", equalise=False).parameters == {}
    equalised = prepared("int8", rounding="nearest")
    assert {"conv_up2.weight", "conv_hr.weight"} <= set(equalised.parameters)
    # The trunk is multiplied where it is quantised, and nothing that makes it is divided.
    assert "conv_first.weight" not in equalised.parameters
    assert {"body.0.rdb1", "conv_body"} <= set(equalised.multipliers)
    assert {"conv_first.weight"} <= set(prepared("int8", unsigned=True, rounding="nearest").parameters)


@pytest.mark.slow
def test_every_picture_has_its_say_in_the_equalisation(prepared):
    """Extremes that only the last ones hold would be clipped by factors that never saw them."""
    dark = [np.full((1, 24, 24, 3), 9, np.uint8)] * 30
    loud = np.random.default_rng(5).integers(0, 256, (1, 24, 24, 3), np.uint8)
    without = prepared.preparation("int8", seen=[*dark, dark[0]]).scaled()
    with_it = prepared.preparation("int8", seen=[*dark, loud]).scaled()
    assert "conv_up2.weight" in _changed(without, with_it)


@pytest.mark.parametrize(
    ("kind", "unsigned", "asked", "wanted"),
    [
        ("int8", False, None, "compensated"),
        ("fp8", False, None, "learned"),
        ("int8", True, None, "compensated"),
        ("fp8", False, "compensated", "compensated"),
    ],
)
def test_each_format_is_rounded_as_serves_it_best(prepared, kind, unsigned, asked, wanted):
    """Learned INT8 is 2 dB further from fp32 on the shipped model, and FP8 that is not learned loses its tail."""
    assert prepared.preparation(kind, unsigned=unsigned, rounding=asked).rounding == wanted


@pytest.mark.slow
def test_each_rounding_changes_what_it_says(prepared):
    """Compensated rounds the weights of all that is quantised and fits the last convolution."""
    nearest = prepared("int8", rounding="nearest")
    recipe = prepared("int8", rounding="compensated")
    compensated = _changed(recipe, nearest)
    assert {name.rsplit(".", 1)[0] for name in compensated} == set(recipe.formats) | {"conv_last"}
    groups = {layer.name: layer.group for layer in layers(prepared.preparation("int8").spec)}
    for name in recipe.formats:
        weight = recipe.parameters[f"{name}.weight"]
        factors = recipe.multiplied(groups[name], weight.shape[1]).reshape(1, -1, 1, 1)
        shares = weight / (recipe.weights[name].reshape(-1, 1, 1, 1) * factors)
        assert np.abs(shares - np.rint(shares)).max() < 1e-3
    assert _changed(prepared("int8"), recipe) == set()


def test_what_reads_an_enlarged_picture_is_left_to_a_transposed_convolution(prepared):
    """In eight bits it would move more bytes than in half precision, with twice the multiply-adds."""
    asked = {"rounding": "nearest", "equalise": False}
    enlarging = {"conv_up1", "conv_up2"}
    assert not enlarging & set(prepared("int8", **asked).formats)
    assert enlarging <= set(prepared("int8", parts="inner", **asked).formats)
    assert enlarging <= set(prepared("int8", unsigned=True, **asked).formats)


def test_int8_takes_the_least_error_and_fp8_the_largest_value(prepared):
    """Equal steps up to the most extreme value are coarse for all others; a float's are not."""
    asked = {"rounding": "nearest", "equalise": False}
    assert prepared("int8", **asked).activations == prepared("int8", method="mse", **asked).activations
    assert prepared("int8", **asked).activations != prepared("int8", method="max", **asked).activations
    assert prepared("fp8", **asked).activations == prepared("fp8", method="max", **asked).activations


def test_int8_weights_have_a_step_for_each_channel_and_fp8_weights_one(prepared):
    """TensorRT for RTX writes fp32 between kernels behind FP8 weights of a step for each channel."""
    asked = {"rounding": "nearest", "equalise": False}
    assert prepared("int8", **asked).weights["conv_hr"].shape == (8,)
    assert prepared("fp8", **asked).weights["conv_hr"].shape == ()
    assert prepared("fp8", per_channel=True, **asked).weights["conv_hr"].shape == (8,)


def test_remainders_are_for_the_tail_of_fp8(prepared):
    """Three bits behind the first are too few for the channels that carry the picture."""
    asked = {"rounding": "nearest", "equalise": False}
    assert set(prepared("fp8", **asked).remainders) == {"conv_body", "conv_hr"}
    inner = prepared("fp8", parts="inner", **asked).remainders
    assert {name: len(channels) for name, channels in inner.items()} == dict.fromkeys(TAIL, 4)
    assert prepared("fp8", remainders=0, **asked).remainders == {}
    assert prepared("int8", **asked).remainders == {}


def test_the_graph_for_processors_leaves_the_tail_as_it_is(prepared):
    """It rounds outputs too, which equalised channels of the tail make worse."""
    changed = set(prepared("int8", unsigned=True, rounding="nearest").parameters)
    assert "body.0.rdb1.conv1.weight" in changed
    assert not {f"{name}.weight" for name in ("conv_up2", "conv_hr", "conv_last")} & changed


def test_the_graph_for_processors_takes_the_last_convolution_too(prepared):
    """In fp32 it takes as long as a third of all others in integers."""
    recipe = prepared("int8", unsigned=True, rounding="nearest")
    assert "conv_last" in recipe.formats
    assert "conv_first" not in recipe.formats
    assert recipe.outputs["conv_last"] == (0.0, 1.0)
    for maker, reader in (("conv_up1", "conv_up2"), ("conv_hr", "conv_last")):
        steps = (unsigned_grid(*recipe.inputs[reader])[0], unsigned_grid(*recipe.outputs[maker])[0])
        assert steps[0] == pytest.approx(steps[1], rel=1e-5), "one step on both sides of an activation"
    assert "conv_last" not in prepared("int8", unsigned=True, rounding="nearest", parts="inner").formats


def test_compensated_weights_for_processors_are_such_that_no_processor_saturates(prepared):
    """Compensation moves weights by several steps, and neighbours must not add up to more than 16 bits hold."""
    recipe = prepared("int8", unsigned=True)
    for name in TAIL | {"conv_last"}:
        shares = recipe.parameters[f"{name}.weight"] / recipe.weights[name].reshape(-1, 1, 1, 1)
        pairs = pairs_of(np.rint(shares).astype(np.int64))
        assert np.abs(shares - np.rint(shares)).max() < 1e-3
        assert np.maximum(pairs, 0).sum(2).max() <= LARGEST_PAIR
        assert np.maximum(-pairs, 0).sum(2).max() <= LARGEST_PAIR


@pytest.mark.slow
def test_the_same_pictures_give_the_same_recipe(prepared):
    """Scales that differ from run to run cannot be compared, nor taken up again."""
    torch.manual_seed(77)
    first = prepared("int8", rounding="compensated")
    again = prepared("int8", rounding="compensated", search=False)
    assert _changed(first, again) == set()
    assert first.activations == again.activations
