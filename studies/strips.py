"""Do strips cost time, what do they hold, and do they differ from the picture in one piece?

Cited by docs/performance.md, "Strips":

    python -m studies strips out/model.onnx --pictures Kodak24 --json studies/results/strips.json

Of each model: seconds of a drawn picture in one piece and in strips of several heights, in turns, as ratios round by
round; the peak of memory of each way in a process of its own, less what the same process takes before the picture, in
bytes a pixel; and over the pictures of a folder the largest difference of any sample before rounding, in levels of
255, and the share of samples that differ when rounded to 8 bits. The edge is not repeated, so that the pixels of the
picture are all that is computed. The exit status is 1 above a hundredth of a level, or one sample in 100,000.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy._files import picture_files
from esrgan_deploy.benchmarks.measure import host_peak
from esrgan_deploy.runtime import Upscaler, read_picture
from esrgan_deploy.runtime.tiling import drawn_picture
from studies._shared import Figures, apart, cell, size, spread, threads_option
from studies._shared import table as as_table

LEVELS, SHARE = 0.01, 1e-5
WAYS = ("in one piece", "in one strip", "strips of 256", "strips of 128", "strips of 64")


def options(parser: Parser) -> None:
    parser.add_argument("models", nargs="+", type=Path, help="graphs with their parts beside them")
    parser.add_argument(
        "--size", type=size, default="512x512", metavar="HxW", help="for time and memory (default: 512x512)"
    )
    parser.add_argument("--rounds", type=at_least(2), default=5, help="of time (default: 5)")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="for the differences (default: two drawn ones)"
    )
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="the first pictures only")
    parser.add_argument(
        "--strips", type=at_least(1), default=64, help="height, for the differences (default: 64)"
    )
    threads_option(parser)


def run(args: Any) -> Figures:
    lr = drawn_picture(0, max(args.size))[: args.size[0], : args.size[1]]
    return {"models": [_of(path, lr, args) for path in args.models]}


def _of(path: Path, lr: npt.NDArray[np.uint8], args: Any) -> dict[str, Any]:
    height, width = args.size
    return {
        "model": str(Path(path.parent.name) / path.name),
        "size": [width, height],
        "time": _times(path, lr, args.rounds, args.threads),
        "bytes a pixel": {
            way: apart(_held, path, height, width, how, args.threads) for way, how in _ways().items()
        },
        "differences": _differences(path, args),
    }


def table(figures: Figures) -> str:
    rows = [
        (
            one["model"],
            way,
            cell(one["time"][way], ".3f"),
            f"{one['bytes a pixel'][way]:,.0f}",
            f"{one['differences']['largest']:.4f}" if way == WAYS[-1] else "",
            f"{one['differences']['samples']:.1e}" if way == WAYS[-1] else "",
        )
        for one in figures["models"]
        for way in WAYS
    ]
    return as_table(("model", "way", "time", "bytes a pixel", "levels", "samples"), rows)


def within(figures: Figures) -> bool:
    found = [one["differences"] for one in figures["models"]]
    return all(one["largest"] <= LEVELS and one["samples"] <= SHARE for one in found)


def _ways() -> dict[str, dict[str, int]]:
    hows = ({"tile": 0}, {"strip": 2**20}, {"strip": 256}, {"strip": 128}, {"strip": 64})
    return dict(zip(WAYS, hows, strict=True))


def _opened(path: Path, how: dict[str, Any], threads: int | None) -> Upscaler:
    return Upscaler(path, edge="zero", providers=["cpu"], threads=threads, **how)


def _times(path: Path, lr: npt.NDArray[np.uint8], rounds: int, threads: int | None) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    opened = {way: _opened(path, how, threads) for way, how in _ways().items()}
    for count in range(rounds + 1):
        for way, up in opened.items():
            begun = time.perf_counter()
            up.upscale(lr)
            # The first round fills caches and arenas.
            if count:
                seconds[way].append(time.perf_counter() - begun)
    for up in opened.values():
        up.close()
    ratios: dict[str, Any] = {way: spread(taken, seconds[WAYS[0]]) for way, taken in seconds.items()}
    return {**ratios, "seconds in one piece": spread(seconds[WAYS[0]])}


def _held(path: Path, height: int, width: int, how: dict[str, Any], threads: int | None) -> float:
    lr = drawn_picture(0, max(height, width))[:height, :width]
    with _opened(path, how, threads) as up:
        up.upscale(lr[:8, :8])
        before = host_peak() or 0
        up.upscale(lr)
        return ((host_peak() or 0) - before) / (height * width)


def _differences(path: Path, args: Any) -> dict[str, Any]:
    if args.pictures is None:
        pictures = {f"drawn {seed}": drawn_picture(seed) for seed in range(2)}
    else:
        files = picture_files(args.pictures)[: args.limit]
        pictures = {file.name: read_picture(file).pixels for file in files}
    largest, different, samples = 0.0, 0, 0
    with (
        _opened(path, {"tile": 0}, args.threads) as whole,
        _opened(path, {"strip": args.strips}, args.threads) as strips,
    ):
        for picture in pictures.values():
            given = picture.astype(np.float32) / np.iinfo(picture.dtype).max
            expected, made = whole.upscale(given), strips.upscale(given)
            largest = max(largest, float(np.abs(expected - made).max()) * 255)
            different += int((np.rint(expected * 255) != np.rint(made * 255)).sum())
            samples += expected.size
    return {
        "pictures": len(pictures),
        "strip": args.strips,
        "largest": largest,
        "samples": different / samples,
    }
