"""Pictures to calibrate on that are drawn rather than shipped, with what photographs have: occlusion, 1/f, shade."""

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["SCENES", "draw"]

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scene:
    """How dead leaves are painted.

    Attributes:
        leaves: How many.
        smallest: Radius of the smallest, in pixels.
        light: Lowest and highest lightness.
        colour: How far hues are from gray, 0..1.
        texture: Amplitude of 1/f texture and of stripes.
        soft: Width of an edge in pixels, at most.
    """

    leaves: int
    smallest: float
    light: tuple[float, float] = (0.02, 0.98)
    colour: float = 0.25
    texture: float = 0.15
    soft: float = 1.5


_LEAVES = {
    "street": _Scene(leaves=500, smallest=3.0),
    "foliage": _Scene(leaves=1200, smallest=1.5, light=(0.05, 0.7), colour=0.3, texture=0.3),
    "night": _Scene(leaves=350, smallest=3.0, light=(0.0, 0.12), colour=0.4, texture=0.05),
    "market": _Scene(leaves=450, smallest=3.5, light=(0.15, 0.95), colour=1.0, texture=0.1),
    "portrait": _Scene(leaves=120, smallest=9.0, light=(0.1, 0.95), texture=0.06, soft=9.0),
    "ruin": _Scene(leaves=700, smallest=2.0, light=(0.2, 0.85), colour=0.12, texture=0.25),
    "mist": _Scene(leaves=150, smallest=6.0, light=(0.6, 1.0), colour=0.1, texture=0.03, soft=5.0),
    "harbour": _Scene(leaves=450, smallest=3.0, light=(0.0, 1.0), colour=0.45, texture=0.1),
    "dusk": _Scene(leaves=300, smallest=4.0, light=(0.03, 0.45), colour=0.35, texture=0.1, soft=3.0),
}
_GROUND = 40

SCENES = (*_LEAVES, "sky", "cloth", "page")
"""What is drawn, by name."""


def draw(scene: str, size: int = 384) -> npt.NDArray[np.uint8]:
    """Draw a picture, the same on every machine.

    Most are dead leaves (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001): discs and
    polygons whose sizes have a density that falls with the cube cover each other. Each is shaded and carries
    texture with a 1/f spectrum, or stripes. The others are a sky, woven cloth, and lines like those of print.

    Args:
        scene: One of `SCENES`.
        size: Edge in pixels.

    Returns:
        ``(size, size, 3)`` RGB.
    """
    rng = np.random.Generator(np.random.PCG64(SCENES.index(scene)))
    if scene in _LEAVES:
        picture = _dead_leaves(rng, size, _LEAVES[scene])
        if scene == "night":
            _add_lamps(rng, picture)
    else:
        picture = {"sky": _sky, "cloth": _cloth, "page": _page}[scene](rng, size)
    # In doubles the last digits, in which processors differ, are far from what decides a level.
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _dead_leaves(rng: np.random.Generator, size: int, scene: _Scene) -> Array:
    texture = _noise(rng, size, 1.0)
    picture = _colour(rng, scene) + scene.texture * 0.2 * texture[:, :, None] * np.ones(3)
    # Uniform numbers to the power of -1/2 have the density of the cube; the small ones come last, on top.
    radii = np.minimum(scene.smallest / np.sqrt(rng.random(scene.leaves)), size / 3)
    # Large ones besides, so that nothing of the ground is left where only so many are painted.
    ground = size * (0.06 + 0.18 * rng.random(_GROUND))
    for radius in np.sort(np.concatenate([radii, ground]))[::-1]:
        _paint_leaf(rng, picture, texture, float(radius), scene)
    return picture


def _paint_leaf(
    rng: np.random.Generator, picture: Array, texture: Array, radius: float, scene: _Scene
) -> None:
    size = len(picture)
    y, x = rng.random(2) * size
    soft = 1 + (scene.soft - 1) * rng.random()
    rows, columns = _span(y, radius + soft, size), _span(x, radius + soft, size)
    dy = (np.arange(rows.start, rows.stop) - y)[:, None]
    dx = (np.arange(columns.start, columns.stop) - x)[None]
    if rng.random() < 0.5:
        distance = np.sqrt(dy * dy + dx * dx) - radius
    else:
        # A polygon is where all of a few half-planes overlap.
        angles = (np.arange(rng.integers(3, 7)) + rng.random()) * (2 * np.pi / 6) * (1 + rng.random())
        distance = np.sqrt(dy * dy + dx * dx) - radius
        for angle in angles:
            side = np.cos(angle) * dx + np.sin(angle) * dy - radius * (0.3 + 0.6 * rng.random())
            distance = np.maximum(distance, side)
    surface = scene.texture * rng.random() ** 2 * texture[rows, columns]
    angle, slope = rng.random() * 2 * np.pi, 0.3 * rng.standard_normal()
    along = np.cos(angle) * dx + np.sin(angle) * dy
    surface = surface + slope * scene.light[1] * along / radius
    if rng.random() < scene.texture:
        # Fences, roofs and cloth; a soft square wave, whose flanks no machine sees otherwise.
        wave = np.sin(along * (0.4 + 1.6 * rng.random()))
        surface = surface + 0.3 * rng.random() * scene.light[1] * np.clip(4 * wave, -1, 1)
    cover = np.clip(0.5 - distance / soft, 0, 1)[:, :, None]
    place = picture[rows, columns]
    place += cover * (_colour(rng, scene) + surface[:, :, None] - place)


