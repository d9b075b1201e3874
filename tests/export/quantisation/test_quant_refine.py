"""What a search left is rounded for itself, and as much more is quantised as the budget then allows."""

import math

import pytest

from esrgan_deploy.export.quantisation._loss import Loss
from esrgan_deploy.export.quantisation._recipe import Recipe
from esrgan_deploy.export.quantisation._refine import refined
from esrgan_deploy.export.quantisation._search import Point
from esrgan_deploy.export.quantisation._structure import layers, share_of


@pytest.fixture
def refine(rrdb_spec):
    """Refine a net of 3 dense blocks and a tail of 4, which loses 1 dB for each of its units."""
    found = layers(rrdb_spec(blocks=1))
    everything = tuple(layer.name for layer in found if layer.place in ("body", "tail"))
    units = list(dict.fromkeys(layer.unit for layer in found if layer.name in everything))
    rounded = []

    def run(left, floor, *, tries=4, before=40.0):
        names = tuple(layer.name for layer in found if layer.unit in left)
        order = [unit for unit in reversed(units) if unit not in left] + list(left)
        rounded.clear()

        def rounds(names):
            rounded.append(names)
            return Recipe(formats=dict.fromkeys(names, "int8"), activations={}, weights={})

        def measures(recipe):
            inside = {layer.unit for layer in found if layer.name in recipe.formats}
            return Loss(psnr_y=30.0, loss=0.01 * len(inside), fidelity=60.0 - len(inside), noise=0.0)

        loss = Loss(psnr_y=30.0, loss=0.0, fidelity=before, noise=0.0)
        return refined(
            Point(names=names, share=share_of(found, names), loss=loss),
            order,
            found,
            everything,
            rounds=rounds,
            measures=measures,
            allows=lambda loss: loss.fidelity >= floor,
            tries=tries,
        )

    run.units, run.rounded, run.found = units, rounded, found
    return run


@pytest.mark.parametrize("fits", [1, 2, 3, 4, 5, 6])
def test_as_many_units_are_quantised_as_fit(refine, fits):
    """Every unit that could have been quantised is speed given away."""
    recipe, points = refine(refine.units[:1], 60.0 - fits)
    inside = {layer.unit for layer in refine.found if layer.name in recipe.formats}
    # Those that do least harm come first, which were the last to return.
    assert inside == set(refine.units[:fits])
    assert points[-1].names == tuple(recipe.formats)
    assert points[-1].share == share_of(refine.found, recipe.formats)
    assert len(points) == len(refine.rounded) <= 1 + math.ceil(math.log2(len(refine.units)))


def test_everything_is_not_rounded_again(refine):
    """The search has measured that already, and it was over the budget."""
    recipe, _ = refine(refine.units[:6], 0.0)
    assert len(refine.rounded) == 1
    assert len(recipe.formats) < len({layer.name for layer in refine.found}) - 2


def test_no_more_than_the_tries_are_rounded(refine):
    """Each takes minutes where weights are learned."""
    recipe, points = refine(refine.units[:1], 0.0, tries=0)
    assert len(refine.rounded) == len(points) == 1
    assert {layer.unit for layer in refine.found if layer.name in recipe.formats} == set(refine.units[:1])
    refine(refine.units[:1], 0.0, tries=2)
    assert len(refine.rounded) == 3


def test_a_rounding_that_is_no_better_is_not_taken(refine):
    """What the search measured held the budget; this may not."""
    assert refine(refine.units[:2], 0.0, before=58.0) is None
    assert refine(refine.units[:2], 0.0, before=57.9) is not None


def test_a_rounding_that_is_over_the_budget_is_not_taken(refine):
    """Nearer to fp32 it may still lose more against the truth, and what the search measured held the budget."""
    assert refine(refine.units[:3], 57.5) is None
    assert len(refine.rounded) == 1
