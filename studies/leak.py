"""Does anything leak? Memory, threads and open files over thousands of calls of one Upscaler.

Cited by docs/performance.md, "Leaks":

    python -m studies leak MODEL

Frames of changing size go through `Upscaler.upscale`, `submit` and `stream`, and the resident memory of the process
is read every now and then. What it grows by per 1,000 calls is the median slope between two readings after the first
fifth, in which buffers and heap find their size; one step of the heap later on is no slope, and shows between the two
columns of MiB. The exit status is 1 above 16 KiB: a lost frame of 8x8 would be ten times that. Linux only: elsewhere
there is no /proc to read.
"""

import argparse
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy.runtime import Upscaler
from studies._shared import Figures, threads_option
from studies._shared import table as as_table

BAR = 16 * 1024
WARM = 0.2
SIDES = (8, 5, 8, 12, 7)

Frame = npt.NDArray[np.uint8]


def options(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", type=Path, help="default: the model that ships")
    parser.add_argument(
        "--calls", type=at_least(100), default=10000, help="of each way, 100 or more (default: 10000)"
    )
    threads_option(parser, default=1)


def run(args: argparse.Namespace) -> Figures:
    found: dict[str, dict[str, Any]] = {}
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in SIDES]
    for name, way in WAYS.items():
        with Upscaler(args.model, threads=args.threads) as up:
            # Whatever is loaded or started by the first frame is no leak.
            up.submit(frames[0]).result()
            threads, files = [threading.active_count()], [_files()]
            found[name] = _measured(way(up, _endless(frames)), args.calls)
            found[name]["threads"] = [*threads, threading.active_count()]
            found[name]["files"] = [*files, _files()]
    return {"ways": found}


def table(figures: Figures) -> str:
    rows = []
    for name, way in figures["ways"].items():
        warm, last = (way["readings"][place][1] for place in (int(len(way["readings"]) * WARM), -1))
        rows.append(
            (
                name,
                way["readings"][-1][0],
                f"{way['calls_per_second']:.0f}",
                f"{warm / 2**20:.1f}",
                f"{last / 2**20:.1f}",
                f"{way['bytes_per_1000_calls'] / 1024:.2f}",
                *("{} to {}".format(*way[what]) for what in ("threads", "files")),
            )
        )
    heads = ("way", "calls", "calls/s", "MiB warm", "MiB last", "KiB per 1,000 calls", "threads", "files")
    return as_table(heads, rows)


def within(figures: Figures) -> bool:
    return all(way["bytes_per_1000_calls"] <= BAR for way in figures["ways"].values())


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


def _measured(results: Iterator[object], calls: int) -> dict[str, Any]:
    every = max(1, calls // 200)
    readings = [(0, _resident())]
    started = time.perf_counter()
    for done, _ in zip(range(1, calls + 1), results, strict=False):
        if done % every == 0:
            readings.append((done, _resident()))
    return {
        "readings": readings,
        "bytes_per_1000_calls": slope(readings[int(len(readings) * WARM) :]) * 1000,
        "calls_per_second": calls / (time.perf_counter() - started),
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
