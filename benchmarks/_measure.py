"""Timing: warm up until it is stable, then take turns."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

__all__ = ["Timing", "measure"]


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
    runs: Sequence[Callable[[], object]], *, seconds: float = 5.0, least: int = 5, most_warmups: int = 20
) -> list[Timing]:
    """Time several things in turns, so that what disturbs the machine disturbs them alike.

    Each is first run until two runs in a row are within a twentieth of the fastest so far.

    Args:
        runs: What to time; each is called with nothing.
        seconds: How long to go on, all of them together and warm-ups not counted.
        least: Rounds to make however long they take.
        most_warmups: When to stop hoping for stability.
    """
    warmups = [_warm_up(run, most_warmups) for run in runs]
    values: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while len(values[0]) < least or time.perf_counter() < end:
        for run, taken in zip(runs, values, strict=True):
            taken.append(_time(run))
    return [Timing(warmups=tuple(w), values=tuple(v)) for w, v in zip(warmups, values, strict=True)]


def _warm_up(run: Callable[[], object], most: int) -> list[float]:
    taken = [_time(run)]
    calm = 0
    while calm < 2 and len(taken) < most:
        taken.append(_time(run))
        calm = calm + 1 if taken[-1] <= 1.05 * min(taken) else 0
    return taken


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
