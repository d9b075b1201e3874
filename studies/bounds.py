"""What does rounding cost real nets, does it pass the verification, and is a wrong graph told from it?

Cited by docs/export.md, "What is verified":

    python -m studies bounds default.safetensors RealESRGAN_x4plus.safetensors --pictures Kodak24

Of each net in fp32, fp16 and bf16, the graph that an export writes, every tensor really rounded: on noise of five
seeds, on each picture that an export draws and on crops of photographs as it is, and on the export's own pictures
with a fault planted. What is given is the use of the bounds: the largest of noise power, colour shift and share off
by more than a level over what each may be, 1 being the bound. The exit status is 1 where rounding uses more than
half, or where a fault is refused on none of the nets.
"""

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._command_line import Parser, at_least
from studies._faults import faults
from studies._shared import Figures
from studies._shared import table as as_table

PRECISIONS = ("fp32", "fp16", "bf16")
SEEDS = 5
SIDE = 40
DRAWN = ("edges", "gradient", "texture", "saturated")
MOST = 9999.0
"""Where a use of the bounds ends: a NaN uses up whatever there is."""


def options(parser: Parser) -> None:
    parser.add_argument("checkpoints", nargs="+", type=Path, help="of RRDBNets and SRVGGNetCompacts")
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="photographs")
    parser.add_argument(
        "--limit", type=at_least(1), default=6, help=f"crops of {SIDE}x{SIDE} of these (default: 6)"
    )


def run(args: argparse.Namespace) -> Figures:
    from esrgan_deploy.export import load_checkpoint
    from esrgan_deploy.export.graphs import clone, trace
    from esrgan_deploy.export.proof import reference_of_module, reference_pairs, rounding_costs

    rows = []
    for path in args.checkpoints:
        loaded = load_checkpoint(path)
        module = loaded.module().eval().requires_grad_(False)
        graph, reference = trace(module, loaded.spec), reference_of_module(module)
        sets = {
            on: reference_pairs(reference, pictures)
            for on, pictures in _pictures(args, loaded.spec.in_channels).items()
        }
        own = {on: sets[on] for on in ("noise", "golden")}
        for precision in PRECISIONS:
            costs = rounding_costs(module, precision, sets)
            row: dict[str, Any] = {"net": path.stem.partition(".")[0], "precision": precision}
            row["sets"] = list(_used(graph, precision, sets, costs))
            row["faults"] = {
                name: max(
                    _used(plant(clone(graph)), precision, own, costs, clip=clip), key=lambda one: one["use"]
                )
                for name, (plant, clip) in faults(loaded.spec).items()
            }
            rows.append(row)
    return {"rows": rows}


def table(figures: Figures) -> str:
    rounding = [
        (
            row["net"],
            row["precision"],
            *(_least(row["sets"], names) for names in ("noise", DRAWN, "photographs")),
            f"{max(one['off_by_more'] for one in row['sets']):.2%}",
            f"{max((one['shift'] for one in row['sets']), key=abs):+.2f}",
            f"{max(one['use'] for one in row['sets']):.2f}",
        )
        for row in figures["rows"]
    ]
    heads = (
        "net",
        "precision",
        "noise dB",
        "drawn dB",
        "photographs dB",
        "off by more",
        "shift",
        "use",
    )
    nets = list(dict.fromkeys(row["net"] for row in figures["rows"]))
    found: dict[str, dict[tuple[str, str], float]] = {}
    for row in figures["rows"]:
        for fault, one in row["faults"].items():
            found.setdefault(fault, {})[row["net"], row["precision"]] = one["use"]
    planted = [
        (fault, *(" / ".join(_use(uses.get((net, precision))) for precision in PRECISIONS) for net in nets))
        for fault, uses in found.items()
    ]
    return (
        f"{as_table(heads, rounding)}\n\n{as_table(('fault', *nets), planted)}\n\nin {', '.join(PRECISIONS)}"
    )


