"""The model that ships is a trained one, and its two files are one net."""

import dataclasses
from importlib import resources

import numpy as np
import pytest
import torch

from esrgan_deploy import Upscaler
from esrgan_deploy._metrics import bicubic_downscale, crop_border, luma, psnr
from esrgan_deploy._parity import planar
from esrgan_deploy.export import load_checkpoint
from esrgan_deploy.export.proof import golden_pictures, run, session_of

MODELS = resources.files("esrgan_deploy.models")


def test_graph_and_weights_are_one_net():
    """Trained anew and only half put in place, the quick start would verify another model than it runs."""
    with resources.as_file(MODELS / "default.safetensors") as path:
        checkpoint = load_checkpoint(path)
    module = checkpoint.module()
    with resources.as_file(MODELS / "default.onnx") as path:
        session = session_of(path)
    for picture in golden_pictures(3).values():
        expected = module(torch.from_numpy(planar(picture))).numpy()
        # The 0.2 of the blocks is folded before the weights are rounded to fp16 for storage.
        np.testing.assert_allclose(run(session, planar(picture))[0], expected, atol=1e-3)


def test_both_files_fit_the_wheel():
    """Two megabytes is what the default model may weigh."""
    for name in ("default.safetensors", "default.onnx"):
        assert 100_000 < len((MODELS / name).read_bytes()) < 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "chelsea.png"])
def test_it_beats_bicubic_on_pictures_that_it_never_saw(name):
    """Random weights, or a channel order mixed up, would pass every test of parity."""
    image = pytest.importorskip("PIL.Image")
    path = resources.files("skimage") / "data" / name
    if not path.is_file():
        pytest.skip(f"this scikit-image does not ship {name}")
    with resources.as_file(path) as file, image.open(file) as opened:
        hr = np.asarray(opened.convert("RGB"))
    hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
    lr = bicubic_downscale(hr, 4)
    bicubic = np.asarray(image.fromarray(lr).resize(hr.shape[1::-1], image.Resampling.BICUBIC))
    with Upscaler() as up:
        ours = up.upscale(lr)

    def quality(picture):
        return psnr(luma(crop_border(hr, 4)), luma(crop_border(picture, 4)))

    assert quality(ours) > quality(bicubic) + 0.5


@pytest.mark.slow
def test_its_recipe_runs_and_makes_a_net_of_its_shape(fork, tmp_path):
    """The card says how the model was made; the command in it has to work, in a folder with those names."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for folder in ("Kodak24", "CID22/training", "CLIC2025", "Set5/x4/HR", "Set5/x4/LR"):
        (tmp_path / folder).mkdir(parents=True)
        side = 32 if folder.endswith("LR") else 128
        picture = rng.integers(0, 256, (side, side, 3), np.uint8)
        image.fromarray(picture).save(tmp_path / folder / "picture.png")
    recipe = resources.files("esrgan_deploy.training") / "recipes" / "default_psnr.yaml"
    (tmp_path / "default_psnr.yaml").write_text(recipe.read_text())
    command = ["default_psnr.yaml", "--output", "psnr", "--steps", "2"]
    done = fork("esrgan_deploy.training._cli", command, cwd=tmp_path)
    assert done.wait() == 0, done.stderr
    made = load_checkpoint(tmp_path / "psnr" / "model.safetensors").spec
    with resources.as_file(MODELS / "default.safetensors") as path:
        shipped = load_checkpoint(path).spec
    assert dataclasses.replace(made, source_sha256=shipped.source_sha256) == shipped
