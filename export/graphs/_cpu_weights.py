"""Eight-bit weights whose sums of products no processor saturates."""

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST_PAIR", "fitted", "in_phases", "pairs_of"]

LARGEST_WEIGHT = 127
LARGEST_PAIR = 128
"""What two neighbouring weights of one sign may add up to: 255 times it is the most that fits into int16."""

_LEAST_STEP = 2.0**-100


def fitted(
    weight: npt.NDArray[np.floating], steps: npt.NDArray[np.floating] | None = None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round weights to int8 so that u8 x s8 products add up exactly on every x86 processor.

    Without VNNI such convolutions run on vpmaddubsw, which adds two neighbouring products in int16 and saturates
    there, in ONNX Runtime (its `reduce_range` halves all weights for that) as in oneDNN. Neighbours are two input
    channels at one tap, 2j and 2j + 1 (MLAS packs four channels, or the unrolled kernel, channels last). It is
    enough that two neighbours of one sign come to no more than 128: most rows then keep far more than 7 bits.

    Args:
        weight: ``(C_out, C_in, k, k)``.
        steps: ``(C_out,)``, where a recipe has chosen them. Weights that do not fit are then moved by as many
            steps as it takes; without steps they are chosen so that nearly none has to move.

    Returns:
        The integers, ``(C_out, C_in, k, k)`` int8, and the steps, ``(C_out,)`` float32.
    """
    exact = weight.astype(np.float64)
    if steps is None:
        largest = np.abs(exact).max(axis=(1, 2, 3)) / LARGEST_WEIGHT
        pairs = pairs_of(exact)
        sums = np.maximum(np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2)).max(axis=1)
        steps = np.maximum(largest, sums / LARGEST_PAIR)
    steps = np.maximum(steps, _LEAST_STEP).astype(np.float32)
    shares = exact / steps.astype(np.float64).reshape(-1, 1, 1, 1)
    integers = np.clip(np.rint(shares), -LARGEST_WEIGHT, LARGEST_WEIGHT)
    return _made_to_fit(integers, shares).astype(np.int8), steps


def in_phases(integers: npt.NDArray[np.int8], phases: int) -> npt.NDArray[np.int8]:
    """Return the weights of a convolution that makes a block of pixels at a time.

    With a stride of ``phases`` and behind it DepthToSpace in CRD order, it computes the same sums: each pixel of
    the block has the kernel at its own place in a larger one, and zeros around it.

    Args:
        integers: ``(C_out, C_in, 3, 3)``; C_in is even, so that the same weights stay neighbours.
        phases: Pixels on a side of the block.

    Returns:
        ``(C_out · phases², C_in, phases + 2, phases + 2)``.
    """
    made, read = integers.shape[:2]
    side = phases + 2
    wide = np.zeros((made, phases, phases, read, side, side), np.int8)
    for y in range(phases):
        for x in range(phases):
            wide[:, y, x, :, y : y + 3, x : x + 3] = integers
    return wide.reshape(-1, read, side, side)


def pairs_of(weight: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the weights as they meet in vpmaddubsw, ``(C_out, pairs, 2)``; an odd number ends with a zero."""
    rows = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return rows.reshape(weight.shape[0], -1, 2)


def _made_to_fit(
    integers: npt.NDArray[np.floating], shares: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    made, exact = pairs_of(integers).copy(), pairs_of(shares)
    for sign in (1.0, -1.0):
        # What was rounded up furthest goes down first; a step or two, but for steps that were given.
        while (over := np.argwhere(np.maximum(sign * made, 0).sum(axis=2) > LARGEST_PAIR)).size:
            rows, places = over.T
            which = np.argmax(sign * (made[rows, places] - exact[rows, places]), axis=1)
            made[rows, places, which] -= sign
    out, channels, height, width = integers.shape
    taps = made.reshape(out, -1)[:, : channels * height * width]
    return taps.reshape(out, height, width, channels).transpose(0, 3, 1, 2)
