"""One batch of tiles: its samples go in, and what comes out is cut and written."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.sessions import BatchOutput, SessionInfo, Slot
from esrgan_deploy.runtime.tiling._plan import Span, Tile, TilePlan

__all__ = ["Judge", "fill", "network_to_pixels", "peak_of", "pixels_to_network", "run_batch"]


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


Judge = Callable[[BatchOutput, Array], tuple[BatchOutput, SessionInfo]]
"""Looks at a batch, and at what it was made of, before it is written anywhere; may return a better one, with the
description of the session that made it."""


def run_batch(
    slot: Slot,
    info: SessionInfo,
    plan: TilePlan,
    tiles: Sequence[Tile],
    source: Array,
    target: Array,
    *,
    judge: Judge | None = None,
) -> None:
    """Enlarge some tiles of a picture and write them where they belong.

    Args:
        slot: Computes the batch.
        info: Of the slot's session.
        plan: Where the tiles lie.
        tiles: Up to ``plan.batch`` of them.
        source: ``(H, W, k)`` uint8, uint16 or float32; ``k`` is 1 or the net's channels.
        target: ``(H·s, W·s, k)`` of the same dtype. A memory map will do.
        judge: Sees what was made first.

    Raises:
        InferenceError: The slot failed, or made an output of another size than its session said.
    """
    batch = slot.prepare((plan.batch, *plan.tile))
    fill(batch, info, plan, tiles, source)
    slot.start()
    made = slot.finish()
    if judge is not None:
        made, info = judge(made, batch)
    _check_shape(made.batch, info, plan)
    for enlarged, tile in zip(made.batch, tiles, strict=False):
        _place(enlarged, tile, plan, target, info)


def fill(batch: Array, info: SessionInfo, plan: TilePlan, tiles: Sequence[Tile], source: Array) -> None:
    """Write tiles of a picture into a batch of the session's form; places left over become black.

    What of a tile lies beyond the picture repeats its edge here, so that no padded copy of the picture is needed.
    """
    for place, tile in zip(batch, tiles, strict=False):
        y, x = tile.row.origin, tile.column.origin
        top, left = max(0, -y), max(0, -x)
        pixels = source[y + top : y + plan.tile[0], x + left : x + plan.tile[1]]
        pixels_to_network(pixels, place, info, at=(top, left))
    batch[len(tiles) :] = 0


def _place(made: Array, tile: Tile, plan: TilePlan, target: Array, info: SessionInfo) -> None:
    top, bottom = plan.out_range(tile.row)
    left, right = plan.out_range(tile.column)
    y, x = plan.out_origin(tile.row), plan.out_origin(tile.column)
    rows, columns = slice(top - y, bottom - y), slice(left - x, right - x)
    kept = made[rows, columns] if info.form == "uint8" else made[:, rows, columns]
    network_to_pixels(kept, target[top:bottom, left:right], info)


def _check_shape(made: Array, info: SessionInfo, plan: TilePlan) -> None:
    height, width = plan.out_tile
    sides = (1, 2) if info.form == "uint8" else (2, 3)
    expected = [plan.batch, info.out_channels, info.out_channels, info.out_channels]
    expected[sides[0]], expected[sides[1]] = height, width
    if made.shape == tuple(expected):
        return
    # A graph computes floor(H * scale) in float32 and may round a broken scale the other way: a row more or
    # less at the end of a tile is harmless where nothing of it is kept.
    needed = (_needed(plan, plan.rows), _needed(plan, plan.columns))
    if made.ndim == 4 and all(
        need <= made.shape[side] <= expected[side] + 1 for need, side in zip(needed, sides, strict=True)
    ):
        return
    raise InferenceError(
        f"{info.name} made {'x'.join(map(str, made.shape))} of tiles of {plan.tile[1]}x{plan.tile[0]}; "
        f"{'x'.join(map(str, expected))} was expected at a scale of {float(info.scale):g}. Use tile 0; "
        "if the graph was changed after its export, run: esrgan-export again"
    )


def _needed(plan: TilePlan, spans: tuple[Span, ...]) -> int:
    return max(plan.out_range(span)[1] - plan.out_origin(span) for span in spans)
