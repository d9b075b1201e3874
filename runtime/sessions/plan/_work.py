"""What one shape is computed with: contexts, memory, and what is enqueued. Not run on a GPU so far.

A picture goes through the whole plan, or its trunk whole and its tail in tiles. The trunk's map stays on the device:
rectangles of it are copied to the tail, and what that makes of them into the frame in pinned memory, in the order of
one stream.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from esrgan_deploy.runtime.device import DeviceBuffer, PinnedBuffer, Planes, Stream
from esrgan_deploy.runtime.sessions._checks import output_shape
from esrgan_deploy.runtime.sessions._health import judge, spread_of
from esrgan_deploy.runtime.sessions._protocol import Array, BatchOutput, SessionInfo
from esrgan_deploy.runtime.sessions.plan._engine import PlanEngine, aligned
from esrgan_deploy.runtime.sessions.plan._parts import PlanParts

__all__ = ["Host", "InParts", "Memory", "Whole", "Work"]

Host = Mapping[str, PinnedBuffer]
Memory = Mapping[str, DeviceBuffer]
Sizes = tuple[dict[str, int], dict[str, int]]

_HEALTH_OF_TAIL = 2 * np.dtype(np.float32).itemsize


class Work(Protocol):
    """The computing of one shape. Buffers are told apart by name; those of one name serve all shapes of a slot."""

    given: Array | None
    """The batch to fill; None until memory was placed, and after it was forgotten."""

    contexts: tuple[Any, ...]
    """Of TensorRT."""

    def measure(self) -> Sizes:
        """Set the shape and return the bytes of pinned memory and of the device's that are wanted, by name."""

    def place(self, host: Host, memory: Memory) -> None:
        """Take memory of at least that size."""

    def forget(self) -> None:
        """Let go of it."""

    def close(self) -> None:
        """Let go of the contexts too."""

    def enqueue(self, stream: Stream, *, again: bool) -> None:
        """Enqueue upload, inference and download; see `PlanEngine.enqueue`."""

    def made(self) -> BatchOutput:
        """Return what was made."""

    def keep_kernels(self) -> None:
        """See `PlanEngine.keep_kernels`."""


class _Placed:
    """What both have: memory, and views of it."""

    def __init__(self, contexts: tuple[Any, ...], info: SessionInfo, shape: tuple[int, ...]) -> None:
        self._info, self._shape = info, shape
        self.contexts: tuple[Any, ...] = contexts
        self._host: Host = {}
        self._memory: Memory = {}
        self.given: Array | None = None
        self._made: Array | None = None
        self._health: Array | None = None

    def forget(self) -> None:
        """See `Work.forget`."""
        self._host, self._memory = {}, {}
        self.given = self._made = self._health = None

    def close(self) -> None:
        """See `Work.close`."""
        self.forget()
        self.contexts = ()

    def _take(
        self,
        host: Host,
        memory: Memory,
        made: tuple[tuple[int, ...], np.dtype[Any]],
        health: tuple[int, ...] | None,
    ) -> None:
        self._host, self._memory = dict(host), dict(memory)
        self.given = host["input"].view(self._shape, self._info.dtype)
        self._made = host["output"].view(*made)
        self._made.flags.writeable = False
        if health is not None:
            self._health = host["health"].view(health, np.float32)
            self._health.flags.writeable = False

    def _upload(self, stream: Stream) -> None:
        assert self.given is not None
        stream.upload(self._memory["input"].pointer, self._host["input"].pointer, self.given.nbytes)


