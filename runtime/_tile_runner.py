"""One batch of tiles: cut, run in a slot, looked at, and put in its place."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime._samples import network_to_pixels, pixels_to_network
from esrgan_deploy.runtime._session import Made, SessionInfo, Slot
from esrgan_deploy.runtime._tiling import Span, Tile, TilePlan

__all__ = ["Judge", "fill", "run_batch"]

Array = npt.NDArray[Any]

Judge = Callable[[Made, Array], tuple[Made, SessionInfo]]
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
