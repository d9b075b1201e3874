"""Where tiles lie: pure arithmetic, without a pixel."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._spec import UNBOUNDED

__all__ = ["AUTO_TILE", "EDGES", "Edge", "Span", "Tile", "TileOptions", "TilePlan", "plan_tiles"]

# Edge of the largest tile that `auto` makes. A 64-channel x4 net holds about 0.3 GiB per float32 feature map
# of that tile at the output's size, so the whole run stays near one GiB.
AUTO_TILE = 256

Edge = Literal["repeat", "zero"]
EDGES: tuple[Edge, ...] = ("repeat", "zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileOptions:
    """How a picture is cut.

    Attributes:
        tile: Edge of the square tile in input pixels, halo included; 0 for the whole picture at once;
            ``"auto"`` for the whole picture where it is small and tiles of at most 256 where it is not.
        halo: Input pixels around a tile that the net sees and that are thrown away afterwards.
        edge: What the net sees beyond the picture: ``"repeat"`` gives the picture a halo of its outermost pixels,
            ``"zero"`` leaves it to the net, whose convolutions pad with zeros: black, against which they draw a rim.
        strip: Rows of the picture that go through the parts of the net at once, where it has parts and tile is
            ``"auto"``; 0 for tiles all the same, None for what memory allows.
    """

    tile: int | Literal["auto"] = "auto"
    halo: int = 16
    edge: Edge = "repeat"
    strip: int | None = None

    def __post_init__(self) -> None:
        if self.strip is not None and (type(self.strip) is not int or self.strip < 0):
            raise ValueError(
                f"strip is {self.strip!r}; it is a number of rows, 0 for tiles, or None to choose"
            )
        if self.strip and self.tile != "auto":
            raise ValueError(f"strip is {self.strip} and tile {self.tile}; give one of them")
        if self.tile != "auto" and (type(self.tile) is not int or self.tile < 0):
            raise ValueError(f"tile is {self.tile!r}; it is 'auto', 0 for untiled, or a number of pixels")
        if not isinstance(self.halo, int) or self.halo < 0:
            raise ValueError(f"halo is {self.halo!r}; it is a number of pixels, 0 or more")
        if self.edge not in EDGES:
            raise ValueError(f"edge is {self.edge!r}; it is 'repeat' or 'zero'")
        if isinstance(self.tile, int) and 0 < self.tile <= 2 * self.halo:
            raise ValueError(
                f"a tile of {self.tile} leaves nothing between two halos of {self.halo}; "
                f"use a tile of at least {2 * self.halo + 1} or a smaller halo"
            )


@dataclasses.dataclass(frozen=True)
class Span:
    """One tile along one axis, in input pixels: where it starts, and the part of it that is kept.

    A tile may start before the picture, at a negative origin, and end beyond it: what lies there repeats its edge.
    """

    origin: int
    keep_start: int
    keep_stop: int


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile: a row span and a column span."""

    row: Span
    column: Span


