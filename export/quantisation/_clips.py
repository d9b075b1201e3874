"""Where a histogram of magnitudes is best clipped."""

import numpy as np
import numpy.typing as npt
import torch

from esrgan_deploy.export._placement import LARGEST
from esrgan_deploy.export.quantisation._simulation import rounded

__all__ = ["least_error_clip"]

Counts = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]

_OCTAVES = {"int8": (-8.0, 0.0), "fp8": (-4.0, 2.0)}
"""Clips that are tried, as powers of two times the largest magnitude."""


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
