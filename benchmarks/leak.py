"""Memory, threads and open files over thousands of calls of one Upscaler.

    python -m esrgan_deploy.benchmarks.leak [model] [--calls 10000] [--json FILE]

Frames of changing size go through `Upscaler.upscale`, `submit` and `stream`, and the resident memory of the process
is read every now and then. What it grows by per 1,000 calls is the median slope between two readings after the first
fifth, in which buffers and heap find their size; one step of the heap later on is no slope, and shows between the two
columns of MiB. Linux only: elsewhere there is no /proc to read.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import THREADS, Parser, at_least, one_line_errors, output_file, say
from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.benchmarks._machine import describe_machine
from esrgan_deploy.runtime import Upscaler

__all__ = ["WAYS", "growth_of_ways", "main", "slope"]

BAR = 16 * 1024
"""Bytes per 1,000 calls below which there is no leak to speak of: a lost frame of 8x8 would be ten times that."""

WARM = 0.2
SIDES = (8, 5, 8, 12, 7)

Frame = npt.NDArray[np.uint8]


@one_line_errors("leak")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 where one of the ways grows by more than `BAR` per 1,000 calls."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.leak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", type=Path, help="default: the model that ships")
    parser.add_argument(
        "--calls", type=at_least(100), default=10000, help="calls of each way, 100 or more (default: 10000)"
    )
    parser.add_argument(
        "--threads", type=at_least(1, most=THREADS), default=1, help="threads of ONNX Runtime (default: 1)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every reading")
    args = parser.parse_args(argv)
    figures = {
        "environment": describe_machine(),
        "ways": growth_of_ways(args.model, calls=args.calls, threads=args.threads),
    }
    say(f"{'way':8} {'calls':>7} {'calls/s':>8} {'MiB warm':>9} {'MiB last':>9} {'KiB per 1,000 calls':>20}")
    for name, way in figures["ways"].items():
        warm = way["readings"][int(len(way["readings"]) * WARM)][1]
        say(
            f"{name:8} {args.calls:7} {way['calls_per_second']:8.0f} {warm / 2**20:9.1f} "
            f"{way['readings'][-1][1] / 2**20:9.1f} {way['bytes_per_1000_calls'] / 1024:20.2f}"
        )
        for what in ("threads", "files"):
            before, after = way[what]
            if after != before:
                say(f"{name:8} {what}: {before} before, {after} after")
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return 1 if any(way["bytes_per_1000_calls"] > BAR for way in figures["ways"].values()) else 0


def growth_of_ways(model: Path | None = None, *, calls: int, threads: int | None = 1) -> dict[str, Any]:
    """Run each of `WAYS` for so many calls on one Upscaler.

    Args:
        model: An artefact; None for the model that ships.
        calls: Frames that go through each way.
        threads: Threads of ONNX Runtime.

    Returns:
        By way ``{"readings": [[calls, bytes], …], "bytes_per_1000_calls", "calls_per_second", "threads": [before,
        after], "files": [before, after]}``.

    Raises:
        BenchmarkError: There is no /proc.
        InferenceError: The model cannot be run here.
    """
    found = {}
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in SIDES]
    for name, way in WAYS.items():
        with Upscaler(model, threads=threads) as up:
            # Whatever is loaded or started by the first frame is no leak.
            up.submit(frames[0]).result()
            before = threading.active_count(), _files()
            found[name] = _measured(way(up, _endless(frames)), calls)
            after = threading.active_count(), _files()
        found[name] |= {"threads": [before[0], after[0]], "files": [before[1], after[1]]}
    return found


def slope(readings: list[tuple[int, int]]) -> float:
    """Return the growth per call through ``(calls, bytes)``: the median over all pairs (Theil and Sen).

    The heap grows in steps. By least squares a single one in thousands of calls looks like a leak.
    """
    calls, sizes = np.array(readings, np.float64).T
    first, second = np.triu_indices(len(calls), 1)
    return float(np.median((sizes[second] - sizes[first]) / (calls[second] - calls[first])))


def _upscale(up: Upscaler, frames: Iterator[Frame]) -> Iterator[object]:
    for frame in frames:
        yield up.upscale(frame)


def _submit(up: Upscaler, frames: Iterator[Frame]) -> Iterator[object]:
    ahead = deque(up.submit(next(frames)) for _ in range(3))
    for frame in frames:
        ahead.append(up.submit(frame))
        yield ahead.popleft().result()


def _stream(up: Upscaler, frames: Iterator[Frame]) -> Iterator[object]:
    yield from up.stream(frames)


WAYS: dict[str, Callable[[Upscaler, Iterator[Frame]], Iterator[object]]] = {
    "upscale": _upscale,
    "submit": _submit,
    "stream": _stream,
}
"""By name: what makes an iterator of results of an Upscaler and frames."""


def _measured(results: Iterator[object], calls: int) -> dict[str, Any]:
    every = max(1, calls // 200)
    readings = [(0, _resident())]
    started = time.perf_counter()
    for done, _ in zip(range(1, calls + 1), results, strict=False):
        if done % every == 0:
            readings.append((done, _resident()))
    seconds = time.perf_counter() - started
    kept = readings[int(len(readings) * WARM) :]
    return {
        "readings": readings,
        "bytes_per_1000_calls": slope(kept) * 1000,
        "calls_per_second": calls / seconds,
    }


def _endless(frames: list[Frame]) -> Iterator[Frame]:
    while True:
        yield from frames


def _resident() -> int:
    # Not ru_maxrss, which never falls and hides what is given back.
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError as error:
        raise BenchmarkError(
            "there is no /proc/self/statm to read the memory from; run this on Linux"
        ) from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


if __name__ == "__main__":
    sys.exit(main())
