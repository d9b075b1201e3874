"""What an export can be told."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from esrgan_deploy._command_line import LAYOUT, OUTPUT_NAME, RANGE, breaches, option
from esrgan_deploy._errors import ExportError, MediaError
from esrgan_deploy._spec import Form
from esrgan_deploy.engines import BuildOptions
from esrgan_deploy.export.quantisation import QuantiseOptions

__all__ = ["PROCESSOR", "ExportOptions", "Precision"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int8-cpu"]
"""The arithmetic of a graph's convolutions."""

FORMS: tuple[Form, ...] = get_args(Form)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PROCESSOR: Precision = "int8-cpu"
"""INT8 as ONNX Runtime and OpenVINO run it on a processor; no TensorRT reads it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `export_model`; the flags of ``esrgan-export`` map onto them one to one.

    Attributes:
        precisions: Which graphs and plans to make beside the fp32 interchange graph. ``"int8-cpu"`` has no plan.
        quantise: How the quantised ones find their scales, and what they may lose.
        form: ``"float"`` (NCHW 0..1) or ``"uint8"`` (NHWC 0..255), for the graphs that plans are built from.
        watchdog: Whether those graphs have a second output that tells a broken picture, see `BatchOutput.health`. The
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

    force: bool = option(False, help="replace the export that is there, all of it")
    offline: bool = option(False, help="never download; say what is missing")
    precisions: tuple[Precision, ...] = option(
        ("fp16",),
        group="graph",
        flags="--precision",
        choices=PRECISIONS,
        help="precisions of the graphs and plans to build (default: fp16). int8 and fp8 are for TensorRT, int8-cpu "
        "for ONNX Runtime and OpenVINO on a processor",
    )
    form: Form = option(
        "float",
        choices=FORMS,
        help="input and output of the built graph: NCHW 0..1, or NHWC 0..255 with scaling and rounding inside",
    )
    watchdog: bool = option(
        True, help="leave away the graph's second output, by which a NaN or a blank picture is noticed"
    )
    outscale: float | None = option(
        None, above=0, most=16, help="final size, resized inside the graph (default: the net's)"
    )
    scale: int | None = option(
        None, help="scale of the checkpoint, where its keys leave it open (x3 of old ESRGAN)"
    )
    range: int | tuple[int, int] | None = option(None, **RANGE)
    layout: Literal["NCHW", "NHWC"] | None = option(None, help=LAYOUT)
    output_name: str | None = option(None, **OUTPUT_NAME)
    opset: int | None = option(
        None,
        least=17,
        most=23,
        help="ONNX operator set, 17 to 23 (default: 20, which suits TensorRT 10.13 and later)",
    )
    denoise_strength: float | None = option(
        None, metavar="S", help="interpolate with --denoise-with: S of the model, 1-S of the other"
    )
    denoise_with: Path | None = option(
        None, metavar="MODEL", help="checkpoint to interpolate with, a file or an official name"
    )
    quantise: QuantiseOptions = dataclasses.field(default_factory=QuantiseOptions)
    plan: bool | None = option(
        None,
        group="TensorRT plan",
        help="build plans, or write ONNX only (default: plans where TensorRT is installed)",
    )
    build: BuildOptions = dataclasses.field(default_factory=BuildOptions)
    images: Path | None = option(
        None, group="verification", metavar="DIR", help="verify on these pictures as well"
    )

    def __post_init__(self) -> None:
        # Here, so that --help does not wait for numpy.
        from esrgan_deploy.runtime import SessionOptions

        SessionOptions(range=self.range, layout=self.layout)
        for breach in breaches(self):
            raise ExportError(breach)
        if not self.precisions:
            raise ExportError(f"precisions is empty; name some of {', '.join(PRECISIONS)}")
        object.__setattr__(self, "precisions", tuple(dict.fromkeys(self.precisions)))
        if self.images is not None and not self.images.is_dir():
            raise MediaError(
                f"--images {self.images} is not a folder. Name one that holds .png, .jpg or .webp pictures"
            )
