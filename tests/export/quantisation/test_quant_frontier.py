"""The frontier says what was measured, in text and drawn."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from esrgan_deploy.export.quantisation._frontier import frontier, markdown, plot, table
from esrgan_deploy.export.quantisation._loss import Loss
from esrgan_deploy.export.quantisation._search import Point

SVG = "{http://www.w3.org/2000/svg}"


def _point(share, loss, fidelity, convolutions=1):
    psnr = None if loss is None else 30 - loss
    names = tuple(f"c{i}" for i in range(convolutions))
    return Point(
        names=names, share=share, loss=Loss(psnr_y=psnr, loss=loss, fidelity=fidelity, noise=1e-5 * share)
    )


POINTS = (
    _point(0.25, -0.004, 56.0, 5),
    _point(0.5, 0.02, 50.0, 10),
    _point(0.5, 0.03, 49.0, 11),
    _point(0.987, 0.194, 41.25, 34),
)


def test_the_frontier_leaves_out_only_what_another_point_beats():
    """A point that quantises less and loses more is no choice, and one that is best in anything is."""
    assert frontier(POINTS[::-1]) == (POINTS[0], POINTS[1], POINTS[3])
    # Better for one measure and worse for the other: both stand.
    torn = (_point(0.5, 0.02, 50.0), _point(0.5, 0.01, 49.0))
    assert set(frontier(torn)) == set(torn)
    assert frontier((POINTS[0], POINTS[0])) == (POINTS[0],)
    blind = (_point(0.3, None, 50.0), _point(0.4, None, 51.0), _point(0.5, None, 45.0))
    assert frontier(blind) == blind[1:]


def test_the_table_is_aligned_and_says_what_was_measured():
    """A figure in the wrong column, or an invented one where nothing was measured."""
    text = table(
        POINTS,
        chosen=POINTS[1],
        bytes_of=lambda point: 26806.4 if point is POINTS[1] else None,
        seconds_of=lambda point: 0.0125 if point is POINTS[3] else None,
    )
    lines = text.splitlines()
    assert len({len(line.removesuffix("  *")) for line in lines}) == 1
    assert [line.endswith("*") for line in lines] == [False, False, True, False, False]
    rows = [line.split() for line in lines[1:]]
    assert rows == [
        ["25.0%", "5", "-0.004", "56.0", "-", "-"],
        ["50.0%", "10", "+0.020", "50.0", "26806", "-", "*"],
        ["50.0%", "11", "+0.030", "49.0", "-", "-"],
        ["98.7%", "34", "+0.194", "41.2", "-", "12.5"],
    ]
    assert table([_point(0.1, None, math.inf)]).splitlines()[1].split() == [
        "10.0%",
        "1",
        "-",
        "equal",
        "-",
        "-",
    ]


def test_the_markdown_table_has_the_same_cells():
    """A row with a cell too few is shown as text by every reader of Markdown."""
    lines = markdown(POINTS, chosen=POINTS[3], bytes_of=lambda point: 100.0).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {6}
    assert set(cells[1]) == {"---:"}
    assert cells[-1] == ["**98.7%**", "**34**", "**+0.194**", "**41.2**", "**100**", "**-**"]
    plain = [row.split() for row in table(POINTS, bytes_of=lambda point: 100.0).splitlines()[1:]]
    assert [[cell.strip("*") for cell in row] for row in cells[2:]] == plain


def test_the_plot_stands_alone_and_shows_each_point_where_it_is():
    """A picture that needs the page's style sheet is black on black in a README."""
    drawn = plot(POINTS, chosen=POINTS[1], budget=0.1, title="a & b")
    root = ElementTree.fromstring(drawn)
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title").text == "a & b"
    style = root.find(f"{SVG}style").text
    assert "prefers-color-scheme:dark" in style
    used = {name for element in root.iter() for name in element.get("class", "").split()}
    assert used - {"tick"} <= set(re.findall(r"\.([a-z]\w*)", style))
    assert not re.search(r"href|url\(|@import|<script", drawn)
    panels = root.findall(f"{SVG}g")
    assert len(panels) == 2
    assert drawn.count("stroke-dasharray") == 1
    for panel, better in zip(panels, (1, -1), strict=True):
        marks = [one for one in panel.iter(f"{SVG}circle") if "fill" in one.get("class")]
        assert len(marks) == len(POINTS)
        places = [(float(mark.get("cx")), float(mark.get("cy"))) for mark in marks]
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        # More is lost further right: up in the first panel, down in the second.
        heights = [better * y for _, y in places]
        assert heights == sorted(heights, reverse=True)
        (line,) = panel.iter(f"{SVG}polyline")
        # The third point is beaten by the second.
        assert line.get("points").split() == [
            f"{x:.1f},{y:.1f}" for x, y in (places[0], places[1], places[3])
        ]
        (ring,) = (one for one in panel.iter(f"{SVG}circle") if one.get("class") == "chosen")
        assert (float(ring.get("cx")), float(ring.get("cy"))) == places[1]
    (line,) = (one for one in root.iter(f"{SVG}line") if one.get("class") == "mark")
    losses = [float(one.get("cy")) for one in panels[0].iter(f"{SVG}circle") if "fill" in one.get("class")]
    assert losses[3] < float(line.get("y1")) < losses[2]


@pytest.mark.parametrize(
    ("points", "panels"),
    [
        ((_point(0.5, None, 50.0),), 1),
        ((_point(0.5, 0.0, math.inf),), 1),
        ((_point(0.5, None, math.inf),), 0),
    ],
)
def test_what_was_not_measured_is_not_drawn(points, panels):
    """An infinity or a missing loss on an axis is a division by zero, or a point at a made-up place."""
    root = ElementTree.fromstring(plot(points, budget=0.1))
    assert len(root.findall(f"{SVG}g")) == panels
    assert "nan" not in plot(points).lower()
    assert "inf" not in plot(points).lower()
