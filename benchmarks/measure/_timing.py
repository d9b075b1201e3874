"""Timing: warm up until it is stable, then take turns."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

__all__ = ["UNSTABLE", "Sampler", "Timing", "measure", "paired_ratio", "sample", "timed"]

# Distance between the quartiles over the median from which a result is called unstable.
UNSTABLE = 0.1

Sampler = Callable[[], float]
"""Does the thing once and returns the seconds that it took, by whatever clock measures it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Durations of one thing, in seconds.

    Attributes:
        warmups: Those that were thrown away, in order.
        values: Those that count, in order.
    """

    warmups: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    def percentile(self, share: float) -> float:
        """Return the value that this share of the values does not exceed, interpolated."""
        ordered = sorted(self.values)
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    @property
    def spread(self) -> float:
        """Distance between the quartiles over the median: 0.1 and more is a noisy machine."""
        return (self.percentile(0.75) - self.percentile(0.25)) / self.median


def measure(
    runs: Sequence[Callable[[], object]],
    *,
    seconds: float = 5.0,
    least: int = 5,
    most_warmups: int = 20,
) -> list[Timing]:
    """Time several things by the wall clock, in turns; see `sample`.

    Args:
        runs: What to time; each is called with nothing.
        seconds: How long to go on, all of them together and warm-ups not counted.
        least: Rounds to make however long they take.
        most_warmups: When to stop hoping for stability.
    """
    return sample([timed(run) for run in runs], seconds=seconds, least=least, most_warmups=most_warmups)


def sample(
    samplers: Sequence[Sampler],
    *,
    seconds: float = 5.0,
    least: int = 5,
    most_warmups: int = 20,
    warm_seconds: float = 0.0,
    half_way: Callable[[], object] | None = None,
) -> list[Timing]:
    """Measure several things in turns, so that what disturbs the machine disturbs them alike.

    Each is first done until two in a row are within a twentieth of the fastest so far. Value ``i`` of each result
    is of round ``i``: ratios of two things are taken round by round.

    Args:
        samplers: What to measure.
        seconds: How long to go on, all of them together and warm-ups not counted.
        least: Rounds to make however long they take.
        most_warmups: When to stop hoping for stability.
        warm_seconds: Warm up for at least so long, whatever looks stable: clocks take their time to rise.
        half_way: Called once between two rounds, when half of the time is over: the machine is at work then.
    """
    warmups = [_warm_up(sampler, most_warmups, warm_seconds) for sampler in samplers]
    values: list[list[float]] = [[] for _ in samplers]
    start = time.perf_counter()
    end = start + seconds
    while len(values[0]) < least or time.perf_counter() < end:
        for sampler, taken in zip(samplers, values, strict=True):
            taken.append(sampler())
        if (
            half_way is not None
            and len(values[0]) >= least // 2
            and time.perf_counter() >= start + seconds / 2
        ):
            half_way()
            half_way = None
    return [Timing(warmups=tuple(w), values=tuple(v)) for w, v in zip(warmups, values, strict=True)]


def timed(run: Callable[[], object]) -> Sampler:
    """Return a sampler that times a call by the wall clock."""

    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return once


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return how many times as fast the second is as the first: lower quartile, median, upper quartile.

    Args:
        first: Seconds, in the order of the rounds.
        second: Seconds of the same rounds.
    """
    low, middle, high = statistics.quantiles(
        (a / b for a, b in zip(first, second, strict=True)), n=4, method="inclusive"
    )
    return low, middle, high


def _warm_up(sampler: Sampler, most: int, seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    taken = [sampler()]
    calm = 0
    while (calm < 2 and len(taken) < most) or time.perf_counter() < end:
        best = min(taken)
        taken.append(sampler())
        # A new best by more than that is no calm either: it is still getting faster.
        calm = calm + 1 if abs(taken[-1] - best) <= 0.05 * best else 0
    return taken
