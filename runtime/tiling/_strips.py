"""A picture in strips of its full width through the parts of a net: no halo, no seam, and memory by the width."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy.runtime.sessions import (
    PICTURE,
    BatchOutput,
    Block,
    Parts,
    PartsInfo,
    SessionInfo,
    spread_of,
)
from esrgan_deploy.runtime.tiling._batch import network_to_pixels, pixels_to_network
from esrgan_deploy.runtime.tiling._plan import TilePlan

__all__ = ["TAIL", "Placed", "Strips", "run_strips"]

Array = npt.NDArray[Any]

TAIL = 128
"""Edge of the largest tile that the tail makes pixels of, in pixels of the map."""

Placed = Callable[[int, int], None]
"""Called with the rows of the output that are in place, ``[start, stop)``, as they come to be."""

Check = Callable[[BatchOutput], None]
"""Looks at what the tail made, whose `BatchOutput.health` is complete; raises where it is no picture."""


class Strips:
    """Which rows each block of a trunk has, needs and makes, strip by strip: pure arithmetic.

    A block that was given the rows up to A has made those up to A less its reach, and keeps what the next ones are
    made of: its reach above them. At the end of the picture, where nothing comes any more, it makes the rest; never
    more than a strip at once, so that what it holds stays bounded. In a step in which it has nothing to make it
    computes one row for nothing, as no tensor may be empty.

    Args:
        blocks: Of the trunk.
        height: Rows of the picture, padded to what the net takes.
        step: Rows of the picture for each row of the map.
        strip: Rows of the map that a block makes at once, at most.
    """

    def __init__(self, blocks: Sequence[Block], height: int, step: int, strip: int) -> None:
        self._blocks, self._height, self._step, self._strip = blocks, height, step, strip
        self._fed = 0
        # What each block has made, and the first row that it keeps of each of its inputs: one above the picture.
        self._made = [0] * len(blocks)
        self._kept = [[-1] * len(block.inputs) for block in blocks]

    @property
    def made(self) -> int:
        """Rows of the map that are finished."""
        return self._made[-1]

    @property
    def rows(self) -> int:
        """Rows of the map in all."""
        return self._height // self._step

    def feed(self) -> tuple[int, int]:
        """Return which rows of the picture come next, ``[start, stop)``; nothing at its end."""
        start = self._fed
        self._fed = min(self._height, start + self._strip * self._step)
        return start, self._fed

    def bounds(self) -> Array:
        """Return what the trunk is to do with the rows of the last `feed`, as its input ``rows`` takes it.

        Of each block and each of its inputs: the rows that it computes from, ``[start, stop)``, and the first that it
        keeps, counted from the first that it kept; then the rows that it made and that are right, counted from the
        first that it computed.
        """
        given = {PICTURE: self._fed}
        numbers: list[int] = []
        for number, block in enumerate(self._blocks):
            rows = min(given[maker] // step for maker, step in block.inputs)
            first = self._made[number]
            last = rows if rows == self.rows else max(first, rows - block.reach)
            last = min(last, first + self._strip)
            low, high = max(0, first - block.reach), min(rows, last + block.reach)
            for place, (maker, step) in enumerate(block.inputs):
                held = self._kept[number][place]
                computed = (low * step - held, high * step - held) if last > first else (0, step)
                # One row at least: it is what is computed where there is nothing to do.
                keep = max(held, min(max(0, last - block.reach), given[maker] // step - 1) * step)
                numbers += [*computed, keep - held]
                self._kept[number][place] = keep
            numbers += [first - low, last - low] if last > first else [0, 0]
            self._made[number] = given[number] = last
        return np.array(numbers, np.int64)


def run_strips(
    parts: Parts,
    info: SessionInfo,
    plan: TilePlan,
    source: Array,
    target: Array,
    *,
    check: Check,
    placed: Placed = lambda start, stop: None,
) -> None:
    """Enlarge a picture strip by strip and write it from the top to the bottom.

    Args:
        parts: Of the net.
        info: Of the session that they belong to.
        plan: The whole picture as one tile, and the height of a strip.
        source: ``(H, W, k)`` uint8, uint16 or float32; ``k`` is 1 or the net's channels.
        target: ``(H·s, W·s, k)`` of the same dtype. A memory map will do.
        check: Sees every piece before it is written.
        placed: See `Placed`.

    Raises:
        InferenceError: The net failed, or ``check`` found no picture.
    """
    picture = _Padded(source, plan, info)
    strips = Strips(parts.info.blocks, plan.tile[0], parts.info.step, plan.strip)
    trunk = parts.trunk(plan.tile[1])
    tail = _Tail(parts, info, plan, picture, target, check, placed)
    while strips.made < strips.rows:
        start, stop = strips.feed()
        tail.take(trunk.advance(picture.rows(start, stop), strips.bounds()))


class _Padded:
    """The picture with its repeated edge, of which rows are made when they are asked for."""

    def __init__(self, source: Array, plan: TilePlan, info: SessionInfo) -> None:
        self._source, self._info, self._width = source, info, plan.tile[1]
        self._top, self._left = -plan.rows[0].origin, -plan.columns[0].origin

    def rows(self, start: int, stop: int) -> Array:
        """Return rows ``[start, stop)`` as a batch of the session's form."""
        batch = np.empty(self._info.batch_shape(1, stop - start, self._width), self._info.dtype)
        if stop > start:
            # Rows beyond the picture repeat its first or its last one.
            height = len(self._source)
            first = min(max(start - self._top, 0), height - 1)
            last = max(min(stop - self._top, height), first + 1)
            above = min(max(self._top - start, 0), stop - start - 1)
            pixels = self._source[first:last]
            pixels_to_network(pixels, batch[0], self._info, at=(above, self._left))
        return batch

    def spread(self, top: int, bottom: int, left: int, right: int) -> float:
        """Return the spread of the samples of a piece, in 0..1."""
        height, width = self._source.shape[:2]
        (top, bottom), (left, right) = (
            (min(max(low - edge, 0), side - 1), max(min(high - edge, side), 1))
            for low, high, edge, side in ((top, bottom, self._top, height), (left, right, self._left, width))
        )
        return spread_of(self._source[top : max(bottom, top + 1), left : max(right, left + 1)])


