"""Pictures to verify on, drawn here so that they can be shipped with every artefact."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esrgan_deploy._files import replaced_atomically

__all__ = ["fitted_picture", "golden_pictures", "noise_pictures", "save_golden"]

Picture = npt.NDArray[np.uint8]


def golden_pictures(channels: int, multiple: int = 1) -> dict[str, Picture]:
    """Return small pictures that between them hold what goes wrong in low precision.

    Hard edges and thin lines, a slow gradient (where a step shows as a band), texture at several scales, and
    colours at the ends of the range. The same on every machine.

    Args:
        channels: 1 or 3, or whatever the net reads.
        multiple: Sides are rounded up to multiples of this.

    Returns:
        ``(1, H, W, C)`` uint8 by name, with sides of 29 to 37 pixels.
    """
    drawn = {
        "edges": _edges(33, 32),
        "gradient": _gradient(32, 37),
        "texture": _texture(32, 32),
        "saturated": _saturated(29, 32),
    }
    return {name: _fit(picture, channels, multiple) for name, picture in drawn.items()}


def fitted_picture(channels: int, shape: tuple[int, int, int]) -> Picture:
    """Return a drawn picture of a size, ``(N, H, W, C)`` uint8, each of the N turned another way.

    For plans that take none of the sizes of `golden_pictures`, such as those of one fixed size.

    Args:
        channels: 1 or 3, or whatever the net reads.
        shape: ``(N, H, W)``.
    """
    number, height, width = shape
    drawn = _texture(height, width)
    drawn[: height // 2, : width // 2] = _edges(height, width)[: height // 2, : width // 2]
    turned = [np.roll(drawn, n * 7, axis=(0, 1)) for n in range(number)]
    return np.concatenate([_fit(picture, channels, 1) for picture in turned])


def noise_pictures(channels: int, multiple: int = 1) -> dict[str, Picture]:
    """Return one picture of uniform noise, ``(1, 32, 32, C)`` uint8: the widest range of activations."""
    picture = np.random.default_rng(20240229).integers(0, 256, (32, 32, 3), np.uint8)
    return {"noise": _fit(picture, channels, multiple)}


def save_golden(path: Path, pairs: Mapping[str, tuple[Picture, npt.NDArray[np.float32]]]) -> None:
    """Write golden pairs as ``<name>.input`` (1, H, W, C) uint8 and ``<name>.output`` (1, C, H·s, W·s) float32.

    The outputs are PyTorch's, in fp32 and not clipped, so that a plan can be checked where PyTorch is not
    installed.

    Raises:
        OSError: The folder cannot be written.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, (lr, hr) in pairs.items():
        arrays[f"{name}.input"], arrays[f"{name}.output"] = lr, hr
    with replaced_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _edges(height: int, width: int) -> Picture:
    y, x = np.mgrid[:height, :width]
    picture = np.full((height, width, 3), 235, np.uint8)
    picture[(x // 5 + y // 7) % 2 == 0] = (30, 60, 160)
    picture[(x - y) % 11 == 0] = (250, 220, 20)
    picture[np.hypot(y - 20, x - 20) < 6] = (200, 20, 30)
    return picture


def _gradient(height: int, width: int) -> Picture:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    sky = np.stack([90 + 60 * y, 140 + 50 * y + 8 * x, 210 + 30 * y], axis=-1)
    drawn: Picture = np.round(sky).astype(np.uint8)
    return drawn


def _texture(height: int, width: int) -> Picture:
    random = np.random.default_rng(7)
    total = np.zeros((height, width, 3))
    for size in (2, 4, 8, 16, 32):
        grid = random.normal(size=(size + 1, size + 1, 3))
        rows, columns = np.linspace(0, size, height), np.linspace(0, size, width)
        total += (
            _interpolate(_interpolate(grid, rows).transpose(1, 0, 2), columns).transpose(1, 0, 2) / size**0.7
        )
    total = (total - total.min()) / np.ptp(total)
    tint = np.array([150, 200, 110]) * total + np.array([40, 20, 15])
    drawn: Picture = np.round(tint).astype(np.uint8)
    return drawn


def _saturated(height: int, width: int) -> Picture:
    corners = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255]])
    y, x = np.mgrid[:height, :width]
    drawn: Picture = corners[(y // 10 * 2 + x // 11) % 6].astype(np.uint8)
    return drawn


def _interpolate(grid: npt.NDArray[np.float64], places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low = np.minimum(places.astype(int), grid.shape[0] - 2)
    part = (places - low)[:, None, None]
    between: npt.NDArray[np.float64] = grid[low] * (1 - part) + grid[low + 1] * part
    return between


def _fit(picture: Picture, channels: int, multiple: int) -> Picture:
    height, width = picture.shape[:2]
    picture = np.pad(picture, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    if channels != 3:
        picture = np.repeat(picture.mean(axis=2, keepdims=True).round().astype(np.uint8), channels, axis=2)
    return picture[None]
