"""A frame that overflowed float16 is made again in fp32, or refused; never black."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from esrgan_deploy import InferenceError, ModelSpec, Upscaler
from esrgan_deploy._files import sha256_of
from esrgan_deploy._manifest import load_manifest, save_manifest
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._graph import save
from esrgan_deploy.export._rounding import rounding_model
from esrgan_deploy.export._rrdbnet import RRDBNet

Noise = Callable[..., np.ndarray]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["float", "uint8"])
def overflowing(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    rrdb_spec: Callable[..., ModelSpec],
) -> Path:
    """The export of a net whose features of bright pictures pass 65504, and whose dark ones do not."""
    folder = tmp_path_factory.mktemp("overflow")
    torch.manual_seed(0)
    net = RRDBNet(rrdb_spec(blocks=1))
    with torch.no_grad():
        # Up in two steps and down in two, because each weight must be one that float16 has.
        net.conv_first.weight.mul_(3e4)
        net.conv_up1.weight.mul_(30)
        net.conv_up2.weight.div_(1e3)
        net.conv_last.weight.div_(900)
        net.conv_last.bias.add_(0.4)
    torch.save(net.state_dict(), folder / "net.pth")
    shapes = BuildOptions(shapes=ShapeRange.parse("1x16x16"))
    manifest = export_model(
        folder / "net.pth", folder / "out", ExportOptions(plan=False, build=shapes, form=request.param)
    )
    listed = manifest.artefact("model.fp16.onnx")
    assert listed is not None
    assert listed.verified is False, "the net of this test does not overflow, so it shows nothing"
    _round_for_real(folder / "out" / "model.fp16.onnx", folder / "out" / "model.json")
    return folder / "out"


def _round_for_real(graph: Path, place: Path) -> None:
    # ONNX Runtime computes fp16 graphs in fp32 on a processor; with every tensor rounded it overflows as a GPU does.
    loaded = ir.load(graph)
    rounding = rounding_model(loaded, "fp16")
    rounding.metadata_props.update(loaded.metadata_props)
    save(rounding, graph)
    manifest = load_manifest(place)
    artefacts = tuple(
        dataclasses.replace(one, sha256=sha256_of(graph), size=graph.stat().st_size)
        if one.file == graph.name
        else one
        for one in manifest.artefacts
    )
    save_manifest(dataclasses.replace(manifest, artefacts=artefacts), place)


def test_a_frame_that_overflows_is_made_again_in_fp32(overflowing: Path, noise: Noise) -> None:
    """Real-ESRGAN#330 and #989: black pictures, and black frames in the middle of a film."""
    lr = noise(40, 50, 3)
    with Upscaler(overflowing / "model.fp16.onnx", tile=32, halo=4) as up:
        assert up.info.watched
        made = up.upscale(lr)
        assert up.stats.reruns == up.stats.batches > 1
    with Upscaler(overflowing / "model.onnx", tile=32, halo=4) as up:
        expected = up.upscale(lr)
        assert up.stats.reruns == 0
    np.testing.assert_array_equal(made, expected)
    assert expected.std() > 1


def test_only_the_bad_tiles_are_made_again(overflowing: Path) -> None:
    """A film with one bright corner must not run in fp32 as a whole."""
    lr = np.zeros((60, 60, 3), np.uint8)
    lr[:8, :8] = 255
    with Upscaler(overflowing / "model.fp16.onnx", tile=24, halo=2) as up:
        up.upscale(lr)
        assert 0 < up.stats.reruns < up.stats.batches


def test_without_another_artefact_it_is_an_error(overflowing: Path, noise: Noise, tmp_path: Path) -> None:
    """In the uint8 form as well, where nothing outside the graph can see the NaN."""
    for name in ("model.fp16.onnx", "model.json"):
        (tmp_path / name).write_bytes((overflowing / name).read_bytes())
    lr = noise(20, 20, 3)
    with Upscaler(tmp_path / "model.fp16.onnx") as up:
        with pytest.raises(InferenceError, match=r"model\.fp16\.onnx made .*no picture.*fp32"):
            up.upscale(lr)
        # The next one is fine again.
        up.upscale(lr // 255)


def test_another_artefact_that_is_not_as_listed_is_not_used(
    overflowing: Path, noise: Noise, tmp_path: Path
) -> None:
    """Half a film by one model and half by another."""
    for name in ("model.fp16.onnx", "model.onnx", "model.json"):
        (tmp_path / name).write_bytes((overflowing / name).read_bytes())
    manifest = json.loads((tmp_path / "model.json").read_text())
    for artefact in manifest["artefacts"]:
        if artefact["file"] == "model.onnx":
            artefact["sha256"] = "0" * 64
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    with (
        Upscaler(tmp_path / "model.fp16.onnx") as up,
        pytest.raises(InferenceError, match=r"model\.fp16\.onnx made"),
    ):
        up.upscale(noise(20, 20, 3))


def test_the_golden_pairs_find_it_before_the_first_frame(overflowing: Path) -> None:
    """verify=True is for those who would rather not start."""
    from esrgan_deploy import ParityError

    with pytest.raises(ParityError, match=r"model\.fp16\.onnx"):
        Upscaler(overflowing / "model.fp16.onnx", verify=True)
    Upscaler(overflowing / "model.onnx", verify=True).close()
