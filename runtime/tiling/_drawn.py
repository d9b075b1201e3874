"""Pictures that are drawn rather than shipped: occluding shapes with edges and texture, as photographs have them."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["drawn_picture"]

Array = npt.NDArray[Any]


def drawn_picture(seed: int, size: int = 288) -> npt.NDArray[np.uint8]:
    """Draw a picture that a net treats as it treats a photograph; the same seed gives the same picture.

    Dead leaves (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001): discs and boxes of sizes
    whose density falls with the cube cover each other, so that edges occur at every scale. Each carries noise with a
    1/f spectrum or stripes, and a few thin lines cross them.

    Args:
        seed: Which picture.
        size: Its edge in pixels.

    Returns:
        ``(size, size, 3)`` RGB.
    """
    rng = np.random.default_rng(seed)
    texture = _pink_noise(rng, size)
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = rng.random(3) + 0.15 * texture[:, :, None]
    # Uniform numbers to the power of -1/2 have the density of the cube; the small ones come last, on top.
    radii = np.sort(np.minimum(2.5 / np.sqrt(rng.random(size * 3)), size / 4))[::-1]
    for radius in radii:
        _paint_leaf(rng, picture, texture, float(radius))
    for _ in range(size // 24):
        _paint_line(rng, picture)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _paint_leaf(rng: np.random.Generator, picture: Array, texture: Array, radius: float) -> None:
    size = len(picture)
    y, x = rng.random(2) * size
    rows, columns = _box(y, radius, size), _box(x, radius, size)
    dy, dx = _grid(rows, y), _grid(columns, x).T
    angle = rng.random() * np.pi
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    if rng.random() < 0.5:
        distance = np.hypot(u, v) - radius
    else:
        distance = np.maximum(np.abs(u) - radius * 0.7, np.abs(v) - radius * (0.1 + 0.6 * rng.random()))
    surface = (0.05 + 0.3 * rng.random() ** 2) * texture[rows, columns]
    if rng.random() < 0.4:
        # Fences, roofs and cloth, down to a period of two pixels: what nets are most at odds with.
        surface = surface + 0.5 * rng.random() * np.sign(np.sin(u * (0.5 + 2.6 * rng.random())))
    # Colours of one thing differ in lightness more than in hue.
    colour = np.clip(rng.random() + 0.15 * rng.standard_normal(3), 0, 1)
    cover = np.clip(0.5 - distance, 0, 1)[:, :, None]
    place = picture[rows, columns]
    place += cover * (colour + surface[:, :, None] - place)


def _paint_line(rng: np.random.Generator, picture: Array) -> None:
    size = len(picture)
    y, x = rng.random(2) * size
    angle = rng.random() * np.pi
    distance = np.abs(np.cos(angle) * _grid(slice(0, size), y) - np.sin(angle) * _grid(slice(0, size), x).T)
    cover = np.clip(0.5 + 1.5 * rng.random() - distance, 0, 1)[:, :, None]
    picture += cover * (np.float32(rng.random() > 0.5) - picture)


def _pink_noise(rng: np.random.Generator, size: int) -> Array:
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) / frequency, (size, size))
    scaled: Array = (noise / noise.std()).astype(np.float32)
    return scaled


def _box(centre: float, radius: float, size: int) -> slice:
    # Half again as much: the corner of a turned box lies farther out than its side.
    return slice(max(0, int(centre - 1.5 * radius - 1)), min(size, int(centre + 1.5 * radius + 2)))


def _grid(span: slice, centre: float) -> Array:
    grid: Array = (np.arange(span.start, span.stop, dtype=np.float32) - np.float32(centre))[:, None]
    return grid
