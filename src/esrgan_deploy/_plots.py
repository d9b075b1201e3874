"""Small plots as SVG, coloured by a style sheet so that light and dark both work.

Nothing is written on a plot beside its axes: what a mark stands for is in the key and the caption, where text cannot
overlap.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

__all__ = ["Axis", "Canvas", "Series", "bars", "histogram", "lines", "number", "roofline"]

COLOURS = 8
"""Series are drawn in the classes ``c0`` to ``c7``, again from the first after that."""

LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: what it shows, and where a value lies.

    Attributes:
        label: What it shows, with its unit.
        low: Its smallest value.
        high: Its largest, above `low`.
        log: Whether it is logarithmic; `low` is above 0 then.
    """

    label: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], label: str, *, log: bool = False, zero: bool = False) -> "Axis":
        """Return an axis that holds all the values, with a little room; from 0 with `zero`."""
        low, high = min(values), max(values)
        if log:
            return cls(label=label, low=low / 1.3, high=high * 1.3, log=True)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        return cls(label=label, low=0.0 if zero else low - room, high=high + room)

    def share(self, value: float) -> float:
        """Return where a value lies, 0 at the low end and 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Return at most so many round values within it."""
        found = _log_ticks(self.low, self.high) if self.log else []
        if len(found) < 2:
            found = _round_ticks(self.low, self.high, most)
        every = -(-len(found) // most)
        return found[::every]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """Points with one name and one colour.

    Attributes:
        name: For the key.
        points: ``(x, y)``.
    """

    name: str
    points: tuple[tuple[float, float], ...]


def number(value: float) -> str:
    """Write a number with four digits at most, without an exponent where that can be read."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    if digits > 7 or abs(value) >= 1e7:
        return f"{value:.3g}"
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def histogram(values: Sequence[float], label: str, marks: Sequence[float], *, title: str) -> str:
    """Draw how often values occur, and dashed lines at the marks."""
    bins = max(4, min(40, math.ceil(math.sqrt(len(values)))))
    x = Axis.around([*values, *marks], label)
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(x.share(value) * bins))] += 1
    y = Axis.around([0, max(counts)], "runs", zero=True)
    canvas = Canvas(360, 210, x, y)
    for i, count in enumerate(counts):
        if count:
            left, right = (canvas.x(x.low + (x.high - x.low) * edge / bins) for edge in (i, i + 1))
            top = canvas.y(count)
            canvas.add(
                f'<rect class="fill c0" x="{left:.1f}" y="{top:.1f}" width="{max(0.5, right - left - 1):.1f}" '
                f'height="{canvas.y(0) - top:.1f}"/>'
            )
    for i, mark in enumerate(marks):
        at = f"{canvas.x(mark):.1f}"
        canvas.add(f'<line class="mark m{i}" x1="{at}" x2="{at}" y1="{TOP}" y2="{canvas.y(0):.1f}"/>')
    return canvas.svg(title)


def lines(series: Sequence[Series], x_label: str, y_label: str, *, title: str, log: bool = False) -> str:
    """Draw lines through points, from zero on the y axis, with a key."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    canvas = Canvas(
        680, 320, Axis.around(xs, x_label, log=log and min(xs) > 0), Axis.around(ys, y_label, zero=True)
    )
    for i, one in enumerate(series):
        spots = [(canvas.x(x), canvas.y(y)) for x, y in sorted(one.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        canvas.add(f'<polyline class="line c{i % COLOURS}" points="{path}"/>')
        for x, y in spots:
            canvas.add(f'<circle class="fill c{i % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    return canvas.svg(title) + _key([one.name for one in series])


def roofline(
    roofs: Sequence[tuple[str, float]], bandwidth: float, points: Sequence[Series], *, title: str
) -> str:
    """Draw what a machine can do against the operations that are done for each byte, on two log axes.

    Args:
        roofs: Names and TFLOP/s of each kind of arithmetic.
        bandwidth: GB/s.
        points: ``(FLOP per byte, TFLOP/s)`` of what was measured.
        title: For screen readers.
    """
    ridges = [top * 1e3 / bandwidth for _, top in roofs]
    xs = [*ridges, *(x for one in points for x, _ in one.points)]
    ys = [*(top for _, top in roofs), *(y for one in points for _, y in one.points)]
    x = Axis(label="operations per byte (FLOP/B)", low=min(xs) / 8, high=max(xs) * 8, log=True)
    y = Axis(label="TFLOP/s", low=min([*ys, x.low * bandwidth / 1e3]) / 1.5, high=max(ys) * 2, log=True)
    canvas = Canvas(680, 340, x, y)
    for i, ((_, top), ridge) in enumerate(zip(roofs, ridges, strict=True)):
        path = [(x.low, x.low * bandwidth / 1e3), (ridge, top), (x.high, top)]
        spots = " ".join(f"{canvas.x(a):.1f},{canvas.y(b):.1f}" for a, b in path)
        canvas.add(f'<polyline class="line c{i % COLOURS}" points="{spots}"/>')
    for i, one in enumerate(points, start=len(roofs)):
        for a, b in one.points:
            canvas.add(
                f'<circle class="fill c{i % COLOURS}" cx="{canvas.x(a):.1f}" cy="{canvas.y(b):.1f}" r="5"/>'
            )
    names = [f"{name}: {number(top)} TFLOP/s, {number(bandwidth)} GB/s" for name, top in roofs]
    return canvas.svg(title) + _key([*names, *(one.name for one in points)])


def bars(values: Sequence[tuple[float, float, float]], label: str, *, title: str, line: float = 1.0) -> str:
    """Draw horizontal bars with whiskers from low to high, numbered from above, and a line at a value.

    Args:
        values: ``(low, middle, high)`` of each.
        label: Of the x axis.
        title: For screen readers.
        line: Where a dashed line goes.
    """
    x = Axis.around([0, line, *(value for three in values for value in three)], label, zero=True)
    y = Axis(label="", low=0, high=len(values))
    canvas = Canvas(680, TOP + BOTTOM + 26 * len(values), x, y, numbered=True)
    for i, (low, middle, high) in enumerate(values):
        top = canvas.y(len(values) - i) + 4
        centre, start = top + 9, canvas.x(0)
        canvas.add(
            f'<rect class="fill c{i % COLOURS}" x="{start:.1f}" y="{top:.1f}" width="{canvas.x(middle) - start:.1f}" '
            'height="18"/>'
        )
        canvas.add(
            f'<path class="whisker" d="M{canvas.x(low):.1f} {centre - 5:.1f}v10m0 -5H{canvas.x(high):.1f}m0 -5v10"/>'
        )
        canvas.add(f'<text class="tick end" x="{start - 8:.1f}" y="{centre + 4:.1f}">{i + 1}</text>')
    at = f"{canvas.x(line):.1f}"
    canvas.add(f'<line class="mark m0" x1="{at}" x2="{at}" y1="{TOP}" y2="{canvas.y(0):.1f}"/>')
    return canvas.svg(title)


class Canvas:
    """A plot's area with its axes; marks are added on top.

    Args:
        width: Of the whole, in pixels.
        height: Of the whole, in pixels.
        x: The horizontal axis.
        y: The vertical axis.
        numbered: Whether the caller numbers the rows itself, so that the vertical axis is left out.
    """

    def __init__(self, width: int, height: int, x: Axis, y: Axis, *, numbered: bool = False) -> None:
        self._width, self._height, self._x, self._y = width, height, x, y
        self._parts: list[str] = []
        self._draw_x()
        if not numbered:
            self._draw_y()

    def x(self, value: float) -> float:
        """Return the place of a value, in pixels from the left."""
        return LEFT + self._x.share(value) * (self._width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the place of a value, in pixels from the top."""
        bottom = self._height - BOTTOM
        return bottom - self._y.share(value) * (bottom - TOP)

    def add(self, part: str) -> None:
        """Put an element on top."""
        self._parts.append(part)

    def inside(self) -> str:
        """Return what was drawn, for a place in a larger drawing."""
        return "".join(self._parts)

    def svg(self, title: str) -> str:
        """Return the whole."""
        size = f'viewBox="0 0 {self._width} {self._height}" style="max-width:{self._width}px"'
        label = html.escape(title)
        return f'<svg role="img" aria-label="{label}" {size}><title>{label}</title>{self.inside()}</svg>'

    def _draw_x(self) -> None:
        bottom = self._height - BOTTOM
        for value in self._x.ticks(max(3, self._width // 90)):
            at = f"{self.x(value):.1f}"
            self.add(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}"/>')
            self.add(f'<text class="tick mid" x="{at}" y="{bottom + 16}">{number(value)}</text>')
        self.add(f'<line class="axis" x1="{LEFT}" x2="{self._width - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        middle = (LEFT + self._width - RIGHT) / 2
        text = html.escape(self._x.label)
        self.add(f'<text class="label mid" x="{middle:.0f}" y="{self._height - 10}">{text}</text>')

    def _draw_y(self) -> None:
        for value in self._y.ticks(max(3, self._height // 60)):
            at = self.y(value)
            self.add(
                f'<line class="grid" x1="{LEFT}" x2="{self._width - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            self.add(f'<text class="tick end" x="{LEFT - 6}" y="{at + 4:.1f}">{number(value)}</text>')
        middle = (TOP + self._height - BOTTOM) / 2
        text = html.escape(self._y.label)
        turned = f'transform="translate(14 {middle:.0f}) rotate(-90)"'
        self.add(f'<text class="label mid" {turned}>{text}</text>')


def _key(names: Sequence[str]) -> str:
    entries = (
        '<li><svg class="swatch" viewBox="0 0 12 12">'
        f'<rect class="fill c{i % COLOURS}" width="12" height="12"/></svg>{html.escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="key">{"".join(entries)}</ul>'


def _round_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(decades) >= 3:
        return decades
    return [
        10.0**power * factor
        for power in powers
        for factor in (1, 2, 5)
        if low <= 10.0**power * factor <= high
    ]
