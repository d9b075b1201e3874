"""Transparency: colours that nobody sees must not bleed into those that somebody does."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["bound_alpha", "fill_hidden"]

Array = npt.NDArray[Any]

STRIP = 256


def fill_hidden(colour: Array, alpha: Array) -> Array:
    """Return the colours with those of fully transparent pixels replaced by their visible surroundings.

    Editors leave anything under alpha 0, mostly black. A net that enlarges colour and alpha apart would mix
    it into the visible border as a dark fringe. This is the pull-push fill of Gortler et al. (The Lumigraph,
    1996): means of the visible pixels, weighted by alpha, over ever larger squares.

    Args:
        colour: ``(H, W, C)`` uint8, uint16 or float32.
        alpha: ``(H, W)`` of the same dtype.

    Returns:
        ``colour`` itself where nothing or everything is hidden; else a copy in which the visible ones stay.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colour
    means = _means(*_halved(colour, alpha))
    filled = colour.copy()
    for top in range(0, colour.shape[0], STRIP):
        rows = slice(top, top + STRIP)
        near = np.repeat(np.repeat(means[top // 2 : (top + STRIP + 1) // 2], 2, axis=0), 2, axis=1)
        near = near[: filled[rows].shape[0], : filled.shape[1]]
        if colour.dtype.kind == "u":
            near = np.rint(near)
        np.copyto(filled[rows], near.astype(colour.dtype), where=hidden[rows, :, None])
    return filled


def bound_alpha(enlarged: Array, alpha: Array, scale: Fraction) -> None:
    """Keep an enlarged alpha, in place, within what the 3×3 input pixels around it hold.

    A net that sharpens alpha also leaves 254 where everything was opaque and 1 where nothing was: faint, and
    visible on a coloured ground. With the bound, flat stays exactly flat.

    Args:
        enlarged: ``(H·s, W·s)``, written to.
        alpha: ``(H, W)`` of the same dtype.
        scale: Output pixels per input pixel and axis.
    """
    low, high = _window(alpha, np.minimum), _window(alpha, np.maximum)
    columns = _source_index(enlarged.shape[1], scale, alpha.shape[1])
    rows = _source_index(enlarged.shape[0], scale, alpha.shape[0])
    for top in range(0, enlarged.shape[0], STRIP):
        part = enlarged[top : top + STRIP]
        at = np.ix_(rows[top : top + STRIP], columns)
        np.clip(part, low[at], high[at], out=part)


def _halved(colour: Array, alpha: Array) -> tuple[Array, Array]:
    """Return sums of colour times alpha, and of alpha, over 2×2 squares; in strips, to stay small."""
    height, width, channels = colour.shape
    half = (math.ceil(height / 2), math.ceil(width / 2))
    sums, weights = np.zeros((*half, channels), np.float32), np.zeros(half, np.float32)
    for top in range(0, height, STRIP):
        weight = alpha[top : top + STRIP].astype(np.float32)
        part = colour[top : top + STRIP] * weight[:, :, None]
        into = slice(top // 2, top // 2 + math.ceil(len(part) / 2))
        sums[into], weights[into] = _squares(part), _squares(weight[:, :, None])[:, :, 0]
    return sums, weights


def _means(sums: Array, weights: Array) -> Array:
    """Return the mean colour of each square; where all of it is hidden, that of a larger one."""
    empty = weights == 0
    means = sums / np.where(empty, 1, weights)[:, :, None]
    if empty.any():
        larger = _means(_squares(sums), _squares(weights[:, :, None])[:, :, 0])
        rows, columns = np.nonzero(empty)
        means[rows, columns] = larger[rows // 2, columns // 2]
    return means


def _squares(values: Array) -> Array:
    # Sums over 2×2, an odd side completed with nothing.
    height, width = values.shape[:2]
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    total: Array = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return total


def _window(plane: Array, pick: np.ufunc) -> Array:
    # Separable minimum or maximum over 3×3, cut off at the border.
    for axis in (0, 1):
        rolled = np.moveaxis(plane.copy(), axis, 0)
        source = np.moveaxis(plane, axis, 0)
        pick(rolled[1:], source[:-1], out=rolled[1:])
        pick(rolled[:-1], source[1:], out=rolled[:-1])
        plane = np.moveaxis(rolled, 0, axis)
    return plane


def _source_index(length: int, scale: Fraction, limit: int) -> npt.NDArray[np.intp]:
    index = np.arange(length, dtype=np.int64) * scale.denominator // scale.numerator
    return np.minimum(index, limit - 1)
