"""From what a net's activations are on pictures to the scales that they are quantised with."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.graphs import storable
from esrgan_deploy.export.nets import LARGEST, LEAST_STEP, Layer
from esrgan_deploy.export.quantisation._options import METHODS
from esrgan_deploy.export.quantisation._simulation import finite_ends, rounded, run_watched

__all__ = ["BINS", "Observed", "activation_steps", "low_high", "observe", "step"]


Counts = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]

_OCTAVES = {"int8": (-8.0, 0.0), "fp8": (-4.0, 2.0)}
"""Clips that are tried, as powers of two times the largest magnitude."""

_POWER = 2.4
"""Of an error. With 2, the rounding of everything outweighs what is clipped in one place of one picture, where the
eye goes: on RealESRGAN_x4plus_anime_6B the worst tile is 1.2 dB worse, and the mean no better."""

BINS = 16384
"""Of a histogram, between half of which and all of which hold something: tens for one step of INT8."""
_LEAST_TOP = 2.0**-40


def least_error_clip(counts: Counts, top: float, largest: float, kind: str) -> float:
    """Return the clip at which the error of rounding and clipping, to the power of 2.4, is least.

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
               .double().abs() ** _POWER * weights).sum())
        for clip in clips.tolist()
    ]  # fmt: skip
    return np.array(errors)


def _best(clips: Array, errors: Array) -> float:
    # Octaves of FP8 are equals where none clips: the largest has room for pictures to come.
    return float(clips[errors == errors.min()].max())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What was seen at the input of the convolutions of a group.

    Attributes:
        counts: ``(BINS,)`` int64, a histogram of the magnitudes from 0 to ``top``.
        top: A power of two above the largest magnitude, so that the histogram is that of any order of pictures.
        low: The lowest value.
        high: The highest value.
    """

    counts: npt.NDArray[np.int64]
    top: float
    low: float
    high: float

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))


def observe(
    module: nn.Module,
    layers: Iterable[Layer],
    pictures: Sequence[npt.NDArray[np.uint8]],
    multipliers: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> dict[str, Observed]:
    """Run a net on pictures and keep the statistics of what its convolutions read.

    Of a group the reader with the most channels is watched: in a dense block that is the fifth convolution, whose
    input holds the block's input and the four features once each. One picture is in memory at a time.

    Args:
        module: The generator, fp32, in eval mode.
        layers: Its convolutions, as `nets.layers` gives them.
        pictures: ``(1, H, W, C)`` uint8 each.
        multipliers: By group, what its first channels are multiplied with before they are quantised.

    Raises:
        ExportError: There is no picture, or an activation is not a finite number.
    """
    watched: dict[str, tuple[nn.Conv2d, _Histogram]] = {}
    for layer in layers:
        conv = module.get_submodule(layer.name)
        assert isinstance(conv, nn.Conv2d)
        if layer.group not in watched or conv.in_channels > watched[layer.group][0].in_channels:
            watched[layer.group] = conv, _Histogram(layer.group, (multipliers or {}).get(layer.group))
    hooks = [conv.register_forward_pre_hook(watch) for conv, watch in watched.values()]
    run_watched(module, hooks, pictures)
    return {group: watch.observed() for group, (_, watch) in watched.items()}


def step(observed: Observed, kind: str, method: str) -> float:
    """Return the real value of one quantisation step of a group; fp16 holds it exactly.

    Args:
        observed: Its activations.
        kind: ``"int8"`` or ``"fp8"``.
        method: ``"max"``: nothing is clipped. ``"mse"``: the clip with the least error of rounding and
            clipping, its mean square but for the power of 2.4.

    Raises:
        ExportError: The method is none of these.
    """
    if method not in METHODS:
        raise ExportError(f"{method!r} is no way to choose a scale; {', '.join(METHODS)} are")
    if observed.largest == 0.0:
        return LEAST_STEP
    if method == "max":
        clip = observed.largest
    else:
        clip = least_error_clip(observed.counts, observed.top, observed.largest, kind)
    return float(storable(np.array(clip / LARGEST[kind])))


def activation_steps(
    observed: Mapping[str, Observed], formats: Mapping[str, str], method: str
) -> dict[str, float]:
    """Return the step of each group.

    Args:
        observed: By group.
        formats: By group, ``"int8"`` or ``"fp8"``; the groups that are wanted.
        method: See `step`.

    Raises:
        ExportError: A group was not observed, or see `step`.
    """
    missing = sorted(set(formats) - set(observed))
    if missing:
        raise ExportError(f"nothing was observed of {', '.join(missing)}; observed are {', '.join(observed)}")
    return {group: step(observed[group], kind, method) for group, kind in formats.items()}


def low_high(observed: Observed) -> tuple[float, float]:
    """Return the range for unsigned integers: every value seen, and 0, with which borders are padded."""
    return min(observed.low, 0.0), max(observed.high, 0.0)


class _Histogram:
    """Collects the statistics of one group, as a hook in front of its convolution."""

    def __init__(self, group: str, multipliers: npt.NDArray[np.float32] | None) -> None:
        self._group = group
        self._multipliers = (
            None if multipliers is None else torch.from_numpy(multipliers).reshape(1, -1, 1, 1)
        )
        self._counts = np.zeros(BINS, np.int64)
        self._top = _LEAST_TOP
        self._low, self._high = math.inf, -math.inf

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0].detach()
        if self._multipliers is not None:
            count = self._multipliers.shape[1]
            x = torch.cat([x[:, :count] * self._multipliers, x[:, count:]], 1)
        low, high = finite_ends(x, f"the input of {self._group}")
        self._low, self._high = min(self._low, low), max(self._high, high)
        magnitudes = x.abs()
        self._grow(max(-low, high))
        # The width of a bin is a power of two, so that dividing by it is exact.
        bins = magnitudes.mul_(BINS / self._top).to(torch.int32).flatten()
        self._counts += torch.bincount(bins, minlength=BINS).numpy(force=True)

    def observed(self) -> Observed:
        return Observed(counts=self._counts, top=self._top, low=self._low, high=self._high)

    def _grow(self, largest: float) -> None:
        while self._top <= largest:
            half = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.concatenate([half, np.zeros_like(half)])
            self._top *= 2
