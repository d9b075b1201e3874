"""What a net is calibrated on, and what it is judged on: crops, never of the same picture."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import ExportError, MediaError
from esrgan_deploy._files import PICTURES
from esrgan_deploy.export.quantisation.calibration._crops import (
    LEAST_SIDE,
    MOST_PICTURES,
    Cutting,
    Look,
    PictureSource,
    View,
    choose,
    extremes,
    find,
    look_at,
)
from esrgan_deploy.export.quantisation.calibration._drawn import SCENES, draw

__all__ = ["CalibrationPictures", "calibration_pictures"]

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeldPair:
    """A crop with its truth.

    Attributes:
        name: The picture, and the crop's top and left in LR pixels.
        lr: ``(1, H, W, C)`` uint8.
        hr: ``(1, H·scale, W·scale, C)`` uint8, which ``lr`` was made of.
    """

    name: str
    lr: Pixels
    hr: Pixels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationPictures:
    """What a net is calibrated on, and what it is judged on.

    Attributes:
        fit: LR crops to calibrate on, ``(1, H, W, C)`` uint8 each.
        held: Crops of other pictures, which calibration does not see.
        sources: Names of the pictures that these are crops of, within the folder.
        digest: SHA-256 of every sample of both and of the parameters; names do not enter it.
        description: Both in words.
    """

    fit: tuple[Pixels, ...]
    held: tuple[HeldPair, ...]
    sources: tuple[str, ...]
    digest: str
    description: str


def calibration_pictures(
    folder: Path | None,
    *,
    channels: int,
    scale: int,
    multiple: int,
    crop: int = 64,
    fit: int = 32,
    held: int = 12,
) -> CalibrationPictures:
    """Choose what to calibrate on and what to judge on; the same pictures under other names give the same.

    The pictures are HR; LR is made of each crop with antialiased bicubic. A quarter of the pictures is held
    back, by a digest of their samples, but not those with the darkest, brightest, most saturated, flattest or
    most textured crop, as long as there are others. A single picture is divided into its left and right half.

    Args:
        folder: PNG, JPEG, WebP, TIFF and BMP files, searched with its subfolders; None for drawn pictures.
        channels: Of the net's input: 1 (luma) or 3 (RGB). Transparency is left out.
        scale: HR pixels per LR pixel and axis.
        multiple: Sides of an LR crop are multiples of it.
        crop: Side of an LR crop in pixels, at least 24; smaller pictures give smaller crops.
        fit: How many crops to calibrate on, at most.
        held: How many crops to judge on, at most.

    Raises:
        MediaError: The folder is none, or holds no picture that can be used.
        ExportError: The net takes neither one channel nor three.
        MissingDependencyError: Pillow is not installed, and there is a folder.
    """
    if channels not in (1, 3):
        raise ExportError(
            f"the net takes {channels} channels and pictures have 1 or 3: there is nothing to calibrate it on. "
            "Run: --precision fp16"
        )
    cutting = Cutting(channels=channels, scale=scale, multiple=multiple, crop=crop)
    look = _look(folder, cutting)
    seen, others = _divided(look.views)
    to_fit, to_hold = _chosen(seen, fit), _typical(others, held)
    fitted = [view.crops[number] for view, number in to_fit]
    pairs = _pairs(to_hold, cutting)
    words = f"{_count(to_fit)} to calibrate on, {_count(to_hold)} to judge on, {_origin(folder)}"
    return CalibrationPictures(
        fit=tuple(fitted),
        held=tuple(pairs),
        sources=tuple(sorted({view.source.name for view, _ in (*to_fit, *to_hold)})),
        digest=_digest(cutting, fitted, pairs),
        description=f"{words}; left out: {', '.join(look.left_out)}" if look.left_out else words,
    )


def _look(folder: Path | None, cutting: Cutting) -> Look:
    if folder is None:
        sources = [
            PictureSource(name=f"drawn {scene}", load=functools.partial(draw, scene)) for scene in SCENES
        ]
        return look_at(sources, cutting)
    sources, beyond = find(folder)
    left_out = (f"{beyond} beyond {MOST_PICTURES} of all file sizes",) if beyond else ()
    look = look_at(sources, cutting, left_out=left_out)
    if len(look.views) == 1:
        halves = [_half(look.views[0].source, side, cutting) for side in (0, 1)]
        # One at a time: halves that are equal are still two.
        views = [view for half in halves for view in look_at([half], cutting).views]
        look = dataclasses.replace(look, views=views)
    if len(look.views) < 2:
        raise MediaError(
            f"nothing under {folder} can be calibrated on ({', '.join(look.left_out) or 'no picture'}); wanted "
            f"are {', '.join(PICTURES)} of at least {LEAST_SIDE * cutting.scale} pixels a side, twice as wide "
            "where it is one alone. Give another folder with --calibration, or leave it away for the pictures "
            "that ship"
        )
    return look


def _half(source: PictureSource, side: int, cutting: Cutting) -> PictureSource:
    def load() -> Pixels:
        whole = cutting.hr(source)
        step = cutting.scale * cutting.multiple
        middle = whole.shape[1] // step // 2 * step
        return whole[:, middle:] if side else whole[:, :middle]

    return PictureSource(name=source.name, load=load)


def _divided(views: Sequence[View]) -> tuple[list[View], list[View]]:
    """Divide pictures, sorted by their digests, into those that calibration sees and those that it does not."""
    owners = [number for number, view in enumerate(views) for _ in view.crops]
    needed = {owners[number] for number in extremes(np.concatenate([view.features for view in views]))}
    order = sorted(range(len(views)), key=lambda number: (number in needed, number))
    back = set(order[: max(1, len(views) // 4)])
    seen = [view for number, view in enumerate(views) if number not in back]
    return seen, [view for number, view in enumerate(views) if number in back]


def _chosen(views: Sequence[View], count: int) -> list[tuple[View, int]]:
    places = [(view, number) for view in views for number in range(len(view.crops))]
    return [places[number] for number in choose(np.concatenate([view.features for view in views]), count)]


def _typical(views: Sequence[View], count: int) -> list[tuple[View, int]]:
    """Return crops spread evenly over pictures and over each of them.

    Chosen for coverage they would be mostly dark and flat, where PSNR is 10 dB above that of whole pictures, and a
    loss that nobody sees in a picture would rule their mean.
    """
    rounds = max(1, -(-count // len(views)))
    found = []
    for number in range(rounds):
        for view in views:
            place = (2 * number + 1) * len(view.crops) // (2 * rounds)
            if (view, place) not in found:
                found.append((view, place))
    return found[:count]


def _pairs(chosen: Sequence[tuple[View, int]], cutting: Cutting) -> list[HeldPair]:
    # Decoded again, once each: the truth of every candidate would be sixteen times as much to keep.
    numbers: dict[View, list[int]] = {}
    for view, number in chosen:
        numbers.setdefault(view, []).append(number)
    found = []
    for view, own in numbers.items():
        whole = cutting.hr(view.source)
        for number in own:
            box = view.boxes[number]
            lr, hr = cutting.pair(whole, box)
            found.append(HeldPair(name=f"{view.source.name} at {box[0]},{box[1]}", lr=lr, hr=hr))
    return found


def _count(chosen: Sequence[tuple[View, int]]) -> str:
    crops, pictures = len(chosen), len({view for view, _ in chosen})
    return f"{crops} crop{'s' * (crops > 1)} of {pictures} picture{'s' * (pictures > 1)}"


def _origin(folder: Path | None) -> str:
    if folder is None:
        return "drawn by this package; photographs like those to be enlarged calibrate better (--calibration)"
    return f"from the folder {folder.name}"


def _digest(cutting: Cutting, fitted: Sequence[Pixels], pairs: Sequence[HeldPair]) -> str:
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(cutting), sort_keys=True).encode())
    for picture in (*fitted, *(picture for pair in pairs for picture in (pair.lr, pair.hr))):
        digest.update(repr(picture.shape).encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()
