"""The command ``esrgan-upscale``."""

import dataclasses
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from esrgan_deploy._command_line import LAYOUT, OUTPUT_NAME, RANGE, option, read_options
from esrgan_deploy._console import (
    STREAMS,
    THREADS,
    OptionError,
    note,
    one_line,
    one_line_errors,
    progress,
    say,
)
from esrgan_deploy.runtime._job_cli import JobOptions, agreed, is_job, list_job, run_job
from esrgan_deploy.runtime._standard_streams import STREAM, from_input, to_output
from esrgan_deploy.runtime.pictures import MAX_PIXELS, OUTPUT_FORMATS
from esrgan_deploy.runtime.tiling import Edge, TileOptions, TilePlan

if TYPE_CHECKING:
    from esrgan_deploy.runtime._upscaler import Upscaler

__all__ = ["main"]

COMMAND = "esrgan-upscale"

_EPILOG = """\
examples:
  esrgan-upscale photo.png                  the model that ships; writes photo_x4.png
  esrgan-upscale photo.png -o big.png --model out --device 0,1
  esrgan-upscale photographs -o enlarged    a folder; the same command goes on where it ended
exit status: 0, 1 where it cannot be done, 2 for a wrong option, 3 where some of a folder failed
"""


def _tile(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither 'auto' nor a number of pixels") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opening:
    """The keywords of `Upscaler`."""

    range: int | tuple[int, int] | None = option(None, group="model", **RANGE)
    layout: Literal["NCHW", "NHWC"] | None = option(None, help=LAYOUT)
    output_name: str | None = option(None, **OUTPUT_NAME)
    trust: bool = option(False, help="load a plan that no manifest vouches for; a plan is code")
    rebuild: Literal["never", "auto"] = option(
        "never", help="auto: rebuild a plan that does not fit this machine from the graph beside it"
    )
    verify: bool = option(False, help="run the golden pairs of the manifest first")
    tile: int | Literal["auto"] = option(
        "auto",
        group="tiles",
        type=_tile,
        metavar="auto|N|0",
        help="edge of the tiles in input pixels, 0 for the whole picture at once (default: auto, up to 256)",
    )
    halo: int | None = option(
        None,
        least=0,
        help="input pixels around a tile that are computed and thrown away (default: what was measured for the "
        "model, else 16)",
    )
    edge: Edge = option(
        "repeat",
        help="what the net sees beyond the picture: its outermost pixels, as far as the halo goes, or zeros, as "
        "PyTorch computes, which leaves a rim",
    )
    strip: int | None = option(
        None,
        least=0,
        help="rows that go through the parts of the model at once, without a seam; 0 for tiles all the same "
        "(default: as many as 1.5 GiB hold, at least 128 where memory allows)",
    )
    devices: tuple[int, ...] | None = option(
        None,
        group="how to run it",
        flags="--device --devices",
        least=0,
        help="CUDA devices that share the work, such as 0,1, in CUDA's own order (default: 0)",
    )
    providers: tuple[str, ...] | None = option(
        None,
        flags="--provider",
        metavar="NAME[,...]",
        help="what runs an .onnx: providers of ONNX Runtime in order of preference, such as cuda,cpu; openvino, or "
        "openvino:GPU; auto, the fastest on this processor that computes what PyTorch did (default: cuda where it is "
        "present, else cpu)",
    )
    precision: Literal["fp32", "fp16", "bf16"] | None = option(
        None,
        help="of an .onnx in OpenVINO, or of a checkpoint in PyTorch (default: its own; with auto the fastest)",
    )
    threads: int | None = option(
        None, least=1, most=THREADS, help="CPU threads (default: the library's choice)"
    )
    streams: int | None = option(
        None,
        least=1,
        most=STREAMS,
        help="batches in flight on each device (default: 3 on a GPU, 2 on a processor)",
    )

    def __post_init__(self) -> None:
        # With the halo that was measured for the model it may still not fit; that is known when it is open.
        TileOptions(tile=self.tile, halo=self.halo or 0, strip=self.strip)
        if self.devices and len(set(self.devices)) < len(self.devices):
            raise ValueError(f"device is {','.join(map(str, self.devices))}; name each once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Command:
    """Enlarge pictures with an ESRGAN-family model."""

    input: tuple[Path, ...] = option(
        positional=True,
        nargs="+",
        metavar="INPUT",
        help="PNG, JPEG, WebP, TIFF or BMP; several, folders and patterns such as 'a/**/*.jpg' with -o FOLDER; - is "
        "standard input",
    )
    output: str | None = option(
        None,
        flags="-o --output",
        metavar="FILE|FOLDER",
        help=f"what to write, by suffix: {' '.join(OUTPUT_FORMATS)}, or a folder, made like the input; - is a "
        "PNG on standard output; default: INPUT_x4.png beside the input",
    )
    force: bool = option(False, help="replace an existing output")
    max_pixels: int = option(MAX_PIXELS, least=1, help="refuse an input of more pixels")
    model: Path | None = option(
        None,
        metavar="FILE",
        help="an artefact of esrgan-export or its folder, or a checkpoint (default: the shipped model)",
    )
    jobs: JobOptions = dataclasses.field(default_factory=JobOptions)
    opening: _Opening = dataclasses.field(default_factory=_Opening)


@one_line_errors(COMMAND)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Raises:
        OptionError: Options do not go with what was given.
    """
    command = read_options(_Command, arguments, prog=COMMAND, epilog=_EPILOG)
    warnings.showwarning = _as_note
    if is_job(command.input, command.output):
        return _many(command)
    for name, value in vars(command.jobs).items():
        if value:
            flag = f"--{name.replace('_', '-')}"
            raise OptionError(f"{flag} is for folders and lists; give a folder with -o, such as -o enlarged/")
    return _one(command)


def _many(command: _Command) -> int:
    from esrgan_deploy.runtime import Job

    given = command.jobs
    if command.output in (None, STREAM) or any(str(path) == STREAM for path in command.input):
        raise OptionError("several inputs, or a folder, become a folder of outputs: give it with -o FOLDER")
    how = {name: value for name, value in vars(given).items() if name not in ("dry_run", "json")}
    job = Job(command.input, str(command.output), force=command.force, max_pixels=command.max_pixels, **how)
    if given.dry_run:
        return list_job(job, json=given.json)
    # What can be refused is, before the model is opened.
    job.look()
    with _open(command) as upscaler:
        remake = not command.force and agreed(job, upscaler)
        return run_job(job, upscaler, remake=remake, command=COMMAND, json=given.json)


def _one(command: _Command) -> int:
    # Here, so that --help does not wait for numpy.
    from esrgan_deploy.runtime.pictures import check_fits, check_output, read_picture, write_picture

    (named,) = command.input
    if str(named) == STREAM and command.output is None:
        raise OptionError("a picture from standard input needs a name for its output, with -o FILE, or -o -")
    # What is said goes beside a picture on standard output, not into it.
    tell = note if command.output == STREAM else say
    with to_output(command.output) as given:
        with from_input(named) as source:
            if given is not None:
                check_output(given, source=source, force=command.force)
            picture = read_picture(source, max_pixels=command.max_pixels)
            with _open(command) as upscaler:
                if command.opening.verify:
                    tell(f"{upscaler.info.name}: computes here what PyTorch computed of the golden pictures")
                output = given or _default_output(source, float(upscaler.info.scale))
                check_output(output, source=source, force=command.force)
                plan = upscaler.plan(*picture.pixels.shape[:2])
                notes = check_fits(output, picture, *plan.out_size)
                if upscaler.info.form == "uint8" and picture.pixels.dtype.itemsize > 1:
                    notes = ("the model computes on 8 bits: use one of the float form to keep 16", *notes)
                started = time.perf_counter()
                with progress("tile") as show:
                    enlarged = picture.with_pixels(upscaler.upscale(picture.pixels, progress=show))
                shown = command.output if command.output == STREAM else output
                summary = _summary(shown, upscaler, plan, time.perf_counter() - started)
        # The model is closed by now: encoders hold a second copy of the picture.
        write_picture(output, enlarged, force=command.force)
    tell(summary)
    for text in (*picture.notes, *notes):
        note(f"{COMMAND}: note: {text}")
    return 0


def _open(command: _Command) -> "Upscaler":
    from esrgan_deploy.runtime._upscaler import Upscaler

    try:
        return Upscaler(command.model, **vars(command.opening))
    except ValueError as error:
        # What it documents of its options. Behind this a ValueError is a bug.
        raise OptionError(str(error)) from error


def _default_output(source: Path, scale: float) -> Path:
    # Only what is a suffix goes: "scan v1.5" has none.
    stem = source.stem if source.suffix.lower() in OUTPUT_FORMATS else source.name
    return source.with_name(f"{stem}_x{scale:g}.png")


def _as_note(message: Warning | str, *_: object, **__: object) -> None:
    # Python's own way shows a file and a line of this package, which help nobody.
    note(f"{COMMAND}: note: {one_line(message)}")


def _summary(output: Path | str, upscaler: "Upscaler", plan: TilePlan, seconds: float) -> str:
    info = upscaler.info
    tiles = "untiled"
    if plan.strip:
        tiles = (
            f"{plan.count} strip{'s' * (plan.count > 1)} of {min(plan.strip, plan.tile[0])} rows, no seams"
        )
    elif plan.count > 1:
        tiles = f"{plan.count} tiles of {plan.tile[1]}x{plan.tile[0]}, halo {plan.halo}"
    height, width = plan.out_size
    return (
        f"{output}: {plan.width}x{plan.height} -> {width}x{height} with {info.name} "
        f"(x{float(info.scale):g}, {info.provider}), {tiles}, {seconds:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
