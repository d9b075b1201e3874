"""What quantisation costs: against the truth, against fp32, in colour, at the worst place, and over time."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._bicubic import bicubic_downscale
from esrgan_deploy._errors import MediaError
from esrgan_deploy._metrics import crop_border, luma, psnr, ssim
from esrgan_deploy._parity import Comparer, Comparison, planar

__all__ = ["Judge", "Judgement", "Pan", "Shown", "Upscale", "judge", "remembered"]

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

    def __post_init__(self) -> None:
        if self.frames < 2 or self.step < 1 or self.margin < 0 or self.side < 2 * self.margin + 1:
            raise ValueError(
                f"{self}: a pan has at least 2 frames, a step of at least 1, and a side of more than 2 margins"
            )

    @property
    def travelled(self) -> int:
        """HR pixels from the first frame to the last."""
        return self.step * (self.frames - 1)

    def window(self, size: tuple[int, ...], scale: int) -> tuple[int, int]:
        """Return height and width in HR pixels of the frames over a picture of this shape."""
        height, width = size[:2]
        return min(self.side, height // scale) * scale, min(
            self.side, (width - self.travelled) // scale
        ) * scale

    def common(self, size: tuple[int, ...], scale: int) -> tuple[int, int]:
        """Return how much of frames of this shape in HR pixels all of them show, less the margins."""
        height, width = size[:2]
        edges = 2 * self.margin * scale
        return height - edges, width - self.travelled - edges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a candidate costs on one set of pictures.

    Attributes:
        on: Name of the set.
        crop: HR pixels left out on each side where the truth is compared, as the papers do.
        psnr_y: Mean PSNR-Y of the candidate against the truth in dB; None without truth, as the next three.
        psnr_y_reference: The reference's.
        ssim_y: Mean SSIM-Y of the candidate against the truth; None also for pictures under 11 pixels.
        ssim_y_reference: The reference's.
        loss: Mean over pictures of the reference's PSNR-Y less the candidate's, in dB: above 0 is worse.
        losses: The same by picture.
        to_reference: Candidate against reference: PSNR and SSIM over all 8-bit RGB samples, mean signed error of
            each channel in levels (a shift of colour), the worst 64×64 tile.
        flicker: See `Judge.add_pan`; None where no pan was shown.
    """

    on: str
    crop: int
    psnr_y: float | None
    psnr_y_reference: float | None
    ssim_y: float | None
    ssim_y_reference: float | None
    loss: float | None
    losses: dict[str, float]
    to_reference: Comparison
    flicker: float | None

    @property
    def ssim_change(self) -> float | None:
        """SSIM-Y of the candidate less the reference's: below 0 is worse."""
        if self.ssim_y is None or self.ssim_y_reference is None:
            return None
        return self.ssim_y - self.ssim_y_reference

    def to_json(self) -> dict[str, Any]:
        """Return the figures; infinities are strings, which JSON can carry."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["losses"] = {name: _plain(value) for name, value in self.losses.items()}
        data["to_reference"] = self.to_reference.to_json()
        return {name: _plain(value) for name, value in data.items()}


class Judge:
    """Collects the outputs for one picture after another and returns the `Judgement` over all of them.

    Args:
        on: Name of the set.
        scale: Of the net; as many HR pixels are cropped from each side before the truth is compared.
        arithmetic: What computes the candidate, for the record.
    """

    def __init__(self, on: str, scale: int, *, arithmetic: str = "") -> None:
        self._on, self._crop = on, scale
        self._comparer = Comparer(on, arithmetic)
        self._scores: dict[str, tuple[float, float, float | None, float | None]] = {}
        self._losses: dict[str, float] = {}
        self._flicker: list[float] = []

    def add(self, name: str, reference: Picture, candidate: Picture, truth: Picture | None = None) -> None:
        """Judge one picture; all are ``(H·s, W·s, 3)`` uint8.

        Raises:
            MediaError: The truth is smaller than the output.
            ValueError: The two outputs differ in size.
        """
        self._comparer.add(name, planar(reference[None]), candidate[None])
        if truth is None:
            return
        # HR sides that are no multiple of the scale lose the rest: the LR pictures were made so.
        truth = truth[: reference.shape[0], : reference.shape[1]]
        if truth.shape != reference.shape:
            raise MediaError(f"{name} becomes {reference.shape[:2]}, and its truth is {truth.shape[:2]}")
        aim, fine, got = (luma(crop_border(one, self._crop)) for one in (truth, reference, candidate))
        before, after = psnr(aim, fine), psnr(aim, got)
        structures = (ssim(aim, fine), ssim(aim, got)) if min(aim.shape) >= 11 else (None, None)
        self._scores[name] = (before, after, *structures)
        # Both can be perfect, and inf - inf is no number.
        self._losses[name] = 0.0 if before == after else before - after

    def add_pan(self, reference: Sequence[Picture], candidate: Sequence[Picture], pan: Pan) -> None:
        """Judge the flicker in one pan, whose frames `frames_of` made, in the order of the frames.

        Flicker is the standard deviation over time of the error (candidate less reference) at one point of the
        scene, in levels, as the mean over the points and channels that every frame shows, less the margin. An
        error that stays with the scene, such as a shift of colour, does not flicker.

        Raises:
            ValueError: The frames are too few or too small for the pan.
        """
        height, width = reference[0].shape[:2]
        if (
            min(pan.common((height, width), self._crop)) < 1
            or not len(reference) == len(candidate) == pan.frames
        ):
            raise ValueError(
                f"{len(candidate)} frames of {height}x{width} show nothing in common with {pan}; "
                "take a smaller margin"
            )
        edge = pan.margin * self._crop
        left, right = pan.travelled + edge, width - edge
        errors = []
        for number, (fine, got) in enumerate(zip(reference, candidate, strict=True)):
            # A point of the scene moves to the left as the window moves to the right.
            shift = number * pan.step
            place = np.s_[edge : height - edge, left - shift : right - shift]
            errors.append(got[place].astype(np.float64) - fine[place])
        self._flicker.append(float(np.std(errors, axis=0).mean()))

    def result(self) -> Judgement:
        """Return the figures of everything that was added."""
        columns = list(zip(*self._scores.values(), strict=True)) or [()] * 4
        before, after, fine, got = (_mean(column) for column in columns)
        return Judgement(
            on=self._on,
            crop=self._crop,
            psnr_y=after,
            psnr_y_reference=before,
            ssim_y=got,
            ssim_y_reference=fine,
            loss=_mean(tuple(self._losses.values())),
            losses=dict(self._losses),
            to_reference=self._comparer.result(),
            flicker=_mean(tuple(self._flicker)),
        )


def judge(
    pictures: Iterable[Shown],
    reference: Upscale,
    candidate: Upscale,
    *,
    scale: int,
    on: str = "",
    arithmetic: str = "",
    pan: Pan | None = None,
    panned: int = 2,
) -> Judgement:
    """Show a set of pictures to two nets and return what the second costs.

    Args:
        pictures: At least one. Flicker is taken on the first ones that have a truth large enough to pan over.
        reference: fp32, ``(H, W, 3)`` uint8 to ``(H·s, W·s, 3)`` uint8; `remembered` where several candidates are
            held against it.
        candidate: Likewise, quantised.
        scale: Of both.
        on: Name of the set.
        arithmetic: What computes the candidate, for the record.
        pan: None takes no flicker.
        panned: On how many pictures.

    Raises:
        MediaError: A truth is smaller than the output, or there is no picture.
    """
    found = Judge(on, scale, arithmetic=arithmetic)
    left, shown = panned if pan is not None else 0, 0
    for picture in pictures:
        found.add(picture.name, reference(picture.lr), candidate(picture.lr), picture.truth)
        shown += 1
        if left and pan is not None and picture.truth is not None and _fits(picture.truth, scale, pan):
            frames = frames_of(picture.truth, scale, pan)
            found.add_pan([reference(one) for one in frames], [candidate(one) for one in frames], pan)
            left -= 1
    if not shown:
        raise MediaError(f"there is no picture to judge on in {on or 'the set'}")
    return found.result()


def frames_of(still: Picture, scale: int, pan: Pan) -> list[Picture]:
    """Return the LR frames of a pan over the middle of a still HR picture ``(H, W, 3)`` uint8."""
    height, width = pan.window(still.shape, scale)
    y, x = (still.shape[0] - height) // 2, (still.shape[1] - width - pan.travelled) // 2
    starts = range(x, x + pan.travelled + 1, pan.step)
    return [bicubic_downscale(still[y : y + height, start : start + width], scale) for start in starts]


def _fits(still: Picture, scale: int, pan: Pan) -> bool:
    return min(pan.common(pan.window(still.shape, scale), scale)) >= 1


def remembered(upscale: Upscale) -> Upscale:
    """Return the function, computing each picture once: all outputs are kept."""
    outputs: dict[tuple[tuple[int, ...], bytes], Picture] = {}

    def once(picture: Picture) -> Picture:
        key = (picture.shape, hashlib.sha256(picture.tobytes()).digest())
        if key not in outputs:
            outputs[key] = upscale(picture)
        return outputs[key]

    return once


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
