"""A final size that is no multiple of the net's own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from esrgan_deploy import EngineBuildError
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._cli import main


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that makes 4 x 4 of each pixel: with noise, as much contrast as a picture can have.

    A little darker, so that no sample lies between two levels, where the last digit decides.
    """
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["in", "darker"], ["dark"]),
            helper.make_node("Resize", ["dark", "", "scales"], ["out"], mode="nearest"),
        ],
        "net",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3, "4*h", "4*w"])],
        [
            numpy_helper.from_array(np.array(0.937, np.float32), "darker"),
            numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), "scales"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(("outscale", "multiple"), [(3.1, 10), (2.4, 5), (3, 1), (3.5, 2)])
def test_a_right_graph_of_another_scale_is_verified(
    net: Path, tmp_path: Path, outscale: float, multiple: int
) -> None:
    """It would be refused: for the digits that the reference lacks, or for sizes of a plan that nobody makes."""
    shapes = ShapeRange.parse("1x20x20:1x40x40:1x60x60")
    options = ExportOptions(
        precisions=("fp32",), plan=False, outscale=outscale, build=BuildOptions(shapes=shapes)
    )
    artefact = export_model(net, tmp_path / "out", options).artefact("model.onnx")
    assert artefact is not None
    assert (artefact.outscale, artefact.size_multiple, artefact.verified) == (outscale, multiple, True)
    assert max(figures["max_abs"] for figures in artefact.parity) < 2e-6


def test_default_sizes_of_a_plan_are_those_that_the_ratio_needs(net: Path, tmp_path: Path) -> None:
    """The sides 16, 256 and 512 that nobody chose would refuse x2.4; a side that somebody chose is still refused."""
    said: list[str] = []
    options = ExportOptions(precisions=("fp32",), plan=True, outscale=2.4)
    plan = export_model(net, tmp_path / "out", options, say=said.append).artefact("model.fp32.plan")
    assert plan is not None
    assert plan.shapes == ((1, 20, 20), (1, 260, 260), (1, 515, 515))
    assert "building model.fp32.plan for 1x20x20:1x260x260:1x515x515" in said
    asked = ExportOptions(outscale=2.4, plan=False, build=BuildOptions(shapes=ShapeRange.parse("1x16x16")))
    with pytest.raises(EngineBuildError, match="multiples of 5"):
        export_model(net, tmp_path / "other", asked)


@pytest.mark.slow
@pytest.mark.parametrize("outscale", ["3", "3.1"])
def test_the_shipped_model_is_verified_at_another_scale(tmp_path: Path, outscale: str) -> None:
    """What a first user tries would exit 1, with a sound graph written."""
    out = str(tmp_path / "out")
    asked = ["--precision", "fp32", "--outscale", outscale, "--shapes", "20x20:60x60:100x100"]
    assert main(["--no-plan", *asked, "-o", out]) == 0
