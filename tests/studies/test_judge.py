"""The judge of quantised pictures: each figure moves when, and only when, its own fault is there."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from esrgan_deploy._errors import MediaError
from esrgan_deploy._metrics import bicubic_downscale, crop_border, luma, psnr, ssim
from studies.quantisation.judge import Pan, Shown, flicker_of, frames_of, judge, pictures_of, remembered

SCALE = 4


def _scene(height=200, width=240, seed=0):
    """A smooth picture away from black and white, so that a small error never clips."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / a + x / b) for a, b in random.uniform(5, 25, (3, 2))]
    return (128 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def _enlarge(picture):
    return picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def _shown(**options):
    truth = _scene(**options)
    return Shown(name="scene", lr=bicubic_downscale(truth, SCALE), truth=truth)


def _judged(candidate, **options):
    return judge([_shown()], _enlarge, candidate, scale=SCALE, on="set", **options)


def test_equal_outputs_cost_nothing():
    """A judge that finds fault with the reference itself measures its own mistakes."""
    found = _judged(_enlarge, pan=Pan())
    assert found["loss"] == found["ssim_change"] == found["flicker"] == 0.0
    assert found["to_reference"]["bias"] == [0.0, 0.0, 0.0]
    # A PSNR that JSON cannot carry as a number.
    assert json.loads(json.dumps(found, allow_nan=False))["to_reference"]["psnr"] == "inf"


def test_the_loss_is_the_mean_difference_of_psnr_on_luma_without_the_border():
    """With the sign turned, or over RGB, the budget would be held against another number."""
    random = np.random.default_rng(1)
    shown, made, expected = [], {}, []
    for number, (height, width) in enumerate(((80, 96), (64, 64))):
        truth = _scene(height, width, number)
        fine, poor = (
            np.clip(truth + random.integers(-most, most + 1, truth.shape), 0, 255).astype(np.uint8)
            for most in (2, 9)
        )
        # HR pictures are often a little larger than what their LR becomes.
        larger = np.pad(truth, ((0, 2), (0, 1), (0, 0)))
        shown.append(Shown(name=str(number), lr=truth[::SCALE, ::SCALE], truth=larger))
        made[shown[-1].lr.shape] = fine, poor
        aim, before, after = (luma(crop_border(one, SCALE)) for one in (truth, fine, poor))
        expected.append((psnr(aim, before) - psnr(aim, after), ssim(aim, after)))
    nets = [lambda lr, which=which: made[lr.shape][which] for which in (0, 1)]
    found = judge(shown, *nets, scale=SCALE)
    losses, structures = zip(*expected, strict=True)
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-9)
    assert found["loss"] > 5
    assert list(found["losses"].values()) == pytest.approx(losses, abs=1e-9)
    assert found["psnr_y"] == pytest.approx(found["psnr_y_reference"] - found["loss"], abs=1e-9)
    assert found["ssim_y"] == pytest.approx(np.mean(structures), abs=1e-12)
    assert found["ssim_change"] < 0


@pytest.mark.parametrize("shift", [3, -2])
def test_a_shift_of_one_channel_is_reported_with_its_sign_and_does_not_flicker(shift):
    """A tint is the fault that a viewer sees first and PSNR hides."""

    def tinted(picture):
        return (_enlarge(picture) + np.array([0, 0, shift])).astype(np.uint8)

    found = _judged(tinted, pan=Pan())
    assert found["to_reference"]["bias"] == [0.0, 0.0, float(shift)]
    assert found["flicker"] == 0.0


def test_the_one_damaged_tile_is_found():
    """One bad place in a good picture is what the mean over a set cannot show."""

    def damaged(picture):
        out = _enlarge(picture)
        if picture.shape[1] == 50:
            out[70:80, 130:140] ^= 16
        return out

    pictures = [Shown(name="whole", lr=_scene(40, 40)), Shown(name="hurt", lr=_scene(40, 50))]
    found = judge(pictures, _enlarge, damaged, scale=SCALE)
    worst = found["to_reference"]["worst_tile"]
    assert (worst["picture"], worst["y"], worst["x"]) == ("hurt", 64, 128)
    assert found["loss"] is None


@pytest.mark.parametrize(("amplitude", "step"), [(4, 1), (6, 1), (4, 3)])
def test_an_error_that_stays_on_the_screen_while_the_scene_moves_flickers(amplitude, step):
    """Aligned the wrong way, or not at all, a pattern fixed to the pixels would look still."""

    def patterned(picture):
        out = _enlarge(picture)
        out[:, ::2] += np.uint8(amplitude)
        return out

    # One half of the frames has the error, the other has not.
    assert _judged(patterned, pan=Pan(step=step))["flicker"] == pytest.approx(amplitude / 2)


