"""The table of kernels."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy.engines import BuildOptions, ShapeRange, explain

RTX = BuildOptions(flavour="tensorrt_rtx")


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_the_table_lists_every_kernel_and_adds_up(form: str, rrdb: Callable[..., Path]) -> None:
    """A total that is not the sum of its rows is not believed, and rightly."""
    path = rrdb(form=form)
    lines = explain(path, RTX, 32, 48).splitlines()
    assert lines[0].startswith(f"{path.name} at 1x32x48, tensorrt_rtx ")
    rows = [re.fullmatch(r"(\w+) +(\d+)  (\w+) +([\d,]+)", line) for line in lines[2 : lines.index("")]]
    assert all(rows)
    count = sum(int(row[2]) for row in rows if row)
    traffic = sum(int(row[4].replace(",", "")) for row in rows if row)
    text = "\n".join(lines)
    assert f"{count} kernels, convolutions: 21 in fp16" in text
    total = re.search(r"declared traffic: ([\d,]+) bytes per input pixel", text)
    assert total is not None
    assert abs(int(total[1].replace(",", "")) - traffic) <= len(rows)
    assert re.search(
        r"plan: [\d,]{6,} bytes, weights: [\d,]+ bytes, scratch at this size: [\d,]+ bytes", text
    )


def test_the_shapes_of_the_options_are_left_aside(rrdb: Callable[..., Path]) -> None:
    """A range has no sizes, so nothing could be counted."""
    options = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.parse("1x16x16:2x32x32:4x64x64"))
    assert explain(rrdb(), options, 32, 32) == explain(rrdb(), RTX, 32, 32)


def test_a_size_that_cannot_work_is_refused(rrdb: Callable[..., Path]) -> None:
    """The preflight holds here as it does for a plan."""
    with pytest.raises(EngineBuildError, match="allows 2,147,483,648"):
        explain(rrdb(features=64), RTX, 2160, 3840)
    with pytest.raises(EngineBuildError, match="multiples of 2"):
        explain(rrdb(), BuildOptions(shapes=ShapeRange.parse("1x16x16").checked(2)), 33, 32)
