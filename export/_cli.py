"""The command ``esrgan-export``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from esrgan_deploy._command_line import option, read_options
from esrgan_deploy._console import one_line_errors, show
from esrgan_deploy.engines import ShapeRange
from esrgan_deploy.export._options import ExportOptions

__all__ = ["ExportCommand", "main"]

_EPILOG = """\
examples:
  esrgan-export model.pth -o out            fp32 and fp16 graphs, a plan where TensorRT is installed, and proof
  esrgan-export                             the same for the model that ships
  esrgan-export RealESRGAN_x4plus           an official model: downloaded once, checked, kept
  esrgan-export model.pth --form uint8 --shapes 1x256x256 --outscale 2
  esrgan-export model.pth --precision fp16,int8 --calibration photographs --budget 0.1
  esrgan-export model.pth --explain 128x128 which kernels TensorRT chose, and the bytes that they move

exit status: 0 verified, 1 refused or not verified (one line on stderr says why), 2 usage
"""


def _size(text: str) -> tuple[int, int]:
    shape = ShapeRange.parse(text).opt
    return shape[1], shape[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Export an ESRGAN-family checkpoint to ONNX and TensorRT, and prove what each file computes."""

    model: str | None = option(
        None,
        positional=True,
        help="a .pth, .pt, .ckpt, .safetensors or .onnx file, ncnn's .param with its .bin beside it, or an official "
        "name such as RealESRGAN_x4plus; without it, the model that ships",
    )
    output: Path | None = option(
        None, flags="-o --output", metavar="DIR", help="folder to write (default: the model's name)"
    )
    list: bool = option(False, help="list the official names and stop")
    options: ExportOptions = dataclasses.field(default_factory=ExportOptions)
    explain: tuple[int, int] | None = option(
        None,
        type=_size,
        nargs="?",
        const=(128, 128),
        metavar="HxW",
        help="list the kernels that TensorRT chooses at this size and the bytes that they move, and what each "
        "convolution of an 8-bit graph adds to the error (128x128 if none is given)",
    )


@one_line_errors("esrgan-export")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = read_options(ExportCommand, argv, prog="esrgan-export", epilog=_EPILOG)
    if command.list:
        from esrgan_deploy.export.checkpoints import OFFICIAL

        for name, release in OFFICIAL.items():
            show(f"{name:32} {release.size / 2**20:5.1f} MiB")
        return 0
    # torch takes seconds to import: after the arguments are known to be good, and never for --help.
    from esrgan_deploy.export._command import run

    return run(command.model, command.output, command.options, command.explain)


if __name__ == "__main__":
    sys.exit(main())