def test_an_error_that_moves_with_the_scene_does_not_flicker():
    """What is painted onto the scene is wrong in every frame alike: no viewer sees it move."""
    pan = Pan(frames=3, step=2, side=40, margin=2)
    scene, noise = _scene(160, 180), np.random.default_rng(3).integers(0, 9, (160, 180, 3), np.uint8)
    fine = [scene[:, 2 * number : 2 * number + 160] for number in range(3)]
    painted = [(scene + noise)[:, 2 * number : 2 * number + 160] for number in range(3)]
    assert flicker_of(fine, painted, scale=SCALE, pan=pan) == 0.0


@pytest.mark.parametrize(("margin", "seen"), [(2, False), (1, True)])
def test_the_margin_hides_what_the_border_of_a_frame_does(margin, seen):
    """Each frame's border is padding to the net: its error is no flicker of the scene."""

    def bordered(picture):
        out = _enlarge(picture)
        out[:, : 2 * SCALE] += np.uint8(8)
        out[: 2 * SCALE, ::2] += np.uint8(8)
        return out

    assert (_judged(bordered, pan=Pan(margin=margin))["flicker"] > 0) == seen


def test_the_frames_of_a_pan_by_the_scale_are_windows_of_one_lr_picture():
    """Frames off by a pixel would make alignment, and so flicker, wrong everywhere."""
    shown = _shown()
    frames = frames_of(shown.truth, SCALE, Pan(frames=3, step=SCALE, side=20, margin=3))
    assert [one.shape for one in frames] == [(20, 20, 3)] * 3
    for earlier, later in itertools.pairwise(frames):
        np.testing.assert_array_equal(earlier[3:-3, 4:-3], later[3:-3, 3:-4])
    # And the window lies in the middle of the picture.
    np.testing.assert_array_equal(frames[0][3:-3, 3:-3], shown.lr[18:32, 22:36])


def test_flicker_is_taken_on_as_many_pictures_as_asked_that_are_large_enough():
    """One small picture in a set is no reason to stop, and a mean over no pixels is no figure."""
    small, calls = _shown(height=128, width=128), []

    def counted(picture):
        calls.append(picture.shape)
        return _enlarge(picture)

    judge([small, _shown(), _shown(seed=1), _shown(seed=2)], _enlarge, counted, scale=SCALE, pan=Pan())
    assert len(calls) == 4 + 2 * Pan().frames
    assert judge([small], _enlarge, _enlarge, scale=SCALE, pan=Pan())["flicker"] is None


def test_a_picture_is_enlarged_once():
    """The reference is the slowest of all, and every candidate asks for the same pictures."""
    calls = []
    once = remembered(lambda picture: calls.append(1) or _enlarge(picture))
    first, second = once(_scene(8, 8)), once(_scene(8, 8))
    once(_scene(8, 8)[:, ::-1])
    # The same bytes in another shape are another picture.
    once(_scene(8, 8).reshape(4, 16, 3))
    assert len(calls) == 3
    np.testing.assert_array_equal(first, second)


def test_a_truth_that_is_too_small_is_refused():
    """Compared by accident with another picture's truth, everything looks bad alike."""
    with pytest.raises(MediaError, match=r"scene becomes \(80, 80\), and its truth is \(70, 80\)"):
        judge([Shown(name="scene", lr=_scene(20, 20), truth=_scene(70, 80))], _enlarge, _enlarge, scale=4)


def test_sets_are_read_in_pairs_or_made_from_hr(tmp_path):
    """LR made otherwise than the benchmark's would make every figure incomparable."""
    for name in ("LR", "HR"):
        (tmp_path / "pairs" / name).mkdir(parents=True)
    Image.fromarray(_scene(67, 75)).save(tmp_path / "plain.png")
    Image.fromarray(_scene(16, 18)).save(tmp_path / "pairs" / "LR" / "a.png")
    Image.fromarray(_scene(64, 72)).save(tmp_path / "pairs" / "HR" / "a.png")
    (paired,), (made,) = pictures_of(tmp_path / "pairs", 4), pictures_of(tmp_path, 4)
    np.testing.assert_array_equal(paired.lr, _scene(16, 18))
    np.testing.assert_array_equal(paired.truth, _scene(64, 72))
    # No multiple of four.
    np.testing.assert_array_equal(made.truth, _scene(67, 75)[:64, :72])
    np.testing.assert_array_equal(made.lr, bicubic_downscale(made.truth, 4))
    for folder in (tmp_path / "pairs" / "none", tmp_path / "plain.png"):
        with pytest.raises(MediaError, match="no folder with pictures"):
            pictures_of(folder, 4)
