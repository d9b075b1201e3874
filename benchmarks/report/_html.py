"""The report of a benchmark: one HTML file that opens without a network.

Nothing is written on a plot beside its axes: what a mark stands for is in its key and caption, where text cannot
overlap and every name is escaped.
"""

import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks.measure import UNSTABLE
from esrgan_deploy.benchmarks.record import Results, Row, point_in_words
from esrgan_deploy.benchmarks.report._table import describe_parity, describe_qualities

__all__ = ["html_report", "number", "require_report"]

MOST_HISTOGRAMS, MOST_BARS = 24, 30

# Okabe and Ito's, which people who see few colours can tell apart, where they stand out on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#9467bd", "#808080")

# What is drawn in it takes the colour of the page's text, light or dark.
_INK = "#010203"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "esrgan-bench",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.15,
    "font.size": 8,
    "font.sans-serif": ["DejaVu Sans"],
    **dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "grid.color", "text.color", "xtick.color", "ytick.color"), _INK
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plot:
    """A drawing, with what the page says beside it; a key is of colours and names."""

    svg: str
    title: str
    key: Sequence[tuple[str, str]] = ()
    caption: str = ""
    notes: Sequence[str] = ()


def require_report() -> None:
    """Raise MissingDependencyError where Jinja2 or matplotlib is not installed."""
    for module in ("jinja2", "matplotlib"):
        require(module, extra="report")


