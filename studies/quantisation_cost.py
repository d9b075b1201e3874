"""What does quantising a large net cost? Time and memory of one export in a process of its own.

Cited by docs/quantisation.md, "A large net":

    python -m studies quantisation_cost --calibration CID22

The net is an RRDBNet x4 of 64 features and growth 32 with random weights: Real-ESRGAN's shape. Calibration, search,
graph, verification and, where a TensorRT is installed, the plan are in it. The peak is the process's largest resident
memory as the system counted it. The exit status is 1 above 15 minutes or 8 GiB, which 23 blocks may take on two
cores.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Literal

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy.benchmarks.measure import host_peak
from studies._shared import Figures, apart, rrdbnet

BAR_MINUTES, BAR_GIB = 15.0, 8.0


def options(parser: Parser) -> None:
    parser.add_argument("--blocks", type=at_least(1), default=23, help="of the net (default: 23)")
    parser.add_argument("--precision", choices=("int8", "fp8"), default="int8")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="default: the pictures that ship")
    parser.add_argument("--rounding", choices=("nearest", "compensated", "learned"))


def run(args: argparse.Namespace) -> Figures:
    import torch

    with tempfile.TemporaryDirectory(prefix="esrgan-cost-") as name:
        checkpoint = Path(name) / "net.pth"
        torch.save(rrdbnet(args.blocks)[1].state_dict(), checkpoint)
        figures = apart(_cost, checkpoint, args.precision, args.calibration, args.rounding)
    return {"blocks": args.blocks, "precision": args.precision, **figures}


def table(figures: Figures) -> str:
    done, plan = figures["quantised"], figures["plan"]
    return (
        f"{figures['blocks']} blocks, {figures['precision']}: {figures['minutes']:.1f} minutes (bar "
        f"{BAR_MINUTES:g}), peak {figures['peak_gib']:.2f} GiB (bar {BAR_GIB:g}), "
        f"{done['convolutions']} of {done['of']} convolutions, "
        f"{done['share']:.1%} of the multiply-adds; kernels of the plan: {plan['dtypes'] if plan else 'not built'}"
    )


def within(figures: Figures) -> bool:
    return bool(figures["minutes"] <= BAR_MINUTES and figures["peak_gib"] <= BAR_GIB)


def _cost(
    checkpoint: Path, precision: Literal["int8", "fp8"], calibration: Path | None, rounding: str | None
) -> Figures:
    from esrgan_deploy.export import ExportOptions, export_model
    from esrgan_deploy.export.quantisation import QuantiseOptions

    quantise = QuantiseOptions(calibration=calibration, rounding=rounding)
    started = time.perf_counter()
    manifest = export_model(
        checkpoint, checkpoint.parent / "out", ExportOptions(precisions=(precision,), quantise=quantise)
    )
    minutes = (time.perf_counter() - started) / 60
    graph, plan = (manifest.artefact(f"model.{precision}.{kind}") for kind in ("onnx", "plan"))
    assert graph is not None
    return {
        "minutes": minutes,
        "peak_gib": (host_peak() or 0) / 2**30,
        "verified": graph.verified,
        "quantised": graph.quantised,
        "plan": plan
        and {key: getattr(plan, key) for key in ("flavour", "flavour_version", "dtypes", "build_seconds")},
    }
