"""The command ``esrgan-export``."""

import argparse
import sys
from pathlib import Path

from esrgan_deploy._console import Parser, at_least, between, one_line_errors, peaks
from esrgan_deploy.export.quantisation._options import METHODS, PARTS, ROUNDINGS

__all__ = ["main"]

_EPILOG = """\
examples:
  esrgan-export model.pth -o out            fp32 and fp16 graphs, a plan where TensorRT is installed, and proof
  esrgan-export                             the same for the model that ships
  esrgan-export RealESRGAN_x4plus           an official model: downloaded once, checked, kept
  esrgan-export model.pth --form uint8 --shapes 1x256x256 --outscale 2
  esrgan-export model.pth --precision int8 --calibration photographs --budget 0.1
  esrgan-export model.pth --explain 128x128 which kernels TensorRT chose, and the bytes that they move

exit status: 0 verified, 1 refused or not verified (one line on stderr says why), 2 usage
"""


@one_line_errors("esrgan-export")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    # torch takes seconds to import: after the arguments are known to be good, and never for --help.
    from esrgan_deploy.export._command import run

    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="esrgan-export",
        description="Export an ESRGAN-family checkpoint to ONNX and TensorRT, and prove what each file computes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="a .pth, .pt, .ckpt, .safetensors or .onnx file, or an official name such as RealESRGAN_x4plus; "
        "without it, the model that ships",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder to write (default: the model's name)"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the export that is there, all of it",
    )
    parser.add_argument("--offline", action="store_true", help="never download; say what is missing")
    parser.add_argument("--list", action="store_true", help="list the official names and stop")

    graph = parser.add_argument_group("graph")
    graph.add_argument(
        "--precision",
        action="append",
        choices=("fp32", "fp16", "bf16", "int8", "fp8", "int8-cpu"),
        help="precision of the graph and plan to build; may be given more than once (default: fp16). int8 and fp8 "
        "are for TensorRT, int8-cpu for ONNX Runtime and OpenVINO on a processor",
    )
    graph.add_argument(
        "--form",
        choices=("float", "uint8"),
        default="float",
        help="input and output of the built graph: NCHW 0..1, or NHWC 0..255 with scaling and rounding inside "
        "(default: float)",
    )
    graph.add_argument(
        "--no-watchdog",
        action="store_false",
        dest="watchdog",
        help="leave away the graph's second output, by which a NaN or a blank picture is noticed",
    )
    graph.add_argument(
        "--outscale",
        type=float,
        metavar="X",
        help="final size, resized inside the graph (default: the net's)",
    )
    graph.add_argument(
        "--scale",
        type=int,
        metavar="N",
        help="scale of the checkpoint, where its keys leave it open (x3 of old ESRGAN)",
    )
    graph.add_argument(
        "--range",
        type=peaks,
        metavar="1|255|IN:OUT",
        help="what white is in an .onnx that others made, at its ends or at its input and its output, such as 1:255 "
        "(default: measured on a few greys)",
    )
    graph.add_argument(
        "--layout",
        choices=("NCHW", "NHWC"),
        help="layout of an .onnx that others made (default: read from its shape, or tried)",
    )
    graph.add_argument(
        "--output-name",
        metavar="NAME",
        help="which output of an .onnx that others made is the picture (default: the one that is enlarged)",
    )
    graph.add_argument("--opset", type=int, metavar="N", help="ONNX operator set, 17 to 23 (default: 20)")
    graph.add_argument(
        "--denoise-strength",
        type=float,
        metavar="S",
        help="interpolate with --denoise-with: S of the model, 1-S of the other",
    )
    graph.add_argument(
        "--denoise-with",
        type=Path,
        metavar="MODEL",
        help="checkpoint to interpolate with, a file or an official name",
    )

    _quantisation_flags(parser)

    plan = parser.add_argument_group("TensorRT plan")
    choice = plan.add_mutually_exclusive_group()
    choice.add_argument(
        "--plan", action="store_true", default=None, help="build plans (default: where TensorRT is installed)"
    )
    choice.add_argument("--no-plan", action="store_false", dest="plan", help="write ONNX only")
    plan.add_argument(
        "--flavour",
        choices=("auto", "tensorrt", "tensorrt_rtx"),
        default="auto",
        help="which TensorRT builds (default: auto)",
    )
    plan.add_argument(
        "--shapes",
        metavar="MIN:OPT:MAX",
        help="range of a plan, each NxHxW or HxW; one for a static plan (default: 1x16x16:1x256x256:1x512x512)",
    )
    plan.add_argument(
        "--workspace",
        type=between(2**-30, 2**20),
        metavar="GIB",
        help="scratch memory that the builder may use (default: no limit)",
    )
    plan.add_argument(
        "--memory-limit",
        type=between(2**-30, 2**20),
        metavar="GIB",
        help="refuse a range whose activations need more (default: what the GPU has)",
    )
    plan.add_argument(
        "--optimization-level",
        type=int,
        metavar="0..5",
        help="how long the builder searches (default: TensorRT's own)",
    )
    plan.add_argument(
        "--compute-capabilities", metavar="X.Y,…", help="cards to build for; TensorRT for RTX only"
    )
    plan.add_argument(
        "--hardware-compatibility",
        choices=("none", "ampere+", "same-compute-capability"),
        help="let a full TensorRT plan run on other cards",
    )
    plan.add_argument(
        "--version-compatible", action="store_true", help="let a full TensorRT plan run on later versions"
    )
    plan.add_argument(
        "--aux-streams",
        type=at_least(0),
        metavar="N",
        help="streams that one inference may use beside its own",
    )
    plan.add_argument(
        "--timing-cache", type=Path, metavar="DIR", help="keep kernel timings here; full TensorRT only"
    )

    proof = parser.add_argument_group("verification")
    proof.add_argument("--images", type=Path, metavar="DIR", help="verify on these pictures as well")
    proof.add_argument(
        "--explain",
        nargs="?",
        const="128x128",
        metavar="HxW",
        help="list the kernels that TensorRT chooses at this size and the bytes that they move",
    )
    return parser


