"""What to measure and what to do with it; one field for each flag of the command."""

import dataclasses
from pathlib import Path
from typing import Literal

from esrgan_deploy._command_line import breaches, option, output_file
from esrgan_deploy._console import STREAMS, THREADS
from esrgan_deploy.benchmarks._sweep import Axis, parse_axis, parse_shape

__all__ = ["PEERS", "BenchOptions", "ReportOptions"]

PEERS = ("torch", "torch-compile", "onnxruntime", "openvino", "ncnn")
"""What `open_peers` opens."""


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
        help="ONNX Runtime execution providers in order of preference, such as cuda,cpu",
    )
    precision: Literal["fp32", "fp16", "bf16"] | None = option(
        None, help="of a .pth in PyTorch (default: fp32)"
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
