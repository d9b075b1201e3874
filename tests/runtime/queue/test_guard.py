"""A frame that overflowed float16 is made again in fp32, or refused; never black."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from esrgan_deploy import InferenceError, ModelSpec, Upscaler
from esrgan_deploy._files import sha256_of
from esrgan_deploy._manifest import Artefact, Manifest, amend_artefact, save_manifest
from esrgan_deploy.export.graphs import save, to_uint8_form, watch
from esrgan_deploy.export.proof import golden_pictures, save_golden


def loud(graph: Any, x: str) -> str:
    """A net whose features of bright pixels, 7e4 for white, pass 65504, and those of darker ones do not.

    ONNX Runtime computes fp16 graphs in fp32 on a processor; casts that are written out round as a GPU does.
    """
    features = graph("Mul", graph("Cast", x, to=TensorProto.FLOAT), graph.constant(7e4, np.float32))
    if graph.numpy_dtype == np.float16:
        features = graph("Cast", graph("Cast", features, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)
    picture = graph("Div", features, graph.constant(7e4, np.float32))
    if graph.numpy_dtype == np.float16:
        picture = graph("Cast", picture, to=TensorProto.FLOAT16)
    made: str = graph.resize(picture, 4, "nearest")
    return made


@pytest.fixture(params=["float", "uint8"])
def overflowing(
    request: pytest.FixtureRequest, graphs: ModuleType, tmp_path: Path, rrdb_spec: Callable[..., ModelSpec]
) -> Path:
    """A folder as esrgan-export leaves it, of a net that overflows fp16 where it is bright."""
    folder = tmp_path / "out"
    folder.mkdir()
    graphs.write_graph(folder / "model.onnx", loud)
    half = graphs.write_graph(folder / "model.fp16.onnx", loud, dtype="fp16")
    model = ir.load(half)
    watch(model)
    if request.param == "uint8":
        to_uint8_form(model)
    save(model, half)
    pictures = golden_pictures(3)
    save_golden(
        folder / "model.golden.npz",
        {
            name: (lr, (lr.transpose(0, 3, 1, 2) / np.float32(255)).repeat(4, 2).repeat(4, 3))
            for name, lr in pictures.items()
        },
    )
    listed = [
        Artefact.from_file(folder / name, kind=kind, precision=precision, form=form, outscale=4.0)
        for name, kind, precision, form in (
            ("model.onnx", "onnx", "fp32", "float"),
            ("model.fp16.onnx", "onnx", "fp16", request.param),
            ("model.golden.npz", "golden", "fp32", ""),
        )
    ]
    save_manifest(
        Manifest(spec=rrdb_spec(), source="net.pth", artefacts=tuple(listed)), folder / "model.json"
    )
    return folder


def test_a_frame_that_overflows_is_made_again_in_fp32(overflowing, noise):
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


def test_the_other_artefact_is_opened_once(overflowing, noise):
    """Looked up and loaded for every bad frame of a film, it would take longer than the film."""
    lr = noise(20, 20, 3)
    with Upscaler(overflowing / "model.fp16.onnx") as up:
        first = up.upscale(lr)
        (overflowing / "model.onnx").unlink()
        np.testing.assert_array_equal(up.upscale(lr), first)
        assert up.stats.reruns == 2


def test_what_makes_no_picture_either_is_named(overflowing, noise):
    """A checkpoint whose weights are broken: its fp32 graph makes the same black frame, and is not to be believed."""
    path = overflowing / "model.onnx"
    model = ir.load(path)
    model.graph.initializers["c1"].const_value = ir.tensor(np.array(np.nan, np.float32), name="c1")
    save(model, path)
    amend_artefact(overflowing / "model.json", path.name, sha256=sha256_of(path), size=path.stat().st_size)
    with (
        Upscaler(overflowing / "model.fp16.onnx") as up,
        pytest.raises(InferenceError, match=r"model\.onnx made NaN"),
    ):
        up.upscale(noise(20, 20, 3))


def test_only_the_bad_tiles_are_made_again(overflowing):
    """A film with one bright corner must not run in fp32 as a whole."""
    lr = np.zeros((60, 60, 3), np.uint8)
    lr[:8, :8] = 255
    with Upscaler(overflowing / "model.fp16.onnx", tile=24, halo=2) as up:
        up.upscale(lr)
        assert 0 < up.stats.reruns < up.stats.batches


def test_without_another_artefact_it_is_an_error(overflowing, noise, tmp_path):
    """In the uint8 form as well, where nothing outside the graph can see the NaN."""
    for name in ("model.fp16.onnx", "model.json"):
        (tmp_path / name).write_bytes((overflowing / name).read_bytes())
    lr = noise(20, 20, 3)
    with Upscaler(tmp_path / "model.fp16.onnx") as up:
        with pytest.raises(InferenceError, match=r"model\.fp16\.onnx made .*no picture.*fp32"):
            up.upscale(lr)
        # The next one is fine again.
        up.upscale(lr // 255)


def test_another_artefact_that_is_not_as_listed_is_not_used(overflowing, noise, tmp_path):
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


def test_the_golden_pairs_find_it_before_the_first_frame(overflowing):
    """verify=True is for those who would rather not start."""
    from esrgan_deploy import ParityError

    with pytest.raises(ParityError, match=r"model\.fp16\.onnx"):
        Upscaler(overflowing / "model.fp16.onnx", verify=True)
    Upscaler(overflowing / "model.onnx", verify=True).close()
