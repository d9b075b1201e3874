"""What a search chose, rounded for itself, and as much more as that leaves room for."""

from collections.abc import Callable, Sequence

from esrgan_deploy.export.quantisation._loss import Loss
from esrgan_deploy.export.quantisation._recipe import Recipe
from esrgan_deploy.export.quantisation._search import Point
from esrgan_deploy.export.quantisation._structure import Layer, share_of

__all__ = ["refined"]


def refined(
    chosen: Point,
    order: Sequence[str],
    layers: Sequence[Layer],
    everything: Sequence[str],
    *,
    rounds: Callable[[Sequence[str]], Recipe],
    measures: Callable[[Recipe], Loss],
    allows: Callable[[Loss], bool],
    tries: int,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Recipe, tuple[Point, ...]] | None:
    """Round for the convolutions that a search left, and give units back as long as the budget holds.

    The search measured weights that were rounded for all candidates: they make up for errors that the chosen ones
    alone do not have, so it returned more than it had to. Rounding takes most of a calibration's time; the place in
    the order is therefore found by bisection.

    Args:
        chosen: What the search left.
        order: Units in the order in which they returned to half precision, most harm first.
        layers: The net's convolutions.
        everything: Names of all candidates, for which the search has the right figures.
        rounds: Makes the recipe that quantises these convolutions alone.
        measures: What it loses.
        allows: Whether that holds the budget.
        tries: How often to round beyond the first time, at most.
        say: Receives a line for each.

    Returns:
        The recipe, and every point that was measured, its own last; None where rounding again made it no better, or
        takes it over the budget that the search's own holds.
    """
    inside: dict[str, list[str]] = {}
    for layer in layers:
        if layer.name in everything:
            inside.setdefault(layer.unit, []).append(layer.name)
    left = [unit for unit in reversed(order) if not set(inside.get(unit, ())) <= set(chosen.names)]

    def tried(more: int) -> tuple[Recipe, Point]:
        wanted = {*chosen.names, *(name for unit in left[:more] for name in inside[unit])}
        names = tuple(layer.name for layer in layers if layer.name in wanted)
        recipe = rounds(names)
        point = Point(names=names, share=share_of(layers, names), loss=measures(recipe))
        lost = "" if point.loss.loss is None else f"{point.loss.loss:+.3f} dB lost, "
        say(f"rounded for {point.share:.1%} alone: {lost}{point.loss.fidelity:.1f} dB to fp32")
        return recipe, point

    recipe, point = tried(0)
    if point.loss.fidelity <= chosen.loss.fidelity or not allows(point.loss):
        return None
    others: list[Point] = []
    # With all units the point is that of everything, which the search has measured and which does not fit.
    least, most = 0, len(left)
    while most - least > 1 and tries:
        middle, tries = (least + most) // 2, tries - 1
        larger, measured = tried(middle)
        if allows(measured.loss):
            others.append(point)
            recipe, point, least = larger, measured, middle
        else:
            others.append(measured)
            most = middle
    return recipe, (*others, point)
