"""What to measure and what to do with it; one field for each flag of the command."""

import dataclasses
from pathlib import Path
from typing import Literal

from esrgan_deploy.benchmarks._sweep import Axis

__all__ = ["BenchOptions", "ReportOptions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    Attributes:
        shape: ``(N, H, W)`` of the batch, in low-resolution pixels.
        seconds: How long to measure at each point of the sweep, everything together and warm-ups not counted.
        sweep: Axes; every combination is measured.
        streams: Batches in flight for the throughput; None lets the session choose.
        threads: Threads of one operator on the CPU; None lets the library choose.
        device: Ordinal of the CUDA device.
        providers: ONNX Runtime execution providers; None lets the runtime choose.
        precision: Of a checkpoint that PyTorch runs; None means fp32.
        trust: Whether a plan may be loaded that no manifest vouches for.
        quality: A folder that holds LR and HR, or None.
        peers: Other runtimes to measure in the same rounds, by name.
        seams: Whether to measure the seams against the halo as well.
        peaks: Whether to measure what the machine itself can do.
    """

    shape: tuple[int, int, int] = (1, 256, 256)
    seconds: float = 10.0
    sweep: tuple[Axis, ...] = ()
    streams: int | None = None
    threads: int | None = None
    device: int = 0
    providers: tuple[str, ...] | None = None
    precision: Literal["fp32", "fp16", "bf16"] | None = None
    trust: bool = False
    quality: Path | None = None
    peers: tuple[str, ...] = ()
    seams: bool = False
    peaks: bool = True

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape is {self.shape}; it is (N, H, W), each at least 1")
        if not 0 < self.seconds < 86400:
            raise ValueError(f"seconds is {self.seconds}; it is more than 0 and less than a day")
        for name in ("streams", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it is at least 1, or None to let the library choose")
        if self.device < 0:
            raise ValueError(f"device is {self.device}; it is 0 or more, in CUDA's own order")
        names = [axis.name for axis in self.sweep]
        if len(set(names)) != len(names):
            raise ValueError(f"sweep names an axis twice: {', '.join(names)}")
        if self.peers and "tile" in names:
            raise ValueError("peers run whole batches; leave them out, or the axis tile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What to do with the results.

    Attributes:
        json: Where every raw value goes.
        html: Where the report with plots goes.
        compare: Earlier results to hold these against.
        threshold: How much slower is a failure, as a share: 0.05 is a twentieth.
    """

    json: Path | None = None
    html: Path | None = None
    compare: Path | None = None
    threshold: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 10:
            raise ValueError(f"threshold is {self.threshold}; it is a share from 0, such as 0.05")
