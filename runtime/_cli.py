"""The command ``esrgan-upscale``."""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from esrgan_deploy._console import (
    STREAMS,
    THREADS,
    OptionError,
    Parser,
    at_least,
    note,
    one_line,
    one_line_errors,
    peaks,
    say,
)
from esrgan_deploy.runtime._formats import MAX_PIXELS, OUTPUT_FORMATS
from esrgan_deploy.runtime._tiling import EDGES, TileOptions, TilePlan

if TYPE_CHECKING:
    from esrgan_deploy.runtime._upscaler import Upscaler

__all__ = ["main"]

COMMAND = "esrgan-upscale"


@one_line_errors(COMMAND)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    warnings.showwarning = _as_note
    try:
        # With the halo that was measured for the model it may still not fit; that is known when it is open.
        TileOptions(tile=options.tile, halo=options.halo or 0)
    except ValueError as error:
        parser.error(str(error))
    return _upscale(options)


def _upscale(options: argparse.Namespace) -> int:
    # Here, so that --help does not wait for numpy.
    from esrgan_deploy.runtime._picture_reader import read_picture
    from esrgan_deploy.runtime._picture_writer import check_fits, check_output, write_picture

    source: Path = options.input
    if options.output is not None:
        check_output(options.output, source=source, force=options.force)
    picture = read_picture(source, max_pixels=options.max_pixels)
    with _open(options) as upscaler:
        if options.verify:
            say(f"{upscaler.info.name}: computes here what PyTorch computed of the golden pictures")
        output = options.output or _default_output(source, float(upscaler.info.scale))
        check_output(output, source=source, force=options.force)
        plan = upscaler.plan(*picture.pixels.shape[:2])
        notes = check_fits(output, picture, *plan.out_size)
        if upscaler.info.form == "uint8" and picture.pixels.dtype.itemsize > 1:
            notes = ("the model computes on 8 bits: use one of the float form to keep 16", *notes)
        started = time.perf_counter()
        enlarged = picture.with_pixels(upscaler.upscale(picture.pixels, progress=_progress()))
        summary = _summary(output, upscaler, plan, time.perf_counter() - started)
    # The model is closed by now: encoders hold a second copy of the picture.
    write_picture(output, enlarged, force=options.force)
    say(summary)
    for text in (*picture.notes, *notes):
        note(f"{COMMAND}: note: {text}")
    return 0


def _open(options: argparse.Namespace) -> "Upscaler":
    from esrgan_deploy.runtime._upscaler import Upscaler

    try:
        return Upscaler(
            options.model,
            tile=options.tile,
            halo=options.halo,
            edge=options.edge,
            providers=options.provider,
            threads=options.threads,
            devices=options.devices,
            streams=options.streams,
            trust=options.trust,
            rebuild=options.rebuild,
            verify=options.verify,
            range=options.range,
            layout=options.layout,
            output_name=options.output_name,
        )
    except ValueError as error:
        # What it documents of its options. Behind this a ValueError is a bug.
        raise OptionError(str(error)) from error


def _default_output(source: Path, scale: float) -> Path:
    # Only what is a suffix goes: "scan v1.5" has none.
    stem = source.stem if source.suffix.lower() in OUTPUT_FORMATS else source.name
    return source.with_name(f"{stem}_x{scale:g}.png")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=COMMAND, description="Enlarge a picture with an ESRGAN-family model.", allow_abbrev=False
    )
    add = parser.add_argument
    add("input", type=Path, help="PNG, JPEG, WebP, TIFF or BMP")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help=f"what to write, by suffix: {' '.join(OUTPUT_FORMATS)}; default: INPUT_x4.png beside the input",
    )
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="an artefact of esrgan-export or its folder, or a checkpoint (default: the shipped model)",
    )
    add(
        "--range",
        type=peaks,
        metavar="1|255|IN:OUT",
        help="what white is in an .onnx that others made, at its ends or at its input and its output, such as 1:255 "
        "(default: measured on a few greys)",
    )
    add(
        "--layout",
        choices=("NCHW", "NHWC"),
        help="layout of an .onnx that others made (default: read from its shape, or tried)",
    )
    add(
        "--output-name",
        metavar="NAME",
        help="which output of an .onnx that others made is the picture (default: the one that is enlarged)",
    )
    add(
        "--tile",
        type=_tile,
        default="auto",
        metavar="auto|N|0",
        help="edge of the tiles in input pixels, 0 for the whole picture at once (default: auto, up to 256)",
    )
    add(
        "--halo",
        type=at_least(0),
        metavar="N",
        help="input pixels around a tile that are computed and thrown away (default: what was measured for the "
        "model, else 16)",
    )
    add(
        "--edge",
        choices=EDGES,
        default="repeat",
        help="what the net sees beyond the picture: its outermost pixels, as far as the halo goes, or zeros, as "
        "PyTorch computes, which leaves a rim (default: repeat)",
    )
    add("--force", action="store_true", help="replace an existing output")
    add(
        "--threads",
        type=at_least(1, most=THREADS),
        metavar="N",
        help="CPU threads (default: ONNX Runtime's choice)",
    )
    add(
        "--provider",
        action="append",
        metavar="NAME",
        help="ONNX Runtime provider, such as cpu or cuda; repeat it in order of preference "
        "(default: cuda where it is present, else cpu)",
    )
    add(
        "--devices",
        type=_devices,
        metavar="N[,N...]",
        help="CUDA devices that share the work, such as 0,1, in CUDA's own order (default: 0)",
    )
    add(
        "--streams",
        type=at_least(1, most=STREAMS),
        metavar="N",
        help="batches in flight on each device (default: 3 on a GPU, 2 on a processor)",
    )
    add("--trust", action="store_true", help="load a plan that no manifest vouches for; a plan is code")
    add(
        "--rebuild",
        choices=("never", "auto"),
        default="never",
        help="auto: rebuild a plan that does not fit this machine from the graph beside it (default: never)",
    )
    add("--verify", action="store_true", help="run the golden pairs of the manifest first")
    add(
        "--max-pixels",
        type=at_least(1),
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse an input of more pixels (default: {MAX_PIXELS})",
    )
    return parser


def _tile(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a number of pixels") from None


def _devices(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not device numbers such as 0 or 0,1, each once")
    return numbers


def _as_note(message: Warning | str, *_: object, **__: object) -> None:
    # Python's own way shows a file and a line of this package, which help nobody.
    note(f"{COMMAND}: note: {one_line(message)}")


def _summary(output: Path, upscaler: "Upscaler", plan: TilePlan, seconds: float) -> str:
    info = upscaler.info
    tiles = "untiled"
    if plan.count > 1:
        tiles = f"{plan.count} tiles of {plan.tile[1]}x{plan.tile[0]}, halo {plan.halo}"
    height, width = plan.out_size
    return (
        f"{output}: {plan.width}x{plan.height} -> {width}x{height} with {info.name} "
        f"(x{float(info.scale):g}, {info.provider}), {tiles}, {seconds:.1f} s"
    )


def _progress() -> Callable[[int, int], None] | None:
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    started = time.perf_counter()

    def show(done: int, total: int) -> None:
        left = (time.perf_counter() - started) * (total - done) / done
        line = f"{100 * done // total:3d} %, tile {done} of {total}, {left:.0f} s left"
        # The line is cleared by its own end, so that what follows starts on a clean one.
        print(f"\r{line:<60}\r" if done < total else f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)

    return show