@dataclasses.dataclass(frozen=True, kw_only=True)
class TilePlan:
    """A picture cut into tiles of one shape.

    Attributes:
        height: Rows of the input picture.
        width: Columns of the input picture.
        tile: ``(rows, columns)`` of every tile.
        halo: The halo after rounding up to the alignment; every kept pixel is at least this far from its
            tile's border, unless the edge is ``"zero"`` and that border the picture's own.
        scale: Output pixels per input pixel and axis.
        batch: Tiles that go through the net together.
        rows: The tiles along the height.
        columns: The tiles along the width.
        strip: Rows that go through the parts of the net at once, where it is one tile and goes so; else 0.
    """

    height: int
    width: int
    tile: tuple[int, int]
    halo: int
    scale: Fraction
    batch: int
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    strip: int = 0

    @property
    def count(self) -> int:
        """Number of tiles, or of strips."""
        return -(-self.tile[0] // self.strip) if self.strip else len(self.rows) * len(self.columns)

    @property
    def single(self) -> bool:
        """Whether all of it is one piece of work."""
        return self.strip > 0 or self.count <= self.batch

    @functools.cached_property
    def out_size(self) -> tuple[int, int]:
        """``(height, width)`` of the output: ``floor(size * scale)``, as ONNX Resize computes it."""
        return self._scaled(self.height), self._scaled(self.width)

    @functools.cached_property
    def out_tile(self) -> tuple[int, int]:
        """``(rows, columns)`` that the net makes of one tile."""
        return self._scaled(self.tile[0]), self._scaled(self.tile[1])

    @functools.cached_property
    def all_tiles(self) -> tuple[Tile, ...]:
        """All of `tiles`, for a plan of few."""
        return tuple(self.tiles())

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles by rows, so that the output fills from the top."""
        for row, column in itertools.product(self.rows, self.columns):
            yield Tile(row, column)

    def batches(self) -> Iterator[tuple[Tile, ...]]:
        """Yield groups of ``batch`` tiles; the last one may be shorter."""
        tiles = self.tiles()
        while group := tuple(itertools.islice(tiles, self.batch)):
            yield group

    def out_range(self, span: Span) -> tuple[int, int]:
        """Return the half-open range of output pixels that the kept part of a span becomes."""
        return self._scaled(span.keep_start), self._scaled(span.keep_stop)

    def out_origin(self, span: Span) -> int:
        """Return the output pixel where the tile starts; whole, because origins are aligned to the scale."""
        return self._scaled(span.origin)

    @functools.cached_property
    def _ratio(self) -> tuple[int, int]:
        return self.scale.numerator, self.scale.denominator

    def _scaled(self, length: int) -> int:
        # Whole numbers: a Fraction takes microseconds, and a small picture few more.
        up, down = self._ratio
        return length * up // down


def plan_tiles(
    height: int,
    width: int,
    *,
    tile: int | Literal["auto"] = "auto",
    halo: int = 16,
    multiple: int = 1,
    scale: Fraction | int = 1,
    batch: int = 1,
    least: tuple[int, int] = (1, 1),
    most: tuple[int, int] = (UNBOUNDED, UNBOUNDED),
    largest: int = AUTO_TILE,
    edge: Edge = "repeat",
) -> TilePlan:
    """Cut a picture into tiles of one shape that overlap by two halos and cover every pixel exactly once.

    Tiles at the right and bottom edge are shifted inward, so they are never smaller than the others. Origins
    and the borders of the kept parts are multiples of the size multiple (a pixel-unshuffle groups the same
    pixels in a tile as in the whole picture) and of the scale's denominator (an x1.5 net maps them to whole
    output pixels). A picture that a tile holds, with the halo of its repeated edge, gets a tile of its own size,
    rounded up.

    Args:
        height: Rows of the picture, at least 1.
        width: Columns of the picture, at least 1.
        tile: See `TileOptions`; rounded up to the alignment.
        halo: See `TileOptions`; rounded up to the alignment.
        multiple: Tile heights and widths must be multiples of this.
        scale: Output pixels per input pixel and axis.
        batch: Tiles that go through the net together.
        least: ``(rows, columns)`` of the smallest tile that the net takes.
        most: ``(rows, columns)`` of the largest tile that the net takes.
        largest: Edge of the largest tile that ``"auto"`` makes; a picture of no more pixels than that, those of its
            repeated edge among them, goes whole.
        edge: See `TileOptions`.

    Raises:
        InferenceError: No tile of the asked size can be placed.
        ValueError: A batch or a largest tile below 1.
    """
    if height < 1 or width < 1:
        raise InferenceError(f"the picture is {width}x{height} pixels; it needs at least 1x1")
    TileOptions(tile=tile, halo=halo, edge=edge)
    if batch < 1 or largest < 1:
        raise ValueError(f"batch is {batch} and largest is {largest}; both are at least 1")
    wanted = largest if tile == "auto" else tile
    ratio = Fraction(scale)
    align = math.lcm(multiple, ratio.denominator)
    border = _round_up(halo, align)
    if edge == "repeat" and halo and align > AUTO_TILE:
        raise InferenceError(
            f"a scale of {float(ratio):g} meets whole output pixels only every {align} input pixels, too far for a "
            "repeated edge; use edge 'zero' and tile 0 (the whole picture at once)"
        )
    # Rows and columns of repeated edge on every side.
    rim = border if edge == "repeat" else 0
    untiled = tile == 0 or (tile == "auto" and (height + 2 * rim) * (width + 2 * rim) <= largest**2)
    spans: list[tuple[Span, ...]] = []
    extents: list[int] = []
    for axis, length in enumerate((height, width)):
        low, high = _round_up(least[axis], multiple), most[axis] // multiple * multiple
        whole = max(_round_up(length + 2 * rim, multiple), low)
        if whole <= high and (untiled or whole <= wanted):
            extents.append(whole)
            spans.append((Span(-rim, 0, length),))
            continue
        if tile == 0:
            around = f" with {rim} of repeated edge on every side" if rim else ""
            bare = " or edge 'zero'" if rim and height <= most[0] and width <= most[1] else ""
            raise InferenceError(
                f"the picture is {width}x{height} pixels{around} and the model takes at most "
                f"{most[1]}x{most[0]}; use tile 'auto'{bare}"
            )
        side = _tile_edge(wanted, border, align, low, high, ratio)
        if tile == "auto":
            side = min(side, max(_even_edge(length + 2 * rim, side, border, align), _round_up(low, align)))
        extents.append(side)
        spans.append(_spans(length, side, border, align, rim))
    return TilePlan(
        height=height,
        width=width,
        tile=(extents[0], extents[1]),
        halo=border,
        scale=ratio,
        batch=batch,
        rows=spans[0],
        columns=spans[1],
    )


def _tile_edge(wanted: int, halo: int, align: int, low: int, high: int, scale: Fraction) -> int:
    # What was asked for, rounded up to the alignment and brought into what the net takes. Only origins have to
    # be aligned: a net of one size, which may be no multiple of the scale's denominator, gets that size.
    edge = max(_round_up(wanted, align), _round_up(low, align))
    if edge > high:
        edge = high // align * align if high // align * align >= low else high
    if align > wanted:
        raise InferenceError(
            f"a scale of {float(scale):g} meets whole output pixels only every {align} input pixels, which "
            f"is more than a tile of {wanted}; use tile 0 (the whole picture at once) "
            f"or a tile of {2 * halo + align}"
        )
    if edge < 2 * halo + align:
        raise InferenceError(
            f"a tile of {edge} leaves nothing between two halos of {halo} pixels; "
            f"use a halo of at most {max(0, (edge - align) // 2 // align * align)}, or a larger tile"
        )
    return edge


def _even_edge(length: int, edge: int, halo: int, align: int) -> int:
    # The same number of tiles, each no larger than needed: 300 pixels become 2 x 166, not 2 x 256.
    padded = _round_up(length, align)
    number = max(1, math.ceil((padded - 2 * halo) / (edge - 2 * halo)))
    even = math.ceil((padded + 2 * halo * (number - 1)) / number)
    return max(_round_up(even, align), 2 * halo + align)


def _spans(length: int, edge: int, halo: int, align: int, rim: int) -> tuple[Span, ...]:
    last = _round_up(max(-rim, length + rim - edge), align)
    step = (edge - 2 * halo) // align * align
    origins = [*range(-rim, last, step), last]
    # Half-way through the overlap, as far as possible from both tiles' borders.
    cuts = [(b + a + edge) // 2 // align * align for a, b in itertools.pairwise(origins)]
    return tuple(map(Span, origins, [0, *cuts], [*cuts, length]))


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
