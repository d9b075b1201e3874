"""Seams, measured on nets whose answer is known, and kept beside the file that was measured."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esrgan_deploy import InferenceError
from esrgan_deploy._manifest import Artefact, Manifest, load_manifest, save_manifest
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.runtime import open_session
from esrgan_deploy.runtime.tiling import SeamCurve, TileChoice, measure_seams, store_tiling
from esrgan_deploy.runtime.tiling._choice import load_tiling
from esrgan_deploy.runtime.tiling._drawn import drawn_picture

CHOICE = TileChoice(tile=128, halo=8, batch=2, reason="measured")


def curve(*largest: float, halos: tuple[int, ...] = (0, 4, 8, 16)) -> SeamCurve:
    return SeamCurve(
        halos=halos[: len(largest)], largest=largest, percentile=largest, tile=64, margin=16,
        pictures=("a",), positions=1,
    )  # fmt: skip


def measured(path: Path, **options: Any) -> SeamCurve:
    session = open_session(path)
    try:
        return measure_seams(session, **options)
    finally:
        session.close()


@pytest.mark.parametrize("layers", [3, 6])
@pytest.mark.parametrize("form", ["float", "uint8"])
def test_seams_end_where_the_net_sees_no_further(layers, form, graphs, make):
    """A net of so many 3x3 convolutions sees so many pixels: less halo must show, and no more than that is needed."""
    path = make("convolved", scale=2, layers=layers, io={"form": form})
    found = measured(path, halos=range(9), tile=48, pictures=[drawn_picture(1, 96)])
    assert found.halo_for() == layers, found
    assert found.largest[layers - 2] > 0.5
    assert max(found.largest[layers:]) < (1e-3 if form == "float" else 1e-9)
    assert found.rounded == (form == "uint8")
    assert list(found.largest) == sorted(found.largest, reverse=True)
    assert all(p <= most for p, most in zip(found.percentile, found.largest, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("reach", "halo"), [(40, 48), (100, 128), (20, 24)])
def test_a_net_that_sees_far_is_searched_further(reach, halo, tmp_path):
    """RealESRGAN_x4plus sees 347 pixels; a search that ends at 32 can only warn."""
    graph = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]>
        net (float[n,3,h,w] input) => (float[n,3,h,w] output)
        {{ output = Conv<pads = [{", ".join(4 * [str(reach)])}], dilations = [{reach}, {reach}]>(input, w) }}""")
    weight = np.random.default_rng(0).normal(0, 0.2, (3, 3, 3, 3)).astype(np.float32)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(graph, tmp_path / "far.onnx")
    found = measured(tmp_path / "far.onnx")
    assert found.halo_for() == halo
    assert found.halos[-1] == max(32, halo)


def test_a_net_that_sees_nothing_has_no_seams(make):
    """A difference here is a tile compared with another place of the picture."""
    found = measured(make("nearest", scale=4), halos=(0, 4), tile=40, pictures=[drawn_picture(1, 80)])
    assert found.largest == (0, 0)
    assert found.halo_for() == 0
    assert (found.tile, found.margin, found.positions) == (40, 16, 2)


