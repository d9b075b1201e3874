"""The golden pairs prove what a session computes here, and nothing passes without a word."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from esrgan_deploy._errors import InferenceError, ParityError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._manifest import amend_artefact
from esrgan_deploy._parity import Comparer, Comparison, judged
from esrgan_deploy.runtime import SessionInfo, open_session
from esrgan_deploy.runtime.sessions import verify_golden


@pytest.fixture
def folder(tiny_export: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_export, tmp_path / "out")
    return tmp_path / "out"


def _lie(folder: Path, listed: str, /, **fields: Any) -> None:
    place = folder / "model.json"
    data = json.loads(place.read_text())
    (entry,) = [one for one in data["artefacts"] if one["file"] == listed]
    entry.update(fields)
    place.write_text(json.dumps(data))


def _verify(path: Path) -> tuple[Comparison, ...]:
    session = open_session(path)
    try:
        return verify_golden(session, path)
    finally:
        session.close()


class _Narrow:
    """A session that takes other sizes than it really does, as a plan of one size."""

    def __init__(self, path: Path, **info: Any) -> None:
        self._session = open_session(path)
        self.info: SessionInfo = dataclasses.replace(self._session.info, **info)

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self._session.run(batch)


@pytest.mark.parametrize(("name", "least"), [("model.onnx", 100.0), ("model.fp16.onnx", 60.0)])
def test_an_artefact_as_it_was_exported_holds(folder, name, least):
    """A proof that fails on what was just proven would be left out."""
    (comparison,) = _verify(folder / name)
    assert comparison.pictures == 4
    assert comparison.psnr > least


def test_weights_that_changed_are_caught_though_the_manifest_says_all_is_well(folder):
    """It is the net that is proven, not the file: a digest can be made to fit any net."""
    import onnx
    from onnx import numpy_helper

    path = folder / "model.onnx"
    model = onnx.load(path)
    (weight,) = [one for one in model.graph.initializer if one.name == "conv_last.weight"]
    changed = numpy_helper.to_array(weight) * np.float32(1.05)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, path)
    _lie(folder, path.name, sha256=sha256_of(path), size=path.stat().st_size)
    with pytest.raises(ParityError, match=r"model\.onnx does not compute here.*max abs .* > 1e-04") as caught:
        _verify(path)
    assert "esrgan-export" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_calls_itself_coarser_is_not_judged_by_coarser_bounds(folder):
    """The bounds of bf16 would let through what no fp32 net may do."""
    _lie(folder, "model.onnx", precision="bf16")
    with pytest.raises(InferenceError, match="says that it is bf16 and the file itself says fp32"):
        _verify(folder / "model.onnx")


def _unlist(folder: Path) -> None:
    _lie(folder, "model.golden.npz", kind="picture")


def _reach_out(folder: Path) -> None:
    shutil.copy(folder / "model.golden.npz", folder.parent / "model.golden.npz")
    _lie(folder, "model.golden.npz", file="../model.golden.npz")


def _other_golden(folder: Path) -> None:
    path = folder / "model.golden.npz"
    path.write_bytes(path.read_bytes() + b"x")


def _no_golden_file(folder: Path) -> None:
    (folder / "model.golden.npz").write_bytes(b"PK no archive")
    _lie(folder, "model.golden.npz", sha256=sha256_of(folder / "model.golden.npz"))


def _empty_golden(folder: Path) -> None:
    np.savez(folder / "model.golden.npz", nothing=np.zeros(1))
    _lie(folder, "model.golden.npz", sha256=sha256_of(folder / "model.golden.npz"))


def _pickled_golden(folder: Path) -> None:
    arrays = {"a.input": np.array([{}], object), "a.output": np.zeros((1, 3, 4, 4), np.float32)}
    np.savez(folder / "model.golden.npz", **arrays)
    _lie(folder, "model.golden.npz", sha256=sha256_of(folder / "model.golden.npz"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "model.json").unlink(), "no manifest lies beside it"),
        (lambda folder: (folder / "model.json").write_text("{}"), "its manifest cannot be read"),
        (lambda folder: (folder / "model.golden.npz").unlink(), "cannot be read"),
        (_unlist, "lists no golden pairs"),
        (_reach_out, "lists no golden pairs"),
        (_other_golden, "has sha256"),
        (_no_golden_file, "no file of golden pairs"),
        (_empty_golden, "holds no pairs"),
        (_pickled_golden, "no file of golden pairs"),
    ],
)
def test_nothing_to_verify_against_is_an_error(folder, change, words):
    """A silent pass would be taken for a proof."""
    change(folder)
    with pytest.raises(InferenceError, match=words) as caught:
        _verify(folder / "model.onnx")
    assert "\n" not in str(caught.value)


def test_a_precision_without_bounds_is_an_error(folder):
    """Judged by no bound, everything would hold."""
    path = folder / "model.onnx"
    session = _Narrow(path, precision="int2")
    _lie(folder, path.name, precision="")
    with pytest.raises(InferenceError, match="its precision is int2"):
        verify_golden(session, path)


def test_a_session_that_takes_no_golden_picture_is_an_error(folder):
    """A plan of one size would pass with nothing run."""
    path = folder / "model.onnx"
    session = _Narrow(path, min_shape=(1, 256, 256), max_shape=(1, 256, 256))
    with pytest.raises(InferenceError, match="it takes 1x256x256 and the golden pictures are 1x"):
        verify_golden(session, path)


def test_only_the_pictures_that_fit_are_run(folder):
    """One picture outside the range would fail a plan that is right."""
    path = folder / "model.onnx"
    session = _Narrow(path, max_shape=(1, 32, 32))
    (comparison,) = verify_golden(session, path)
    assert comparison.pictures == 2


def test_a_net_of_another_scale_is_caught(folder, make):
    """A file that was exchanged makes pictures of another size."""
    other = make("nearest", scale=2, name="other.onnx")
    path = folder / "model.onnx"
    shutil.copy(other, path)
    with pytest.raises(InferenceError, match="not the file of that name in its manifest"):
        _verify(path)
    amend_artefact(folder / "model.json", "model.onnx", sha256=sha256_of(path), size=path.stat().st_size)
    with pytest.raises(ParityError, match="the output is"):
        _verify(path)


def test_a_file_that_differs_in_one_bit_is_not_the_one_that_was_proved(folder):
    """The pairs may hold all the same: one weight of thousands changes a picture by less than a level."""
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InferenceError, match="not the file of that name in its manifest"):
        _verify(path)


def test_whole_levels_are_not_judged_as_floats():
    """One sample of a uint8 artefact that rounds the other way is 39 times the bound of fp32."""
    reference = np.full((1, 3, 64, 64), 0.5, np.float32)
    levels = np.full((1, 64, 64, 3), 128, np.uint8)
    levels[0, 0, 0, 0] = 127
    comparer = Comparer("here", "by hand")
    comparer.add("flat", reference, levels)
    assert judged([comparer.result()], "fp32", "uint8")[1]
    figures, held = judged([comparer.result()], "fp32", "float")
    assert not held
    assert "max abs" in figures[0]["breaches"][0]


def test_less_than_fp32_is_held_against_what_rounding_costs(folder):
    """The bounds of every net would let a red cast pass, on a net that bf16 costs next to nothing."""
    path = folder / "model.onnx"
    golden = json.loads((folder / "model.json").read_text())["artefacts"]
    (rounding,) = [one["rounding"] for one in golden if one["kind"] == "golden"]
    assert 40 < rounding["bf16"]["psnr"] < rounding["fp16"]["psnr"]
    session = _Tinted(path, levels=4.0, computes="bf16")
    with pytest.raises(ParityError, match=r"PSNR .* beyond what rounding to bf16 costs \(bf16\)"):
        verify_golden(session, path)
    verify_golden(_Tinted(path, levels=0.05, computes="bf16"), path)
    # An older export does not say what it costs.
    _lie(folder, "model.golden.npz", rounding={})
    verify_golden(session, path)


@pytest.mark.parametrize("change", [{"psnr": None}, {"psnr": "low"}, {"bias": [0.0]}, {"bias": 3}])
def test_a_cost_that_is_none_is_one_line(folder, change):
    """A manifest is a file that anybody may have changed."""
    data = json.loads((folder / "model.json").read_text())
    (rounding,) = [one["rounding"] for one in data["artefacts"] if one["kind"] == "golden"]
    _lie(folder, "model.golden.npz", rounding={"fp16": {**rounding["fp16"], **change}})
    with pytest.raises(InferenceError, match="does not say what rounding to fp16 costs") as caught:
        _verify(folder / "model.fp16.onnx")
    assert "\n" not in str(caught.value)


class _Tinted(_Narrow):
    """A session whose red is off by some levels."""

    def __init__(self, path: Path, levels: float, **info: Any) -> None:
        super().__init__(path, **info)
        self._by = np.float32([levels / 255, 0, 0]).reshape(1, 3, 1, 1)

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return super().run(batch) + self._by