def html_report(results: Results) -> str:
    """Write the results of esrgan-bench as a page: tables, and plots as inline SVG.

    Nothing is loaded from anywhere, and everything that comes from a file is escaped. The same results give the
    same page.

    Returns:
        A whole HTML document.

    Raises:
        MissingDependencyError: Jinja2 or matplotlib is not installed.
    """
    jinja2, matplotlib = require("jinja2", extra="report"), require("matplotlib", extra="report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    rows = results.rows
    facts: dict[str, Any] = {"command": results.command, "measured": results.created, **results.environment}
    words = {row.point: point_in_words(row) for row in rows}
    with matplotlib.rc_context(_STYLE | {"axes.prop_cycle": matplotlib.cycler(color=_COLOURS)}):
        page: str = template.render(
            title="esrgan-bench" + (f": {rows[0].name}" if rows else ""),
            facts=[
                (name.replace("_", " "), _fact(value))
                for name, value in facts.items()
                if value not in (None, "", [], {})
            ],
            warnings=results.warnings,
            speeds=[_speed(row, timing) for row in rows for timing in row.timings],
            remarks=describe_qualities(rows)
            + [f"{row.name}: {timing}: {why}" for row in rows for timing, why in row.notes.items()],
            latencies=[_histogram(row) for row in rows[:MOST_HISTOGRAMS]],
            hidden=len(rows) - MOST_HISTOGRAMS,
            throughput=_throughput(rows),
            roofline=_roofline(rows, results.peaks or {}),
            ratios=[_ratio(i, ratio, words) for i, ratio in enumerate(results.ratios, 1)],
            bars=_bars(results.ratios[:MOST_BARS]) if results.ratios else None,
        )
    return page


def number(value: float | None) -> str:
    """Write a number with four digits at most, without an exponent where that can be read; a dash for None."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    if digits > 7 or abs(value) >= 1e7:
        return f"{value:.3g}"
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(one)}" for key, one in value.items() if one not in (None, ""))
    if isinstance(value, list):
        return "; ".join(_fact(one) for one in value)
    return number(value) if isinstance(value, float) else str(value)


def _speed(row: Row, timing: str) -> list[str]:
    taken, figures, memory = row.timings[timing], row.figures(timing), row.memory or {}
    held = memory.get("device") or memory.get("host")
    kind = ", ".join(word for word in (row.precision, row.form, row.provider) if word)
    return [
        f"{row.name}\n{kind}",
        point_in_words(row),
        timing,
        *(number(taken.percentile(share) * 1e3) for share in (0.5, 0.95, 0.99)),
        f"{taken.spread:.1%}" + (" unstable" if taken.spread > UNSTABLE else ""),
        *(number(figures[key]) for key in ("pictures_per_second", "megapixels_per_second", "teraflops")),
        *(
            "–" if figures[key] is None else f"{figures[key]:.1%}"
            for key in ("compute_share", "bandwidth_share")
        ),
        number(held and held / 2**20),
        describe_parity(row),
    ]


def _ratio(place: int, ratio: dict[str, Any], words: dict[Any, str]) -> list[str]:
    point = tuple(ratio["shape"]), ratio["streams"], ratio["tile"]
    return [
        str(place),
        f"{ratio['name']} over {ratio['to']}",
        words.get(point, "?"),
        ratio["timing"],
        number(ratio["median"]),
        f"{number(ratio['low'])} to {number(ratio['high'])}",
    ]


def _histogram(row: Row) -> _Plot:
    taken = row.timings["latency"]
    marks = {f"p{share}": taken.percentile(share / 100) * 1e3 for share in (50, 95, 99)}
    axes = _axes("milliseconds a batch", "runs", size=(3.6, 2.1))
    bins = max(4, min(40, math.ceil(math.sqrt(len(taken.values)))))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.hist([value * 1e3 for value in taken.values], bins)
    for mark, alpha in zip(marks.values(), (1, 0.6, 0.35), strict=True):
        axes.axvline(mark, color=_INK, alpha=alpha, linestyle="--", linewidth=1)
    figures = ", ".join(f"{name} {number(mark)}" for name, mark in marks.items())
    caption = f"{row.name}, {point_in_words(row)}\n{figures} ms, {len(taken.values)} runs"
    return _Plot(svg=_svg(axes), title=f"latency of {row.name}", caption=caption)


def _throughput(rows: Sequence[Row]) -> list[_Plot]:
    tiled = [row for row in rows if row.tile is not None]
    whole = [row for row in rows if row.tile is None]
    # A tile of 0 is the whole picture: its edge is the picture's.
    edge = "edge of the tile (LR pixels); uncut: of the picture"
    plots = [
        _lines(tiled, lambda row: row.tile or max(row.shape[1:]), edge, "linear"),
        _lines(whole, lambda row: row.pixels, "LR pixels a batch", "log"),
    ]
    return [plot for plot in plots if plot]


def _lines(rows: Sequence[Row], place: Callable[[Row], int], label: str, scale: str) -> _Plot | None:
    series: dict[str, dict[int, float]] = {}
    for row in rows:
        name = row.name + (f", {row.streams} in flight" if row.streams > 1 else "")
        points, x, y = series.setdefault(name, {}), place(row), row.figures(row.best)["megapixels_per_second"]
        # Two pictures cut into the same tiles: the faster one stands for the tile.
        points[x] = max(y, points.get(x, y))
    if all(len(points) < 2 for points in series.values()):
        return None
    axes = _axes(label, "LR megapixels/s")
    axes.set_xscale(scale)
    for points in series.values():
        axes.plot(*zip(*sorted(points.items()), strict=True), "o-", markersize=5)
    axes.set_ylim(bottom=0)
    return _Plot(svg=_svg(axes), title=f"throughput against {label}", key=_key(series))


def _roofline(rows: Sequence[Row], peaks: dict[str, Any]) -> _Plot | None:
    """Draw what the machine can do against the operations done for each byte, and where the artefacts are."""
    compute, copy = peaks.get("compute"), peaks.get("copy")
    if not compute or not copy:
        return None
    bandwidth = copy["bytes_per_second"] / 1e9
    roofs = {name: found["flops"] / 1e12 for name, found in compute.items()}
    places: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        reached = row.figures("device" if "device" in row.timings else row.best)["teraflops"]
        if reached and row.flops_per_pixel and row.bytes_per_pixel:
            places.setdefault(row.name, []).append((row.flops_per_pixel / row.bytes_per_pixel, reached))
    ridges = [top * 1e3 / bandwidth for top in roofs.values()]
    xs = [*ridges, *(x for points in places.values() for x, _ in points)]
    low, high = min(xs) / 8, max(xs) * 8
    axes = _axes("operations per byte (FLOP/B)", "TFLOP/s")
    axes.loglog()
    for top, ridge in zip(roofs.values(), ridges, strict=True):
        axes.plot([low, ridge, high], [low * bandwidth / 1e3, top, top])
    for points in places.values():
        axes.plot(*zip(*points, strict=True), "o")
    names = [f"{name}: {number(top)} TFLOP/s, {number(bandwidth)} GB/s" for name, top in roofs.items()]
    notes = [f"{name}: {found['how']}" for name, found in {**compute, "copy": copy}.items()]
    notes += [f"{name} was not measured: {why}" for name, why in peaks["missing"].items()]
    if not places:
        notes.append(
            "no artefact here declares the bytes that it moves, so that none has a place on this plot"
        )
    return _Plot(svg=_svg(axes), title="roofline of this machine", key=_key([*names, *places]), notes=notes)


def _bars(ratios: Sequence[dict[str, Any]]) -> _Plot:
    axes = _axes(
        "times as fast, median and quartiles round by round", "no.", size=(6.8, 0.7 + 0.26 * len(ratios))
    )
    for i, ratio in enumerate(ratios, 1):
        low, median, high = ratio["low"], ratio["median"], ratio["high"]
        off = [[median - low], [high - median]]
        axes.barh(i, median, xerr=off, color=_COLOURS[(i - 1) % len(_COLOURS)], ecolor=_INK, capsize=4)
    axes.axvline(1, color=_INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(1, len(ratios) + 1))
    axes.set_ylim(len(ratios) + 0.6, 0.4)
    return _Plot(svg=_svg(axes), title="speed ratios")


def _axes(x: str, y: str, *, size: tuple[float, float] = (6.8, 3.3)) -> Any:
    # Without pyplot, whose figures are the whole process's.
    figure = require("matplotlib.figure", extra="report").Figure(figsize=size)
    width, height = size
    figure.subplots_adjust(
        left=0.65 / width, right=1 - 0.15 / width, bottom=0.45 / height, top=1 - 0.08 / height
    )
    return figure.subplots(subplot_kw={"xlabel": x, "ylabel": y})


def _key(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(_COLOURS[i % len(_COLOURS)], name) for i, name in enumerate(names)]


def _svg(axes: Any) -> str:
    ticker = require("matplotlib.ticker", extra="report")
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(ticker.LogLocator(subs=(1,) if high > 1e3 * low else (1, 2, 5)))
            axis.set_minor_formatter(ticker.NullFormatter())
        axis.set_major_formatter(lambda value, _: number(value))
    file = io.StringIO()
    axes.figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = file.getvalue()
    # As a file of its own it has a head, namespaces, and names for its parts that a page would have many times.
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"', "", drawn[drawn.index("<svg") :])
    return drawn.replace(_INK, "currentColor")
