"""What a run of the bench is asked: its options, and the points of its sweep."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from esrgan_deploy._command_line import breaches, option, output_file
from esrgan_deploy._console import STREAMS, THREADS

__all__ = [
    "MOST",
    "PEERS",
    "Axis",
    "BenchOptions",
    "Point",
    "ReportOptions",
    "parse_axis",
    "parse_shape",
    "points",
]


AxisName = Literal["shape", "batch", "streams", "tile"]
MOST = 2**31 - 1
NAMES: tuple[AxisName, ...] = ("shape", "batch", "streams", "tile")

PEERS = ("torch", "torch-compile", "onnxruntime", "openvino", "ncnn")
"""What `open_peers` opens."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One thing that varies.

    Attributes:
        name: ``"shape"``: batches; ``"batch"``: pictures (or tiles) at once; ``"streams"``: batches in flight;
            ``"tile"``: edge of the tiles into which `Upscaler` cuts one picture, 0 for the whole at once.
        values: ``(N, H, W)`` for shapes, else whole numbers; in order, none twice.
    """

    name: AxisName
    values: tuple[tuple[int, int, int], ...] | tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One combination.

    Attributes:
        shape: ``(N, H, W)`` of a batch; with a tile, H and W are the picture's and N counts tiles.
        streams: Batches in flight for the throughput; None lets the session choose.
        tile: Edge of the tiles, 0 for none; None runs batches without the Upscaler.
    """

    shape: tuple[int, int, int]
    streams: int | None = None
    tile: int | None = None


def points(shape: tuple[int, int, int], streams: int | None, sweep: Sequence[Axis]) -> list[Point]:
    """Return every combination, the last axis fastest; without a sweep the one point that is asked for.

    Args:
        shape: Where no axis says otherwise.
        streams: Likewise.
        sweep: The axes.
    """
    made = []
    for values in itertools.product(*(axis.values for axis in sweep)):
        at: dict[str, Any] = dict(zip((axis.name for axis in sweep), values, strict=True))
        n, h, w = at.get("shape", shape)
        made.append(
            Point(shape=(at.get("batch", n), h, w), streams=at.get("streams", streams), tile=at.get("tile"))
        )
    # batch=1,2 over shapes that differ in N alone would measure the same twice.
    return list(dict.fromkeys(made))


def parse_axis(text: str) -> Axis:
    """Read ``NAME=VALUE,VALUE``.

    Raises:
        ValueError: It is not one; the message says what is allowed.
    """
    name, equals, rest = text.partition("=")
    if not equals or name not in NAMES:
        raise ValueError(
            f"{text!r} is not NAME=VALUE,VALUE with a NAME of {', '.join(NAMES)}; models go before --sweep"
        )
    parts = [part.strip() for part in rest.split(",")]
    values = tuple(parse_shape(part) if name == "shape" else _whole(name, part) for part in parts)
    if len(set(values)) != len(values):
        raise ValueError(f"{text!r} holds a value twice")
    return Axis(name, values)  # type: ignore[arg-type]


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read ``NxHxW`` or ``HxW``.

    Raises:
        ValueError: It is neither.
    """
    parts = text.lower().split("x")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 2:
        numbers = [1, *numbers]
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"{text!r} is not NxHxW or HxW, such as 1x256x256")
    if math.prod(numbers) > MOST:
        raise ValueError(f"{text!r} is more than the {MOST} pixels that a batch can hold")
    return numbers[0], numbers[1], numbers[2]


def _whole(name: str, text: str) -> int:
    least = 0 if name == "tile" else 1
    # Its length first: Python refuses to read a number of thousands of digits.
    most = STREAMS if name == "streams" else MOST
    if not text.isdecimal() or len(text) > len(str(most)) or not least <= int(text) <= most:
        raise ValueError(f"{name}={text!r} is not a whole number from {least} to {most}")
    return int(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure; the help of each field says more. None lets the library choose."""

    shape: tuple[int, int, int] = option(
        (1, 256, 256),
        group="what to measure",
        type=parse_shape,
        metavar="NxHxW",
        help="batch in LR pixels (default: 1x256x256)",
    )
    seconds: float = option(
        10.0, above=0, below=86400, metavar="S", help="how long at each point, warm-ups not counted"
    )
    sweep: tuple[Axis, ...] = option(
        (), type=parse_axis, nargs="+", metavar="AXIS=V,V", help="shape, batch, streams or tile; see below"
    )
    streams: int | None = option(
        None, least=1, most=STREAMS, help="batches in flight (default: the session's own)"
    )
    peers: tuple[str, ...] = option((), choices=PEERS, help="other runtimes to measure in the same rounds")
    quality: Path | None = option(None, metavar="DIR", help="PSNR and SSIM on DIR/LR against DIR/HR")
    seams: bool = option(False, help="largest difference from the untiled picture by halo")
    peaks: bool = option(True, help="leave out what the machine itself can do (saves some seconds)")
    threads: int | None = option(
        None,
        group="how to run it",
        least=1,
        most=THREADS,
        help="threads on the CPU (default: the library's choice)",
    )
    device: int = option(
        0, least=0, help="CUDA device, in CUDA's own order; the report says its name and PCI bus id"
    )
    providers: tuple[str, ...] | None = option(
        None,
        flags="--provider",
        metavar="NAME[,...]",
        help="what runs an .onnx: ONNX Runtime execution providers in order of preference, such as cuda,cpu; "
        "openvino, or auto",
    )
    precision: Literal["fp32", "fp16", "bf16"] | None = option(
        None, help="of a .pth in PyTorch, or of an .onnx in OpenVINO (default: fp32, of a graph its own)"
    )
    trust: bool = option(False, help="load a plan that no manifest vouches for; a plan is code")

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape is {self.shape}; it is (N, H, W), each at least 1")
        for breach in breaches(self):
            raise ValueError(breach)
        names = [axis.name for axis in self.sweep]
        if len(set(names)) != len(names):
            raise ValueError(f"sweep names an axis twice: {', '.join(names)}")
        if self.peers and "tile" in names:
            raise ValueError("peers run whole batches; leave them out, or the axis tile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What to do with the results."""

    json: Path | None = option(
        None,
        group="what to do with it",
        type=output_file,
        metavar="FILE",
        help="write every raw value and the environment",
    )
    html: Path | None = option(
        None, type=output_file, metavar="FILE", help="write a report with plots (extra report)"
    )
    compare: Path | None = option(
        None, metavar="OLD.json", help="exit 1 if something became slower since then"
    )
    threshold: float = option(
        0.05, least=0, below=10, metavar="SHARE", help="how much slower is a failure, as a share"
    )

    def __post_init__(self) -> None:
        for breach in breaches(self):
            raise ValueError(breach)