def _colour(rng: np.random.Generator, scene: _Scene) -> Array:
    low, high = scene.light
    light = low + (high - low) * rng.random()
    hue = rng.random(3)
    hue = (hue - hue.min()) / (hue.max() - hue.min())
    # Black and white have no colour: what is saturated stays between them.
    pure = light * (1 - scene.colour) + scene.colour * high * hue
    share = rng.random() ** 0.5
    mixed: Array = np.clip(light + share * (pure - light), 0, 1)
    return mixed


def _add_lamps(rng: np.random.Generator, picture: Array) -> None:
    size = len(picture)
    grid = np.arange(size)
    for _ in range(9):
        y, x = rng.random(2) * size
        square = (grid - y)[:, None] ** 2 + (grid - x)[None] ** 2
        radius = 1.0 + 5 * rng.random() ** 2
        # A lamp and the glow round it.
        glow = np.clip(1.5 - np.sqrt(square) / radius, 0, 1) + 0.25 / (1 + square / (9 * radius**2))
        picture += glow[:, :, None] * (0.6 + 0.4 * rng.random(3))


def _sky(rng: np.random.Generator, size: int) -> Array:
    down = np.linspace(0, 1, size)[:, None, None]
    picture: Array = (1 - down) * np.array([0.18, 0.42, 0.80]) + down * np.array([0.78, 0.86, 0.95])
    clouds = np.clip(0.5 * _noise(rng, size, 1.8) - 0.5, 0, 1)[:, :, None]
    picture = picture + clouds * (np.array([0.99, 0.98, 0.97]) - picture)
    # A ridge in front, and a hint of the noise of a sensor.
    ridge = size * (0.82 + 0.03 * _noise(rng, size, 1.5)[size // 2])
    cover = np.clip(np.arange(size)[:, None] - ridge[None], 0, 1)[:, :, None]
    hill = 0.16 + 0.05 * _noise(rng, size, 0.8)[:, :, None] * np.array([0.8, 1.0, 0.5])
    picture = picture + cover * (hill - picture)
    picture += 0.002 * rng.standard_normal(picture.shape)
    return picture


def _cloth(rng: np.random.Generator, size: int) -> Array:
    picture = np.empty((size, size, 3))
    grid = np.arange(size, dtype=np.float64)
    half = size // 2
    # Four weaves, from coarse to the finest that HR holds, each turned and with folds.
    for number, period in enumerate((19.0, 9.0, 5.3, 2.7)):
        rows, columns = slice(number // 2 * half, number // 2 * half + half), slice(number % 2 * half, None)
        angle = rng.random() * np.pi
        u = np.cos(angle) * grid[:, None] + np.sin(angle) * grid[None]
        v = np.cos(angle) * grid[None] - np.sin(angle) * grid[:, None]
        weave = np.sin(2 * np.pi * u / period) * (1 + np.sin(2 * np.pi * v / (period * (1 + rng.random()))))
        shade = 0.5 + 0.12 * _noise(rng, size, 1.3) + 0.22 * np.clip(weave, -1, 1)
        tint = 0.45 + 0.75 * rng.random(3)
        picture[rows, columns] = (shade[:, :, None] * tint)[rows, columns]
    return picture


def _page(rng: np.random.Generator, size: int) -> Array:
    picture: Array = np.ones((size, size, 1)) * np.array([0.97, 0.96, 0.92])
    picture *= 1 - 0.12 * np.linspace(0, 1, size)[None, :, None]
    y = 10.0
    while y < size - 30:
        height = float(rng.choice([7.0, 9.0, 12.0, 22.0]))
        ink = rng.random(3) * (0.7 if rng.random() < 0.25 else 0.15)
        x = 12.0
        while x < size - 16:
            for _ in range(int(rng.integers(1, 4))):
                _stroke(rng, picture, (y, x), height, ink)
            x += height * (0.75 if rng.random() < 0.82 else 1.5)
        y += height * 1.6
    return picture


def _stroke(
    rng: np.random.Generator, picture: Array, corner: tuple[float, float], height: float, ink: Array
) -> None:
    size = len(picture)
    ends = np.array(corner) + rng.random((2, 2)) * np.array([height, 0.6 * height])
    rows, columns = (_span(corner[axis] + height / 2, height, size) for axis in (0, 1))
    dy = (np.arange(rows.start, rows.stop) - ends[0, 0])[:, None]
    dx = (np.arange(columns.start, columns.stop) - ends[0, 1])[None]
    way = ends[1] - ends[0]
    along = np.clip((dy * way[0] + dx * way[1]) / (way @ way), 0, 1)
    distance = np.sqrt((dy - along * way[0]) ** 2 + (dx - along * way[1]) ** 2)
    cover = np.clip(0.5 + height / 14 - distance, 0, 1)[:, :, None]
    place = picture[rows, columns]
    place += cover * (ink - place)


def _noise(rng: np.random.Generator, size: int, power: float) -> Array:
    """Return ``(size, size)`` with an amplitude of one over the frequency to a power; its deviation is 1."""
    frequency = np.sqrt(np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None] ** 2)
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) / frequency**power, (size, size))
    scaled: Array = noise / noise.std()
    return scaled


def _span(centre: float, radius: float, size: int) -> slice:
    return slice(max(0, int(centre - radius - 1)), min(size, int(centre + radius + 2)))
