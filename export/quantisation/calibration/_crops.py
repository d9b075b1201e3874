"""Crops of photographs to calibrate on: where to take them, and which of them cover the range."""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import MediaError
from esrgan_deploy._files import PICTURES, picture_files
from esrgan_deploy._metrics import bicubic_downscale
from esrgan_deploy.runtime.pictures import read_picture

__all__ = [
    "LEAST_SIDE",
    "MOST_PICTURES",
    "Cutting",
    "Look",
    "PictureSource",
    "View",
    "choose",
    "extremes",
    "features",
    "find",
    "look_at",
]


Array = npt.NDArray[np.float64]

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Top, left, height and width in LR pixels."""
LEAST_SIDE = 24
MOST_PICTURES = 200
MOST_CROPS = 4096
MOST_CROPS_OF_ONE = 64
MOST_PIXELS = 2**26
"""Larger pictures are left out: each is decoded whole."""


def choose(seen: Array, count: int) -> list[int]:
    """Choose crops for coverage: the extremes first, then each the farthest from all that are chosen.

    The farthest point is within a factor of two of the best set of centres (Gonzalez, "Clustering to minimize
    the maximum intercluster distance", 1985). Crops whose features are all the same count once.

    Args:
        seen: ``(N, F)``, the `features` of each crop.
        count: How many to choose at most.

    Returns:
        Their numbers, in the order in which they were chosen.
    """
    chosen = extremes(seen)[:count]
    distance = np.min([_distances(seen, number) for number in chosen], axis=0)
    while len(chosen) < count:
        farthest = int(np.argmax(distance))
        if distance[farthest] == 0.0:
            break
        chosen.append(farthest)
        distance = np.minimum(distance, _distances(seen, farthest))
    return chosen


def extremes(seen: Array) -> list[int]:
    """Return the darkest, the brightest, the most saturated, the flattest and the most textured crop, each once."""
    luma, saturation, texture = seen[:, 0], seen[:, 2], seen[:, 5]
    found = (luma.argmin(), luma.argmax(), saturation.argmax(), texture.argmin(), texture.argmax())
    return list(dict.fromkeys(int(number) for number in found))


def features(crop: npt.NDArray[np.uint8]) -> Sequence[float]:
    """Describe a crop in eight numbers, each about 0 to 1.

    Sums are of whole numbers, so that every machine finds the same ones.

    Args:
        crop: ``(H, W, C)`` of one channel or three.

    Returns:
        Mean luma; its standard deviation; saturation; two numbers of hue (red against green, blue against
        yellow); texture (mean step between neighbours); darkest and brightest sample.
    """
    samples: npt.NDArray[Any] = crop.astype(np.int64)
    red, green, blue = (samples[..., min(number, crop.shape[2] - 1)] for number in range(3))
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    count = luma.size
    total = int(luma.sum())
    variance = (count * int((luma**2).sum()) - total**2) / count**2
    steps = np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()
    return (
        total / count / 255,
        math.sqrt(variance) / 64,
        float((samples.max(axis=2) - samples.min(axis=2)).mean()) / 128,
        float((red - green).mean()) / 128,
        float((2 * blue - red - green).mean()) / 256,
        # Eyes and nets tell 1 from 4 as well as 16 from 25.
        math.sqrt(float(steps)) / 6,
        int(luma.min()) / 510,
        int(luma.max()) / 510,
    )


def _distances(seen: Array, number: int) -> Array:
    squares: Array = ((seen - seen[number]) ** 2).sum(axis=1)
    return squares


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureSource:
    """A picture that can be had again.

    Attributes:
        name: Within its folder.
        load: Returns ``(H, W)`` or ``(H, W, C)`` uint8 or uint16; raises MediaError.
    """

    name: str
    load: Callable[[], npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutting:
    """How crops are cut; see `calibration_pictures` for what each number means."""

    channels: int
    scale: int
    multiple: int
    crop: int

    def hr(self, source: PictureSource) -> Pixels:
        """Return a picture as ``(H, W, C)`` uint8, each side a multiple of ``scale * multiple``."""
        pixels = _of_channels(source.load(), self.channels)
        step = self.scale * self.multiple
        height, width = (side // step * step for side in pixels.shape[:2])
        return pixels[:height, :width]

    def boxes(self, hr: Pixels, most: int) -> list[Box]:
        """Return crops on a grid of about half their size; none of a picture that is too small."""
        sides = [side // self.scale for side in hr.shape[:2]]
        height, width = (min(self.crop, side) // self.multiple * self.multiple for side in sides)
        if min(height, width) < LEAST_SIDE:
            return []
        counts = [1 + -(-2 * (side - own) // own) for side, own in zip(sides, (height, width), strict=True)]
        while counts[0] * counts[1] > most:
            counts[counts.index(max(counts))] -= 1
        tops = _spread(sides[0] - height, counts[0])
        lefts = _spread(sides[1] - width, counts[1])
        return [(top, left, height, width) for top, left in itertools.product(tops, lefts)]

    def pair(self, hr: Pixels, box: Box) -> tuple[Pixels, Pixels]:
        """Return a crop in LR, which is made of the crop alone, and in HR: ``(1, H, W, C)`` each."""
        top, left, height, width = (self.scale * number for number in box)
        large = np.ascontiguousarray(hr[top : top + height, left : left + width])
        return np.ascontiguousarray(bicubic_downscale(large, self.scale))[None], large[None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A picture as its crops.

    Attributes:
        source: Where it is from.
        digest: SHA-256 of its samples.
        boxes: Where the crops lie.
        crops: In LR, ``(1, H, W, C)`` uint8 each.
        features: Of each crop, ``(N, F)``.
    """

    source: PictureSource
    digest: str
    boxes: Sequence[Box]
    crops: Sequence[Pixels]
    features: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What was found: the pictures by their digests, and in words what was left out."""

    views: Sequence[View]
    left_out: tuple[str, ...]


def look_at(sources: Sequence[PictureSource], cutting: Cutting, *, left_out: Iterable[str] = ()) -> Look:
    """Cut every picture; those that cannot be read, are too small or are there already are counted."""
    most = max(1, min(MOST_CROPS_OF_ONE, MOST_CROPS // max(len(sources), 1)))
    unreadable = small = 0
    views: dict[str, View] = {}
    for source in sources:
        try:
            hr = cutting.hr(source)
        except MediaError:
            unreadable += 1
            continue
        boxes = cutting.boxes(hr, most)
        if not boxes:
            small += 1
            continue
        digest = hashlib.sha256(repr(hr.shape).encode() + hr.tobytes()).hexdigest()
        if digest in views:
            continue
        crops = [cutting.pair(hr, box)[0] for box in boxes]
        seen = np.array([features(crop[0]) for crop in crops])
        views[digest] = View(source=source, digest=digest, boxes=boxes, crops=crops, features=seen)
    twice = len(sources) - unreadable - small - len(views)
    counts = {"unreadable": unreadable, f"under {LEAST_SIDE} LR pixels a side": small, "there twice": twice}
    words = tuple(f"{count} {why}" for why, count in counts.items() if count)
    return Look(views=[views[digest] for digest in sorted(views)], left_out=(*left_out, *words))


def find(folder: Path) -> tuple[list[PictureSource], int]:
    """Find the pictures under a folder; of more than 200, those evenly spread over the sizes of their files.

    Returns:
        The pictures, and how many there were beyond them.

    Raises:
        MediaError: It is not a folder.
    """
    if not folder.is_dir():
        raise MediaError(
            f"{folder} is not a folder; --calibration takes a folder of pictures ({', '.join(PICTURES)}), or "
            "leave it away for the pictures that ship"
        )
    paths = picture_files(folder, deep=True)
    beyond = max(0, len(paths) - MOST_PICTURES)
    if beyond:
        # By size, and not by name, so that what is chosen depends on what the files hold.
        paths.sort(key=lambda path: path.stat().st_size)
        paths = [paths[number] for number in _spread(len(paths) - 1, MOST_PICTURES)]
    return [
        PictureSource(name=path.relative_to(folder).as_posix(), load=functools.partial(_read, path))
        for path in paths
    ], beyond


def _read(path: Path) -> npt.NDArray[Any]:
    return read_picture(path, max_pixels=MOST_PIXELS).pixels


def _of_channels(pixels: npt.NDArray[Any], channels: int) -> Pixels:
    cube = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if cube.shape[2] in (2, 4):
        cube = cube[:, :, :-1]
    if cube.dtype == np.uint16:
        cube = (cube >> 8).astype(np.uint8)
    eight: Pixels = cube.astype(np.uint8, copy=False)
    if channels == eight.shape[2]:
        return eight
    if channels == 3:
        return np.repeat(eight, 3, axis=2)
    # ITU-R BT.601, as Pillow rounds it.
    luma = (eight.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32) + 32768) >> 16
    return luma.astype(np.uint8)[:, :, None]


def _spread(last: int, count: int) -> list[int]:
    # From 0 to the last in even steps; the middle where there is but one.
    if count == 1:
        return [last // 2]
    return [number * last // (count - 1) for number in range(count)]
