"""The report of a benchmark: one HTML file that opens without a network."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from esrgan_deploy._plots import Series, bars, histogram, lines, number, roofline
from esrgan_deploy.benchmarks._measure import UNSTABLE, Timing
from esrgan_deploy.benchmarks._style import STYLE

__all__ = ["html_report"]

MOST_HISTOGRAMS = 24

_HEAD = (
    "artefact",
    "where",
    "timing",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "spread",
    "pictures/s",
    "LR MP/s",
    "TFLOP/s",
    "of peak",
    "of bandwidth",
    "memory MiB",
    "parity",
)


def html_report(results: dict[str, Any]) -> str:
    """Write the results of esrgan-bench as a page: tables, and plots as inline SVG.

    Nothing is loaded from anywhere, and everything that comes from a file is escaped. Fields that are missing are
    left out of the page.

    Args:
        results: What the command writes as JSON, schema 2.

    Returns:
        A whole HTML document.
    """
    rows = [row for row in _list(results.get("results")) if isinstance(row, dict)]
    parts = [
        _header(results),
        _warnings(results),
        _section("Speed, with the parity of the same file", _speeds(rows)),
        _section("Latency", _histograms(rows)),
        _section("Throughput", _throughput(rows)),
        _section("Roofline", _roofline(rows, results.get("peaks"))),
        _section("Against each other", _ratios(results)),
    ]
    title = "esrgan-bench" + (f": {rows[0].get('name')}" if rows else "")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _header(results: dict[str, Any]) -> str:
    facts = {"command": results.get("command"), "measured": results.get("created")}
    facts |= _dict(results.get("environment"))
    lines_ = [
        f"<dt>{_text(name.replace('_', ' '))}</dt><dd>{_fact(value)}</dd>"
        for name, value in facts.items()
        if value not in (None, "", [], {})
    ]
    return f"<h1>esrgan-bench</h1><dl>{''.join(lines_)}</dl>"


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_text(key)} {_fact(one)}" for key, one in value.items() if one not in (None, ""))
    if isinstance(value, list):
        return "; ".join(_fact(one) for one in value)
    return _text(number(value) if isinstance(value, float) else value)


def _warnings(results: dict[str, Any]) -> str:
    items = [f"<li>{_text(line)}</li>" for line in _list(results.get("warnings"))]
    return f'<ul class="warnings">{"".join(items)}</ul>' if items else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>" if content else ""


def _speeds(rows: Sequence[dict[str, Any]]) -> str:
    body, notes = [], []
    for row in rows:
        for name, given in _dict(row.get("timings")).items():
            values = _values(given)
            if values:
                body.append(_speed(row, name, values, _dict(given)))
        notes += [f"{row.get('name')}: {name}: {why}" for name, why in _dict(row.get("notes")).items() if why]
    if not body:
        return "<p>Nothing was measured.</p>"
    qualities = [f"{row.get('name')}: {line}" for row in rows if (line := _quality(row))]
    remarks = [f"<li>{_text(line)}</li>" for line in dict.fromkeys([*qualities, *notes])]
    return _table(_HEAD, body) + (f'<ul class="notes">{"".join(remarks)}</ul>' if remarks else "")


def _speed(row: dict[str, Any], name: str, values: list[float], given: dict[str, Any]) -> list[str]:
    timing = Timing(warmups=(), values=tuple(values))
    memory = _dict(row.get("memory"))
    held = _number(memory.get("device")) or _number(memory.get("host"))
    spread = f"{timing.spread:.1%}" + (" unstable" if timing.spread > UNSTABLE else "")
    provider = ", ".join(str(row[key]) for key in ("precision", "form", "provider") if row.get(key))
    return [
        f"<b>{_text(row.get('name', '?'))}</b><br><small>{_text(provider)}</small>",
        _text(_where(row)),
        _text(name),
        *(_cell(share * 1e3) for share in (timing.median, timing.percentile(0.95), timing.percentile(0.99))),
        _text(spread),
        *(_cell(given.get(key)) for key in ("pictures_per_second", "megapixels_per_second", "teraflops")),
        *(_percent(given.get(key)) for key in ("compute_share", "bandwidth_share")),
        _cell(held / 2**20 if held is not None else None),
        _text(_parity(row)),
    ]


def _parity(row: dict[str, Any]) -> str:
    proof = str(row.get("proof", ""))
    figures = [
        one for one in _list(row.get("parity")) if _number(_dict(one).get("psnr"), infinite=True) is not None
    ]
    difference = _number(row.get("difference"))
    if row.get("kind") == "peer" and difference is not None:
        return f"{proof}: at most {number(difference * 255)} levels off".lstrip(": ")
    if not figures:
        return proof
    # The least of the comparisons: a good one on another set excuses nothing.
    worst = min(figures, key=lambda one: float(one["psnr"]))
    psnr = float(worst["psnr"])
    level = "equal" if psnr == math.inf else f"{psnr:.1f} dB"
    return f"{proof}, at least {level} ({str(worst.get('on', '')).split(' ')[0]})"


def _quality(row: dict[str, Any]) -> str:
    quality = _dict(row.get("quality"))
    figures = {name: _number(quality.get(name)) for name in ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")}
    if None in figures.values():
        return ""
    return (
        f"Y {figures['psnr_y']:.4f} dB / {figures['ssim_y']:.4f}, RGB {figures['psnr_rgb']:.4f} dB / "
        f"{figures['ssim_rgb']:.4f} over {quality.get('pictures')} pictures; {quality.get('arithmetic', '')}"
    )


def _histograms(rows: Sequence[dict[str, Any]]) -> str:
    figures = []
    drawn = [(row, values) for row in rows if (values := _values(_dict(row.get("timings")).get("latency")))]
    for row, values in drawn[:MOST_HISTOGRAMS]:
        timing = Timing(warmups=(), values=tuple(value * 1e3 for value in values))
        marks = [timing.median, timing.percentile(0.95), timing.percentile(0.99)]
        words = ", ".join(
            f"{name} {number(mark)}" for name, mark in zip(("p50", "p95", "p99"), marks, strict=True)
        )
        name = str(row.get("name", "?"))
        plot = histogram(timing.values, "milliseconds a batch", marks, title=f"latency of {name}")
        caption = f"<b>{_text(name)}</b> {_text(_where(row))}<br>{_text(words)} ms, {len(values)} runs"
        figures.append(f"<figure>{plot}<figcaption>{caption}</figcaption></figure>")
    more = len(drawn) - len(figures)
    rest = f"<p>{more} more are in the JSON.</p>" if more > 0 else ""
    return f'<div class="grid-of-plots">{"".join(figures)}</div>{rest}' if figures else ""


def _throughput(rows: Sequence[dict[str, Any]]) -> str:
    plots = []
    # A tile of 0 is the whole picture: its edge is the picture's.
    tiled = _series((row for row in rows if row.get("tile") is not None), _edge)
    whole = _series((row for row in rows if row.get("tile") is None), _pixels)
    for series, label, log in (
        (tiled, "edge of the tile (LR pixels); uncut: of the picture", False),
        (whole, "LR pixels a batch", True),
    ):
        if any(len(one.points) > 1 for one in series):
            plots.append(
                lines(series, label, "LR megapixels/s", title=f"throughput against {label}", log=log)
            )
    return "".join(f"<figure>{plot}</figure>" for plot in plots)


def _series(rows: Iterable[dict[str, Any]], place: Any) -> list[Series]:
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        timings = _dict(row.get("timings"))
        given = _dict(timings.get("throughput") or timings.get("latency"))
        x, y = place(row), _number(given.get("megapixels_per_second"))
        if x is None or y is None:
            continue
        streams = row.get("streams")
        name = f"{row.get('name', '?')}{f', {streams} in flight' if isinstance(streams, int) and streams > 1 else ''}"
        at = found.setdefault(name, {})
        # Two pictures cut into the same tiles: the faster one stands for the tile.
        at[x] = max(y, at.get(x, y))
    return [Series(name=name, points=tuple(points.items())) for name, points in found.items()]


def _roofline(rows: Sequence[dict[str, Any]], peaks: Any) -> str:
    compute = _dict(_dict(peaks).get("compute"))
    copy = _dict(_dict(peaks).get("copy"))
    roofs = [
        (name, flops / 1e12)
        for name, found in compute.items()
        if (flops := _number(_dict(found).get("flops")))
    ]
    bandwidth = _number(copy.get("bytes_per_second"))
    if not roofs or not bandwidth:
        return ""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        flops, moved = _number(row.get("flops_per_pixel")), _number(row.get("bytes_per_pixel"))
        timings = _dict(row.get("timings"))
        given = _dict(timings.get("device") or timings.get("throughput") or timings.get("latency"))
        reached = _number(given.get("teraflops"))
        if flops and moved and reached:
            points.setdefault(str(row.get("name", "?")), []).append((flops / moved, reached))
    how = [
        f"{name}: {found['how']}"
        for name, found in {**compute, "copy": copy}.items()
        if _dict(found).get("how")
    ]
    missing = [f"{name} was not measured: {why}" for name, why in _dict(_dict(peaks).get("missing")).items()]
    if not points:
        missing.append(
            "no artefact here declares the bytes that it moves, so that none has a place on this plot"
        )
    remarks = "".join(f"<li>{_text(line)}</li>" for line in (*how, *missing))
    series = [Series(name=name, points=tuple(places)) for name, places in points.items()]
    plot = roofline(roofs, bandwidth / 1e9, series, title="roofline of this machine")
    return f'<figure>{plot}</figure><ul class="notes">{remarks}</ul>'


def _ratios(results: dict[str, Any]) -> str:
    rows, drawn = [], []
    for ratio in _list(results.get("ratios")):
        three = [_number(_dict(ratio).get(key)) for key in ("low", "median", "high")]
        if None in three:
            continue
        low, median, high = (float(value or 0) for value in three)
        drawn.append((low, median, high))
        what = f"{ratio.get('name', '?')} over {ratio.get('to', '?')}"
        cells = [str(len(drawn)), what, _where(ratio), str(ratio.get("timing", ""))]
        rows.append([*map(_text, cells), _cell(median), _text(f"{number(low)} to {number(high)}")])
    if not rows:
        return ""
    label = "times as fast, median and quartiles round by round"
    plot = bars(drawn[:30], label, title="speed ratios")
    head = ("no.", "what", "where", "timing", "times as fast", "quartiles")
    return _table(head, rows) + f"<figure>{plot}</figure>"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    lines_ = ["".join(f"<td>{cell}</td>" for cell in line) for line in body]
    rows = "".join(f"<tr>{line}</tr>" for line in lines_)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _where(row: dict[str, Any]) -> str:
    shape = "x".join(str(side) for side in _list(row.get("shape"))) or "?"
    tile, streams = row.get("tile"), row.get("streams")
    words = f"batch {shape}" if tile is None else f"picture {shape}, tile {tile or 'none'}"
    return f"{words}, {streams} in flight" if isinstance(streams, int) and streams > 1 else words


def _edge(row: dict[str, Any]) -> float | None:
    sides = [side for side in map(_number, _list(row.get("shape"))[1:]) if side is not None]
    return _number(row.get("tile")) or max(sides, default=None)


def _pixels(row: dict[str, Any]) -> float | None:
    sides = [_number(side) for side in _list(row.get("shape"))]
    return math.prod(side or 0 for side in sides) if len(sides) == 3 and None not in sides else None


def _values(given: Any) -> list[float]:
    found = (_number(value) for value in _list(_dict(given).get("values")))
    return [value for value in found if value is not None and value > 0]


def _cell(value: Any) -> str:
    found = _number(value)
    return "–" if found is None else number(found)


def _percent(value: Any) -> str:
    found = _number(value)
    return "–" if found is None else f"{found:.1%}"


def _number(value: Any, *, infinite: bool = False) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if math.isnan(value) or (math.isinf(value) and not infinite):
        return None
    return float(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _text(value: object) -> str:
    return html.escape(str(value))
