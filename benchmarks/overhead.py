"""What the Upscaler costs beside the net: `upscale` against a bare loop on the same ONNX Runtime session.

    python -m esrgan_deploy.benchmarks.overhead [model] [--sizes 16x16 256x256 480x480] [--json FILE]

For each size three things take turns: `Upscaler.upscale`; a loop that converts the same tiles with the same functions
and runs the session; and the session alone, on batches that are ready. The first over the second is the wrapper's own
cost; the second over the third is what pixels cost anybody. Both are taken round by round. The processor's time of
the whole process is taken beside the clock's: on a busy machine the clock measures who else runs.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import THREADS, Parser, at_least, between, one_line_errors, output_file, say
from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.benchmarks._machine import describe_machine
from esrgan_deploy.benchmarks._measure import measure
from esrgan_deploy.benchmarks._sweep import parse_shape
from esrgan_deploy.runtime import SessionInfo, SessionOptions, TilePlan, Upscaler, default_model, open_session
from esrgan_deploy.runtime._samples import network_to_pixels, pixels_to_network
from esrgan_deploy.runtime._tiling import TileOptions

__all__ = ["allowed", "main", "overhead"]

SHARE, SECONDS = 0.03, 50e-6
"""The bar: the wrapper may cost this share of the bare loop or these seconds a frame, whichever is more."""

Array = npt.NDArray[Any]


@one_line_errors("overhead")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 where the wrapper costs more than it may."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", type=Path, help="an .onnx (default: the model that ships)")
    parser.add_argument(
        "--sizes", nargs="+", default=["16x16", "256x256", "480x480"], metavar="HxW", help="of the frames"
    )
    parser.add_argument("--tile", type=at_least(0), default=256, help="edge of the tiles (default: 256)")
    parser.add_argument("--halo", type=at_least(0), default=16, help="pixels around each (default: 16)")
    parser.add_argument(
        "--threads", type=at_least(1, most=THREADS), metavar="N", help="threads of ONNX Runtime"
    )
    parser.add_argument(
        "--seconds", type=between(0.001, 86400), default=30.0, help="for each size (default: 30)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every value")
    args = parser.parse_args(argv)
    try:
        sizes = [parse_shape(size)[1:] for size in args.sizes]
        TileOptions(tile=args.tile, halo=args.halo)
    except ValueError as error:
        parser.error(str(error))
    figures = overhead(
        args.model, sizes, tile=args.tile, halo=args.halo, threads=args.threads, seconds=args.seconds
    )
    say(_table(figures))
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return 0 if all(size["within"] for size in figures["sizes"]) else 1


def overhead(
    model: Path | None,
    sizes: Sequence[tuple[int, int]],
    *,
    tile: int = 256,
    halo: int = 16,
    threads: int | None = None,
    seconds: float = 30.0,
) -> dict[str, Any]:
    """Time the three in turns, for each size.

    Args:
        model: An ``.onnx``; None for the model that ships.
        sizes: ``(H, W)`` of frames, RGB uint8.
        tile: Edge of the tiles.
        halo: Pixels around each.
        threads: Threads of ONNX Runtime; None lets it choose.
        seconds: How long, for each size.

    Returns:
        ``{"model", "provider", "environment", "tile", "halo", "threads", "sizes": [{"size", "tiles", "seconds":
        {"upscale", "bare", "session"}, "over_bare", "over_session", "microseconds", "processor_microseconds",
        "allowed_microseconds", "within"}]}``; ``over_…`` and ``…microseconds`` are ``{"median", "low", "high"}`` with
        the quartiles, and microseconds are upscale's beyond the bare loop's, a frame: the clock's, and the
        processor's in all threads.

    Raises:
        BenchmarkError: The wrapper and the bare loop make different pictures, or the model is no graph.
        InferenceError: The model cannot be run here.
    """
    path = default_model() if model is None else model
    session = open_session(path, SessionOptions(threads=threads))
    graph = getattr(session, "_graph", None)
    try:
        if graph is None or session.info.device >= 0:
            raise BenchmarkError(
                f"{path} runs on {session.info.provider}; the bare loop is one on ONNX Runtime on the processor. "
                "Give an .onnx, without a GPU"
            )
        # The same session for all: two with threads of their own would spin in each other's way.
        # Of the bare net's own edge, so that a frame as large as the tile is one batch.
        with Upscaler(session, tile=tile, halo=halo, edge="zero") as up:
            found = [_size(up, graph, session.info, size, seconds) for size in sizes]
        provider = session.info.provider
    finally:
        session.close()
    return {
        "model": path.name,
        "provider": provider,
        "environment": describe_machine(),
        "tile": tile,
        "halo": halo,
        "threads": threads,
        "sizes": found,
    }


def allowed(bare: float) -> float:
    """Return the seconds a frame that the wrapper may cost where the bare loop takes `bare` seconds."""
    return max(SHARE * bare, SECONDS)


def _size(
    up: Upscaler, graph: Any, info: SessionInfo, size: tuple[int, int], seconds: float
) -> dict[str, Any]:
    picture = np.random.default_rng(0).integers(0, 256, (*size, info.in_channels), np.uint8)
    plan = up.plan(*size)
    bare = _bare_loop(graph, info, plan, picture)
    if not np.array_equal(bare(), up.upscale(picture)):
        raise BenchmarkError(
            f"the bare loop and upscale() make different pictures of {size[0]}x{size[1]}; "
            "they do not do the same work"
        )
    runs: dict[str, Callable[[], object]] = {
        "upscale": lambda: up.upscale(picture),
        "bare": bare,
        "session": _session_loop(graph, info, plan),
    }
    worked: dict[str, list[float]] = {name: [] for name in runs}
    turns = [_working(run, worked[name]) for name, run in runs.items()]
    timings = dict(zip(runs, measure(turns, seconds=seconds, least=9, most_warmups=5), strict=True))
    values = {name: list(timing.values) for name, timing in timings.items()}
    extra = [(one - other) * 1e6 for one, other in zip(values["upscale"], values["bare"], strict=True)]
    rounds = len(extra)
    limit = allowed(timings["bare"].median)
    processor = [
        (one - other) * 1e6
        for one, other in zip(worked["upscale"][-rounds:], worked["bare"][-rounds:], strict=True)
    ]
    return {
        "size": list(size),
        "tiles": plan.count,
        "seconds": values,
        "over_bare": _ratio(values["upscale"], values["bare"]),
        "over_session": _ratio(values["upscale"], values["session"]),
        "microseconds": _spread(extra),
        "processor_microseconds": _spread(processor),
        "allowed_microseconds": limit * 1e6,
        "within": statistics.median(extra) <= limit * 1e6,
    }


def _working(run: Callable[[], object], taken: list[float]) -> Callable[[], object]:
    def once() -> object:
        start = time.process_time()
        made = run()
        taken.append(time.process_time() - start)
        return made

    return once


def _bare_loop(graph: Any, info: SessionInfo, plan: TilePlan, picture: Array) -> Callable[[], Array]:
    """Write what a careful user would, without checks, threads or faults: tile by tile, in and out."""
    name = graph.get_inputs()[0].name
    batch = np.zeros(info.batch_shape(plan.batch, *plan.tile), info.dtype)

    def run() -> Array:
        target = np.empty((*plan.out_size, picture.shape[2]), np.uint8)
        for tiles in plan.batches():
            for slot, tile in zip(batch, tiles, strict=False):
                y, x = tile.row.origin, tile.column.origin
                pixels_to_network(picture[y : y + plan.tile[0], x : x + plan.tile[1]], slot, info)
            made = graph.run(None, {name: batch})[0]
            for enlarged, tile in zip(made, tiles, strict=False):
                (top, bottom), (left, right) = plan.out_range(tile.row), plan.out_range(tile.column)
                y, x = plan.out_origin(tile.row), plan.out_origin(tile.column)
                rows, columns = slice(top - y, bottom - y), slice(left - x, right - x)
                kept = enlarged[rows, columns] if info.form == "uint8" else enlarged[:, rows, columns]
                network_to_pixels(kept, target[top:bottom, left:right], info)
        return target

    return run


def _session_loop(graph: Any, info: SessionInfo, plan: TilePlan) -> Callable[[], object]:
    name = graph.get_inputs()[0].name
    random = np.random.default_rng(0)
    batch = random.integers(0, 256, info.batch_shape(plan.batch, *plan.tile), np.uint8)
    if info.form == "float":
        batch = (batch / np.float32(255)).astype(info.dtype)
    number = sum(1 for _ in plan.batches())

    def run() -> None:
        for _ in range(number):
            graph.run(None, {name: batch})

    return run


def _ratio(values: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    return _spread([one / base for one, base in zip(values, other, strict=True)])


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def _table(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['model']} on {figures['provider']}, {figures['environment'].get('cpu')}, threads "
        f"{figures['threads'] or 'all'}, tile {figures['tile']}, halo {figures['halo']}",
        "medians (quartiles), the three in turns",
        f"{'frame':>10} {'tiles':>5} {'bare ms':>9} {'over bare':>22} {'us a frame':>26} {'allowed':>9} "
        f"{'processor us':>26} {'over session':>22}",
    ]
    for size in figures["sizes"]:
        height, width = size["size"]
        bare, extra, alone = size["over_bare"], size["microseconds"], size["over_session"]
        lines.append(
            f"{f'{height}x{width}':>10} {size['tiles']:5} {statistics.median(size['seconds']['bare']) * 1e3:9.2f} "
            f"{_cell(bare, '.4f'):>22} {_cell(extra, '.0f'):>26} {size['allowed_microseconds']:9.0f} "
            f"{_cell(size['processor_microseconds'], '.0f'):>26} "
            f"{_cell(alone, '.4f'):>22}{'' if size['within'] else '  TOO MUCH'}"
        )
    return "\n".join(lines)


def _cell(spread: dict[str, float], form: str) -> str:
    return f"{spread['median']:{form}} ({spread['low']:{form}} to {spread['high']:{form}})"


if __name__ == "__main__":
    sys.exit(main())