class _Tail:
    """Holds rows of the map until there are enough of them, and makes pixels of them."""

    def __init__(
        self,
        parts: Parts,
        info: SessionInfo,
        plan: TilePlan,
        picture: _Padded,
        target: Array,
        check: Check,
        placed: Placed,
    ) -> None:
        self._parts, self._session, self._plan, self._picture = parts, info, plan, picture
        self._target, self._check, self._placed = target, check, placed
        known: PartsInfo = parts.info
        self._known = known
        self._rows, self._columns = plan.tile[0] // known.step, plan.tile[1] // known.step
        self._held: Array | None = None
        self._first = self._done = 0

    def take(self, features: Array) -> None:
        """Take rows of the map, ``(1, features, h, w)``, and make what can be made."""
        if features.shape[2] == 0:
            return
        self._held = features if self._held is None else np.concatenate([self._held, features], 2)
        there, reach = self._first + self._held.shape[2], self._known.reach
        while self._done < self._rows and (there == self._rows or there >= self._done + TAIL + reach):
            stop = min(self._done + TAIL, self._rows)
            self._band(self._done, stop)
            self._done = stop
        # Contiguous, so that what was is not kept alive by what is left of it.
        keep = max(0, self._done - reach)
        self._held, self._first = np.ascontiguousarray(self._held[:, :, keep - self._first :]), keep

    def _band(self, start: int, stop: int) -> None:
        known, step, scale = self._known, self._known.step, self._known.scale
        top, bottom = max(0, start - known.reach), min(self._rows, stop + known.reach)
        batch = self._picture.rows(top * step, bottom * step) if known.picture else None
        count = -(-self._columns // TAIL)
        edges = [self._columns * number // count for number in range(count + 1)]
        for left, right in itertools.pairwise(edges):
            first, last = max(0, left - known.reach), min(self._columns, right + known.reach)
            assert self._held is not None
            piece = self._held[:, :, top - self._first : bottom - self._first, first:last]
            beside = None if batch is None else _columns(batch, first * step, last * step, self._session)
            made = self._parts.tail(np.ascontiguousarray(piece), beside)
            if made.health is not None:
                spread = self._picture.spread(start * step, stop * step, left * step, right * step)
                made = BatchOutput(
                    made.batch, np.concatenate([made.health, np.array([[spread]], np.float32)], axis=1)
                )
            self._check(made)
            self._place(made.batch[0], (top * scale, first * scale), (start, stop, left, right))
        self._placed(*self._kept(start * scale, stop * scale, 0))

    def _place(self, made: Array, origin: tuple[int, int], piece: tuple[int, int, int, int]) -> None:
        start, stop, left, right = (edge * self._known.scale for edge in piece)
        rows, columns = self._kept(start, stop, 0), self._kept(left, right, 1)
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            return
        (edge_y, edge_x), (y, x) = self._edges(), origin
        down = slice(rows[0] + edge_y - y, rows[1] + edge_y - y)
        across = slice(columns[0] + edge_x - x, columns[1] + edge_x - x)
        kept = made[down, across] if self._session.form == "uint8" else made[:, down, across]
        network_to_pixels(kept, self._target[slice(*rows), slice(*columns)], self._session)

    def _edges(self) -> tuple[int, int]:
        # Output rows and columns of repeated edge.
        return -self._plan.out_origin(self._plan.rows[0]), -self._plan.out_origin(self._plan.columns[0])

    def _kept(self, start: int, stop: int, axis: int) -> tuple[int, int]:
        # From rows or columns of the padded output to those of the picture's.
        edge, side = self._edges()[axis], self._plan.out_size[axis]
        return min(max(start - edge, 0), side), min(max(stop - edge, 0), side)


def _columns(batch: Array, left: int, right: int, info: SessionInfo) -> Array:
    piece = batch[:, :, left:right] if info.form == "uint8" else batch[:, :, :, left:right]
    return np.ascontiguousarray(piece)