def _quantisation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("INT8 and FP8")
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="photographs, taken as high-resolution pictures: most calibrate, the rest judge (default: the scales "
        "that are there already, else drawn pictures)",
    )
    group.add_argument(
        "--budget",
        type=float,
        default=0.1,
        metavar="DB",
        help="PSNR-Y against the truth that may be lost on pictures that calibration has not seen; convolutions "
        "return to fp16 until it holds (default: 0.1)",
    )
    group.add_argument(
        "--no-search",
        action="store_false",
        dest="search",
        help="quantise all that can be, whatever it costs",
    )
    group.add_argument(
        "--method",
        choices=METHODS,
        help="how a scale follows from the values seen (default: mse for int8, max for fp8)",
    )
    group.add_argument(
        "--weights",
        choices=("per-channel", "per-tensor"),
        help="one weight scale for each channel of the output, or for all (default: per-channel for int8, "
        "per-tensor for fp8)",
    )
    group.add_argument(
        "--rounding",
        choices=ROUNDINGS,
        help="how weights are rounded; learned takes minutes (default: compensated for int8, learned for fp8)",
    )
    group.add_argument(
        "--remainders",
        type=int,
        metavar="N",
        help="input channels of each fp8 convolution behind the dense blocks that are read twice, rounded and what "
        "the rounding left (default: 4)",
    )
    group.add_argument(
        "--parts",
        choices=PARTS,
        help="what may be quantised: the dense blocks (of an SRVGGNetCompact its middle), inner: all but the first "
        "and the last convolution, but-first, or all (default: inner; for processors but-first of an RRDBNet)",
    )
    group.add_argument(
        "--no-equalise",
        action="store_false",
        dest="equalise",
        help="leave the channels as they are",
    )


if __name__ == "__main__":
    sys.exit(main())