class Whole(_Placed):
    """A batch through the plan of the whole graph; see `Work`.

    Args:
        engine: The plan.
        context: Of it.
        info: Of the session.
        shape: Of the batch.
    """

    def __init__(self, engine: PlanEngine, context: Any, info: SessionInfo, shape: tuple[int, ...]) -> None:
        super().__init__((context,), info, shape)
        self._engine = engine
        self._outputs: dict[str, tuple[int, ...]] = {}

    def measure(self) -> Sizes:
        """See `Work.measure`."""
        engine = self._engine
        self._outputs = engine.shape_context(self.contexts[0], self._shape)
        sizes = {
            "input": _bytes(self._shape, engine.dtype),
            "output": _bytes(self._outputs[engine.output], engine.out_dtype),
        }
        if engine.health:
            sizes["health"] = _bytes(self._outputs[engine.health], np.dtype(np.float32))
        return sizes, {**sizes, "scratch": aligned(engine.scratch_size(self.contexts[0]))}

    def place(self, host: Host, memory: Memory) -> None:
        """See `Work.place`."""
        engine = self._engine
        names = {"input": engine.input, "output": engine.output}
        if engine.health:
            names["health"] = engine.health
        scratch = memory["scratch"]
        addresses = [(name, memory[held].pointer) for held, name in names.items()]
        engine.give_memory(self.contexts[0], (scratch.pointer, scratch.size), addresses)
        health = self._outputs[engine.health] if engine.health else None
        self._take(host, memory, (self._outputs[engine.output], engine.out_dtype), health)

    def enqueue(self, stream: Stream, *, again: bool) -> None:
        """See `Work.enqueue`."""
        self._upload(stream)
        self._engine.enqueue(self.contexts[0], stream.handle, again=again)
        for name, view in (("output", self._made), ("health", self._health)):
            if view is not None:
                stream.download(self._host[name].pointer, self._memory[name].pointer, view.nbytes)

    def made(self) -> BatchOutput:
        """See `Work.made`."""
        assert self._made is not None
        return BatchOutput(self._made, self._health)

    def keep_kernels(self) -> None:
        """See `Work.keep_kernels`."""
        self._engine.keep_kernels()


