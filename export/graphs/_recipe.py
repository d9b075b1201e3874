"""A recipe: what is quantised and by which steps, and the steps that a graph can hold."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from esrgan_deploy.export.nets import LARGEST, LEAST_STEP, Layer

__all__ = ["UNSIGNED", "Recipe", "storable", "unsigned_grid", "weight_steps"]

Array = npt.NDArray[np.float32]
UNSIGNED = 255
"""The largest number of uint8."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is quantised, with which steps, and which parameters of the net it changed to get there.

    All numbers are of the module; the graph's fifth convolutions carry `Layer.fold` besides.

    Attributes:
        formats: Of each quantised convolution by name, ``"int8"`` or ``"fp8"``. Those that share a group have one.
        activations: By group, the real value of one step; fp16 holds it exactly.
        weights: By convolution, the real value of one step: ``(C_out,)`` per channel or ``()`` per tensor,
            float32; see `storable`.
        parameters: Parameters that differ from the checkpoint's, by name in the module (``NAME.weight``,
            ``NAME.bias``), float32. Weights that were learned lie on the grid of their steps.
        remainders: By group of one convolution, input channels that are read twice: rounded, and what the rounding
            left of them, rounded too, with the same weights; see `with_remainders`. FP8 only.
        inputs: By group, the range of what is rounded to uint8 with a zero point, in place of `activations`. For
            processors only, as are the outputs.
        multipliers: By group, ``(C,)`` float32 above 0, which fp16 holds: what the first channels that the group
            reads are multiplied with in front of the quantiser. The weights that read them lie on a grid of as
            many times their step; in the graph they are divided.
        outputs: By convolution, the range of what it gives, in front of its activation, which is rounded there too.
    """

    formats: Mapping[str, str]
    activations: Mapping[str, float]
    weights: Mapping[str, Array]
    parameters: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    remainders: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    inputs: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    multipliers: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    def multiplied(self, group: str, channels: int) -> Array:
        """Return what each of so many channels that a group's convolution reads is multiplied with, ``(C_in,)``."""
        factors = np.ones(channels, np.float32)
        own = self.multipliers.get(group)
        if own is not None:
            factors[: len(own)] = own
        return factors

    def only(self, names: Sequence[str]) -> "Recipe":
        """Return the recipe that quantises these convolutions and no others."""
        chosen = set(names)
        formats = {name: kind for name, kind in self.formats.items() if name in chosen}
        return dataclasses.replace(self, formats=formats)


def unsigned_grid(low: float, high: float) -> tuple[float, int]:
    """Return the step and the zero point of uint8 over a range; 0 is a level, since borders are padded with it."""
    low, high = min(low, 0.0), max(high, 0.0)
    # As it is stored, before anything is counted in it.
    step = float(np.float32(max((high - low) / UNSIGNED, 1e-30)))
    return step, int(np.clip(np.rint(-low / step), 0, UNSIGNED))


def storable(steps: npt.NDArray[np.floating], fold: float = 1.0) -> Array:
    """Return the nearest steps that the graph can hold: fp16 after the factor of `Layer.fold`, and above 0."""
    stored = np.maximum(np.asarray(steps, np.float64) * fold, LEAST_STEP).astype(np.float16)
    return (stored.astype(np.float64) / fold).astype(np.float32)


def weight_steps(weight: Array, layer: Layer, kind: str, *, per_channel: bool) -> Array:
    """Return the steps at which the largest weight is the largest number of the format.

    Args:
        weight: ``(C_out, C_in, k, k)``, the module's.
        layer: Whose it is.
        kind: ``"int8"`` or ``"fp8"``.
        per_channel: One step for each channel of the output, ``(C_out,)``, else one for all, ``()``.
    """
    largest = np.abs(weight).max(axis=(1, 2, 3)) if per_channel else np.abs(weight).max()
    return storable(largest / LARGEST[kind], layer.fold)
