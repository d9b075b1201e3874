"""What a search measured, as a table and as a plot."""

import html
import math
from collections.abc import Callable, Sequence

from esrgan_deploy._plots import Axis, Canvas
from esrgan_deploy.export.quantisation._search import Point

__all__ = ["frontier", "markdown", "plot", "table"]

Figure = Callable[[Point], float | None]
"""What else is known of a point; None where it was not measured."""

_HEADINGS = (
    "multiply-adds",
    "convolutions",
    "PSNR-Y lost (dB)",
    "to fp32 (dB)",
    "declared bytes per LR px",
    "time (ms)",
)
_WIDTH, _HEIGHT = 560, 250

# Okabe and Ito's colours, as the benchmark report has them; a picture of its own brings its own paper.
_STYLE = (
    ":root{--paper:#fff;--ink:#1a1d21;--muted:#5d6670;--grid:#e3e6ea;--c0:#0072b2;--c1:#d55e00}"
    "@media (prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e6e8eb;--muted:#98a2ad;--grid:#2c323a;"
    "--c0:#5cb3e8;--c1:#ff8c42}}"
    ".paper{fill:var(--paper)}text{font:11px system-ui,sans-serif;fill:var(--muted)}"
    "text.label{fill:var(--ink);font-size:12px}.mid{text-anchor:middle}.end{text-anchor:end}"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--muted)}.line{fill:none;stroke-width:2}"
    ".mark{stroke:var(--ink);stroke-dasharray:4 3}.chosen{fill:none;stroke:var(--ink);stroke-width:1.5}"
    ".fill.c0{fill:var(--c0)}.line.c0{stroke:var(--c0)}.fill.c1{fill:var(--c1)}.line.c1{stroke:var(--c1)}"
)


def frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other beats in share, loss and fidelity at once, by share.

    Of points that are equal in all three the first is returned.
    """
    kept: list[Point] = []
    for point in points:
        mine = _merits(point)
        beaten = any(
            theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True))
            for theirs in map(_merits, points)
        )
        if not beaten and mine not in map(_merits, kept):
            kept.append(point)
    return tuple(sorted(kept, key=lambda point: point.share))


def table(
    points: Sequence[Point],
    *,
    chosen: Point | None = None,
    bytes_of: Figure | None = None,
    seconds_of: Figure | None = None,
) -> str:
    """Return the points as an aligned table, one in a line.

    Args:
        points: In the order in which they are to stand.
        chosen: Which of them gets a star.
        bytes_of: Declared bytes per pixel of the input picture, of a point; None where it is not known.
        seconds_of: Time of a point, in seconds.
    """
    rows = [_HEADINGS, *(_row(point, bytes_of, seconds_of) for point in points)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    stars = ["", *("  *" if point is chosen or point == chosen else "" for point in points)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + star
        for row, star in zip(rows, stars, strict=True)
    )


def markdown(
    points: Sequence[Point],
    *,
    chosen: Point | None = None,
    bytes_of: Figure | None = None,
    seconds_of: Figure | None = None,
) -> str:
    """Return the same table in Markdown, the chosen point in bold."""
    lines = [_HEADINGS, ("---:",) * len(_HEADINGS)]
    for point in points:
        row = _row(point, bytes_of, seconds_of)
        lines.append(tuple(f"**{cell}**" for cell in row) if point == chosen else row)
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def plot(
    points: Sequence[Point],
    *,
    chosen: Point | None = None,
    budget: float | None = None,
    title: str = "Frontier",
) -> str:
    """Return an SVG that stands alone: loss and PSNR to the fp32 picture over the share that is quantised.

    Args:
        points: At least one, the line going through their `frontier`; without truth the loss is left out.
        chosen: Which of them gets a ring.
        budget: dB at which a dashed line goes.
        title: For screen readers.
    """
    x = Axis(label="multiply-adds quantised (%)", low=0.0, high=100.0)
    panels = []
    losses = [(point, point.loss.loss) for point in points if point.loss.loss is not None]
    if losses:
        around = [0.0, *(loss for _, loss in losses), *([] if budget is None else [budget])]
        y = Axis.around(around, "PSNR-Y lost (dB)")
        panels.append(_panel(x, y, losses, chosen, colour=0, line=budget))
    # A picture that is equal to fp32's has no place on an axis of decibels.
    kept = [(point, point.loss.fidelity) for point in points if math.isfinite(point.loss.fidelity)]
    if kept:
        y = Axis.around([value for _, value in kept], "PSNR to fp32 (dB)")
        panels.append(_panel(x, y, kept, chosen, colour=1, line=None))
    height = _HEIGHT * max(1, len(panels))
    drawn = "".join(f'<g transform="translate(0 {i * _HEIGHT})">{part}</g>' for i, part in enumerate(panels))
    name = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{name}" width="{_WIDTH}" '
        f'height="{height}" viewBox="0 0 {_WIDTH} {height}"><title>{name}</title><style>{_STYLE}</style>'
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>{drawn}</svg>'
    )


def _panel(
    x: Axis,
    y: Axis,
    values: Sequence[tuple[Point, float]],
    chosen: Point | None,
    *,
    colour: int,
    line: float | None,
) -> str:
    canvas = Canvas(_WIDTH, _HEIGHT, x, y)
    if line is not None:
        at = f"{canvas.y(line):.1f}"
        canvas.add(
            f'<line class="mark" x1="{canvas.x(0):.1f}" x2="{canvas.x(100):.1f}" y1="{at}" y2="{at}"/>'
        )
    placed = [(point, canvas.x(100 * point.share), canvas.y(value)) for point, value in values]
    placed.sort(key=lambda one: one[1])
    # A point that another one beats is shown, and the line passes it by.
    best = frontier([point for point, _ in values])
    path = " ".join(f"{left:.1f},{top:.1f}" for point, left, top in placed if point in best)
    canvas.add(f'<polyline class="line c{colour}" points="{path}"/>')
    for point, left, top in placed:
        canvas.add(f'<circle class="fill c{colour}" cx="{left:.1f}" cy="{top:.1f}" r="3.5"/>')
        if point == chosen:
            canvas.add(f'<circle class="chosen" cx="{left:.1f}" cy="{top:.1f}" r="7"/>')
    return canvas.inside()


def _row(point: Point, bytes_of: Figure | None, seconds_of: Figure | None) -> tuple[str, ...]:
    known = bytes_of(point) if bytes_of else None
    seconds = seconds_of(point) if seconds_of else None
    return (
        f"{point.share:.1%}",
        str(len(point.names)),
        "-" if point.loss.loss is None else f"{point.loss.loss:+.3f}",
        "equal" if math.isinf(point.loss.fidelity) else f"{point.loss.fidelity:.1f}",
        "-" if known is None else f"{known:.0f}",
        "-" if seconds is None else f"{seconds * 1e3:.1f}",
    )


def _merits(point: Point) -> tuple[float, float, float]:
    loss = point.loss.loss
    return point.share, -(0.0 if loss is None else loss), point.loss.fidelity
