"""Which way to choose scales and to round loses least? On one net, in PyTorch's simulation of the graph.

Cited by docs/quantisation.md, "Ways to choose scales and to round":

    python -m studies quantisation_methods [CHECKPOINT] --calibration CID22 --sets Set5/x4 BSD100/x4 --pictures 10

Everything but the first and the last convolution is quantised. Each way calibrates on the same crops and is judged on
the same pictures: PSNR-Y lost against the truth and PSNR to the fp32 picture. What is not quantised is fp32 here; the
graph, which rounds it to fp16, is judged by the study `quantisation`. Ways that lost are no longer in the export, and
not here: their figures are history.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

from esrgan_deploy._command_line import Parser, at_least
from studies._shared import Figures
from studies._shared import table as as_table
from studies.quantisation.judge import name_of, pictures_of

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


def options(parser: Parser) -> None:
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the model that ships")
    parser.add_argument("--precision", choices=("int8", "fp8"), default="int8")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="default: the pictures that ship")
    parser.add_argument(
        "--sets", type=Path, nargs="+", required=True, metavar="DIR", help="folders that hold LR and HR"
    )
    parser.add_argument("--pictures", type=at_least(1), metavar="N", help="of each set, at most")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), metavar="WAY")


def run(args: argparse.Namespace) -> Figures:
    import torch

    from esrgan_deploy.export import describe_spec, load_checkpoint, shipped_checkpoint
    from esrgan_deploy.export.nets import layers
    from esrgan_deploy.export.quantisation import (
        Preparation,
        QuantiseOptions,
        Simulation,
        apply_parameters,
        pictures_for,
    )

    loaded = load_checkpoint(args.checkpoint or shipped_checkpoint())
    spec, net = loaded.spec, loaded.module().eval().requires_grad_(False)
    found = layers(spec)
    crops = pictures_for(spec, QuantiseOptions(calibration=args.calibration))
    judges = {name_of(folder): _held(folder, spec.scale, net, args.pictures) for folder in args.sets}
    rows = []
    for way in args.ways:
        started = time.perf_counter()
        module = copy.deepcopy(net)
        work = Preparation(
            module=module,
            spec=spec,
            layers=found,
            kind=args.precision,
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
        sets = {name: {"loss_db": one.loss, "to_fp32_db": one.fidelity} for name, one in losses.items()}
        rows.append({"way": way, "share": share, "seconds": seconds, "sets": sets})
    return {
        "net": describe_spec(spec),
        "precision": args.precision,
        "calibration": crops.description,
        "fp32": {name: {"psnr_y": held.psnr_y, "pictures": len(held.pairs)} for name, held in judges.items()},
        "ways": rows,
    }


def table(figures: Figures) -> str:
    sets = figures["fp32"]
    fine = "; ".join(f"{name}: fp32 {one['psnr_y']:.3f} dB" for name, one in sets.items())
    heads = [f"{name} {what}" for name in sets for what in ("loss", "to fp32")]
    rows = []
    for row in figures["ways"]:
        cells = []
        for name in sets:
            cells += [f"{row['sets'][name]['loss_db']:+.3f}", f"{row['sets'][name]['to_fp32_db']:.2f}"]
        rows.append((row["way"], f"{row['share']:.1%}", *cells, f"{row['seconds']:.0f}"))
    head = f"{figures['net']}, {figures['precision']}; {figures['calibration']}\n{fine}\n\n"
    return head + as_table(("way", "quantised", *heads, "seconds"), rows)


def _held(folder: Path, scale: int, net: Any, pictures: int | None) -> Any:
    from esrgan_deploy.export.quantisation.search import HeldLoss

    pairs = []
    for shown in pictures_of(folder, scale, most=pictures):
        height, width = (side * scale for side in shown.lr.shape[:2])
        # HR sides that are no multiple of the scale lose the rest: the LR pictures were made so.
        truth = None if shown.truth is None else shown.truth[None, :height, :width]
        pairs.append((shown.lr[None], truth))
    return HeldLoss.of_net(pairs, net)
