"""Photographs that a dependency ships, and a training small enough for a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esrgan_deploy.training import TrainConfig, read_config


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of three HR photographs, one of them in a subfolder."""
    import skimage
    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    (folder / "animals").mkdir()
    for name, picture in (
        ("astronaut.png", skimage.data.astronaut()),
        ("coffee.png", skimage.data.coffee()),
        ("animals/cat.png", skimage.data.chelsea()),
    ):
        Image.fromarray(picture).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Name a folder where the photographs are decoded once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small(photographs: Path, cache: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Make the configuration of a training of seconds; keys can be changed."""

    def make(**keys: Any) -> TrainConfig:
        given: dict[str, Any] = {
            "output": tmp_path / "run", "hr": [photographs], "cache": cache, "features": 8, "blocks": 1,
            "growth": 4, "steps": 6, "batch": 4, "crop": 8, "learning_rate": 1e-3, "log_every": 1,
            "save_every": 3, "discriminator_features": 4,
        }  # fmt: skip
        return read_config(None, given | keys)

    return make


@pytest.fixture(scope="session")
def benchmark_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with HR and LR of one picture that is in no training."""
    import skimage
    from PIL import Image

    from esrgan_deploy._metrics import bicubic_downscale

    folder = tmp_path_factory.mktemp("benchmark")
    hr = np.ascontiguousarray(skimage.data.rocket()[240:368, 260:420])
    for name, picture in (("HR", hr), ("LR", bicubic_downscale(hr, 4))):
        (folder / name).mkdir()
        Image.fromarray(picture).save(folder / name / "rocket.png")
    return folder
