"""A plan carried out: tiles cut, run and put together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime._samples import check_finite, network_to_pixels, pixels_to_network
from esrgan_deploy.runtime._session import Session
from esrgan_deploy.runtime._tiling import Span, Tile, TilePlan

__all__ = ["run_tiles"]

Array = npt.NDArray[Any]


def run_tiles(
    session: Session,
    plan: TilePlan,
    source: Array,
    target: Array,
    *,
    done: Callable[[int], None] | None = None,
) -> None:
    """Enlarge a picture into an array, holding no more than one batch of tiles beside the two.

    Args:
        session: What runs a batch.
        plan: Where the tiles lie.
        source: ``(H, W, k)`` uint8, uint16 or float32; ``k`` is 1 or the net's channels.
        target: ``(H·s, W·s, k)`` of the same dtype, which is filled. A memory map will do.
        done: Called after each batch with the number of tiles in it.

    Raises:
        InferenceError: The session failed, made NaN, or made an output of another size than it said.
    """
    info = session.info
    batch = np.zeros(info.batch_shape(plan.batch, *plan.tile), info.dtype)
    for tiles in plan.batches():
        for slot, tile in zip(batch, tiles, strict=False):
            pixels_to_network(_cut(source, tile, plan.tile), slot, info)
        made = session.run(batch)
        _check_shape(made, session, plan)
        check_finite(made[: len(tiles)], info)
        for enlarged, tile in zip(made, tiles, strict=False):
            _place(enlarged, tile, plan, target, session)
        if done is not None:
            done(len(tiles))


def _cut(source: Array, tile: Tile, shape: tuple[int, int]) -> Array:
    y, x = tile.row.origin, tile.column.origin
    return source[y : y + shape[0], x : x + shape[1]]


def _place(made: Array, tile: Tile, plan: TilePlan, target: Array, session: Session) -> None:
    top, bottom = plan.out_range(tile.row)
    left, right = plan.out_range(tile.column)
    y, x = plan.out_origin(tile.row), plan.out_origin(tile.column)
    rows, columns = slice(top - y, bottom - y), slice(left - x, right - x)
    kept = made[rows, columns] if session.info.form == "uint8" else made[:, rows, columns]
    network_to_pixels(kept, target[top:bottom, left:right], session.info)


def _check_shape(made: Array, session: Session, plan: TilePlan) -> None:
    info = session.info
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
