"""What runs a graph fastest on this processor, and how far is what it makes from ONNX Runtime's fp32?

Cited by docs/performance.md, "Processors":

    python -m studies processors out/model.onnx --json studies/results/processors.json

One picture of drawn waves through `Upscaler`, whole and without a repeated edge: in ONNX Runtime, in OpenVINO, in
OpenVINO in bf16 where the processor has instructions for it, and where ``model.int8-cpu.onnx`` lies beside the graph
that one in both. In turns; a ratio is of one round, of the time that the processor worked on it in all threads, which
others on the machine do not change much, and of the time that went by, which they do. The exit status is 1 where
OpenVINO's fp32 works longer than ONNX Runtime's, and where the processor has the instructions and bf16 is not 1.9
times or int8 not 3.0 times as fast as ONNX Runtime's fp32.
"""

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy._metrics import psnr
from esrgan_deploy.runtime import SessionOptions, Upscaler, open_session
from esrgan_deploy.runtime.tiling import drawn_picture
from studies._shared import Figures, cell, size, spread, threads_option
from studies._shared import table as as_table
from studies.int8_cpu import has_vnni

MOST = 999.0
"""dB, of equal pictures."""

FIRST = "ONNX Runtime, fp32"
BARS = {"OpenVINO, fp32": 1.0, "OpenVINO, bf16": 1.9, "OpenVINO, int8": 3.0}


def options(parser: Parser) -> None:
    parser.add_argument("models", nargs="+", type=Path, help="fp32 graphs of esrgan-export")
    parser.add_argument("--size", type=size, default="128x128", metavar="HxW", help="default: 128x128")
    parser.add_argument("--rounds", type=at_least(2), default=5, help="default: 5")
    threads_option(parser)


def run(args: argparse.Namespace) -> Figures:
    from esrgan_deploy.runtime.sessions.openvino import arithmetic_of

    able = arithmetic_of()
    height, width = args.size
    lr = drawn_picture(0, max(args.size))[:height, :width]
    return {
        "size": f"{width}x{height}",
        "threads": args.threads,
        "bf16": "bf16" in able,
        "vnni": has_vnni(),
        "models": [_of(path, lr, args, bf16="bf16" in able) for path in args.models],
    }


def table(figures: Figures) -> str:
    rows = []
    for one in figures["models"]:
        for way, found in one["ways"].items():
            rows.append(
                (
                    one["model"],
                    way,
                    f"{found['worked']['median']:.2f}",
                    cell(found["times as fast, worked"], ".2f"),
                    cell(found["times as fast, gone by"], ".2f"),
                    "" if way == FIRST else f"{found['psnr']:.1f}" if found["psnr"] < MOST else "equal",
                    "" if way == FIRST else f"{found['levels']:.0f}",
                )
            )
    heads = ("model", "way", "s of work", "times as fast", "by the clock", "dB", "levels")
    words = {True: "with", False: "without", None: "perhaps with"}
    return "\n".join(
        [
            f"{figures['size']}, {figures['environment']['cpu']}, {words[figures['bf16']]} instructions for bf16, "
            f"{words[figures['vnni']]} VNNI",
            "",
            as_table(heads, rows),
        ]
    )


def within(figures: Figures) -> bool:
    able = {"OpenVINO, fp32": True, "OpenVINO, bf16": figures["bf16"], "OpenVINO, int8": figures["vnni"]}
    return all(
        found["times as fast, worked"]["median"] >= BARS[way]
        for one in figures["models"]
        for way, found in one["ways"].items()
        if able.get(way)
    )


def _of(path: Path, lr: Any, args: argparse.Namespace, *, bf16: bool) -> dict[str, Any]:
    ways: dict[str, tuple[Path, dict[str, Any]]] = {
        FIRST: (path, {"providers": ("cpu",)}),
        "OpenVINO, fp32": (path, {"providers": ("openvino",)}),
    }
    if bf16:
        ways["OpenVINO, bf16"] = (path, {"providers": ("openvino",), "precision": "bf16"})
    quantised = path.with_name(f"{path.stem}.int8-cpu.onnx")
    if quantised.is_file():
        ways["ONNX Runtime, int8"] = (quantised, {"providers": ("cpu",)})
        ways["OpenVINO, int8"] = (quantised, {"providers": ("openvino",)})
    worked: dict[str, list[float]] = {way: [] for way in ways}
    gone: dict[str, list[float]] = {way: [] for way in ways}
    made: dict[str, Any] = {}
    with contextlib.ExitStack() as opened:
        ups = {}
        for way, (graph, how) in ways.items():
            # Threads of ONNX Runtime that spin after their batch would be counted with the next.
            asked = SessionOptions(threads=args.threads, spin=False, **how)
            session = opened.enter_context(contextlib.closing(open_session(graph, asked)))
            ups[way] = opened.enter_context(Upscaler(session, tile=0, edge="zero"))
        for count in range(args.rounds + 1):
            for way, up in ups.items():
                begun, by_the_clock = time.process_time(), time.perf_counter()
                made[way] = up.upscale(lr)
                # The first round fills caches and arenas.
                if count:
                    worked[way].append(time.process_time() - begun)
                    gone[way].append(time.perf_counter() - by_the_clock)
    return {
        "model": str(Path(path.parent.name) / path.name),
        "ways": {
            way: {
                "worked": spread(worked[way]),
                "times as fast, worked": spread(worked[FIRST], worked[way]),
                "times as fast, gone by": spread(gone[FIRST], gone[way]),
                "psnr": min(psnr(made[FIRST], made[way]), MOST),
                "levels": float(np.abs(made[FIRST].astype(int) - made[way]).max()),
            }
            for way in ways
        },
    }
