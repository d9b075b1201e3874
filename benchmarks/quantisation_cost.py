"""What quantising a large net costs: time and memory of one export in a process of its own.

    python -m esrgan_deploy.benchmarks.quantisation_cost [--precision int8] [--calibration DIR] [--json FILE]

The net is an RRDBNet x4 of 64 features and growth 32 with random weights: Real-ESRGAN's shape. Calibration, search,
graph, verification and, where a TensorRT is installed, the plan are in it. The peak is the process's largest resident
memory as the system counted it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from esrgan_deploy._console import Parser, at_least, one_line_errors, output_file, say
from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.benchmarks._machine import describe_machine

__all__ = ["cost_of_quantising", "main"]

BAR_MINUTES, BAR_GIB = 15.0, 8.0
"""What 23 blocks may take on two cores."""


@one_line_errors("quantisation_cost")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 where it took more than `BAR_MINUTES` or `BAR_GIB`."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.quantisation_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--blocks", type=at_least(1), default=23, help="of the net (default: 23)")
    parser.add_argument("--precision", choices=("int8", "fp8"), default="int8")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="default: the pictures that ship")
    parser.add_argument("--rounding", choices=("nearest", "compensated", "learned"))
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    figures = cost_of_quantising(args.blocks, args.precision, args.calibration, args.rounding)
    say(
        f"{args.blocks} blocks, {args.precision}: {figures['minutes']:.1f} minutes (bar {BAR_MINUTES:g}), peak "
        f"{figures['peak_gib']:.2f} GiB (bar {BAR_GIB:g}), {figures['quantised']['convolutions']} of "
        f"{figures['quantised']['of']} convolutions, {figures['quantised']['share']:.1%} of the multiply-adds"
    )
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if figures["minutes"] <= BAR_MINUTES and figures["peak_gib"] <= BAR_GIB else 1


def cost_of_quantising(
    blocks: int, precision: str, calibration: Path | None, rounding: str | None
) -> dict[str, Any]:
    """Export a net of random weights and return ``{"minutes", "peak_gib", "quantised", "plan", …}``.

    Args:
        blocks: Of the net.
        precision: ``"int8"`` or ``"fp8"``.
        calibration: A folder of photographs; None for the pictures that ship.
        rounding: Of the weights; None for the default.

    Raises:
        BenchmarkError: The export failed.
    """
    import torch

    from esrgan_deploy import ModelSpec
    from esrgan_deploy.export._rrdbnet import RRDBNet

    spec = ModelSpec(
        architecture="rrdbnet",
        scale=4,
        in_channels=3,
        out_channels=3,
        features=64,
        blocks=blocks,
        growth=32,
        source_sha256="",
    )
    with tempfile.TemporaryDirectory(prefix="esrgan-cost-") as name:
        folder = Path(name)
        torch.manual_seed(0)
        torch.save(RRDBNet(spec).state_dict(), folder / "net.pth")
        command = [sys.executable, "-m", "esrgan_deploy.export._cli", str(folder / "net.pth")]
        command += ["--precision", precision, "-o", str(folder / "out")]
        command += ["--calibration", str(calibration)] if calibration else []
        command += ["--rounding", rounding] if rounding else []
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        minutes = (time.perf_counter() - started) / 60
        manifest_path = folder / "out" / "model.json"
        if not manifest_path.is_file():
            raise BenchmarkError(f"the export ended with exit status {done.returncode} and left no manifest")
        manifest = json.loads(manifest_path.read_text())
    files = {artefact["file"]: artefact for artefact in manifest["artefacts"]}
    plan = files.get(f"model.{precision}.plan")
    return {
        "environment": describe_machine(),
        "command": "python -m esrgan_deploy.benchmarks.quantisation_cost",
        "blocks": blocks,
        "precision": precision,
        "exit status": done.returncode,
        "minutes": minutes,
        # Of the largest child, which the export is: the system counts kilobytes.
        "peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        "quantised": files[f"model.{precision}.onnx"]["quantised"],
        "plan": plan
        and {key: plan[key] for key in ("flavour", "flavour_version", "dtypes", "build_seconds")},
    }


if __name__ == "__main__":
    sys.exit(main())
