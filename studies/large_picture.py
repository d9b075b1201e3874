"""How much memory does a large picture take? One `Upscaler.upscale`, and the peak of its process.

Cited by docs/performance.md, "Memory of a large picture":

    python -m studies large_picture

The picture is noise of 8 bits. The peak is the largest resident memory as the system counted it (VmHWM), Python, the
model, the picture and the result among it; with --map the result is a memory map in a temporary file, whose rows are
let go of as they are finished. The exit status is 1 above 1.5 GiB, of which the result of 4000x3000 pixels is 0.54.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy.benchmarks.measure import host_peak
from esrgan_deploy.runtime import Upscaler, open_output
from studies._shared import Figures, apart, size

BAR_GIB = 1.5


def options(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", help="an artefact (default: the model that ships)")
    parser.add_argument(
        "--size", type=size, default="3000x4000", metavar="HxW", help="of the picture (default: 3000x4000)"
    )
    parser.add_argument(
        "--tile", type=at_least(0), help="edge of the tiles (default: strips, where it has parts)"
    )
    parser.add_argument(
        "--strip", type=at_least(1), help="height of the strips (default: what 1.5 GiB hold, at least 128)"
    )
    parser.add_argument("--map", action="store_true", help="write the result into a memory map")


def run(args: argparse.Namespace) -> Figures:
    return apart(_peak, args.model, args.size, args.tile, args.strip, mapped=args.map)


def table(figures: Figures) -> str:
    width, height = figures["size"]
    return (
        f"{figures['model']} on {figures['provider']}: {width}x{height} in {figures['tiles']} "
        f"{figures['pieces']}, {'into a memory map' if figures['memory map'] else 'in memory'}: peak "
        f"{figures['peak_gib']:.2f} GiB (bar {BAR_GIB}), {figures['seconds']:.0f} s"
    )


def within(figures: Figures) -> bool:
    return bool(figures["peak_gib"] <= BAR_GIB)


def _peak(
    model: str | None, wanted: tuple[int, int], tile: int | None, strip: int | None, *, mapped: bool
) -> Figures:
    height, width = wanted
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(Upscaler(model, tile="auto" if tile is None else tile, strip=strip))
        plan, out = up.plan(height, width), None
        before = host_peak() or 0
        started = time.perf_counter()
        if mapped:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esrgan-large-")))
            out = stack.enter_context(open_output(folder / "large.npy", (*plan.out_size, 3), np.uint8))
        up.upscale(picture, out=out)
        return {
            "model": up.info.name,
            "provider": up.info.provider,
            "size": [width, height],
            "pieces": f"strips of {plan.strip} rows" if plan.strip else f"tiles of {plan.tile[0]}",
            "peak_before_gib": before / 2**30,
            "halo": plan.halo,
            "tiles": plan.count,
            "memory map": mapped,
            "seconds": time.perf_counter() - started,
            "peak_gib": (host_peak() or 0) / 2**30,
        }
