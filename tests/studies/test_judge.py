"""The judge of quantised pictures: each figure moves when, and only when, its own fault is there."""

import itertools
import json

import numpy as np
import pytest

from esrgan_deploy._bicubic import bicubic_downscale
from esrgan_deploy._errors import MediaError
from esrgan_deploy._judge import Judge, Pan, Shown, frames_of, judge, remembered
from esrgan_deploy._metrics import crop_border, luma, psnr, ssim

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
    assert found.loss == 0.0
    assert found.ssim_change == 0.0
    assert found.flicker == 0.0
    assert found.to_reference.psnr == float("inf")
    assert found.to_reference.bias == (0.0, 0.0, 0.0)


def test_the_loss_is_the_mean_difference_of_psnr_on_luma_without_the_border():
    """With the sign turned, or over RGB, the budget would be held against another number."""
    random = np.random.default_rng(1)
    truths = [_scene(80, 96, 1), _scene(64, 64, 2)]
    fine = [np.clip(one + random.integers(-2, 3, one.shape), 0, 255).astype(np.uint8) for one in truths]
    poor = [np.clip(one + random.integers(-9, 10, one.shape), 0, 255).astype(np.uint8) for one in truths]
    judged = Judge("set", SCALE)
    for number in (0, 1):
        # HR pictures are often a little larger than what their LR becomes.
        larger = np.pad(truths[number], ((0, 2), (0, 1), (0, 0)))
        judged.add(str(number), fine[number], poor[number], larger)
    found = judged.result()
    cut = [[luma(crop_border(one, 4)) for one in row] for row in zip(truths, fine, poor, strict=True)]
    expected = [psnr(truth, a) - psnr(truth, b) for truth, a, b in cut]
    assert found.loss == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.loss > 5
    assert list(found.losses.values()) == pytest.approx(expected, abs=1e-9)
    assert found.psnr_y == pytest.approx(found.psnr_y_reference - found.loss, abs=1e-9)
    assert found.ssim_y == pytest.approx(np.mean([ssim(truth, b) for truth, _, b in cut]), abs=1e-12)
    assert found.ssim_change < 0


@pytest.mark.parametrize("shift", [3, -2])
def test_a_shift_of_one_channel_is_reported_with_its_sign_and_does_not_flicker(shift):
    """A tint is the fault that a viewer sees first and PSNR hides."""

    def tinted(picture):
        return (_enlarge(picture) + np.array([0, 0, shift])).astype(np.uint8)

    found = _judged(tinted, pan=Pan())
    assert found.to_reference.bias == (0.0, 0.0, float(shift))
    assert found.flicker == 0.0


def test_the_one_damaged_tile_is_found():
    """One bad place in a good picture is what the mean over a set cannot show."""

    def damaged(picture):
        out = _enlarge(picture)
        out[70:80, 130:140] ^= 16
        return out

    found = judge(
        [Shown(name="whole", lr=_scene(40, 40)), Shown(name="hurt", lr=_scene(40, 50))],
        _enlarge,
        lambda picture: damaged(picture) if picture.shape[1] == 50 else _enlarge(picture),
        scale=SCALE,
    )
    worst = found.to_reference.worst_tile
    assert (worst["picture"], worst["y"], worst["x"]) == ("hurt", 64, 128)
    assert worst["psnr"] == pytest.approx(psnr(np.zeros(64 * 64 * 3), 16.0 * (np.arange(64 * 64 * 3) < 300)))
    assert found.loss is None


@pytest.mark.parametrize(("amplitude", "step"), [(4, 1), (6, 1), (4, 3)])
def test_an_error_that_stays_on_the_screen_while_the_scene_moves_flickers(amplitude, step):
    """Aligned the wrong way, or not at all, a pattern fixed to the pixels would look still."""

    def patterned(picture):
        out = _enlarge(picture)
        out[:, ::2] += np.uint8(amplitude)
        return out

    found = _judged(patterned, pan=Pan(step=step))
    # One half of the frames has the error, the other has not.
    assert found.flicker == pytest.approx(amplitude / 2)


