"""What is refused before a build, and the tile that is offered instead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy.engines import BuildOptions, ShapeRange, engine_from_onnx, preflight
from esrgan_deploy.engines._preflight import ELEMENT_LIMIT, _largest_tile

Net = Callable[..., Path]


@pytest.fixture(scope="module")
def wide(rrdb: Net) -> Path:
    """A x4 net of 64 features: its largest tensor has 64 · 16 elements for each pixel."""
    return rrdb(features=64)


def _offered(error: EngineBuildError) -> str:
    return str(error).split("The largest tile that fits is ")[1].split(" ")[0]


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_exactly_the_limit_is_allowed_and_one_row_more_is_not(form: str, rrdb: Net) -> None:
    """One off refuses 1920x1080-sized pictures that work, or builds plans that address the wrong memory."""
    net = rrdb(features=64, form=form)
    need = preflight(net, ShapeRange.parse("1x1024x2048"))
    assert need.elements == ELEMENT_LIMIT == 2**31
    with pytest.raises(EngineBuildError, match="2,149,580,800 elements") as caught:
        preflight(net, ShapeRange.parse("1x1025x2048"))
    assert "\n" not in str(caught.value)


def test_only_the_largest_size_counts_and_the_batch_counts(wide: Path) -> None:
    """A batch of two at 1080p does not fit, though one picture does."""
    assert preflight(wide, ShapeRange.parse("1x1080x1920")).elements == 64 * 16 * 1080 * 1920
    with pytest.raises(EngineBuildError, match="an input of 2x1080x1920"):
        preflight(wide, ShapeRange.parse("1x64x64:1x1080x1920:2x1080x1920"))


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("1x2160x3840", "1448x1448"),
        ("4x1080x1920", "724x724"),
        ("1x512x8192", "512x4096"),
        ("1x1025x2048", "1025x2046"),
    ],
)
def test_the_tile_offered_is_the_largest_that_fits(asked: str, offered: str, wide: Path) -> None:
    """A tile that does not fit sends the user round again; one too small costs speed."""
    with pytest.raises(EngineBuildError) as caught:
        preflight(wide, ShapeRange.parse(asked))
    assert _offered(caught.value) == offered
    batch = asked.split("x")[0]
    preflight(wide, ShapeRange.parse(f"{batch}x{offered}"))
    height, width = map(int, offered.split("x"))
    with pytest.raises(EngineBuildError):
        preflight(wide, ShapeRange.parse(f"{batch}x{height + (height == width)}x{width + 1}"))


def test_the_tile_offered_keeps_to_the_size_multiple(wide: Path) -> None:
    """A x2plus model does not take an odd tile."""
    with pytest.raises(EngineBuildError) as caught:
        preflight(wide, ShapeRange.parse("1x2176x3840").checked(32))
    assert _offered(caught.value) == "1440x1440"


def test_a_batch_that_no_tile_can_save_is_said_to_be_too_large(wide: Path) -> None:
    """An offer of 0x0 helps nobody."""
    with pytest.raises(EngineBuildError, match="No tile fits with a batch of 4000000"):
        preflight(wide, ShapeRange.parse("4000000x64x64"))


def test_memory_is_held_against_the_limit(wide: Path) -> None:
    """Without it the plan builds and then fails to load, minutes later."""
    shapes = ShapeRange.parse("1x64x64:1x256x256:1x512x512")
    need = preflight(wide, shapes).activation_bytes
    preflight(wide, shapes, memory_limit=need)
    with pytest.raises(
        EngineBuildError, match=r"needs about 1,024 MiB.*memory_limit allows 600 MiB"
    ) as caught:
        preflight(wide, shapes, memory_limit=600 * 2**20)
    tile = _offered(caught.value)
    assert preflight(wide, ShapeRange.parse(tile)).activation_bytes <= 600 * 2**20
    with pytest.raises(EngineBuildError, match="what is free on H200 allows"):
        preflight(wide, shapes, memory_limit=1, memory_from="what is free on H200")


@pytest.mark.parametrize(("dtype", "form"), [("fp32", "float"), ("fp16", "float"), ("fp16", "uint8")])
def test_memory_is_that_of_the_tail_in_the_dtype_of_the_graph(dtype: str, form: str, rrdb: Net) -> None:
    """Two tensors of 64 · 16 elements a pixel are alive at the last convolutions, whatever the I/O form."""
    need = preflight(rrdb(features=64, dtype=dtype, form=form), ShapeRange.parse("1x128x128"))
    two = 2 * 64 * 16 * 128 * 128 * {"fp32": 4, "fp16": 2}[dtype]
    assert two <= need.activation_bytes <= 1.05 * two


def test_the_estimate_agrees_with_the_builder(wide: Path, tmp_path: Path) -> None:
    """An estimate that is far off refuses what works, or lets through what does not."""
    shapes = ShapeRange.parse("1x64x64:1x256x256:2x512x512")
    estimate = preflight(wide, shapes).activation_bytes
    built = engine_from_onnx(wide, tmp_path / "x.plan", BuildOptions(shapes=shapes, flavour="tensorrt_rtx"))
    assert built.scratch_bytes is not None
    assert 1.0 <= built.scratch_bytes / estimate <= 1.35


def test_an_operator_of_unknown_shape_leaves_the_rest_to_be_counted(
    wide: Path, writer: Any, saved: Any
) -> None:
    """Graphs of other tools hold operators that shape inference does not know."""
    model = onnx.load(wide)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Odd", ["before"], ["output"], domain="made.up"))
    with pytest.raises(EngineBuildError, match="The largest tile that fits is 1448x1448"):
        preflight(saved(model), ShapeRange.parse("1x2160x3840"))


def test_the_size_that_a_file_is_fixed_to_comes_first(rrdb: Net) -> None:
    """The reckoning is for the size that the plan will have."""
    with pytest.raises(EngineBuildError, match="is fixed to"):
        preflight(rrdb(size=(1, 32, 32)), ShapeRange.parse("1x64x64"))


@pytest.mark.parametrize("best", range(9))
def test_the_search_finds_every_answer(best: int) -> None:
    """Off by one, it offers a tile that does not fit or one that is too small."""
    found = _largest_tile(lambda height, width: max(height, width) <= best * 4, 24, 32, 4)
    assert found == ((min(24, best * 4), best * 4) if best else None)
