"""What an array must be to be a picture, and the jobs that are made of one."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.pictures import bound_alpha, empty_output, fill_hidden, release_rows
from esrgan_deploy.runtime.queue import Job, Progress
from esrgan_deploy.runtime.tiling import TilePlan, peak_of

__all__ = ["check_picture", "job_of", "new_result"]

Array = npt.NDArray[Any]

# How far above 1 or below 0 a float sample may lie before it is taken for a picture of another range; filters
# overshoot a little, and what they overshoot is clipped.
OVERSHOOT = 0.1

# Bytes of an output that are had without asking.
SMALL = 2**26


def check_picture(lr: Array) -> None:
    """Refuse an array that is no picture.

    Raises:
        InferenceError: Its shape, dtype or range is none that a picture has.
    """
    if not isinstance(lr, np.ndarray):
        raise InferenceError(
            f"a {type(lr).__name__} is no picture; give a numpy array (np.asarray(picture)), or to run() what lies "
            "on a device"
        )
    if lr.ndim not in (2, 3) or (lr.ndim == 3 and lr.shape[2] not in (1, 2, 3, 4)) or lr.size == 0:
        raise InferenceError(
            f"an array of shape {lr.shape} is no picture; give (H, W) or (H, W, 1..4) with at least one pixel"
        )
    if lr.dtype.char not in "BHf":
        raise InferenceError(
            f"a picture of {lr.dtype} is not taken; give uint8, uint16, or float32 in the range 0..1"
        )
    if lr.dtype == np.float32:
        low, high = float(lr.min()), float(lr.max())
        # Written so that a NaN, which compares as false, is refused.
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
            raise InferenceError(
                f"float32 samples run from {low:g} to {high:g}; they must be 0..1 and finite. "
                "Divide by 255 or 65535, or give uint8 or uint16"
            )


def job_of(lr: Array, plan: TilePlan, *, channels: int, out: Array | None, progress: Progress | None) -> Job:
    """Return the job of one picture that `check_picture` let through.

    Args:
        lr: The picture.
        plan: How it is cut.
        channels: Of the net, 3 or 1.
        out: Where the result goes; None makes an array.
        progress: See `Job`.

    Raises:
        InferenceError: ``out`` is not such an array, or memory for one is short.
    """
    source = lr[:, :, None] if lr.ndim == 2 else lr
    shape = (*plan.out_size, *lr.shape[2:])
    result = new_result(shape, lr.dtype) if out is None else _checked(out, shape, lr.dtype)
    target = result[:, :, None] if lr.ndim == 2 else result
    alpha = source[:, :, -1] if source.shape[2] in (2, 4) else None
    shaped = alpha is not None and bool((alpha != peak_of(lr.dtype)).any())

    def last() -> Array:
        if alpha is not None and shaped:
            bound_alpha(target[:, :, -1], alpha, plan.scale)
        elif alpha is not None:
            target[:, :, -1] = peak_of(lr.dtype)
        return result

    def placed(start: int, stop: int) -> None:
        # That part of a memory map need not stay in memory.
        release_rows(result, start, stop)

    layers = _layers(source, target, alpha if shaped else None, channels)
    return Job(
        layers, plan, last=last, placed=placed if isinstance(result, np.memmap) else None, progress=progress
    )


def _layers(source: Array, target: Array, alpha: Array | None, net: int) -> list[tuple[Array, Array]]:
    # What is enlarged one after another: views with as many channels as the net takes, or with one.
    channels = source.shape[2] - (1 - source.shape[2] % 2)
    colour, made = source[:, :, :channels], target[:, :, :channels]
    if alpha is not None:
        colour = fill_hidden(colour, alpha)
    layers = [(colour, made)]
    if net == 1:
        layers = [(colour[:, :, i : i + 1], made[:, :, i : i + 1]) for i in range(channels)]
    if alpha is not None:
        layers.append((source[:, :, -1:], target[:, :, -1:]))
    return layers


def _checked(out: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if not isinstance(out, np.ndarray):
        raise InferenceError(f"out is a {type(out).__name__}; give a numpy array, such as a memory map")
    if out.shape != shape or out.dtype != dtype or not out.flags.writeable:
        kind = "" if out.flags.writeable else " read-only"
        raise InferenceError(
            f"out is a{kind} {out.dtype} array of {out.shape}; the result is {np.dtype(dtype)} of {shape}"
        )
    return out


def new_result(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array for a result, its samples undefined.

    Raises:
        InferenceError: It has no pixel, or memory is short.
    """
    # Asking how much memory is free takes longer than a small picture does.
    if 0 < math.prod(shape) * dtype.itemsize < SMALL:
        return np.empty(shape, dtype)
    return empty_output(shape, dtype)
