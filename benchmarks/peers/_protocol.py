"""What a peer is, and what opens one is given."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Peer", "PeerTask"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Peer:
    """Another way to run the same net on the same input.

    Attributes:
        name: As it was asked for: ``"torch"`` and so on.
        provider: What computes, in words.
        version: Of its package.
        run: Enlarges the batch once, from a host array to a host array, and returns when it is done.
        difference: Largest absolute difference of its output from ONNX Runtime's on the processor, 0..1 white,
            for the same float32 input and the fp32 graph.
        close: Releases what it holds; a second call does nothing.
    """

    name: str
    provider: str
    version: str
    run: Callable[[], object]
    difference: float
    close: Callable[[], None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PeerTask:
    """What every peer has to do.

    Attributes:
        model: What was asked for: a checkpoint, a graph or a plan.
        graph: Its fp32 graph in the float form.
        batch: ``(N, C, H, W)`` float32 0..1.
        expected: What ONNX Runtime makes of it on the processor, ``(N, C, H·s, W·s)`` float32.
        threads: Threads on the processor; None lets each choose.
        folder: May be written to while peers are opened, and is gone afterwards.
    """

    model: Path
    graph: Path
    batch: npt.NDArray[np.float32]
    expected: npt.NDArray[np.float32]
    threads: int | None
    folder: Path

    def difference(self, output: npt.NDArray[Any]) -> float:
        """Return the largest absolute difference from what is expected; infinite where the shapes differ."""
        if output.shape != self.expected.shape:
            return float("inf")
        return float(np.abs(output.astype(np.float32) - self.expected).max())
