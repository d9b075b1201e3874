"""What can be asked of a build, and what of it each flavour has."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy._flavour import Flavour, open_flavour
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.engines._options import refuse_unavailable, supported_compute_capabilities


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return open_flavour("tensorrt_rtx")


@pytest.fixture(scope="module")
def full(rtx: Flavour) -> Flavour:
    """Stands for full TensorRT, which cannot be installed here: only its capabilities are asked for."""
    return dataclasses.replace(
        rtx, name="tensorrt", capabilities=frozenset({"hardware_compatibility", "timing_cache"})
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimization_level": 6}, "optimization_level is 6; allowed: 0 to 5"),
        ({"optimization_level": -1}, "optimization_level is -1"),
        ({"workspace": 0}, "workspace is 0; allowed: a number of bytes"),
        ({"workspace": 1.5}, "workspace is 1.5"),
        ({"memory_limit": -1}, "memory_limit is -1"),
        ({"aux_streams": -1}, "aux_streams is -1; allowed: 0 or more"),
        ({"aux_streams": True}, "aux_streams is True"),
        ({"flavour": "trt"}, "flavour is 'trt'; allowed: auto, tensorrt, tensorrt_rtx"),
        ({"hardware_compatibility": "all"}, "allowed: none, ampere\\+, same-compute-capability"),
        ({"compute_capabilities": ("86",)}, "holds '86'; allowed: numbers such as 8.6"),
        ({"compute_capabilities": "8.6"}, "compute_capabilities"),
        ({"compute_capabilities": ("current", "8.6")}, "'current' stands alone"),
    ],
)
def test_a_value_that_cannot_work_is_refused_at_once(wrong: dict[str, Any], said: str) -> None:
    """TensorRT clamps or ignores most of these without a word."""
    with pytest.raises(EngineBuildError, match=said):
        BuildOptions(**wrong)


def test_everything_is_left_to_tensorrt_unless_asked_for() -> None:
    """A default that is not TensorRT's own has to be a decision."""
    options = BuildOptions()
    assert options.shapes == ShapeRange.default()
    assert (options.workspace, options.optimization_level, options.aux_streams) == (None, None, None)
    assert BuildOptions(optimization_level=0, aux_streams=0).optimization_level == 0


def test_a_target_named_twice_counts_once() -> None:
    """RTX refuses a target at two places."""
    assert BuildOptions(compute_capabilities=("8.6", "8.9", "8.6")).compute_capabilities == ("8.6", "8.9")


def test_rtx_names_its_targets_from_the_binding(rtx: Flavour) -> None:
    """A list written down by hand is wrong with the next version."""
    supported = supported_compute_capabilities(rtx.module)
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(supported)
    assert "9.0" not in supported
    refuse_unavailable(BuildOptions(compute_capabilities=supported), rtx)


def test_rtx_refuses_hopper_with_the_way_that_works(rtx: Flavour) -> None:
    """TensorRT's own error says 'Parameter check failed, condition: false'."""
    with pytest.raises(EngineBuildError, match=r"capability 9\.0 \(H100, H200\)") as caught:
        refuse_unavailable(BuildOptions(compute_capabilities=("8.6", "9.0")), rtx)
    assert "esrgan-deploy[tensorrt]" in str(caught.value)
    assert "--flavour tensorrt" in str(caught.value)


def test_options_of_full_tensorrt_are_refused_on_rtx_by_name(rtx: Flavour) -> None:
    """RTX ignores both with at most a warning, and the user believes that they did something."""
    with pytest.raises(EngineBuildError, match=r"hardware_compatibility \(ampere\+\).*Use compute_cap"):
        refuse_unavailable(BuildOptions(hardware_compatibility="ampere+"), rtx)
    with pytest.raises(EngineBuildError, match=r"timing_cache.*runtime cache"):
        refuse_unavailable(BuildOptions(timing_cache=Path("cache")), rtx)


def test_options_of_rtx_are_refused_on_full_tensorrt_by_name(full: Flavour) -> None:
    """Full TensorRT has no such member: without this it is an AttributeError."""
    with pytest.raises(EngineBuildError, match=r"compute_capabilities \(8\.6\).*hardware_compatibility"):
        refuse_unavailable(BuildOptions(compute_capabilities=("8.6",)), full)
    refuse_unavailable(
        BuildOptions(hardware_compatibility="ampere+", timing_cache=Path("cache"), version_compatible=True),
        full,
    )
