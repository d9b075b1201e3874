"""Folders of pictures: what is read, what is skipped, what is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

from esrgan_deploy._errors import TrainingError
from esrgan_deploy._metrics import bicubic_downscale
from esrgan_deploy.training.data import gather


def _gather(folders, cache, paired=(), *, scale=4, least=8):
    said = []
    pairs = gather(folders, paired, cache=cache, scale=scale, least=least, say=said.append)
    return pairs, said


def test_lr_is_the_bicubic_of_the_benchmarks(photographs, cache):
    """With another LR a model learns another task than it is measured on."""
    pairs, _ = _gather([photographs], cache)
    assert [pair.source.name for pair in pairs] == ["cat.png", "astronaut.png", "coffee.png"]
    hr = np.asarray(Image.open(photographs / "animals" / "cat.png"))[:300, :448]
    np.testing.assert_array_equal(np.load(pairs[0].hr), hr)
    np.testing.assert_array_equal(np.load(pairs[0].lr), bicubic_downscale(hr, 4))
    assert pairs[0].size == (75, 112)


def test_lr_made_for_set5_is_the_lr_of_set5_bit_for_bit(assets, tmp_path):
    """The bicubic is right on the pictures that everyone has."""
    pairs, _ = _gather([assets / "images" / "Set5" / "x4" / "HR"], tmp_path)
    assert len(pairs) == 5
    for pair in pairs:
        lr = np.asarray(
            Image.open(assets / "images" / "Set5" / "x4" / "LR" / pair.source.name).convert("RGB")
        )
        np.testing.assert_array_equal(np.load(pair.lr), lr)


def test_unreadable_files_are_listed_and_counted_and_the_rest_is_trained_on(photographs, tmp_path):
    """One broken download among thousands must not end a night's training, nor pass in silence."""
    folder = tmp_path / "pictures"
    shutil.copytree(photographs, folder)
    whole = (folder / "coffee.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not found")
    (folder / "notes.txt").write_text("left out: no picture by its name")
    pairs, said = _gather([folder], tmp_path / "cache")
    assert len(pairs) == 3
    assert sum("skipped, unreadable" in line for line in said) == 2
    assert any("cut.png" in line for line in said)
    assert any("text.jpg" in line for line in said)
    assert said[-1] == "2 of 5 files skipped as unreadable"


def test_a_picture_that_is_too_small_is_refused_by_name(photographs, tmp_path):
    """Padded or dropped in silence it would be trained on what is not there."""
    folder = tmp_path / "pictures"
    shutil.copytree(photographs, folder)
    Image.new("RGB", (40, 31)).save(folder / "tiny.png")
    with pytest.raises(TrainingError, match=r"1 of the HR pictures.*under 32 pixels.*tiny\.png \(28x40\)"):
        _gather([folder], tmp_path / "cache")
    Image.new("RGB", (2, 3)).save(folder / "tiny.png")
    with pytest.raises(TrainingError, match=r"tiny\.png is 3x2, under one LR pixel"):
        _gather([folder], tmp_path / "cache")


def test_a_folder_without_pictures_is_refused(tmp_path):
    """An empty list would fail somewhere in numpy."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"no picture to train on under .*empty \(0 unreadable\)"):
        _gather([tmp_path / "empty"], tmp_path / "cache")
    with pytest.raises(TrainingError, match="none is not a folder"):
        _gather([tmp_path / "none"], tmp_path / "cache")


def test_paired_folders_pair_by_path_whatever_the_suffix(photographs, tmp_path):
    """LR pictures of another camera are used as they are."""
    low = tmp_path / "low"
    (low / "animals").mkdir(parents=True)
    for path in photographs.rglob("*.png"):
        with Image.open(path) as opened:
            small = opened.resize((opened.width // 2, opened.height // 2), Image.Resampling.BOX)
        small.save(low / path.relative_to(photographs).with_suffix(".bmp"))
    pairs, _ = _gather([photographs], tmp_path / "cache", [low], scale=2)
    np.testing.assert_array_equal(np.load(pairs[0].lr), np.asarray(Image.open(low / "animals" / "cat.bmp")))
    assert np.load(pairs[0].hr).shape == (300, 450, 3)
    (low / "coffee.bmp").unlink()
    with pytest.raises(TrainingError, match=r"coffee\.png has no LR picture: .*low holds no coffee\.\*"):
        _gather([photographs], tmp_path / "cache", [low], scale=2)


def test_a_pair_of_other_sizes_is_refused(photographs, tmp_path):
    """Shifted against each other they would teach a blur."""
    low = tmp_path / "low"
    shutil.copytree(photographs, low)
    with pytest.raises(
        TrainingError, match=r"cat\.png is 300x451 and .*cat\.png is 300x451; x4 needs 1200x1804"
    ):
        _gather([photographs], tmp_path / "cache", [low])
    with pytest.raises(TrainingError, match="lr names 2 folders and hr 1"):
        _gather([photographs], tmp_path / "cache", [low, low])


def test_a_picture_is_decoded_once_and_again_when_it_changes(photographs, tmp_path):
    """Decoding is what starves a GPU; an old picture in its place would be worse."""
    folder, cache = tmp_path / "pictures", tmp_path / "cache"
    shutil.copytree(photographs, folder)
    first, _ = _gather([folder], cache)
    stamps = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    second, _ = _gather([folder], cache)
    assert first == second
    assert stamps == {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / "coffee.png")
    third, _ = _gather([folder], cache)
    assert (np.load(third[2].hr) == (1, 2, 3)).all()
