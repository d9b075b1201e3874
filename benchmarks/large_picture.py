"""The memory that a large picture takes: one `Upscaler.upscale` in a process of its own, and its peak.

    python -m esrgan_deploy.benchmarks.large_picture [model] [--size 4000x3000] [--tile 256] [--map] [--json FILE]

The picture is noise of 8 bits. The peak is the process's largest resident memory as the system counted it (VmHWM),
Python, the model, the picture and the result among it; with `--map` the result is a memory map in a temporary file,
whose rows are let go of as they are finished.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from esrgan_deploy._console import Parser, at_least, one_line_errors, output_file, say
from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.benchmarks._sweep import parse_shape

__all__ = ["main", "peak_of_picture"]

BAR_GIB = 1.5
"""What 4000x3000 pixels with tiles of 256 may take, enlarged four times: the result alone is 0.54 GiB."""


@one_line_errors("large_picture")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 where the peak is over `BAR_GIB`."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.large_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", help="an artefact (default: the model that ships)")
    parser.add_argument(
        "--size", default="4000x3000", metavar="WxH", help="of the picture (default: 4000x3000)"
    )
    parser.add_argument("--tile", type=at_least(0), default=256, help="edge of the tiles (default: 256)")
    parser.add_argument("--map", action="store_true", help="write the result into a memory map")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    try:
        sides = parse_shape(args.size)
    except ValueError:
        sides = (0, 0, 0)
    _, width, height = sides
    if args.size.lower().count("x") != 1 or 0 in sides:
        parser.error(f"--size {args.size!r} is not WxH, such as 4000x3000")
    if args.here:
        print(json.dumps(peak_of_picture(args.model, width, height, args.tile, mapped=args.map)))
        return 0
    command = [sys.executable, "-m", "esrgan_deploy.benchmarks.large_picture", "--here"]
    command += [*([args.model] if args.model else []), "--size", args.size, "--tile", str(args.tile)]
    # A process of its own, so that the peak is this picture's.
    done = subprocess.run(command + ["--map"] * args.map, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise BenchmarkError(
            f"the process that enlarged the picture ended with exit status {done.returncode}"
        )
    figures = json.loads(done.stdout)
    say(
        f"{figures['model']} on {figures['provider']}: {args.size} in {figures['tiles']} tiles of {args.tile}, "
        f"{'into a memory map' if args.map else 'in memory'}: peak {figures['peak_gib']:.2f} GiB "
        f"(bar {BAR_GIB}), {figures['seconds']:.0f} s"
    )
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if figures["peak_gib"] <= BAR_GIB else 1


def peak_of_picture(model: str | None, width: int, height: int, tile: int, *, mapped: bool) -> dict[str, Any]:
    """Enlarge a picture in this process and return ``{"model", "provider", "tiles", "seconds", "peak_gib", …}``.

    Args:
        model: An artefact; None for the model that ships.
        width: Of the picture.
        height: Of the picture.
        tile: Edge of the tiles.
        mapped: Whether the result goes into a memory map.

    Raises:
        InferenceError: The model cannot be run here, or memory is short.
    """
    import numpy as np

    from esrgan_deploy import Upscaler
    from esrgan_deploy.benchmarks._machine import describe_machine
    from esrgan_deploy.benchmarks._memory import host_peak
    from esrgan_deploy.runtime import open_output

    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    with Upscaler(model, tile=tile) as up, tempfile.TemporaryDirectory(prefix="esrgan-large-") as folder:
        plan = up.plan(height, width)
        started = time.perf_counter()
        if mapped:
            with open_output(Path(folder) / "large.npy", (*plan.out_size, 3), np.uint8) as out:
                up.upscale(picture, out=out)
        else:
            up.upscale(picture)
        seconds = time.perf_counter() - started
        return {
            "environment": describe_machine(),
            "model": up.info.name,
            "provider": up.info.provider,
            "size": [width, height],
            "tile": tile,
            "halo": plan.halo,
            "tiles": plan.count,
            "memory map": mapped,
            "seconds": seconds,
            "peak_gib": (host_peak() or 0) / 2**30,
        }


if __name__ == "__main__":
    sys.exit(main())
