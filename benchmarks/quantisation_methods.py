"""Ways to choose scales and to round, side by side on one net, in PyTorch's simulation of the graph.

    python -m esrgan_deploy.benchmarks.quantisation_methods [checkpoint] --calibration DIR --sets DIR … [--json FILE]

Everything but the first and the last convolution is quantised. Each way calibrates on the same crops and is judged on
the same pictures: PSNR-Y lost against the truth and PSNR to the fp32 picture. What is not quantised is fp32 here; the
graph, which rounds it to fp16, is judged by `benchmarks.quantisation`.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esrgan_deploy._console import Parser, at_least, one_line_errors, output_file, say
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.benchmarks._machine import describe_machine
from esrgan_deploy.benchmarks._quantisation_bench import name_of, pictures_of

__all__ = ["ACTIVATIONS", "WAYS", "compare_ways", "main"]

ACTIVATIONS = "equalised, mse, activations alone"
"""Weights stay fp32. Weights that are fitted to rounded inputs can do better, for they take some of this back."""

WAYS: dict[str, dict[str, Any]] = {
    "max, nearest": {"equalise": False, "method": "max", "rounding": "nearest"},
    "mse, nearest": {"equalise": False, "method": "mse", "rounding": "nearest"},
    "equalised, max, nearest": {"method": "max", "rounding": "nearest"},
    "equalised, mse, nearest": {"method": "mse", "rounding": "nearest"},
    ACTIVATIONS: {"method": "mse", "rounding": "nearest"},
    "equalised, max, compensated": {"method": "max", "rounding": "compensated"},
    "equalised, mse, compensated": {"method": "mse", "rounding": "compensated"},
    "equalised, mse, learned": {"method": "mse", "rounding": "learned"},
}
"""By name, the fields of `QuantiseOptions`."""


@one_line_errors("quantisation_methods")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.quantisation_methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the model that ships")
    parser.add_argument("--precision", choices=("int8", "fp8"), default="int8")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="default: the pictures that ship")
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="folders that hold LR and HR")
    parser.add_argument("--pictures", type=at_least(1), help="of each set, at most")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), metavar="WAY")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    figures = compare_ways(
        args.checkpoint, args.precision, args.calibration, args.sets, ways=args.ways, pictures=args.pictures
    )
    say(_table(figures))
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def compare_ways(
    checkpoint: Path | None,
    precision: str,
    calibration: Path | None,
    sets: Sequence[Path],
    *,
    ways: Sequence[str] = tuple(WAYS),
    pictures: int | None = None,
) -> dict[str, Any]:
    """Prepare a net in each way and judge it.

    Args:
        checkpoint: None for the model that ships.
        precision: ``"int8"`` or ``"fp8"``.
        calibration: A folder of photographs; None for the pictures that ship.
        sets: Folders that hold LR and HR.
        ways: Of `WAYS`.
        pictures: Of each set, at most.

    Raises:
        CheckpointError: It cannot be read.
        MediaError: A folder holds nothing that can be used.
    """
    import copy

    import torch

    from esrgan_deploy.export._checkpoint import load_checkpoint
    from esrgan_deploy.export._source import describe_spec, shipped_checkpoint
    from esrgan_deploy.export.quantisation._options import QuantiseOptions
    from esrgan_deploy.export.quantisation._prepare import Preparation
    from esrgan_deploy.export.quantisation._quantise import pictures_for
    from esrgan_deploy.export.quantisation._simulation import Simulation, apply_parameters
    from esrgan_deploy.export.quantisation._structure import layers

    loaded = load_checkpoint(checkpoint or shipped_checkpoint())
    spec, net = loaded.spec, loaded.module().eval().requires_grad_(False)
    found = layers(spec)
    crops = pictures_for(spec, QuantiseOptions(calibration=calibration))
    judges = {name_of(folder): _judge(folder, spec.scale, net, pictures) for folder in sets}
    rows = []
    for way in ways:
        started = time.perf_counter()
        module = copy.deepcopy(net)
        work = Preparation(
            module=module,
            spec=spec,
            layers=found,
            kind=precision,
            options=QuantiseOptions(**WAYS[way]),
            pictures=crops.fit,
        )
        recipe = work.rounded(work.scaled())
        seconds = time.perf_counter() - started
        apply_parameters(module, recipe)
        simulation = Simulation(module, found, recipe, weights=way != ACTIVATIONS)
        with torch.inference_mode():
            losses = {name: held(simulation) for name, held in judges.items()}
        share = sum(one.macs for one in found if one.name in recipe.formats) / sum(one.macs for one in found)
        rows.append(
            {
                "way": way,
                "share": share,
                "seconds": seconds,
                "sets": {
                    name: {"loss_db": one.loss, "to_fp32_db": one.fidelity} for name, one in losses.items()
                },
            }
        )
    return {
        "environment": describe_machine(),
        "net": describe_spec(spec),
        "precision": precision,
        "calibration": crops.description,
        "fp32": {name: {"psnr_y": held.psnr_y, "pictures": len(held.pairs)} for name, held in judges.items()},
        "ways": rows,
    }


def _judge(folder: Path, scale: int, net: Any, pictures: int | None) -> Any:
    from esrgan_deploy.export.quantisation._loss import HeldLoss

    pairs = []
    for shown in pictures_of(folder, scale, most=pictures):
        height, width = (side * scale for side in shown.lr.shape[:2])
        # HR sides that are no multiple of the scale lose the rest: the LR pictures were made so.
        truth = None if shown.truth is None else shown.truth[None, :height, :width]
        pairs.append((shown.lr[None], truth))
    return HeldLoss.of_net(pairs, net)


def _table(figures: dict[str, Any]) -> str:
    sets = list(figures["fp32"])
    lines = [f"{figures['net']}, {figures['precision']}; {figures['calibration']}"]
    lines.append("; ".join(f"{name}: fp32 {figures['fp32'][name]['psnr_y']:.3f} dB" for name in sets))
    lines.append(
        f"{'way':40} {'share':>6} {'s':>5}" + "".join(f"  {name + ' lost/to fp32':>24}" for name in sets)
    )
    for row in figures["ways"]:
        cells = "".join(
            f"  {row['sets'][name]['loss_db']:+15.3f} / {row['sets'][name]['to_fp32_db']:6.2f}"
            for name in sets
        )
        lines.append(f"{row['way']:40} {row['share']:6.1%} {row['seconds']:5.0f}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
