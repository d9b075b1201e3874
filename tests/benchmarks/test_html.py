"""The report opens anywhere, says what the JSON says, and believes nothing that a file calls itself."""

import html.parser
import json
import math
import re

import pytest

from esrgan_deploy._plots import Axis, Series, bars, histogram, lines, number, roofline
from esrgan_deploy.benchmarks._html import html_report
from esrgan_deploy.benchmarks._measure import Timing
from esrgan_deploy.benchmarks._schema import Results, Row

VALUES = (0.0101, 0.0102, 0.0103, 0.0104, 0.0105, 0.0106, 0.0107, 0.0152)
VOID = {"meta", "line", "rect", "circle", "path", "polyline", "br"}


class _Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text, and refuses what is not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.cells = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if "td" in self.open:
            self.cells.append(data)


def _row(name, **fields):
    given = {
        "name": name,
        "provider": "ONNX Runtime 1.32, CPU",
        "precision": "fp32",
        "form": "float",
        "shape": (1, 32, 32),
        "timings": {"latency": Timing(warmups=(0.02,), values=VALUES)},
        "flops_per_pixel": 2_400_000,
        "bytes_per_pixel": 30_000.0,
        "peak_flops": 1e12,
        "peak_bytes": 1e10,
        "memory": {"host": 300 * 2**20, "host_before": 0, "device": None},
        "parity": ({"on": "noise 8 pictures", "psnr": 91.5}, {"on": "golden", "psnr": 87.25}),
        "proof": "verified",
    }
    return Row(**{**given, **fields})


def _results(*rows, **fields):
    given = {
        "command": "esrgan-bench model.onnx --html r.html",
        "created": "2026-11-24T20:00:00+00:00",
        "environment": {
            "cpu": "A Processor 9000",
            "cores": 2,
            "gpus": [{"name": "A Card", "driver": "580.1"}],
        },
        "state": {},
        "options": {},
        "peaks": {
            "compute": {"fp32": {"flops": 1.25e12, "how": "numpy matmul", "values": [0.1]}},
            "copy": {"bytes_per_second": 2.5e10, "how": "a copy of 256 MiB", "values": [0.1]},
            "missing": {"int8": "no library for it"},
        },
        "rows": rows,
        "ratios": (
            {
                "name": "torch",
                "to": "model.onnx",
                "timing": "latency",
                "shape": (1, 32, 32),
                "streams": 1,
                "tile": None,
                "low": 0.41,
                "median": 0.4375,
                "high": 0.46,
            },
        ),
        "warnings": ("the load was 7.5 on 2 cores",),
    }
    return Results(**{**given, **fields}).to_json()


@pytest.fixture(scope="module")
def full():
    peer = _row("torch", kind="peer", difference=0.001, parity=(), proof="held against the graph")
    tiles = [_row("model.onnx", tile=tile, shape=(1, 720, 1280), streams=2) for tile in (128, 256, 512)]
    return _results(_row("model.onnx"), *tiles, peer)


def test_the_page_is_one_file_that_loads_nothing(full):
    """A report that needs a network shows nothing in the mail or the archive that it is read in."""
    page = html_report(full)
    reader = _Reader(page)
    assert "://" not in page
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert not {"src", "href", "xlink:href", "data"} & {name for name, _ in reader.attributes}
    assert "@import" not in page
    assert "url(" not in page
    assert "prefers-color-scheme:dark" in page


def test_every_artefact_stands_there_with_its_figures_and_its_parity(full):
    """A number of the page that is not the JSON's is an invention."""
    reader = _Reader(html_report(full))
    timing = Timing(warmups=(), values=VALUES)
    first = full["results"][0]["timings"]["latency"]
    for wanted in (
        "model.onnx",
        "torch",
        number(timing.median * 1e3),
        number(timing.percentile(0.95) * 1e3),
        number(timing.percentile(0.99) * 1e3),
        number(first["megapixels_per_second"]),
        number(first["pictures_per_second"]),
        number(first["teraflops"]),
        f"{first['compute_share']:.1%}",
        f"{first['bandwidth_share']:.1%}",
        "300",
        "verified, at least 87.2 dB (golden)",
        "held against the graph: at most 0.255 levels off",
        "0.4375",
        "0.41 to 0.46",
    ):
        assert wanted in reader.cells, wanted
    for wanted in (
        "A Processor 9000",
        "A Card",
        "2026-11-24T20:00:00+00:00",
        "esrgan-bench model.onnx --html r.html",
        "the load was 7.5 on 2 cores",
        "fp32: 1.25 TFLOP/s, 25 GB/s",
        "int8 was not measured: no library for it",
        f"{len(VALUES)} runs",
    ):
        assert wanted in reader.text, wanted


