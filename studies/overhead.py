"""What does the Upscaler cost beside the net? `upscale` against a bare loop on the same ONNX Runtime session.

Cited by docs/performance.md, "The wrapper's own cost":

    python -m studies overhead --sizes 16x16 64x64 256x256 480x480

For each size three things take turns: `Upscaler.upscale`; a loop that converts the same tiles with the same functions
and runs the session; and the session alone, on batches that are ready. The first over the second is the wrapper's own
cost; the second over the third is what pixels cost anybody. Both are taken round by round. The processor's time of
the whole process is taken beside the clock's: on a busy machine the clock measures who else runs. The exit status is
1 where the wrapper costs more than 3 % of the bare loop or 50 us a frame, whichever is larger.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._command_line import Parser, at_least, between
from esrgan_deploy._console import OptionError
from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy.benchmarks.measure import measure
from esrgan_deploy.runtime import SessionInfo, SessionOptions, TilePlan, Upscaler, default_model, open_session
from esrgan_deploy.runtime.tiling import network_to_pixels, pixels_to_network
from studies._shared import Figures, cell, size, spread, threads_option
from studies._shared import table as as_table

SHARE, SECONDS = 0.03, 50e-6

Array = npt.NDArray[Any]


def options(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", type=Path, help="an .onnx (default: the model that ships)")
    parser.add_argument(
        "--sizes", nargs="+", type=size, default=[(16, 16), (256, 256), (480, 480)], metavar="HxW"
    )
    parser.add_argument("--tile", type=at_least(0), default=256, help="edge of the tiles (default: 256)")
    parser.add_argument("--halo", type=at_least(0), default=16, help="pixels around each (default: 16)")
    threads_option(parser)
    parser.add_argument(
        "--seconds", type=between(0.001, 86400), default=30.0, help="for each size (default: 30)"
    )


def run(args: argparse.Namespace) -> Figures:
    path = default_model() if args.model is None else args.model
    with contextlib.closing(open_session(path, SessionOptions(threads=args.threads))) as session:
        graph = getattr(session, "_graph", None)
        if graph is None or session.info.device >= 0:
            raise BenchmarkError(
                f"{path} runs on {session.info.provider}; the bare loop is one on ONNX Runtime on the processor. "
                "Give an .onnx, without a GPU"
            )
        try:
            # The same session for all: two with threads of their own would spin in each other's way.
            # Of the bare net's own edge, so that a frame as large as the tile is one batch.
            opened = Upscaler(session, tile=args.tile, halo=args.halo, edge="zero")
        except ValueError as error:
            raise OptionError(str(error)) from error
        with opened as up:
            found = [_size(up, graph, session.info, one, args.seconds) for one in args.sizes]
        return {
            "model": path.name,
            "provider": session.info.provider,
            "tile": args.tile,
            "halo": args.halo,
            "threads": args.threads,
            "sizes": found,
        }


def table(figures: Figures) -> str:
    head = (
        f"{figures['model']} on {figures['provider']}, {figures['environment']['cpu']}, threads "
        f"{figures['threads'] or 'all'}, tile {figures['tile']}, halo {figures['halo']}; medians (quartiles)\n\n"
    )
    rows = [
        (
            "{}x{}".format(*one["size"]),
            one["tiles"],
            f"{statistics.median(one['seconds']['bare']) * 1e3:.2f}",
            cell(one["over_bare"], ".4f"),
            cell(one["microseconds"], ".0f"),
            f"{one['allowed_microseconds']:.0f}{'' if one['within'] else ' TOO MUCH'}",
            cell(one["processor_microseconds"], ".0f"),
            cell(one["over_session"], ".4f"),
        )
        for one in figures["sizes"]
    ]
    heads = (
        "frame",
        "tiles",
        "bare ms",
        "over bare",
        "us a frame",
        "allowed",
        "processor us",
        "over session",
    )
    return head + as_table(heads, rows)


def within(figures: Figures) -> bool:
    return all(one["within"] for one in figures["sizes"])


def _size(
    up: Upscaler, graph: Any, info: SessionInfo, wanted: tuple[int, int], seconds: float
) -> dict[str, Any]:
    picture = np.random.default_rng(0).integers(0, 256, (*wanted, info.in_channels), np.uint8)
    plan = up.plan(*wanted)
    bare = _bare_loop(graph, info, plan, picture)
    if not np.array_equal(bare(), up.upscale(picture)):
        raise BenchmarkError(
            f"the bare loop and upscale() make different pictures of {wanted[0]}x{wanted[1]}; "
            "they do not do the same work"
        )
    runs: dict[str, Callable[[], object]] = {
        "upscale": lambda: up.upscale(picture),
        "bare": bare,
        "session": _session_loop(graph, info, plan),
    }
    worked: dict[str, list[float]] = {name: [] for name in runs}
    turns = [_working(one, worked[name]) for name, one in runs.items()]
    timings = measure(turns, seconds=seconds, least=9, most_warmups=5)
    clock = {name: timing.values for name, timing in zip(runs, timings, strict=True)}
    # Without the warm-ups.
    processor = {name: taken[-len(clock[name]) :] for name, taken in worked.items()}
    extra, extra_processor = (
        spread([(one - other) * 1e6 for one, other in zip(by["upscale"], by["bare"], strict=True)])
        for by in (clock, processor)
    )
    allowed = max(SHARE * statistics.median(clock["bare"]), SECONDS) * 1e6
    return {
        "size": list(wanted),
        "tiles": plan.count,
        "seconds": clock,
        "over_bare": spread(clock["upscale"], clock["bare"]),
        "over_session": spread(clock["upscale"], clock["session"]),
        "microseconds": extra,
        "processor_microseconds": extra_processor,
        "allowed_microseconds": allowed,
        "within": extra["median"] <= allowed,
    }


def _working(once: Callable[[], object], taken: list[float]) -> Callable[[], object]:
    def timed() -> object:
        start = time.process_time()
        made = once()
        taken.append(time.process_time() - start)
        return made

    return timed


def _bare_loop(graph: Any, info: SessionInfo, plan: TilePlan, picture: Array) -> Callable[[], Array]:
    """Write what a careful user would, without checks, threads or faults: tile by tile, in and out."""
    name = graph.get_inputs()[0].name
    batch = np.zeros(info.batch_shape(plan.batch, *plan.tile), info.dtype)

    def loop() -> Array:
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

    return loop


def _session_loop(graph: Any, info: SessionInfo, plan: TilePlan) -> Callable[[], object]:
    name = graph.get_inputs()[0].name
    random = np.random.default_rng(0)
    batch = random.integers(0, 256, info.batch_shape(plan.batch, *plan.tile), np.uint8)
    if info.form == "float":
        batch = (batch / np.float32(255)).astype(info.dtype)
    number = sum(1 for _ in plan.batches())

    def loop() -> None:
        for _ in range(number):
            graph.run(None, {name: batch})

    return loop