def within(figures: Figures) -> bool:
    rows = figures["rows"]
    caught = {fault for row in rows for fault, one in row["faults"].items() if one["use"] > 1}
    return all(one["use"] <= 0.5 for row in rows for one in row["sets"]) and all(
        fault in caught for row in rows for fault in row["faults"]
    )


def _pictures(args: argparse.Namespace, channels: int) -> dict[str, dict[str, Any]]:
    from esrgan_deploy.export.proof import golden_pictures, noise_pictures, pictures_in

    noise = {
        f"noise {seed}": np.random.default_rng(seed).integers(0, 256, (1, 32, 32, channels), np.uint8)
        for seed in range(SEEDS)
    }
    drawn = golden_pictures(channels)
    photographs = list(pictures_in(args.pictures, channels, 1).items())[: args.limit]
    return {
        **{name: {name: picture} for name, picture in noise.items()},
        "noise": noise_pictures(channels),
        **{name: {name: picture} for name, picture in drawn.items()},
        "golden": drawn,
        "photographs": {name: picture[:, :SIDE, :SIDE] for name, picture in photographs},
    }


def _used(
    graph: Any, precision: str, sets: dict[str, Any], costs: dict[str, Any], *, clip: bool = True
) -> Iterator[dict[str, Any]]:
    from esrgan_deploy._parity import BOUNDS, beyond_rounding
    from esrgan_deploy.export.graphs import (
        clone,
        fold_scales,
        form_for_plans,
        nest_concats,
        save,
        to_precision,
        to_uint8_form,
    )
    from esrgan_deploy.export.proof import verify_graph

    graph = clone(graph)
    nest_concats(graph)
    fold_scales(graph)
    form_for_plans(graph, precision)
    graph = to_precision(graph, precision)
    outer = BOUNDS[precision]
    if not clip:
        to_uint8_form(graph)
        outer = dataclasses.replace(outer, max_abs=None)
        clipped = next(node for node in graph.graph if node.op_type == "Clip")
        clipped.outputs[0].replace_all_uses_with(clipped.inputs[0])
    with tempfile.TemporaryDirectory(prefix="esrgan-bounds-") as folder:
        path = Path(folder) / "model.onnx"
        save(graph, path)
        comparisons = verify_graph(path, precision, sets)
    for one in comparisons:
        cost = costs.get(one.on)
        bounds = [outer] if cost is None else [outer, beyond_rounding(cost)]
        yield {
            "on": one.on,
            "rounding": None if cost is None else _finite(cost.psnr),
            "psnr": _finite(one.psnr),
            "off_by_more": one.off_by_more,
            "shift": max(one.bias, key=abs) if one.finite else MOST,
            "max_abs": one.max_abs if one.finite else MOST,
            "use": max(_use_of(one, bound) for bound in bounds),
        }


def _use_of(one: Any, bound: Any) -> float:
    if not one.finite:
        return MOST
    shift = bound.shift or (0.0,) * len(one.bias)
    away = max(abs(mean - expected) for mean, expected in zip(one.bias, shift, strict=True))
    parts = [
        10 ** ((bound.min_psnr - one.psnr) / 10),
        away / bound.max_bias,
        0.0 if bound.max_abs is None else one.max_abs / bound.max_abs,
    ]
    if one.off_by_more:
        allowed = 1 - bound.min_within_one
        parts.append(one.off_by_more / allowed if allowed > 0 else math.inf)
    return float(min(max(parts), MOST))


def _least(sets: list[dict[str, Any]], names: str | tuple[str, ...]) -> str:
    """Return the lowest PSNR of a graph, and in brackets that of rounding alone on the same pictures."""
    low = min((one for one in sets if one["on"].startswith(names)), key=lambda one: one["psnr"] or math.inf)
    return f"{_number(low['psnr'], '{:.1f}')} ({_number(low['rounding'], '{:.1f}')})"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _use(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