def test_an_uncut_picture_stands_where_its_own_edge_is():
    """At a tile of 0 pixels it made the fastest way look like the smallest tile."""
    slow = Timing(warmups=(), values=tuple(2 * value for value in VALUES))
    rows = [
        _row("x", tile=24, shape=(1, 48, 48), timings={"latency": slow}),
        _row("x", tile=0, shape=(1, 48, 48)),
    ]
    page = html_report(_results(*rows, peaks=None))
    spots = [(float(x), float(y)) for x, y in re.findall(r'<circle [^>]*cx="([^"]*)" cy="([^"]*)"', page)]
    (left, low), (right, high) = sorted(spots)
    assert left < right
    # Faster is higher up.
    assert high < low
    text = _Reader(page).text
    assert "tile none" in text
    assert "tile 0" not in text


def test_the_plots_are_there_and_have_units(full):
    """An axis without a unit can be read as anything."""
    page = html_report(full)
    text = _Reader(page).text
    for label in (
        "milliseconds a batch",
        "edge of the tile (LR pixels)",
        "LR megapixels/s",
        "operations per byte (FLOP/B)",
        "TFLOP/s",
        "times as fast",
    ):
        assert label in text
    # Nothing lies outside the plot's own area, or at a place that is no number.
    assert "nan" not in page.replace("nanometre", "")
    places = [float(value) for value in re.findall(r' (?:cx|cy|x1|x2|y1|y2|x|y)="([^"]*)"', page)]
    assert len(places) > 100
    assert all(math.isfinite(place) and -1 <= place <= 700 for place in places)


@pytest.mark.parametrize(
    "name",
    [
        '<script>alert("x")</script>.onnx',
        '"><img src=x onerror=alert(1)>',
        "a&b<c>'d\".plan",
        "</title></style>",
    ],
)
def test_a_hostile_file_name_stays_text(name):
    """Whoever sends a model must not run code where the report is read."""
    hostile = _row(
        name,
        provider=name,
        proof=name,
        precision=name,
        tile=64,
        notes={name: name},
        parity=({"on": name, "psnr": 50.0},),
    )
    other = _row(name, tile=128)
    ratio = {
        "name": name,
        "to": name,
        "timing": name,
        "shape": [name],
        "low": 1.0,
        "median": 1.0,
        "high": 1.0,
    }
    peaks = {
        "compute": {name: {"flops": 1e12, "how": name}},
        "copy": {"bytes_per_second": 1e10},
        "missing": {name: name},
    }
    page = html_report(
        _results(
            hostile,
            other,
            command=name,
            created=name,
            environment={name: name, "gpus": [{name: name}]},
            ratios=(ratio,),
            peaks=peaks,
            warnings=(name,),
        )
    )
    plain = set(_Reader(html_report(_results(_row("a"), _row("a", tile=128)))).tags) | {"ul", "li", "figure"}
    reader = _Reader(page)
    assert set(reader.tags) <= plain | {"polyline", "circle", "path"}
    assert not {"onerror", "src"} & {key for key, _ in reader.attributes}
    assert " ".join(name.split()) in reader.text


