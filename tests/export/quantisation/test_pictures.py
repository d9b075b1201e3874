"""What calibration sees, and what it is judged on."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from esrgan_deploy._errors import ExportError, MediaError
from esrgan_deploy._metrics import bicubic_downscale
from esrgan_deploy.export.quantisation.calibration import (
    SCENES,
    CalibrationPictures,
    calibration_pictures,
    draw,
)
from esrgan_deploy.export.quantisation.calibration import _crops as _candidates
from esrgan_deploy.export.quantisation.calibration._crops import choose, features

Pixels = npt.NDArray[np.uint8]


def make(folder: Path | None, **changes: int) -> CalibrationPictures:
    wanted = {"channels": 3, "scale": 2, "multiple": 1, "crop": 32} | changes
    return calibration_pictures(folder, **wanted)


def similar(seed: int) -> Pixels:
    """A gray picture of middle contrast and texture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(90, 166, (16, 16, 1), np.uint8)
    return np.kron(coarse, np.ones((6, 6, 3), np.uint8)) + rng.integers(0, 8, (96, 96, 3), np.uint8)


def save(folder: Path, name: str, pixels: Pixels) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures alike."""
    for seed in range(12):
        save(tmp_path / "in", f"{seed}.png", similar(seed))
    return tmp_path / "in"


def test_one_of_each_kind_is_seen_among_thirty_alike(tmp_path: Path) -> None:
    """A net would meet its darkest, most saturated, flattest and busiest pictures only after calibration."""
    for seed in range(30):
        save(tmp_path, f"{seed}.png", similar(seed))
    rng = np.random.default_rng(0)
    special = {
        "dark": rng.integers(0, 12, (96, 96, 3), np.uint8),
        "saturated": np.full((96, 96, 3), (250, 10, 5), np.uint8) + rng.integers(0, 5, (96, 96, 3), np.uint8),
        "flat": np.full((96, 96, 3), 128, np.uint8),
        "textured": rng.integers(0, 2, (96, 96, 1), np.uint8).repeat(3, 2) * 180 + 40,
    }
    for name, pixels in special.items():
        save(tmp_path, f"{name}.png", pixels)
    found = make(tmp_path, fit=8)
    assert len(found.fit) == 8
    for name, pixels in special.items():
        lr = bicubic_downscale(pixels, 2)
        # By mean and spread: crops are made of their own HR crop, whose border differs.
        near = [abs(crop.mean() - lr.mean()) < 3 and abs(crop.std() - lr.std()) < 6 for crop in found.fit]
        assert any(near), name
        assert f"{name}.png" in found.sources


def test_no_picture_is_on_both_sides(folder: Path) -> None:
    """A net judged on what it was calibrated on looks better than it is."""
    for path in folder.iterdir():
        number = int(path.stem)
        # The red of a picture says which it is, in every crop.
        pixels = similar(number)
        pixels[..., 0] = 10 + 20 * number
        save(folder, path.name, pixels)
    found = make(folder)
    fitted = {int(crop[..., 0].mean() / 20) for crop in found.fit}
    held = {int(pair.lr[..., 0].mean() / 20) for pair in found.held}
    assert len(held) == 3
    assert len(fitted) == 9
    assert not fitted & held
    assert {pair.name.split(".")[0] for pair in found.held} == {str(number) for number in held}


def test_held_crops_are_made_of_their_truth(folder: Path) -> None:
    """A truth that is shifted against its LR picture loses decibels that no quantisation lost."""
    found = make(folder, scale=3, multiple=2, crop=27)
    for pair in found.held:
        assert pair.lr.shape == (1, 26, 26, 3)
        assert pair.hr.shape == (1, 78, 78, 3)
        assert np.array_equal(bicubic_downscale(pair.hr[0], 3), pair.lr[0])
        name, place = pair.name.split(" at ")
        top, left = (3 * int(number) for number in place.split(","))
        whole = np.asarray(Image.open(folder / name))
        assert np.array_equal(whole[top : top + 78, left : left + 78], pair.hr[0])


def test_names_and_folders_change_nothing(folder: Path, tmp_path: Path) -> None:
    """Calibration would be done again, with other scales, because files were renamed."""
    first = make(folder)
    for number, path in enumerate(sorted(folder.iterdir(), key=lambda path: -int(path.stem))):
        target = tmp_path / "other" / ("deep" if number % 2 else ".") / f"{number:03d}.PNG"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    # Once more, and in another format.
    Image.open(folder / "3.png").save(tmp_path / "other" / "again.bmp")
    second = make(tmp_path / "other")
    assert second.digest == first.digest
    assert "1 there twice" in second.description
    assert all(np.array_equal(one, two) for one, two in zip(first.fit, second.fit, strict=True))


def test_another_sample_is_another_digest(folder: Path) -> None:
    """Scales would be reused after a picture was exchanged."""
    first = make(folder).digest
    assert make(folder).digest == first
    pixels = similar(5)
    pixels[0:2, 0:2] = 0
    save(folder, "5.png", pixels)
    assert make(folder).digest != first
    assert make(folder, crop=30).digest != make(folder).digest


def test_a_single_picture_is_divided_into_halves(tmp_path: Path) -> None:
    """One picture would be seen and judged on with the same pixels."""
    pixels = np.hstack([np.full((64, 64, 3), 50, np.uint8), np.full((64, 66, 3), 200, np.uint8)])
    pixels[::3] += 9
    save(tmp_path, "one.png", pixels)
    found = make(tmp_path)
    fitted, held = ({int(crop.mean() > 125) for crop in crops} for crops in (
        found.fit, [pair.hr for pair in found.held]))  # fmt: skip
    assert len(fitted) == len(held) == 1
    assert fitted != held
    assert found.sources == ("one.png",)


def test_what_cannot_be_used_is_counted_and_left_out(folder: Path) -> None:
    """One damaged file in a folder of thousands would stop the export."""
    whole = (folder / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture", encoding="utf-8")
    (folder / "empty.webp").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at", encoding="utf-8")
    save(folder, "small.png", similar(50)[:46])
    found = make(folder)
    assert "left out: 3 unreadable, 1 under 24 LR pixels a side" in found.description
    assert not {"broken.png", "small.png"} & set(found.sources)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_sample_is_taken(tmp_path: Path, mode: str, channels: int) -> None:
    """A folder of scans or of pictures with transparency would be refused."""
    for seed in range(2):
        picture = Image.fromarray(similar(seed))
        if mode == "I;16":
            picture = Image.fromarray(similar(seed)[..., 1].astype(np.uint16) * 257)
        elif mode != "RGB":
            picture = picture.convert(mode)
        picture.save(tmp_path / f"{seed}.png")
    found = make(tmp_path, channels=channels)
    crops = (*found.fit, *(pair.lr for pair in found.held))
    assert {(crop.shape[3], crop.dtype.name) for crop in crops} == {(channels, "uint8")}
    if mode != "1":
        assert 100 < np.mean([crop.mean() for crop in crops]) < 160


def test_luma_is_what_pillow_makes_of_colours(tmp_path: Path) -> None:
    """A net for gray pictures would be calibrated on one channel of colours."""
    drawn = draw("market", 96)
    save(tmp_path, "one.png", drawn[:, :48])
    save(tmp_path, "two.png", drawn[:, 48:])
    found = make(tmp_path, channels=1, scale=1, crop=48)
    whole = np.asarray(Image.fromarray(drawn).convert("L"))
    pair = found.held[0]
    left = 0 if pair.name.startswith("one") else 48
    top = int(pair.name.split(" at ")[1].split(",")[0])
    assert np.array_equal(pair.hr[0, :, :, 0], whole[top : top + 48, left : left + 48])


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "unreadable", "too small", "narrow"])
def test_nothing_to_calibrate_on_is_refused(tmp_path: Path, kind: str) -> None:
    """Scales would be made up, or the export end in a traceback."""
    path = tmp_path / "in"
    if kind == "file":
        save(tmp_path, "x.png", similar(0))
        path = tmp_path / "x.png"
    elif kind != "missing":
        path.mkdir()
    if kind == "unreadable":
        (path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    elif kind == "too small":
        save(path, "a.png", similar(0)[:40, :40])
    elif kind == "narrow":
        save(path, "a.png", similar(0)[:, :94])
    with pytest.raises(MediaError, match="--calibration") as caught:
        make(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_net_of_other_channels_is_refused(folder: Path) -> None:
    """Pictures would be cut into channels that the net does not mean."""
    with pytest.raises(ExportError, match="4 channels"):
        make(folder, channels=4)


def test_a_large_folder_is_read_in_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a hundred thousand photographs would be decoded to the end."""
    monkeypatch.setattr(_candidates, "MOST_PICTURES", 5)
    sources, beyond = _candidates.find(folder)
    assert (len(sources), beyond) == (5, 7)
    sizes = sorted(path.stat().st_size for path in folder.iterdir())
    chosen = sorted((folder / source.name).stat().st_size for source in sources)
    assert (chosen[0], chosen[-1]) == (sizes[0], sizes[-1])