@pytest.mark.parametrize(
    ("kind", "body", "align"), [("shrunk", 1.5, 2), ("shrunk", 4 / 3, 3), ("shrunk", 2.5, 2)]
)
def test_scales_that_are_broken_numbers_are_compared_in_place(kind, body, align, make):
    """A shift by a part of a pixel is a difference at every halo, and no seam."""
    found = measured(make(kind, outscale=body), halos=(0, 7), tile=47, pictures=[drawn_picture(1, 96)])
    assert found.halos == (0, -(-7 // align) * align)
    assert found.tile % align == found.margin % align == 0
    assert found.largest[0] > 1
    # The Resize computes places in float32, which differ in their last bits between a tile and the whole.
    assert found.largest[1] < 0.02


def test_a_size_multiple_is_kept(make):
    """An unshuffle that groups other pixels in the tile than in the whole differs everywhere."""
    spec = ModelSpec(
        architecture="rrdbnet", scale=2, in_channels=3, out_channels=3, features=8, blocks=1, growth=4,
        source_sha256="", unshuffle=4, size_multiple=4,
    )  # fmt: skip
    metadata = json.dumps({"spec": spec.to_json(), "size_multiple": 4})
    path = make("unshuffled", factor=4, io={"metadata": metadata})
    found = measured(path, halos=(0, 3, 9), tile=50, pictures=[drawn_picture(1, 100)])
    assert found.halos == (0, 4, 12)
    assert found.tile == 52
    assert found.largest[-1] < 1e-3 < found.largest[0]


@pytest.mark.parametrize("shape", [(90, 100), (90, 100, 1), (90, 100, 3), (90, 100, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_picture_serves_any_net(shape, channels, make, noise):
    """A gray photograph or one with alpha must not end the measurement."""
    path = make("convolved", channels=channels, io={"channels": channels})
    found = measured(path, halos=(0, 4), tile=40, pictures={"one": noise(*shape)})
    assert found.pictures == ("one",)
    assert found.largest[1] < 1e-3 < found.largest[0]


def test_halos_and_pictures_that_do_not_fit_are_left_out(make):
    """Half a measurement is better than none, as long as it says what it is."""
    pictures = {"small": drawn_picture(1, 40), "large": drawn_picture(2, 80)}
    found = measured(make("convolved"), tile=64, pictures=pictures)
    assert found.pictures == ("large",)
    assert found.halos == (0, 2, 4, 8, 12, 16)
    assert found.tile + 2 * found.margin <= 80


@pytest.mark.parametrize(
    ("size", "pictures", "says"),
    [
        (("n", 64, 64), None, r"takes 64x64 to 64x64 pixels.*\.onnx"),
        (("n", "h", "w"), [np.zeros((20, 300, 3), np.uint8)], "20 pixels on its shorter side"),
        (("n", "h", "w"), [], "no picture"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(size, pictures, says, make):
    """A curve without a comparison would say that no halo is needed."""
    with pytest.raises(InferenceError, match=says):
        measured(make("convolved", io={"size": size}), pictures=pictures)


def test_a_batch_of_more_than_one_is_filled(make):
    """A graph with a fixed batch refuses a single tile."""
    path = make("convolved", io={"size": (3, "h", "w")})
    assert measured(path, halos=(0, 4), tile=40, pictures=[drawn_picture(1, 80)]).halo_for() == 4


def test_drawn_pictures_have_edges_texture_and_all_of_the_range():
    """A flat picture has no seams, whatever the net."""
    picture = drawn_picture(3)
    assert picture.shape == (288, 288, 3)
    assert np.array_equal(picture, drawn_picture(3))
    assert not np.array_equal(picture, drawn_picture(4))
    steps = np.abs(np.diff(picture.astype(int), axis=0))
    assert steps.mean() > 10
    assert np.percentile(steps, 99) > 100
    assert np.ptp(picture) == 255


@pytest.mark.slow
def test_the_default_model_has_no_seams_at_the_halo_that_is_used_without_a_measurement(assets):
    """The halo of 16 is what everyone gets who measures nothing; photographs and drawn pictures must agree on it."""
    from PIL import Image

    from esrgan_deploy.runtime import default_model

    photographs = [np.asarray(Image.open(assets / f"images/Kodak24/kodim{n:02}.png")) for n in (8, 19)]
    drawn = measured(default_model(), halos=(0, 4, 8, 16), tile=96, pictures=[drawn_picture(1)])
    seen = measured(default_model(), halos=(0, 4, 8, 16), tile=96, pictures=photographs)
    for found in (drawn, seen):
        assert found.bound(16) < 0.05
        assert found.bound(4) > 2
    # The drawn ones must not be kinder by much, or the halo chosen from them is too small for photographs.
    assert all(a > b / 3 for a, b in zip(drawn.largest, seen.largest, strict=True)), (drawn, seen)


def test_the_halo_is_the_first_from_which_on_all_are_small():
    """One lucky halo between two that show seams is none to trust."""
    assert curve(50, 0.4, 3, 0.01).halo_for() == 16
    assert curve(50, 5, 0.4, 0.01).halo_for() == 8
    assert curve(50, 5, 0.5, 0.5).halo_for() is None
    assert curve(50, 5, 0.5, 0.5).halo_for(1) == 8
    assert curve(0.1).halo_for() == 0


@given(st.lists(st.floats(0, 300), min_size=1, max_size=4), st.floats(0.01, 300), st.integers(0, 40))
def test_no_difference_beyond_the_halo_reaches_the_bound(largest, levels, halo):
    """The bound is a promise for this halo and every larger one."""
    made = curve(*largest)
    found = made.halo_for(levels)
    for measured_halo, difference in zip(made.halos, made.largest, strict=True):
        if found is not None and measured_halo >= found:
            assert difference < levels
        if measured_halo >= halo:
            assert made.bound(halo) >= difference
    assert found is not None or made.largest[-1] >= levels
    assert SeamCurve.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_below_the_first_halo_nothing_is_promised():
    """A curve from 4 on says nothing of 0."""
    assert curve(1.0, 0.1, halos=(4, 8)).bound(3) == math.inf


@pytest.mark.parametrize("halos", [(), (4, 4), (8, 4), (-1, 4), (0, 4, 8)])
def test_a_curve_that_is_none_is_refused(halos):
    """A manifest edited by hand must not choose a halo."""
    with pytest.raises(ValueError, match="halos"):
        SeamCurve(
            halos=halos, largest=(1.0, 0.5), percentile=(1.0, 0.5), tile=64, margin=16, pictures=(),
            positions=1,
        )  # fmt: skip


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A manifest with a graph, a plan built from its half form, and another file's entry."""
    spec = ModelSpec(
        architecture="rrdbnet", scale=4, in_channels=3, out_channels=3, features=8, blocks=1, growth=4,
        source_sha256="",
    )  # fmt: skip
    built = {
        "model.onnx": "",
        "model.fp16.onnx": "model.onnx",
        "model.fp16.plan": "model.fp16.onnx",
        "model.npz": "",
    }
    artefacts = []
    for name, source in built.items():
        (tmp_path / name).write_text(name)
        artefacts.append(Artefact.from_file(tmp_path / name, kind="onnx", built_from=source))
    save_manifest(Manifest(spec=spec, source="a.pth", artefacts=tuple(artefacts)), tmp_path / "model.json")
    return tmp_path


def test_a_measurement_is_kept_with_its_file_and_nothing_else_changes(exported):
    """A parity figure lost on the way would be a proof lost."""
    before = load_manifest(exported / "model.json")
    assert load_tiling(exported / "model.onnx") is None
    assert store_tiling(exported / "model.onnx", curve(9, 0.1), CHOICE) == exported / "model.json"
    assert load_tiling(exported / "model.onnx") == curve(9, 0.1)
    after = load_manifest(exported / "model.json")
    assert after.artefacts[1:] == before.artefacts[1:]
    assert after.artefact("model.onnx") != before.artefact("model.onnx")
    assert load_tiling(exported / "model.npz") is None


def test_what_was_built_from_the_measured_file_uses_its_measurement(exported):
    """A plan sees as far as its graph; its own measurement comes first."""
    store_tiling(exported / "model.onnx", curve(9, 0.1), CHOICE)
    assert load_tiling(exported / "model.fp16.plan") == curve(9, 0.1)
    store_tiling(exported / "model.fp16.plan", curve(8, 0.2), CHOICE)
    assert load_tiling(exported / "model.fp16.plan") == curve(8, 0.2)


def test_a_measurement_of_another_file_is_not_used(exported):
    """Other weights under the old name see as far as they please."""
    store_tiling(exported / "model.onnx", curve(9, 0.1), CHOICE)
    (exported / "model.onnx").write_text("other weights")
    assert load_tiling(exported / "model.onnx") is None
    with pytest.raises(InferenceError, match="describes another file"):
        store_tiling(exported / "model.onnx", curve(9, 0.1), CHOICE)


def test_without_a_manifest_nothing_is_kept(tmp_path):
    """The shipped model has none; a new one beside it would claim to be an export."""
    (tmp_path / "bare.onnx").write_text("x")
    assert load_tiling(tmp_path / "bare.onnx") is None
    with pytest.raises(InferenceError, match="no manifest"):
        store_tiling(tmp_path / "bare.onnx", curve(1.0), CHOICE)


@pytest.mark.parametrize(
    "broken",
    [
        {"curve": {}, "choice": {}},
        {"curve": 3},
        {"curve": {**curve(9, 0.1).to_json(), "halos": [4, 0]}, "choice": {"tile": 128}},
    ],
)
def test_a_broken_measurement_is_none(broken, exported):
    """What was measured is advice: a picture must come out without it."""
    manifest = json.loads((exported / "model.json").read_text())
    manifest["artefacts"][0]["tiling"] = broken
    manifest["artefacts"][1].update(tiling={}, built_from="model.fp16.onnx")
    (exported / "model.json").write_text(json.dumps(manifest))
    assert load_tiling(exported / "model.onnx") is None
    assert load_tiling(exported / "model.fp16.onnx") is None
