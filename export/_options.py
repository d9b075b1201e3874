"""What an export can be told."""

import dataclasses
from pathlib import Path
from typing import Literal

from esrgan_deploy._errors import ExportError, MediaError
from esrgan_deploy.engines import BuildOptions
from esrgan_deploy.export._placement import QUANTISED
from esrgan_deploy.export.quantisation._options import QuantiseOptions
from esrgan_deploy.runtime import SessionOptions

__all__ = ["FORMS", "OPSETS", "PRECISIONS", "PROCESSOR", "ExportOptions"]

FORMS = ("float", "uint8")
OPSETS = range(17, 24)
PROCESSOR = "int8-cpu"
"""INT8 as ONNX Runtime and OpenVINO run it on a processor; no TensorRT reads it."""

PRECISIONS = ("fp32", "fp16", "bf16", *QUANTISED, PROCESSOR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `export_model`; the flags of ``esrgan-export`` map onto them one to one.

    Attributes:
        precisions: Which graphs and plans to make beside the fp32 interchange graph. ``"int8-cpu"`` has no plan.
        quantise: How the quantised ones find their scales, and what they may lose.
        form: ``"float"`` (NCHW 0..1) or ``"uint8"`` (NHWC 0..255), for the graphs that plans are built from.
        watchdog: Whether those graphs have a second output that tells a broken picture, see `Made.health`. The
            interchange graph has none.
        opset: ONNX operator set, 17 to 23; None takes 20, or what a graph that was handed in has.
        outscale: Final size over input size; None for the net's own scale.
        images: A folder of pictures to verify on as well.
        plan: Whether to build plans; None builds them where a TensorRT is installed.
        build: Options of the TensorRT builder.
        scale: Scale of the checkpoint where its keys leave it open (3 for an old-ESRGAN x3 net); None reads it.
        denoise_strength: Weight of the checkpoint against `denoise_with`, 0..1.
        denoise_with: A second checkpoint of the same architecture to interpolate with: a file or an official name.
        offline: Whether to refuse a download of an official name.
        range: White in an ``.onnx`` that others made: 1, 255, or ``(1, 255)`` of its input and output; None measures
            it on a few greys.
        layout: Its layout, ``"NCHW"`` or ``"NHWC"``; None reads it from its shape, or tries.
        output_name: Which of its outputs is the picture; None takes the one that is enlarged.
        force: Whether artefacts that are there already may be replaced.
    """

    precisions: tuple[str, ...] = ("fp16",)
    quantise: QuantiseOptions = dataclasses.field(default_factory=QuantiseOptions)
    form: str = "float"
    watchdog: bool = True
    opset: int | None = None
    outscale: float | None = None
    images: Path | None = None
    plan: bool | None = None
    build: BuildOptions = dataclasses.field(default_factory=BuildOptions)
    scale: int | None = None
    denoise_strength: float | None = None
    denoise_with: Path | None = None
    offline: bool = False
    range: int | tuple[int, int] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    output_name: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        SessionOptions(range=self.range, layout=self.layout)
        unknown = [p for p in self.precisions if p not in PRECISIONS]
        if unknown or not self.precisions:
            raise ExportError(
                f"precision {', '.join(unknown) or '(none)'} is not one of {', '.join(PRECISIONS)}"
            )
        if self.form not in FORMS:
            raise ExportError(f"form {self.form!r} is not one of {', '.join(FORMS)}")
        if self.opset is not None and self.opset not in OPSETS:
            raise ExportError(
                f"opset {self.opset} is not written; 17 to 23 are, and 20 suits TensorRT 10.13 and later"
            )
        if self.images is not None and not self.images.is_dir():
            raise MediaError(
                f"--images {self.images} is not a folder. Name one that holds .png, .jpg or .webp pictures"
            )
        if self.outscale is not None and not 0 < self.outscale <= 16:
            raise ExportError(f"outscale {self.outscale:g} is not above 0 and at most 16")
