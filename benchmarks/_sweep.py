"""Sweeps: which combinations of shape, batch, streams and tile are measured."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

from esrgan_deploy._console import STREAMS

__all__ = ["MOST", "Axis", "Point", "parse_axis", "parse_shape", "points"]

AxisName = Literal["shape", "batch", "streams", "tile"]
MOST = 2**31 - 1
NAMES: tuple[AxisName, ...] = ("shape", "batch", "streams", "tile")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One thing that varies.

    Attributes:
        name: ``"shape"``: batches; ``"batch"``: pictures (or tiles) at once; ``"streams"``: batches in flight;
            ``"tile"``: edge of the tiles into which `Upscaler` cuts one picture, 0 for the whole at once.
        values: ``(N, H, W)`` for shapes, else whole numbers; in order, none twice.
    """

    name: AxisName
    values: tuple[tuple[int, int, int], ...] | tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One combination.

    Attributes:
        shape: ``(N, H, W)`` of a batch; with a tile, H and W are the picture's and N counts tiles.
        streams: Batches in flight for the throughput; None lets the session choose.
        tile: Edge of the tiles, 0 for none; None runs batches without the Upscaler.
    """

    shape: tuple[int, int, int]
    streams: int | None = None
    tile: int | None = None


def points(shape: tuple[int, int, int], streams: int | None, sweep: Sequence[Axis]) -> list[Point]:
    """Return every combination, the last axis fastest; without a sweep the one point that is asked for.

    Args:
        shape: Where no axis says otherwise.
        streams: Likewise.
        sweep: The axes.
    """
    made = []
    for values in itertools.product(*(axis.values for axis in sweep)):
        at: dict[str, Any] = dict(zip((axis.name for axis in sweep), values, strict=True))
        n, h, w = at.get("shape", shape)
        made.append(
            Point(shape=(at.get("batch", n), h, w), streams=at.get("streams", streams), tile=at.get("tile"))
        )
    # batch=1,2 over shapes that differ in N alone would measure the same twice.
    return list(dict.fromkeys(made))


def parse_axis(text: str) -> Axis:
    """Read ``NAME=VALUE,VALUE``.

    Raises:
        ValueError: It is not one; the message says what is allowed.
    """
    name, equals, rest = text.partition("=")
    if not equals or name not in NAMES:
        raise ValueError(
            f"{text!r} is not NAME=VALUE,VALUE with a NAME of {', '.join(NAMES)}; models go before --sweep"
        )
    parts = [part.strip() for part in rest.split(",")]
    values = tuple(parse_shape(part) if name == "shape" else _whole(name, part) for part in parts)
    if len(set(values)) != len(values):
        raise ValueError(f"{text!r} holds a value twice")
    return Axis(name, values)  # type: ignore[arg-type]


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read ``NxHxW`` or ``HxW``.

    Raises:
        ValueError: It is neither.
    """
    parts = text.lower().split("x")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 2:
        numbers = [1, *numbers]
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"{text!r} is not NxHxW or HxW, such as 1x256x256")
    if math.prod(numbers) > MOST:
        raise ValueError(f"{text!r} is more than the {MOST} pixels that a batch can hold")
    return numbers[0], numbers[1], numbers[2]


def _whole(name: str, text: str) -> int:
    least = 0 if name == "tile" else 1
    # Its length first: Python refuses to read a number of thousands of digits.
    most = STREAMS if name == "streams" else MOST
    if not text.isdecimal() or len(text) > len(str(most)) or not least <= int(text) <= most:
        raise ValueError(f"{name}={text!r} is not a whole number from {least} to {most}")
    return int(text)
