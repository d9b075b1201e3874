"""What quantisation costs: against the truth, against fp32, in colour, at the worst place, and over time."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import MediaError
from esrgan_deploy._files import picture_files
from esrgan_deploy._metrics import bicubic_downscale, crop_border, luma, psnr, ssim
from esrgan_deploy._optional import require
from esrgan_deploy._parity import Comparer, planar
from esrgan_deploy._quality import paired_pictures

__all__ = [
    "Pan",
    "Shown",
    "Upscale",
    "flicker_of",
    "frames_of",
    "judge",
    "name_of",
    "pictures_of",
    "remembered",
]

Picture = npt.NDArray[np.uint8]
Upscale = Callable[[Picture], Picture]
"""Enlarges ``(H, W, 3)`` uint8 to ``(H·s, W·s, 3)`` uint8."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """One picture to judge on.

    Attributes:
        name: What to call it where its tile is the worst.
        lr: ``(H, W, 3)`` uint8.
        truth: ``(H·s, W·s, 3)`` uint8, or a little larger as HR pictures are; None where there is none.
    """

    name: str
    lr: Picture
    truth: Picture | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pan:
    """A camera that moves over a still picture, with no noise.

    A window moves to the right over the HR picture by whole HR pixels and each frame is shrunk by itself, so that
    the motion is known exactly and every frame samples the scene at another phase. By whole LR pixels a
    convolutional net with fixed scales makes the very same errors in every frame beyond the reach of its border,
    whatever its precision: an INT8 graph that flickers by 1.1 levels here was seen to flicker by exactly 0 then.

    Attributes:
        frames: How many; with a step of 1 the phases repeat after as many as the scale.
        step: HR pixels from one frame to the next.
        side: Side of the window in LR pixels; a smaller picture is panned over in full height and width.
        margin: LR pixels left out on each side of what all frames show: a frame's own border is another scene
            to the net in each frame. Ideally the net's receptive field.
    """

    frames: int = 4
    step: int = 1
    side: int = 64
    margin: int = 16

    @property
    def travelled(self) -> int:
        """HR pixels from the first frame to the last."""
        return self.step * (self.frames - 1)

    def common(self, height: int, width: int, scale: int) -> tuple[int, int]:
        """Return how much of frames of this shape in HR pixels all of them show, less the margins."""
        edges = 2 * self.margin * scale
        return height - edges, width - self.travelled - edges


def pictures_of(folder: Path, scale: int, *, most: int | None = None) -> list[Shown]:
    """Return the pictures of a set with their truth, in the order of their names.

    Args:
        folder: Holds ``LR`` and ``HR``; or pictures, which are the truth, and LR is made of them.
        scale: HR pixels per LR pixel and axis.
        most: How many at most.

    Raises:
        MediaError: There is none, or LR and HR do not pair.
    """
    image = require("PIL.Image", extra="media")

    def read(path: Path) -> Picture:
        with image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))

    if (folder / "LR").is_dir() or (folder / "HR").is_dir():
        pairs = paired_pictures(folder)[:most]
        return [Shown(name=lr.name, lr=read(lr), truth=read(hr)) for lr, hr in pairs]
    found = []
    for path in (picture_files(folder) if folder.is_dir() else ())[:most]:
        truth = read(path)
        height, width = (side // scale * scale for side in truth.shape[:2])
        truth = truth[:height, :width]
        found.append(Shown(name=path.name, lr=bicubic_downscale(truth, scale), truth=truth))
    if not found:
        raise MediaError(
            f"--sets {folder} is no folder with pictures. Give one with LR and HR in it, or with HR pictures"
        )
    return found


def name_of(folder: Path) -> str:
    """Return what a set is called: benchmark sets keep one folder for each scale, such as ``Set5/x4``."""
    folder = folder.resolve()
    inner = folder.name[:1] == "x" and folder.name[1:].isdecimal()
    return folder.parent.name if inner else folder.name


def judge(
    pictures: Sequence[Shown],
    reference: Upscale,
    candidate: Upscale,
    *,
    scale: int,
    on: str = "",
    arithmetic: str = "",
    pan: Pan | None = None,
    panned: int = 2,
) -> dict[str, Any]:
    """Show a set of pictures to two nets and return what the second costs.

    Args:
        pictures: At least one. Flicker is taken on the first ones that have a truth large enough to pan over.
        reference: fp32, ``(H, W, 3)`` uint8 to ``(H·s, W·s, 3)`` uint8; `remembered` where several candidates are
            held against it.
        candidate: Likewise, quantised.
        scale: Of both; as many HR pixels are cropped from each side before the truth is compared, as the papers do.
        on: Name of the set.
        arithmetic: What computes the candidate, for the record.
        pan: None takes no flicker.
        panned: On how many pictures.

    Returns:
        ``{"psnr_y", "psnr_y_reference", "ssim_y", "ssim_y_reference", "ssim_change"}``: means against the truth, None
        without one; ``"loss"``: mean over pictures of the reference's PSNR-Y less the candidate's, in dB, above 0 is
        worse, and ``"losses"`` by picture; ``"to_reference"``: `Comparison` with the reference over all 8-bit RGB
        samples; ``"flicker"``: see `flicker_of`, None where no pan was shown. Infinities are strings, fit for JSON.

    Raises:
        MediaError: A truth is smaller than the output.
    """
    comparer = Comparer(on, arithmetic)
    scores: list[dict[str, Any]] = []
    losses: dict[str, float] = {}
    flicker: list[float] = []
    for picture in pictures:
        fine, got = reference(picture.lr), candidate(picture.lr)
        comparer.add(picture.name, planar(fine[None]), got[None])
        if picture.truth is None:
            continue
        score = _scores(picture, fine, got, scale)
        scores.append(score)
        # Both can be perfect, and inf - inf is no number.
        equal = score["psnr_y"] == score["psnr_y_reference"]
        losses[picture.name] = 0.0 if equal else score["psnr_y_reference"] - score["psnr_y"]
        if pan is not None and len(flicker) < panned:
            frames = frames_of(picture.truth, scale, pan)
            if frames:
                made = ([net(one) for one in frames] for net in (reference, candidate))
                flicker.append(flicker_of(*made, scale=scale, pan=pan))
    names = ("psnr_y", "psnr_y_reference", "ssim_y", "ssim_y_reference")
    found: dict[str, Any] = {name: _mean([score[name] for score in scores]) for name in names}
    before, after = found["ssim_y_reference"], found["ssim_y"]
    found["ssim_change"] = None if before is None else after - before
    found |= {"loss": _mean(list(losses.values())), "flicker": _mean(flicker)}
    found = {name: _plain(value) for name, value in found.items()}
    found["losses"] = {name: _plain(value) for name, value in losses.items()}
    return {"on": on, **found, "to_reference": comparer.result().to_json()}


def frames_of(still: Picture, scale: int, pan: Pan) -> list[Picture]:
    """Return the LR frames of a pan over the middle of a still HR picture; none where it is too small."""
    height, width = still.shape[:2]
    height = min(pan.side, height // scale) * scale
    width = min(pan.side, (width - pan.travelled) // scale) * scale
    if min(pan.common(height, width, scale)) < 1:
        return []
    y, x = (still.shape[0] - height) // 2, (still.shape[1] - width - pan.travelled) // 2
    starts = range(x, x + pan.travelled + 1, pan.step)
    return [bicubic_downscale(still[y : y + height, start : start + width], scale) for start in starts]


def flicker_of(reference: Sequence[Picture], candidate: Sequence[Picture], *, scale: int, pan: Pan) -> float:
    """Return the flicker in one pan, whose frames `frames_of` made.

    It is the standard deviation over time of the error (candidate less reference) at one point of the scene, in
    levels, as the mean over the points and channels that every frame shows, less the margin. An error that stays
    with the scene, such as a shift of colour, does not flicker.
    """
    height, width = reference[0].shape[:2]
    edge = pan.margin * scale
    left, right = pan.travelled + edge, width - edge
    errors = []
    for number, (fine, got) in enumerate(zip(reference, candidate, strict=True)):
        # A point of the scene moves to the left as the window moves to the right.
        shift = number * pan.step
        place = np.s_[edge : height - edge, left - shift : right - shift]
        errors.append(got[place].astype(np.float64) - fine[place])
    return float(np.std(errors, axis=0).mean())


def remembered(upscale: Upscale) -> Upscale:
    """Return the function, computing each picture once: all outputs are kept."""
    outputs: dict[tuple[tuple[int, ...], bytes], Picture] = {}

    def once(picture: Picture) -> Picture:
        key = (picture.shape, hashlib.sha256(picture.tobytes()).digest())
        if key not in outputs:
            outputs[key] = upscale(picture)
        return outputs[key]

    return once


def _scores(picture: Shown, fine: Picture, got: Picture, crop: int) -> dict[str, Any]:
    assert picture.truth is not None
    # HR sides that are no multiple of the scale lose the rest: the LR pictures were made so.
    truth = picture.truth[: fine.shape[0], : fine.shape[1]]
    if truth.shape != fine.shape:
        raise MediaError(f"{picture.name} becomes {fine.shape[:2]}, and its truth is {truth.shape[:2]}")
    aim, before, after = (luma(crop_border(one, crop)) for one in (truth, fine, got))
    structure = min(aim.shape) >= 11
    return {
        "psnr_y": psnr(aim, after),
        "psnr_y_reference": psnr(aim, before),
        "ssim_y": ssim(aim, after) if structure else None,
        "ssim_y_reference": ssim(aim, before) if structure else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _plain(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value
