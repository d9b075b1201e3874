"""Which few of many crops show a net the most: the extremes, then whatever differs most from what is there."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["choose", "extremes", "features"]

Array = npt.NDArray[np.float64]


def choose(seen: Array, count: int) -> list[int]:
    """Choose crops for coverage: the extremes first, then each the farthest from all that are chosen.

    The farthest point is within a factor of two of the best set of centres (Gonzalez, "Clustering to minimize
    the maximum intercluster distance", 1985). Crops whose features are all the same count once.

    Args:
        seen: ``(N, F)``, the `features` of each crop.
        count: How many to choose at most.

    Returns:
        Their numbers, in the order in which they were chosen.
    """
    chosen = extremes(seen)[:count]
    distance = np.min([_distances(seen, number) for number in chosen], axis=0)
    while len(chosen) < count:
        farthest = int(np.argmax(distance))
        if distance[farthest] == 0.0:
            break
        chosen.append(farthest)
        distance = np.minimum(distance, _distances(seen, farthest))
    return chosen


def extremes(seen: Array) -> list[int]:
    """Return the darkest, the brightest, the most saturated, the flattest and the most textured crop, each once."""
    luma, saturation, texture = seen[:, 0], seen[:, 2], seen[:, 5]
    found = (luma.argmin(), luma.argmax(), saturation.argmax(), texture.argmin(), texture.argmax())
    return list(dict.fromkeys(int(number) for number in found))


def features(crop: npt.NDArray[np.uint8]) -> Sequence[float]:
    """Describe a crop in eight numbers, each about 0 to 1.

    Sums are of whole numbers, so that every machine finds the same ones.

    Args:
        crop: ``(H, W, C)`` of one channel or three.

    Returns:
        Mean luma; its standard deviation; saturation; two numbers of hue (red against green, blue against
        yellow); texture (mean step between neighbours); darkest and brightest sample.
    """
    samples: npt.NDArray[Any] = crop.astype(np.int64)
    red, green, blue = (samples[..., min(number, crop.shape[2] - 1)] for number in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    count = luma.size
    total = int(luma.sum())
    variance = (count * int((luma**2).sum()) - total**2) / count**2
    steps = np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()
    return (
        total / count / 255,
        math.sqrt(variance) / 64,
        float((samples.max(axis=2) - samples.min(axis=2)).mean()) / 128,
        float((red - green).mean()) / 128,
        float((2 * blue - red - green).mean()) / 256,
        # Eyes and nets tell 1 from 4 as well as 16 from 25.
        math.sqrt(float(steps)) / 6,
        int(luma.min()) / 510,
        int(luma.max()) / 510,
    )


def _distances(seen: Array, number: int) -> Array:
    squares: Array = ((seen - seen[number]) ** 2).sum(axis=1)
    return squares
