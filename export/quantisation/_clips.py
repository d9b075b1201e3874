"""Where a histogram of magnitudes is best clipped, by three measures."""

import numpy as np
import numpy.typing as npt
import torch

from esrgan_deploy.export._placement import LARGEST
from esrgan_deploy.export.quantisation._simulation import rounded

__all__ = ["entropy_clip", "least_error_clip", "percentile_clip"]

Counts = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]

_LEVELS = 128
_COARSE = 2048

_OCTAVES = {"int8": (-8.0, 0.0), "fp8": (-4.0, 2.0)}
"""Clips that are tried, as powers of two times the largest magnitude."""


def percentile_clip(counts: Counts, top: float, largest: float, percentile: float) -> float:
    """Return the magnitude under which so many of a hundred lie, to within a bin.

    Args:
        counts: Histogram of magnitudes, in equal bins from 0 to ``top``.
        top: Upper end of the last bin.
        largest: The largest magnitude.
        percentile: 0..100.
    """
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = percentile / 100 * below[-1]
    number = int(np.searchsorted(below[1:], wanted))
    number = min(number, len(counts) - 1)
    share = (wanted - below[number]) / max(int(counts[number]), 1)
    return float(min((number + share) * top / len(counts), largest))


def least_error_clip(counts: Counts, top: float, largest: float, kind: str) -> float:
    """Return the clip at which the squared error of rounding and clipping is least.

    FP8 keeps its relative fineness whatever the scale is, but not where in an octave its eight steps fall: clips
    are tried all over some octaves, of which the upper two clip nothing.

    Args:
        counts: Histogram of magnitudes, in equal bins from 0 to ``top``.
        top: Upper end of the last bin.
        largest: The largest magnitude.
        kind: ``"int8"`` or ``"fp8"``.
    """
    low, high = _OCTAVES[kind]
    exponents = np.linspace(low, high, 1 + round(32 * (high - low)))
    coarse = largest * 2.0**exponents
    best = _best(coarse, _errors(counts, top, coarse, kind))
    # Between its neighbours, sixteen times finer.
    fine = np.minimum(best * 2.0 ** (np.arange(-16, 17) / 512), largest * 2.0**high)
    return _best(fine, _errors(counts, top, fine, kind))


def entropy_clip(counts: Counts, top: float, largest: float) -> float:
    """Return the clip at which 128 levels lose the least information about the distribution.

    The least Kullback-Leibler divergence between the histogram, what is clipped added to its last bin, and
    itself in 128 levels (Migacz, "8-bit inference with TensorRT", GTC 2017). The first bin counts as the second
    does, as in NVIDIA's pytorch-quantization: a peak of zeros is exact at any scale.

    Args:
        counts: Histogram of magnitudes, in equal bins from 0 to ``top``; merged into 2048.
        top: Upper end of the last bin.
        largest: The largest magnitude.
    """
    merged = counts.reshape(_COARSE, -1).sum(axis=1).astype(np.float64)
    merged[0] = merged[1]
    used = int(np.flatnonzero(merged)[-1]) + 1 if merged.any() else 0
    if used <= _LEVELS:
        return largest
    above = merged[::-1].cumsum()[::-1]
    least, best = np.inf, used
    for number in range(_LEVELS, used + 1):
        found = _divergence(merged[:number], float(above[number]) if number < _COARSE else 0.0)
        if found <= least:
            least, best = found, number
    return min((best + 0.5) * top / _COARSE, largest)


def _divergence(kept: Array, clipped: float) -> float:
    number = len(kept)
    first = -(-np.arange(_LEVELS) * number // _LEVELS)
    filled = (kept > 0).astype(np.float64)
    totals, filled_of = np.add.reduceat(kept, first), np.add.reduceat(filled, first)
    means = totals / np.maximum(filled_of, 1)
    q = np.repeat(means, np.diff(np.append(first, number))) * filled
    p = kept.copy()
    p[-1] += clipped
    there = p > 0
    if not q.sum() or not q[there].all():
        # What is clipped would fall on a level that nothing else has: infinitely far.
        return np.inf
    p, q = p[there] / p.sum(), q[there] / q.sum()
    return float((p * np.log(p / q)).sum())


def _errors(counts: Counts, top: float, clips: Array, kind: str) -> Array:
    filled = np.flatnonzero(counts)
    centres = torch.from_numpy(((filled + 0.5) * (top / len(counts))).astype(np.float32))
    weights = torch.from_numpy(counts[filled].astype(np.float64))
    errors = [
        float(((rounded(centres, torch.tensor(clip / LARGEST[kind], dtype=torch.float32), kind) - centres)
               .double() ** 2 * weights).sum())
        for clip in clips.tolist()
    ]  # fmt: skip
    return np.array(errors)


def _best(clips: Array, errors: Array) -> float:
    # Octaves of FP8 are equals where none clips: the largest has room for pictures to come.
    return float(clips[errors == errors.min()].max())
