"""Which convolutions stay in half precision, so that the loss stays within its budget."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from esrgan_deploy._errors import ExportError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.nets import Layer
from esrgan_deploy.export.quantisation._simulation import Simulation
from esrgan_deploy.export.quantisation.search._ledger import Ledger, digest_of
from esrgan_deploy.export.quantisation.search._loss import HeldLoss, Loss
from esrgan_deploy.export.quantisation.search._sensitivity import Sensitivities, Sensitivity, sensitivities

__all__ = ["Point", "SearchOptions", "SearchResult", "frontier", "search", "table"]

_HEADINGS = ("multiply-adds", "convolutions", "PSNR-Y lost (dB)", "to fp32 (dB)")

# So many units in a row that do not fit, from the least noise on, and the rest are taken not to fit either.
_PATIENCE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What the picture may lose, and what finding out may cost.

    Attributes:
        budget: dB of PSNR-Y against the truth that may be lost on the held pictures; None asks for nothing there.
        floor: dB of PSNR to the fp32 net's picture that must be kept.
        worst: The same of each 64×64 tile.
        shift: Levels that the mean of a channel may move.
        flops: Floating-point operations that the measurement of all convolutions may cost.
        evaluations: How often the whole net is measured at most; finding a place in the order comes first and
            is never cut short.
        points: How many of these show the frontier beside the answer, evenly spread in multiply-adds.
    """

    budget: float | None = 0.1
    floor: float = 0.0
    worst: float = 0.0
    shift: float = math.inf
    flops: float = 2e13
    evaluations: int = 25
    points: int = 6

    def allows(self, loss: Loss) -> bool:
        """Whether a loss holds all of it."""
        return not self.breaches(loss)

    def breaches(self, loss: Loss) -> list[str]:
        """Return what does not hold, one phrase each with the figure and the bound."""
        found = []
        if self.budget is not None and loss.loss is not None and not loss.loss <= self.budget:
            found.append(f"{loss.loss:.3f} dB of PSNR-Y lost > {self.budget:g} dB")
        if not loss.fidelity >= self.floor:
            found.append(f"{loss.fidelity:.2f} dB to fp32 < {self.floor:g} dB")
        if not loss.worst >= self.worst:
            found.append(f"{loss.worst:.2f} dB in the worst tile < {self.worst:g} dB")
        if not loss.shift <= self.shift:
            found.append(f"a mean moved by {loss.shift:.2f} levels > {self.shift:g}")
        return found

    def __str__(self) -> str:
        floor = f"{self.floor:g} dB to fp32, {self.worst:g} in each tile"
        return floor if self.budget is None else f"a budget of {self.budget:g} dB and a floor of {floor}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One choice of convolutions, measured as a whole.

    Attributes:
        names: What is quantised, in the order in which it runs.
        share: Of the net's multiply-adds, 0..1.
        loss: On all held pictures.
    """

    names: tuple[str, ...]
    share: float
    loss: Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        chosen: The answer.
        points: Everything that was measured as a whole, by share, the answer among it.
        sensitivities: Of each unit and convolution alone.
        order: Units in the order in which they return to half precision.
    """

    chosen: Point
    points: tuple[Point, ...]
    sensitivities: Sensitivities
    order: tuple[str, ...]


def search(
    simulation: Simulation,
    layers: Sequence[Layer],
    spec: ModelSpec,
    held: HeldLoss,
    options: SearchOptions | None = None,
    *,
    measures: Callable[[tuple[str, ...]], Loss] | None = None,
    state: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], None] = lambda made: None,
) -> SearchResult:
    """Return the units that do most harm to half precision until the loss is within its budget.

    All that the recipe quantises is tried first. Units return in the order of their noise power per multiply-add;
    how many have to is found by bisection, each time with the whole net measured. Then units that still fit are
    quantised again, least noise first, and of a dense block that alone is over the budget the convolutions that
    fit. Deterministic for a machine and its number of threads.

    Args:
        simulation: Quantises afterwards what it did before.
        layers: The net's convolutions, as `nets.layers` gives them.
        spec: The net's.
        held: Pictures that calibration has not seen.
        options: None takes the defaults.
        measures: What the net loses with these convolutions quantised, prepared for that choice; None measures the
            simulation, whose weights are the same for every choice.
        state: A file that keeps every measurement, so that an interrupted search goes on where it was. A search
            with another budget takes them up too: they do not depend on it.
        say: Receives a line of progress now and then.
        progress: Called after each new measurement, when it is kept, with how many there were.

    Raises:
        ExportError: Nothing can be quantised within the budget, or the recipe quantises nothing.
    """
    options = options or SearchOptions()
    if not simulation.recipe.formats:
        raise ExportError("the recipe quantises no convolution, so there is nothing to search")
    digest = digest_of(simulation, held, {"spec": spec.to_json(), "flops": options.flops})
    ledger = Ledger(state, digest, say=say, progress=progress)
    found = sensitivities(simulation, layers, spec, held, flops=options.flops, ledger=ledger)
    say(f"measured {len(found.units)} units and {len(found.convolutions)} convolutions, each quantised alone")
    work = _Search(simulation, layers, held, options, ledger, found, say, measures)
    chosen = work.chosen()
    work.show_frontier()
    return SearchResult(
        chosen=chosen,
        points=tuple(sorted(work.points.values(), key=lambda point: (point.share, point.names))),
        sensitivities=found,
        order=tuple(unit.name for unit in work.order),
    )


def frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other beats in share, loss and fidelity at once, by share.

    Of points that are equal in all three the first is returned.
    """
    kept: list[Point] = []
    for point in points:
        mine = _merits(point)
        beaten = any(
            theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True))
            for theirs in map(_merits, points)
        )
        if not beaten and mine not in map(_merits, kept):
            kept.append(point)
    return tuple(sorted(kept, key=lambda point: point.share))


def table(points: Sequence[Point], *, chosen: Point | None = None) -> str:
    """Return the points as an aligned table, one in a line and in the given order, `chosen` with a star."""
    rows = [_HEADINGS, *map(_row, points)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    stars = ["", *("  *" if point == chosen else "" for point in points)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + star
        for row, star in zip(rows, stars, strict=True)
    )


class _Search:
    """The walk itself; every set of convolutions that it looks at becomes a point."""

    def __init__(
        self,
        simulation: Simulation,
        layers: Sequence[Layer],
        held: HeldLoss,
        options: SearchOptions,
        ledger: Ledger,
        found: Sensitivities,
        say: Callable[[str], None],
        measures: Callable[[tuple[str, ...]], Loss] | None,
    ) -> None:
        self._measures = measures or self._simulated
        self._simulation, self._layers, self._held, self._say = simulation, layers, held, say
        self._options, self._ledger, self._found = options, ledger, found
        self._macs = sum(layer.macs for layer in layers)
        self.points: dict[tuple[str, ...], Point] = {}
        # Sorting is stable: equal harm returns in the order in which it runs.
        self.order = sorted(found.units, key=lambda unit: -unit.harm)

    def chosen(self) -> Point:
        """Return the answer."""
        returned = self._bisect()
        names = _names(self.order[returned:])
        again = sorted(self.order[:returned], key=lambda unit: unit.loss.noise)
        names = self._fit(names, again)
        for unit in again:
            alone_fits = self._options.allows(unit.loss)
            if len(unit.names) > 1 and not alone_fits and not names & set(unit.names):
                inside = [one for one in self._found.convolutions if one.name in unit.names]
                names = self._fit(names, sorted(inside, key=lambda one: one.loss.noise))
        if not names:
            raise self._impossible()
        return self._measured(names)

    def show_frontier(self) -> None:
        """Measure points along the order, evenly spread in multiply-adds."""
        total = sum(unit.macs for unit in self.order)
        for number in range(1, self._options.points + 1):
            wanted, left = total * number / (self._options.points + 1), total
            for returned, unit in enumerate(self.order):
                if left - unit.macs < wanted:
                    self._measured(_names(self.order[returned:]))
                    break
                left -= unit.macs

    def _bisect(self) -> int:
        """Return how many units have to return, from the front of the order."""
        # Nothing quantised is not measured: it is no answer either.
        least, most = 0, len(self.order)
        if self._fits(_names(self.order)):
            return 0
        while most - least > 1:
            middle = (least + most) // 2
            if self._fits(_names(self.order[middle:])):
                most = middle
            else:
                least = middle
        return most

    def _fit(self, names: frozenset[str], candidates: Iterable[Sensitivity]) -> frozenset[str]:
        """Return the names with every candidate that fits, tried one after the other."""
        failed = 0
        for one in candidates:
            if failed == _PATIENCE or len(self.points) >= self._options.evaluations - self._options.points:
                break
            if self._fits(names | set(one.names)):
                names, failed = names | set(one.names), 0
            else:
                failed += 1
        return names

    def _fits(self, names: frozenset[str]) -> bool:
        return self._options.allows(self._measured(names).loss)

    def _measured(self, names: frozenset[str]) -> Point:
        inside = [layer for layer in self._layers if layer.name in names]
        key = tuple(layer.name for layer in inside)
        if key not in self.points:
            loss = self._ledger.measured("whole", key, lambda: self._measures(key))
            share = sum(layer.macs for layer in inside) / self._macs
            self.points[key] = Point(names=key, share=share, loss=loss)
            lost = "" if loss.loss is None else f"{loss.loss:+.3f} dB lost, "
            self._say(
                f"{share:.1%} of the multiply-adds quantised: {lost}{loss.fidelity:.1f} dB to fp32, "
                f"{loss.worst:.1f} in the worst tile"
            )
        return self.points[key]

    def _simulated(self, names: tuple[str, ...]) -> Loss:
        with self._simulation.using(names):
            return self._held(self._simulation)

    def _impossible(self) -> ExportError:
        losses = [point.loss for point in self.points.values()]
        closest = max(losses, key=lambda one: one.fidelity)
        lost = [one.loss for one in losses if one.loss is not None]
        least = (
            f"the smallest loss seen is {min(lost):.4f} dB, "
            if lost and self._options.budget is not None
            else ""
        )
        return ExportError(
            f"nothing can be quantised within {self._options}: {least}{closest.fidelity:.1f} dB to fp32 at best, "
            f"{closest.worst:.1f} in its worst tile. Allow more, or run: --precision fp16"
        )


def _row(point: Point) -> tuple[str, ...]:
    loss, fidelity = point.loss.loss, point.loss.fidelity
    return (
        f"{point.share:.1%}",
        str(len(point.names)),
        "-" if loss is None else f"{loss:+.3f}",
        "equal" if math.isinf(fidelity) else f"{fidelity:.1f}",
    )


def _merits(point: Point) -> tuple[float, float, float]:
    loss = point.loss.loss
    return point.share, -(0.0 if loss is None else loss), point.loss.fidelity


def _names(units: Iterable[Sensitivity]) -> frozenset[str]:
    return frozenset(name for unit in units for name in unit.names)