class InParts(_Placed):
    """One picture, its trunk whole and its tail in tiles of one shape; see `Work`.

    Args:
        parts: The plans.
        trunk: A context of the trunk.
        tail: A context of the tail.
        info: Of the session.
        shape: Of the picture's batch.
    """

    def __init__(
        self, parts: PlanParts, trunk: Any, tail: Any, info: SessionInfo, shape: tuple[int, ...]
    ) -> None:
        super().__init__((trunk, tail), info, shape)
        self._parts = parts
        self._map: tuple[int, ...] = ()
        self._tile: tuple[int, ...] = ()
        self._piece: tuple[int, ...] = ()
        self._rows: tuple[_Span, ...] = ()
        self._columns: tuple[_Span, ...] = ()

    def measure(self) -> Sizes:
        """See `Work.measure`."""
        trunk, tail, reach = self._parts.trunk, self._parts.tail, self._parts.reach
        self._map = trunk.shape_context(self.contexts[0], self._shape)[trunk.output]
        height, self._rows = _cut(self._map[2], tail.profile[2][2], reach)
        width, self._columns = _cut(self._map[3], tail.profile[2][3], reach)
        self._tile = (*self._map[:2], height, width)
        self._piece = tail.shape_context(self.contexts[1], self._tile)[tail.output]
        scratch = max(trunk.scratch_size(self.contexts[0]), tail.scratch_size(self.contexts[1]))
        given = _bytes(self._shape, trunk.dtype)
        tiles = len(self._rows) * len(self._columns)
        return (
            {
                "input": given,
                "output": _bytes(self._frame, tail.out_dtype),
                "health": tiles * _HEALTH_OF_TAIL,
            },
            {
                "input": given,
                "map": _bytes(self._map, trunk.out_dtype),
                "tile": _bytes(self._tile, tail.dtype),
                "output": _bytes(self._piece, tail.out_dtype),
                "health": _HEALTH_OF_TAIL,
                # They follow one another.
                "scratch": aligned(scratch),
            },
        )

    def place(self, host: Host, memory: Memory) -> None:
        """See `Work.place`."""
        trunk, tail = self._parts.trunk, self._parts.tail
        scratch = memory["scratch"].pointer, memory["scratch"].size
        trunk.give_memory(
            self.contexts[0],
            scratch,
            [(trunk.input, memory["input"].pointer), (trunk.output, memory["map"].pointer)],
        )
        addresses = [(tail.input, memory["tile"].pointer), (tail.output, memory["output"].pointer)]
        if tail.health:
            addresses.append((tail.health, memory["health"].pointer))
        tail.give_memory(self.contexts[1], scratch, addresses)
        health = (len(self._rows) * len(self._columns), 2) if tail.health else None
        self._take(host, memory, (self._frame, tail.out_dtype), health)

    def enqueue(self, stream: Stream, *, again: bool) -> None:
        """See `Work.enqueue`."""
        trunk, tail = self._parts.trunk, self._parts.tail
        self._upload(stream)
        trunk.enqueue(self.contexts[0], stream.handle, again=again)
        item, features = trunk.out_dtype.itemsize, self._map[1]
        whole = Planes(pointer=self._memory["map"].pointer, pitch=self._map[3] * item, rows=self._map[2])
        _, _, height, width = self._tile
        tile = Planes(pointer=self._memory["tile"].pointer, pitch=width * item, rows=height)
        made = self._planes(self._memory["output"].pointer, self._piece)
        frame = self._planes(self._host["output"].pointer, self._frame, pinned=True)
        # Bytes and rows of the output for a row and a column of the map.
        sample, scale = made.pitch // width, made.rows // height
        planes = 1 if self._info.form == "uint8" else self._info.out_channels
        for number, (row, column) in enumerate(self._tiles):
            stream.copy(tile, whole.at(row.origin, column.origin * item), (width * item, height, features))
            tail.enqueue(self.contexts[1], stream.handle, again=again)
            stream.copy(
                frame.at(row.start * scale, column.start * sample),
                made.at((row.start - row.origin) * scale, (column.start - column.origin) * sample),
                ((column.stop - column.start) * sample, (row.stop - row.start) * scale, planes),
            )
            if tail.health:
                place = self._host["health"].pointer + number * _HEALTH_OF_TAIL
                stream.download(place, self._memory["health"].pointer, _HEALTH_OF_TAIL)

    def made(self) -> BatchOutput:
        """See `Work.made`; of the tiles, the health is that of the first that is no picture, else of all together."""
        assert self._made is not None
        if self._health is None:
            return BatchOutput(self._made)
        tiles = [
            np.array([[*found, self._spread(row, column)]], np.float32)
            for found, (row, column) in zip(self._health, self._tiles, strict=True)
        ]
        bad = (one for one in tiles if judge(BatchOutput(self._made, one), self._info, 1) is not None)
        every = np.concatenate(tiles)
        together = np.array([[every[:, 0].mean(), every[:, 1].max(), every[:, 2].max()]], np.float32)
        return BatchOutput(self._made, next(bad, together))

    def keep_kernels(self) -> None:
        """See `Work.keep_kernels`."""
        self._parts.trunk.keep_kernels()
        self._parts.tail.keep_kernels()

    @property
    def _tiles(self) -> list[tuple["_Span", "_Span"]]:
        return [(row, column) for row in self._rows for column in self._columns]

    @property
    def _frame(self) -> tuple[int, ...]:
        n, *sides = self._shape[:3] if self._info.form == "uint8" else (self._shape[0], *self._shape[2:])
        return output_shape(self._info, (n, sides[0], sides[1]))

    def _planes(self, pointer: int, shape: tuple[int, ...], *, pinned: bool = False) -> Planes:
        item = self._parts.tail.out_dtype.itemsize
        if self._info.form == "uint8":
            return Planes(pointer=pointer, pitch=shape[2] * shape[3] * item, rows=shape[1], pinned=pinned)
        return Planes(pointer=pointer, pitch=shape[3] * item, rows=shape[2], pinned=pinned)

    def _spread(self, row: "_Span", column: "_Span") -> float:
        """Return the spread of what a tile was made of, in 0..1."""
        assert self.given is not None
        planar = self.given[0] if self._info.form == "float" else self.given[0].transpose(2, 0, 1)
        step = planar.shape[1] // self._map[2]
        return spread_of(
            planar[:, row.start * step : row.stop * step, column.start * step : column.stop * step]
        )


class _Span(NamedTuple):
    """A tile along one axis of the map: where it begins, and what is kept of it."""

    origin: int
    start: int
    stop: int


def _cut(length: int, most: int, reach: int) -> tuple[int, tuple[_Span, ...]]:
    """Return the side of tiles along an axis, as few as there can be and all alike, and where they lie.

    Each kept row is a reach away from the tile's border, unless that is the map's own. Of one shape, a single context
    serves them all, whose kernels are chosen, or compiled, once.
    """
    count = 1 if length <= most else -(-(length - 2 * reach) // (most - 2 * reach))
    side = -(-(length + 2 * reach * (count - 1)) // count)
    origins = [(length - side) * number // max(1, count - 1) for number in range(count)]
    cuts = [(low + side + high) // 2 for low, high in itertools.pairwise(origins)]
    return side, tuple(map(_Span, origins, [0, *cuts], [*cuts, length]))


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