def test_an_error_that_moves_with_the_scene_does_not_flicker():
    """What is painted onto the scene is wrong in every frame alike: no viewer sees it move."""
    pan = Pan(frames=3, step=2, side=40, margin=2)
    scene, noise = _scene(160, 180), np.random.default_rng(3).integers(0, 9, (160, 180, 3), np.uint8)
    fine = [scene[:, 2 * number : 2 * number + 160] for number in range(3)]
    painted = [(scene + noise)[:, 2 * number : 2 * number + 160] for number in range(3)]
    judged = Judge("set", SCALE)
    judged.add("scene", fine[0], painted[0])
    judged.add_pan(fine, painted, pan)
    assert judged.result().flicker == 0.0


@pytest.mark.parametrize(("margin", "seen"), [(2, False), (1, True)])
def test_the_margin_hides_what_the_border_of_a_frame_does(margin, seen):
    """Each frame's border is padding to the net: its error is no flicker of the scene."""

    def bordered(picture):
        out = _enlarge(picture)
        out[:, : 2 * SCALE] += np.uint8(8)
        out[: 2 * SCALE, ::2] += np.uint8(8)
        return out

    found = _judged(bordered, pan=Pan(margin=margin))
    assert (found.flicker > 0) == seen


def test_the_frames_of_a_pan_by_the_scale_are_windows_of_one_lr_picture():
    """Frames off by a pixel would make alignment, and so flicker, wrong everywhere."""
    shown = _shown()
    pan = Pan(frames=3, step=SCALE, side=20, margin=3)
    frames = frames_of(shown.truth, SCALE, pan)
    assert [one.shape for one in frames] == [(20, 20, 3)] * 3
    for earlier, later in itertools.pairwise(frames):
        np.testing.assert_array_equal(earlier[3:-3, 4:-3], later[3:-3, 3:-4])
    # And the window lies in the middle of the picture.
    np.testing.assert_array_equal(frames[0][3:-3, 3:-3], shown.lr[18:32, 22:36])


def test_flicker_is_taken_on_as_many_pictures_as_asked():
    """On all of them it would take longer than all the rest."""
    calls = []

    def counted(picture):
        calls.append(picture.shape)
        return _enlarge(picture)

    judge([_shown(), _shown(seed=1), _shown(seed=2)], _enlarge, counted, scale=SCALE, pan=Pan(), panned=2)
    assert len(calls) == 3 + 2 * Pan().frames


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


def test_the_judgement_is_strict_json():
    """A perfect candidate has an infinite PSNR, which JSON cannot carry as a number."""
    found = judge(
        [Shown(name="a", lr=_scene(20, 20), truth=_enlarge(_scene(20, 20)))], _enlarge, _enlarge, scale=4
    )
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["loss"] == 0.0
    assert data["psnr_y"] == "inf"
    assert data["to_reference"]["worst_tile"]["psnr"] == "inf"
    assert data["flicker"] is None


def test_a_truth_that_is_too_small_is_refused():
    """Compared by accident with another picture's truth, everything looks bad alike."""
    with pytest.raises(MediaError, match=r"scene becomes \(80, 80\), and its truth is \(70, 80\)"):
        judge([Shown(name="scene", lr=_scene(20, 20), truth=_scene(70, 80))], _enlarge, _enlarge, scale=4)
    with pytest.raises(MediaError, match="no picture to judge on in Set5"):
        judge([], _enlarge, _enlarge, scale=4, on="Set5")


def test_flicker_is_taken_on_what_is_large_enough_to_pan_over():
    """One small picture in a set is no reason to stop, and a mean over no pixels is no figure."""
    small, large = _shown(height=128, width=128), _shown()
    assert judge([small], _enlarge, _enlarge, scale=4, pan=Pan()).flicker is None
    assert judge([small, large], _enlarge, _enlarge, scale=4, pan=Pan(), panned=1).flicker == 0.0
    judged = Judge("set", SCALE)
    frames = [_enlarge(one) for one in frames_of(small.truth, SCALE, Pan())]
    with pytest.raises(ValueError, match="take a smaller margin"):
        judged.add_pan(frames, frames, Pan())
    with pytest.raises(ValueError, match="side of more than 2 margins"):
        Pan(side=32, margin=16)
