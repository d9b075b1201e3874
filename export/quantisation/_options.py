"""What to ask of a quantisation."""

import dataclasses
from pathlib import Path

from esrgan_deploy._command_line import breaches, option
from esrgan_deploy._errors import ExportError, MediaError

__all__ = ["METHODS", "MOST_LOSS", "PARTS", "QuantiseOptions"]

MOST_LOSS = 10.0
"""dB: what is more is a PSNR to be kept, and no loss."""

METHODS = ("max", "mse")
PARTS = {
    "dense": ("body",),
    "inner": ("body", "tail"),
    "but-first": ("body", "tail", "last"),
    "all": ("first", "body", "tail", "last"),
}
"""By name, the places of `nets.Layer`."""
ROUNDINGS = ("nearest", "compensated", "learned")


def _per_channel(text: str) -> bool:
    if text not in ("per-channel", "per-tensor"):
        raise ValueError(f"{text!r} is neither per-channel nor per-tensor")
    return text == "per-channel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantiseOptions:
    """Options of a quantisation; the flags of ``esrgan-export`` map onto them one to one.

    Attributes:
        calibration: A folder of photographs, taken as high-resolution pictures: most calibrate, the rest judge.
            None takes the scales that are there already, else the drawn pictures that ship.
        budget: What the picture may lose on pictures that calibration has not seen. Up to 10: dB of PSNR-Y against
            the truth; from 20 on: dB of PSNR to the fp32 net's picture that are kept. None takes 0.1 for a net that
            is closer to the truth than bicubic, and 44.5 for one that is not, such as a GAN's, whose picture is no
            estimate of the truth.
        method: How a scale follows from what was seen, one of `METHODS`; None takes ``mse`` in INT8 and ``max`` in
            FP8.
        parts: What may be quantised, of `PARTS`: the dense blocks (of an SRVGGNetCompact its middle), ``"inner"`` all
            but the first and the last convolution, or those too, which are 1 % of the multiply-adds of an RRDBNet
            and whose rounding the picture shows. None takes inner less the convolutions of an RRDBNet that read an
            enlarged picture, with which TensorRT moves fewer bytes in half precision, and of one for processors
            all but the first.
        per_channel: One weight scale for each channel of the output, or one for all; None takes one for each
            channel in INT8 and one for all in FP8, which moves fewest bytes.
        equalise: Whether to equalise channels first, which is exact.
        rounding: ``"nearest"``, ``"compensated"`` (each column's rounding error is made good by those that follow)
            or ``"learned"`` (block by block against the fp32 outputs, minutes); None takes compensated in INT8
            and learned in FP8, but compensated of a net that is too deep to learn in minutes.
        remainders: Input channels of each FP8 convolution behind the dense blocks that are read twice, rounded and
            what the rounding left; None takes 4, 0 none.
        search: Whether to return convolutions to fp16 until the budget holds; without it, all that may be are
            quantised.
    """

    calibration: Path | None = option(
        None,
        group="INT8 and FP8",
        metavar="DIR",
        help="photographs, taken as high-resolution pictures: most calibrate, the rest judge (default: the scales "
        "that are there already, else drawn pictures)",
    )
    budget: float | None = option(
        None,
        above=0,
        most=100,
        metavar="DB",
        help="on pictures that calibration has not seen: up to 10, PSNR-Y against the truth that may be lost; from "
        "20, PSNR to the fp32 picture that is kept; convolutions return to fp16 until it holds (default: 0.1, and "
        "44.5 for a net that is no closer to the truth than bicubic)",
    )
    search: bool = option(True, help="quantise all that can be, whatever it costs")
    method: str | None = option(
        None,
        choices=METHODS,
        help="how a scale follows from the values seen (default: mse for int8, max for fp8)",
    )
    per_channel: bool | None = option(
        None,
        flags="--weights",
        type=_per_channel,
        metavar="per-channel|per-tensor",
        help="one weight scale for each channel of the output, or for all (default: per-channel for int8, "
        "per-tensor for fp8)",
    )
    rounding: str | None = option(
        None,
        choices=ROUNDINGS,
        help="how weights are rounded; learned takes minutes (default: compensated for int8 and deep nets, learned "
        "for fp8)",
    )
    remainders: int | None = option(
        None,
        least=0,
        most=16,
        help="input channels of each fp8 convolution behind the dense blocks that are read twice, rounded and what "
        "the rounding left (default: 4)",
    )
    parts: str | None = option(
        None,
        choices=tuple(PARTS),
        help="what may be quantised: the dense blocks (of an SRVGGNetCompact its middle), inner: all but the first "
        "and the last convolution, but-first, or all (default: inner less those that read an enlarged picture; for "
        "processors but-first of an RRDBNet)",
    )
    equalise: bool = option(True, help="leave the channels as they are")

    def __post_init__(self) -> None:
        if self.calibration is not None and not self.calibration.is_dir():
            raise MediaError(
                f"--calibration {self.calibration} is not a folder. Name one that holds photographs"
            )
        for breach in breaches(self):
            raise ExportError(breach)
        if self.budget is not None and MOST_LOSS < self.budget < 2 * MOST_LOSS:
            raise ExportError(
                f"--budget {self.budget:g} is neither a loss of up to 10 dB against the truth nor a PSNR of 20 dB or "
                "more to the fp32 picture. Run: --budget 0.1, or --budget 44.5"
            )
