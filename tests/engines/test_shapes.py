"""The range of shapes that a plan accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy.engines import ShapeRange

shape = st.tuples(st.integers(1, 64), st.integers(1, 8192), st.integers(1, 8192))


@given(st.lists(shape, min_size=3, max_size=3))
def test_a_range_reads_back_as_it_is_written(shapes: list[tuple[int, int, int]]) -> None:
    """The manifest and the error messages write ranges that users paste back."""
    low = tuple(map(min, zip(*shapes, strict=True)))
    high = tuple(map(max, zip(*shapes, strict=True)))
    middle = tuple(sorted(axis)[1] for axis in zip(*shapes, strict=True))
    wanted = ShapeRange(min=low, opt=middle, max=high)
    assert ShapeRange.parse(str(wanted)) == wanted


def test_a_size_without_batch_means_one_picture() -> None:
    """HxW is what users type first."""
    assert ShapeRange.parse("64x96:256X256:2x512x512") == ShapeRange(
        min=(1, 64, 96), opt=(1, 256, 256), max=(2, 512, 512)
    )


def test_one_size_is_static() -> None:
    """A static plan is faster; one size must not become a dynamic range."""
    parsed = ShapeRange.parse("1x256x320")
    assert parsed.static
    assert str(parsed) == "1x256x320"
    assert parsed == ShapeRange.fixed((1, 256, 320))
    assert not ShapeRange.default().static


def test_default_fits_every_unshuffle_factor() -> None:
    """The default is used for x1 models too, whose sides are multiples of 4."""
    assert ShapeRange.default().checked(4).max == (1, 512, 512)


def test_corners_are_all_ends_and_the_optimum_once() -> None:
    """A corner left out is a shape nobody verified."""
    assert ShapeRange.parse("1x16x32:1x64x64:2x64x64").corners == (
        (1, 16, 32),
        (1, 16, 64),
        (2, 16, 32),
        (1, 64, 32),
        (2, 16, 64),
        (1, 64, 64),
        (2, 64, 32),
        (2, 64, 64),
    )
    assert ShapeRange.parse("1x64x64").corners == ((1, 64, 64),)


@pytest.mark.parametrize(
    "text",
    ["", "64", "64x64:128x128", "1x2x3x4", "64x64:a:64x64", "64x-1", "1x64x64:", "64 x 64", "٣x٤", "1e3x64"],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    """A guess at what was meant builds for minutes and then fails at run time."""
    with pytest.raises(EngineBuildError, match="allowed: 1x64x64:1x256x256:4x512x512") as caught:
        ShapeRange.parse(text)
    assert "\n" not in str(caught.value)


def test_zero_is_refused() -> None:
    """TensorRT takes a zero-size profile and fails much later."""
    with pytest.raises(EngineBuildError, match="min is 1x0x64; batch, height and width are at least 1"):
        ShapeRange.parse("1x0x64:64x64:64x64")


def test_wrong_order_names_the_axis_and_both_values() -> None:
    """TensorRT's own message names neither."""
    with pytest.raises(EngineBuildError, match=r"width of opt \(300\) is above that of max \(256\)"):
        ShapeRange.parse("64x64:64x300:512x256")
    with pytest.raises(EngineBuildError, match=r"batch of min \(2\) is above that of opt \(1\)"):
        ShapeRange.parse("2x64x64:1x64x64:4x64x64")


def test_sides_that_are_no_multiple_are_refused_with_the_next_that_is() -> None:
    """A x2plus model fails inside TensorRT on an odd side."""
    with pytest.raises(EngineBuildError, match=r"multiples of 2\. Try: 1x66x64"):
        ShapeRange.parse("1x65x64").checked(2)
    with pytest.raises(EngineBuildError, match="multiples of 4"):
        ShapeRange.parse("1x66x64").checked(4)
    assert ShapeRange.parse("1x66x64").checked(2).size_multiple == 2
