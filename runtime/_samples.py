"""Samples of a picture to samples of a net and back, one tile at a time."""

from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy.runtime._session import SessionInfo

__all__ = ["network_to_pixels", "peak_of", "pixels_to_network"]

Array = npt.NDArray[Any]

# Rows that are converted at a time: what lies between stays in the processor's cache.
STRIP = 64

# ITU-R BT.601, full range: what a gray picture is taken to be where a net makes RGB of it.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def peak_of(dtype: np.dtype[Any]) -> int:
    """Return the value of white: 255, 65535, or 1 for floats."""
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else 1


def pixels_to_network(pixels: Array, slot: Array, info: SessionInfo, *, at: tuple[int, int] = (0, 0)) -> None:
    """Write one tile into its place in a batch.

    Args:
        pixels: ``(h, w, k)`` uint8, uint16 or float32; ``k`` is 1 or the net's channels. One channel is
            given to each of the net's.
        slot: The place, in the session's form and dtype; what ``pixels`` does not fill repeats its outermost
            rows and columns. An edge that runs out of the picture so goes on straight, and it works from a
            single pixel on, which mirroring does not.
        info: The session.
        at: Row and column of the place where ``pixels`` begin.
    """
    peak = peak_of(pixels.dtype)
    if info.form == "uint8":
        target = slot
        if peak == 255:
            converted = pixels
        else:
            converted = np.rint(np.clip(pixels * np.float32(255 / peak), 0, 255)).astype(np.uint8)
    else:
        target = slot.transpose(1, 2, 0)
        converted = np.divide(pixels, peak, dtype=np.float32)
        np.clip(converted, 0.0, 1.0, out=converted)
    (top, left), (height, width) = at, pixels.shape[:2]
    bottom, right = top + height, left + width
    target[top:bottom, left:right] = converted
    target[top:bottom, :left] = target[top:bottom, left : left + 1]
    target[top:bottom, right:] = target[top:bottom, right - 1 : right]
    target[:top] = target[top : top + 1]
    target[bottom:] = target[bottom - 1 : bottom]


def network_to_pixels(made: Array, target: Array, info: SessionInfo) -> None:
    """Write a part of the net's output into its place in the output picture.

    Clips, scales and rounds half to even. Where the picture has one channel and the net three, the luma is
    written.

    Args:
        made: ``(C, h, w)`` float or ``(h, w, C)`` uint8, by the session's form; not written to.
        target: ``(h, w, k)``, uint8, uint16 or float32.
        info: The session.
    """
    if info.form == "uint8" and target.dtype == np.uint8 and made.shape[2] == target.shape[2]:
        target[:] = made
        return
    planes = made.transpose(2, 0, 1) if info.form == "uint8" else made
    peak = peak_of(target.dtype)
    for top in range(0, target.shape[0], STRIP):
        rows = slice(top, top + STRIP)
        if info.form == "uint8":
            samples = planes[:, rows] / np.float32(255)
        else:
            samples = np.clip(planes[:, rows], 0.0, 1.0, dtype=np.float32)
        if len(samples) != target.shape[2]:
            samples = np.tensordot(LUMA, samples, axes=1)[None]
        if peak != 1:
            samples *= np.float32(peak)
            np.rint(samples, out=samples)
        for channel, plane in enumerate(samples.astype(target.dtype, copy=False)):
            target[rows, :, channel] = plane
