"""The pictures of a training: found in folders, decoded once, kept in files that are mapped into memory."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import TrainingError
from esrgan_deploy._files import PICTURES, replaced_atomically
from esrgan_deploy._metrics import bicubic_downscale
from esrgan_deploy._optional import require

__all__ = ["Pair", "gather"]

SUFFIXES = (*PICTURES, ".ppm")

Picture = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture, decoded.

    Attributes:
        source: The HR file.
        hr: .npy of ``(H, W, 3)`` uint8, H and W multiples of the scale.
        lr: .npy of ``(H/scale, W/scale, 3)`` uint8.
        size: Height and width of the LR picture.
    """

    source: Path
    hr: Path
    lr: Path
    size: tuple[int, int]


def gather(
    folders: Sequence[Path],
    paired: Sequence[Path],
    *,
    cache: Path,
    scale: int,
    least: int,
    say: Callable[[str], None],
) -> list[Pair]:
    """Decode every picture of the folders into the cache, or find it there.

    A picture is decoded again when its size or its time of change differs. Files that cannot be read are
    listed, counted and left out.

    Args:
        folders: HR pictures, searched with their subfolders.
        paired: LR pictures, folder by folder for ``folders``, each at the same relative path (the suffix may
            differ); empty where LR is to be made.
        cache: Folder of the decoded pictures; made if it is not there.
        scale: HR pixels per LR pixel and axis.
        least: Sides that an LR picture must have.
        say: Takes a line for the user.

    Raises:
        TrainingError: No picture was found, one is too small, or a pair does not fit.
    """
    if paired and len(paired) != len(folders):
        raise TrainingError(f"lr names {len(paired)} folders and hr {len(folders)}; they pair one by one")
    cache.mkdir(parents=True, exist_ok=True)
    pairs, unreadable, small = [], [], []
    for hr, lr in _found(folders, paired):
        try:
            pair = _decoded(hr, lr, cache, scale)
        except (OSError, SyntaxError, ValueError) as error:
            # SyntaxError is what Pillow raises for a broken PNG; ValueError for truncated chunks.
            unreadable.append(f"{hr}: {error}")
            continue
        if min(pair.size) < least:
            small.append(f"{hr} ({pair.size[0] * scale}x{pair.size[1] * scale})")
        pairs.append(pair)
    if small:
        raise TrainingError(
            f"{len(small)} of the HR pictures are under {least * scale} pixels on a side, which a crop of "
            f"{least} at x{scale} needs: {', '.join(small[:5])}{', ...' if len(small) > 5 else ''}. Take them "
            "out or give a smaller --crop"
        )
    for line in unreadable:
        say(f"skipped, unreadable: {line}")
    if not pairs:
        raise TrainingError(
            f"no picture to train on under {', '.join(map(str, folders))} ({len(unreadable)} unreadable); "
            f"read are {', '.join(sorted(SUFFIXES))}"
        )
    if unreadable:
        say(f"{len(unreadable)} of {len(pairs) + len(unreadable)} files skipped as unreadable")
    return pairs


def _found(folders: Sequence[Path], paired: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    for number, folder in enumerate(folders):
        for flag, one in zip(("--hr", "--lr"), (folder, *paired[number : number + 1]), strict=False):
            if not one.is_dir():
                raise TrainingError(f"{one} is not a folder; {flag} takes folders of pictures")
        small = dict(_by_stem(paired[number])) if paired else {}
        for stem, path in _by_stem(folder):
            if paired and stem not in small:
                raise TrainingError(f"{path} has no LR picture: {paired[number]} holds no {stem}.*")
            yield path, small.get(stem)


def _by_stem(folder: Path) -> Iterator[tuple[Path, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield path.relative_to(folder).with_suffix(""), path


def _decoded(hr: Path, lr: Path | None, cache: Path, scale: int) -> Pair:
    states = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in (hr, lr) if path
    ]
    name = hashlib.sha256(json.dumps([scale, states]).encode()).hexdigest()[:24]
    targets = cache / f"{name}.hr.npy", cache / f"{name}.lr.npy"
    if not all(target.is_file() for target in targets):
        for target, picture in zip(targets, _read_pair(hr, lr, scale), strict=True):
            with replaced_atomically(target) as temporary:
                np.save(temporary, picture)
    height, width = np.load(targets[1], mmap_mode="r").shape[:2]
    return Pair(source=hr, hr=targets[0], lr=targets[1], size=(height, width))


def _read_pair(hr: Path, lr: Path | None, scale: int) -> tuple[Picture, Picture]:
    large = _read(hr)
    if lr is None:
        if min(large.shape[:2]) < scale:
            raise TrainingError(f"{hr} is {large.shape[0]}x{large.shape[1]}, under one LR pixel at x{scale}")
        # As the benchmarks do: what is no whole LR pixel at the right and at the bottom is left out.
        large = large[: large.shape[0] // scale * scale, : large.shape[1] // scale * scale]
        return large, bicubic_downscale(large, scale)
    small = _read(lr)
    fits = small.shape[0] * scale, small.shape[1] * scale
    if not all(0 <= whole - part < scale for whole, part in zip(large.shape[:2], fits, strict=True)):
        raise TrainingError(
            f"{hr} is {large.shape[0]}x{large.shape[1]} and {lr} is {small.shape[0]}x{small.shape[1]}; "
            f"x{scale} needs {fits[0]}x{fits[1]}"
        )
    return large[: fits[0], : fits[1]], small


def _read(path: Path) -> Picture:
    image = require("PIL.Image", extra="training")
    with image.open(path) as opened:
        return np.ascontiguousarray(opened.convert("RGB"))