def test_what_is_missing_is_left_out(full):
    """Results of an interrupted or an older run are worth a page too."""
    reader = _Reader(html_report({}))
    assert "Nothing was measured" in reader.text
    bare = {"results": [{"name": "a.onnx", "timings": {"latency": {"values": [0.5, 0.5]}}}, {}, None]}
    reader = _Reader(html_report(bare))
    assert "a.onnx" in reader.cells
    assert "500" in reader.cells
    assert "Roofline" not in reader.text
    broken = json.loads(json.dumps(full))
    broken["peaks"] = {"compute": {}, "copy": None, "missing": {"copy": "no memory"}}
    broken["results"][0]["timings"]["latency"]["values"] = [0.01, None, "x", float("nan"), 0.01]
    assert "Roofline" not in _Reader(html_report(broken)).text


def test_an_artefact_without_declared_bytes_has_no_place_on_the_roofline():
    """Its operations per byte would be a guess; the page says so instead."""
    page = html_report(_results(_row("model.onnx", bytes_per_pixel=None)))
    reader = _Reader(page)
    assert "none has a place on this plot" in reader.text
    assert "circle" not in reader.tags


def test_a_plot_puts_a_value_where_it_belongs():
    """An axis that is upside down, or counts from elsewhere, would still look like a plot."""
    drawn = lines([Series(name="a", points=((1.0, 2.0), (3.0, 4.0)))], "x", "y", title="t")
    (x1, y1), (x2, y2) = [
        tuple(map(float, found)) for found in re.findall(r'<circle[^>]*cx="([^"]*)" cy="([^"]*)"', drawn)
    ]
    assert x1 < x2
    assert y1 > y2
    # Twice as high above the axis, which begins at zero.
    base = float(re.findall(r'class="axis"[^>]*y1="(\d+)"', drawn)[0])
    assert (base - y2) / (base - y1) == pytest.approx(2, abs=0.01)


def test_a_histogram_counts_every_value_once():
    """A value at the upper edge falls out of a half-open bin."""
    drawn = histogram([1.0, 1.0, 2.0, 5.0], "ms", [1.0], title="t")
    heights = [float(height) for height in re.findall(r'<rect class="fill c0"[^>]*height="([^"]*)"', drawn)]
    assert len(heights) == 3
    assert sum(heights) / min(heights) == pytest.approx(4, rel=0.02)


def test_a_roofline_bends_where_bandwidth_meets_arithmetic():
    """On the wrong side of the ridge a net that waits for memory looks as if it computed badly."""
    drawn = roofline([("fp16", 100.0)], 1000.0, [Series(name="a", points=((100.0, 50.0),))], title="t")
    (spots,) = re.findall(r'<polyline[^>]*points="([^"]*)"', drawn)
    (_, y0), (x1, y1), (_, y2) = [tuple(map(float, spot.split(","))) for spot in spots.split()]
    assert y0 > y1 == y2
    (x, y) = map(float, re.findall(r'<circle[^>]*cx="([^"]*)" cy="([^"]*)"', drawn)[0])
    # 100 TFLOP/s at 1000 GB/s meet at 100 FLOP/B.
    assert x == pytest.approx(x1, abs=0.2)
    assert y > y1


def test_bars_are_as_long_as_their_values():
    """A bar that does not begin at zero exaggerates."""
    drawn = bars([(0.9, 1.0, 1.1), (1.9, 2.0, 2.1)], "times", title="t")
    one, two = [float(width) for width in re.findall(r'<rect class="fill[^>]*width="([^"]*)"', drawn)]
    assert two / one == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (7.2, 7.3, False), (0, 12345, False), (3, 4, True), (1e-3, 1e5, True), (5, 5, False)],
)
def test_ticks_are_few_round_and_inside(low, high, log):
    """Labels that overlap, or lie outside, cannot be read."""
    axis = Axis.around([low, high], "x", log=log)
    ticks = axis.ticks(6)
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert all(-1e-9 <= axis.share(tick) <= 1 + 1e-9 for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12345.6, "12346"),
        (1.0, "1"),
        (0.04375, "0.04375"),
        (3.14159, "3.142"),
        (2e9, "2e+09"),
        (1e-7, "1e-07"),
    ],
)
def test_numbers_are_written_to_be_read(value, text):
    """Sixteen digits say no more than four, and hide the four."""
    assert number(value) == text