def test_crops_of_one_picture_are_bounded_and_reach_its_corners() -> None:
    """One panorama would fill the memory with crops, or its right end never be seen."""
    cutting = _candidates.Cutting(channels=3, scale=2, multiple=2, crop=32)
    boxes = cutting.boxes(np.zeros((200, 4000, 3), np.uint8), 20)
    assert 10 <= len(boxes) <= 20
    tops, lefts = {box[0] for box in boxes}, {box[1] for box in boxes}
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 100 - 32, 0, 2000 - 32)
    assert {box[2:] for box in boxes} == {(32, 32)}


def test_the_farthest_is_chosen_next() -> None:
    """Crops would be chosen that look like those that are there already."""
    seen = np.zeros((6, 8))
    seen[:, 0] = [0.0, 1.0, 0.5, 0.49, 0.52, 0.9]
    # 0 and 1 are the extremes of luma; of the rest 0.5 is the farthest from both, then 0.9.
    assert choose(seen, 4) == [0, 1, 2, 5]
    assert choose(np.zeros((3, 8)), 3) == [0]


def test_features_tell_hues_and_texture_apart() -> None:
    """Red and green of the same lightness would count as the same picture."""
    red, green = (np.full((8, 8, 3), colour, np.uint8) for colour in ((200, 50, 50), (50, 126, 50)))
    assert abs(features(red)[0] - features(green)[0]) < 0.01
    assert features(red)[3] > 0.5 > -0.5 > features(green)[3]
    checks = np.indices((8, 8)).sum(axis=0)[:, :, None].astype(np.uint8) % 2 * 100
    assert features(checks)[5] > features(red)[5] == 0.0
    # One channel: a step of 100 both ways.
    assert features(checks)[5] == pytest.approx(np.sqrt(200) / 6)


