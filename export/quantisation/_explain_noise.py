"""The error power that rounding inputs, weights and outputs explains."""

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["Rounding", "explained_power"]

Array = npt.NDArray[np.float64]

# Significant bits after the leading one, and the exponent of the smallest normal number.
_FLOATS = {"fp8": (3, -6), "fp16": (10, -14), "fp32": (23, -126)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding:
    """How a convolution's input is rounded.

    Attributes:
        kind: ``"int8"``, ``"uint8"``, ``"fp8"``, or ``"fp16"`` or ``"fp32"`` where it is not quantised.
        step: Of the activations; 1 where they are not quantised.
        ends: The smallest and the largest value that the format holds.
        half: Whether what is stored between layers is fp16.
    """

    kind: str
    step: float
    ends: tuple[float, float]
    half: bool

    @staticmethod
    def spacing_of(values: Array, steps: Array | float, kind: str) -> Array:
        """Return the distance of neighbouring numbers of the format around each value, cut-off left aside."""
        if kind in ("int8", "uint8"):
            return np.broadcast_to(steps, values.shape)
        bits, least = _FLOATS[kind]
        with np.errstate(divide="ignore"):
            exponent = np.floor(np.log2(np.abs(values / steps)))
        spacing: Array = np.exp2(np.maximum(exponent, least) - bits) * steps
        return spacing


def explained_power(
    x: Array, exact: Array, weights: Array, stored: Array, steps: Array | float, rounding: Rounding
) -> float:
    """Return the mean square of the error that rounding makes in a convolution's output.

    A value that is rounded to a spacing s errs by s²/12 in the mean square (Widrow and Kollár, Quantization Noise,
    2008, chapter 4). Errors of different channels are taken as independent; those of one channel under one kernel may
    also be equal, in flat parts of a picture or behind an enlargement, and the larger of the two sums counts. The
    weights' errors are known, so they are used as they are, up to half a step each: more than that is no rounding.

    Args:
        x: The input before it is rounded, ``(N, C_in, H, W)``.
        exact: The output without rounding, ``(N, C_out, H, W)``.
        weights: In fp32, ``(C_out, C_in, k, k)``.
        stored: As the graph has them, dequantised.
        steps: Of the weights, broadcast to them.
        rounding: Of the input.
    """
    # fp16 where it is not quantised: the input is then what the twin reads as well, and errs by nothing.
    quantised = rounding.kind not in ("fp16", "fp32")
    inside = np.clip(x, *rounding.ends)
    noise = (
        np.square(rounding.spacing_of(inside, rounding.step, rounding.kind)) / 12
        if quantised
        else np.zeros_like(x)
    )
    if rounding.half and quantised:
        noise = noise + np.square(Rounding.spacing_of(inside, 1.0, "fp16")) / 12
    gains = np.maximum(np.square(weights).sum((2, 3)), np.square(weights.sum((2, 3))))
    power = gains @ noise.mean((0, 2, 3))
    half = Rounding.spacing_of(weights, steps, rounding.kind) / 2
    errors = np.clip(stored - weights, -half, half)
    mean, variance = inside.mean((0, 2, 3)), inside.var((0, 2, 3))
    power = power + np.square(errors.sum((2, 3)) @ mean)
    power = power + np.maximum(np.square(errors).sum((2, 3)), np.square(errors.sum((2, 3)))) @ variance
    if rounding.half:
        power = power + np.square(Rounding.spacing_of(exact, 1.0, "fp16")).mean((0, 2, 3)) / 12
        # Quantised weights are rounded once more where they are multiplied by their step in fp16.
        again = np.square(Rounding.spacing_of(weights, 1.0, "fp16")).sum((2, 3)) / 12
        power = power + again @ (np.square(mean) + variance)
    # Sums in fp32, in another order.
    return float(power.mean() + np.square(exact).mean() * 2.0**-42)
