"""A folder of pictures and a model for jobs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrgan_deploy.runtime import Upscaler


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder in which the test runs, with four pictures in ``in`` and one damaged."""
    monkeypatch.chdir(tmp_path)
    draw("in/a.png", "in/b.png", "in/sub/c.png", "in/sub/d.bmp")
    Path("in/bad.png").write_bytes(b"no picture")
    return tmp_path


def draw(*names: str, seed: int = 0) -> None:
    """Write pictures of noise."""
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng((seed, number))
        Image.fromarray(rng.integers(0, 256, (4 + number, 6, 3), np.uint8)).save(name)


@pytest.fixture
def picture() -> Callable[..., None]:
    """Write pictures of noise: ``picture("a.png", seed=3)``."""
    return draw


@pytest.fixture
def up(here, make) -> Iterator[Upscaler]:
    """An Upscaler whose pixels become squares."""
    with Upscaler(make("nearest", scale=2), threads=1) as upscaler:
        yield upscaler
