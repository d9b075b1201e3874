"""The report opens anywhere, says what the JSON says, and believes nothing that a file calls itself."""

import dataclasses
import html.parser
import re
import sys

import pytest

from esrgan_deploy.benchmarks._cli import main
from esrgan_deploy.benchmarks.measure import Timing
from esrgan_deploy.benchmarks.record import Results, Row
from esrgan_deploy.benchmarks.report import html_report
from esrgan_deploy.benchmarks.report._html import number

VALUES = (0.0101, 0.0102, 0.0103, 0.0104, 0.0105, 0.0106, 0.0107, 0.0152)
VOID = {"meta"}


class _Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text, and refuses what is not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.cells, self.marks, self.lines = [], [], []
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
        given = dict(attrs)
        # What is measured has a colour; axes and grids have that of the text.
        if tag == "use" and "currentColor" not in given["style"]:
            self.marks.append((float(given["x"]), float(given["y"])))
        if tag == "path" and given.get("style", "").startswith("fill: none; stroke: #"):
            self.lines.append([float(value) for value in re.findall(r"[-\d.]+", given["d"])])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if "td" in self.open:
            self.cells += data.split("\n")


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
    return Results(**{**given, **fields})


@pytest.fixture(scope="module")
def full():
    peer = _row("torch", kind="peer", difference=0.001, parity=(), proof="held against the graph")
    tiles = [_row("model.onnx", tile=tile, shape=(1, 720, 1280), streams=2) for tile in (128, 256, 512)]
    return _results(_row("model.onnx"), *tiles, peer)


@pytest.fixture(scope="module")
def page(full):
    return html_report(full)


def test_the_page_is_one_file_that_loads_nothing(full, page):
    """A report that needs a network shows nothing in the mail or the archive that it is read in."""
    reader = _Reader(page)
    assert "://" not in page
    assert not {"script", "link", "img", "image", "iframe", "object", "embed"} & set(reader.tags)
    assert not {"src", "href", "data"} & {name for name, _ in reader.attributes}
    # A plot refers to its own parts, and to nothing else.
    own = {f"#{value}" for name, value in reader.attributes if name == "id"}
    assert {value for name, value in reader.attributes if name == "xlink:href"} <= own
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= own
    assert "@import" not in page
    assert "prefers-color-scheme:dark" in page
    assert html_report(full) == page


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_what_the_report_needs_is_asked_for_before_anything_is_measured(
    module, tmp_path, capsys, monkeypatch
):
    """Minutes of measuring end in a line that could have stood there at once."""
    monkeypatch.setitem(sys.modules, module, None)
    assert main([str(tmp_path / "gone.onnx"), "--html", str(tmp_path / "r.html")]) == 1
    assert "Run: pip install 'esrgan-deploy[report]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_artefact_stands_there_with_its_figures_and_its_parity(full, page):
    """A number of the page that is not the JSON's is an invention."""
    reader = _Reader(page)
    timing = Timing(warmups=(), values=VALUES)
    first = full.rows[0].figures("latency")
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
    reader = _Reader(html_report(_results(*rows, peaks=None)))
    (left, low), (right, high) = sorted(reader.marks)
    assert left < right
    # Faster is higher up.
    assert high < low
    text = reader.text
    assert "tile none" in text
    assert "tile 0" not in text


def test_the_plots_are_there_and_have_units(full, page):
    """An axis without a unit can be read as anything."""
    reader = _Reader(page)
    for label in (
        "milliseconds a batch",
        "edge of the tile (LR pixels)",
        "LR megapixels/s",
        "operations per byte (FLOP/B)",
        "TFLOP/s",
        "times as fast",
    ):
        assert label in reader.text
    assert "nan" not in page.replace("nanometre", "")
    # One for each of three tiles, and one on the roofline for each row.
    assert len(reader.marks) == 3 + len(full.rows)


@pytest.mark.parametrize(
    "name",
    [
        '<script>alert("x")</script>.onnx',
        '"><img src=x onerror=alert(1)>',
        "a&b<c>'d\".plan",
        "</title></style>",
        "{{ 7 * 7 }}$\\frac$",
    ],
)
def test_a_hostile_file_name_stays_text(name, page):
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
        "name": name, "to": name, "timing": name, "shape": [1, 32, 32], "streams": 1, "tile": 64, "low": 1.0,
        "median": 1.0, "high": 1.0,
    }  # fmt: skip
    peaks = {
        "compute": {name: {"flops": 1e12, "how": name}},
        "copy": {"bytes_per_second": 1e10, "how": name},
        "missing": {name: name},
    }
    reported = html_report(
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
    reader = _Reader(reported)
    assert set(reader.tags) <= set(_Reader(page).tags)
    assert not {"onerror", "src"} & {key for key, _ in reader.attributes}
    assert " ".join(name.split()) in reader.text


def test_what_is_missing_is_left_out(full):
    """Results of a run that was interrupted, or asked for less, are worth a page too."""
    reader = _Reader(html_report(_results(environment={}, peaks=None, ratios=(), warnings=())))
    assert "Nothing was measured" in reader.text
    bare = Row(
        name="a.onnx",
        shape=(1, 8, 8),
        timings={"latency": Timing(warmups=(), values=(0.5, 0.5))},
        proof="not verified",
    )
    reader = _Reader(html_report(_results(bare, peaks=None, ratios=())))
    assert {"a.onnx", "500", "not verified", "–"} <= set(reader.cells)
    assert "Roofline" not in reader.text
    assert "Against each other" not in reader.text
    peaks = {"compute": {}, "copy": None, "missing": {"copy": "no memory"}}
    assert "Roofline" not in _Reader(html_report(dataclasses.replace(full, peaks=peaks))).text


def test_an_artefact_without_declared_bytes_has_no_place_on_the_roofline():
    """Its operations per byte would be a guess; the page says so instead."""
    reader = _Reader(html_report(_results(_row("model.onnx", bytes_per_pixel=None))))
    assert "none has a place on this plot" in reader.text
    assert reader.marks == []


def test_a_roofline_bends_where_bandwidth_meets_arithmetic():
    """On the wrong side of the ridge a net that waits for memory looks as if it computed badly."""
    peaks = {
        "compute": {"fp16": {"flops": 1e14, "how": "a product"}},
        "copy": {"bytes_per_second": 1e12, "how": "a copy"},
        "missing": {},
    }
    # 100 TFLOP/s at 1000 GB/s meet at 100 FLOP/B, and the row is there.
    row = _row("a", flops_per_pixel=100_000, bytes_per_pixel=1000.0)
    reader = _Reader(html_report(_results(row, peaks=peaks, ratios=())))
    (roof,) = reader.lines
    _, y0, x1, y1, _, y2 = roof
    assert y0 > y1 == y2
    ((x, y),) = reader.marks
    assert x == pytest.approx(x1, abs=0.2)
    assert y > y1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (12345.6, "12346"), (1.0, "1"), (0.04375, "0.04375"), (3.14159, "3.142"), (2e9, "2e+09"),
        (1e-7, "1e-07"),
    ],
)  # fmt: skip
def test_numbers_are_written_to_be_read(value, text):
    """Sixteen digits say no more than four, and hide the four."""
    assert number(value) == text