def test_drawn_pictures_ship_and_are_diverse() -> None:
    """Without photographs a net would be calibrated on pictures that are all of one kind."""
    found = make(None, scale=4, crop=64)
    assert len(found.fit) == 32
    assert len(found.held) == 12
    assert {pair.lr.shape for pair in found.held} == {(1, 64, 64, 3)}
    assert "drawn" in found.description
    assert "photographs" in found.description
    seen = np.array([features(crop[0]) for crop in found.fit])
    assert seen[:, 0].min() < 0.1
    assert seen[:, 0].max() > 0.8
    assert seen[:, 2].max() > 0.9
    assert seen[:, 5].min() < 0.3
    assert seen[:, 5].max() > 1.0


def test_drawn_pictures_fall_off_with_frequency_as_photographs_do() -> None:
    """White noise or flat colour would stand in for photographs, whose spectrum falls with the frequency."""
    pictures = [draw(scene).mean(axis=2) for scene in SCENES]
    for scene, picture in zip(SCENES, pictures, strict=True):
        assert picture.shape == (384, 384)
        window = np.hanning(384)
        power = np.abs(np.fft.rfft2((picture - picture.mean()) * window[:, None] * window)) ** 2
        radius = np.hypot(np.fft.fftfreq(384)[:, None], np.fft.rfftfreq(384))
        bands = [power[(radius > low) & (radius < 2 * low)].mean() for low in (0.02, 0.04, 0.08, 0.16)]
        slope = np.polyfit(np.log([0.02, 0.04, 0.08, 0.16]), np.log(bands), 1)[0]
        # Photographs: about -2; a weave and print have peaks.
        assert -4.5 < slope < (0 if scene in ("cloth", "page") else -1.2), (scene, slope)


def test_a_scene_is_the_same_each_time() -> None:
    """The digest of what calibrated a net would differ from run to run."""
    assert np.array_equal(draw("night", 128), draw("night", 128))
    assert not np.array_equal(draw("night", 128), draw("dusk", 128))


def test_photographs_of_the_material(assets: Path) -> None:
    """A real folder of photographs would not be usable as it is."""
    found = make(assets / "images" / "CLIC2025", scale=4, crop=64)
    assert len(found.fit) == 32
    assert len(found.held) == 12
