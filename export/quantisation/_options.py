"""What to ask of a quantisation."""

import dataclasses
import math
from pathlib import Path

from esrgan_deploy._errors import ExportError, MediaError

__all__ = ["METHODS", "PARTS", "ROUNDINGS", "QuantiseOptions"]

METHODS = ("max", "percentile", "mse", "entropy")
PARTS = {
    "dense": ("body",),
    "inner": ("body", "tail"),
    "but-first": ("body", "tail", "last"),
    "all": ("first", "body", "tail", "last"),
}
"""By name, the places of `_structure.Layer`."""
ROUNDINGS = ("nearest", "corrected", "compensated", "learned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantiseOptions:
    """Options of a quantisation; the flags of ``esrgan-export`` map onto them one to one.

    Attributes:
        calibration: A folder of photographs, taken as high-resolution pictures: most calibrate, the rest judge.
            None takes the scales that are there already, else the drawn pictures that ship.
        budget: dB of PSNR-Y against the truth that the picture may lose, on pictures that calibration has not
            seen.
        method: How a scale follows from what was seen, one of `METHODS`; None takes ``mse`` in INT8 and ``max`` in
            FP8.
        parts: What may be quantised, of `PARTS`: the dense blocks (of an SRVGGNetCompact its middle), ``"inner"`` all
            but the first and the last convolution, or those too, which are 1 % of the multiply-adds of an RRDBNet
            and whose rounding the picture shows. None takes inner, and of an RRDBNet for processors all but the
            first.
        per_channel: One weight scale for each channel of the output, or one for all; None takes one for each
            channel in INT8 and one for all in FP8, which moves fewest bytes.
        equalise: Whether to equalise channels first, which is exact.
        rounding: ``"nearest"``, ``"corrected"`` (the mean error of each channel is taken back),
            ``"compensated"`` (each column's rounding error is made good by those that
            follow) or ``"learned"`` (block by block against the fp32 outputs, minutes); None takes compensated in
            INT8 and learned in FP8.
        remainders: Input channels of each FP8 convolution behind the dense blocks that are read twice, rounded and
            what the rounding left; None takes 4, 0 none.
        search: Whether to return convolutions to fp16 until the budget holds; without it, all that may be are
            quantised.
    """

    calibration: Path | None = None
    budget: float = 0.1
    method: str | None = None
    per_channel: bool | None = None
    equalise: bool = True
    parts: str | None = None
    rounding: str | None = None
    remainders: int | None = None
    search: bool = True

    def __post_init__(self) -> None:
        if self.calibration is not None and not self.calibration.is_dir():
            raise MediaError(
                f"--calibration {self.calibration} is not a folder. Name one that holds photographs"
            )
        if not (math.isfinite(self.budget) and 0 < self.budget <= 10):
            raise ExportError(f"--budget {self.budget:g} is not above 0 and at most 10 dB. Run: --budget 0.1")
        if self.method not in (None, *METHODS):
            raise ExportError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.remainders is not None and not 0 <= self.remainders <= 16:
            raise ExportError(f"--remainders {self.remainders} is not 0 to 16")
        if self.parts not in (None, *PARTS):
            raise ExportError(f"parts {self.parts!r} is not one of {', '.join(PARTS)}")
        if self.rounding not in (None, *ROUNDINGS):
            raise ExportError(f"rounding {self.rounding!r} is not one of {', '.join(ROUNDINGS)}")
