"""What does the rounding of half precision cost real nets, and is a wrong graph told from it?

Cited by docs/export.md, "What is verified":

    python -m studies bounds x4plus.safetensors anime_6B.safetensors --pictures Kodak24

Of each net in fp16 and bf16: the graph with every tensor rounded against PyTorch in fp32, on noise of five seeds, on
the drawn pictures that every export is held against, and on crops of photographs; as it is, and with a fault planted
in front of the export. The verification's own bounds judge. The exit status is 1 where rounding alone is refused, or
a fault passes.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._command_line import Parser, at_least
from studies._shared import Figures
from studies._shared import table as as_table

PRECISIONS = ("fp16", "bf16")
SEEDS = 5


def options(parser: Parser) -> None:
    parser.add_argument("checkpoints", nargs="+", type=Path, help="of RRDBNets")
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="photographs")
    parser.add_argument("--limit", type=at_least(1), default=6, help="crops of 48x48 of these (default: 6)")


def run(args: argparse.Namespace) -> Figures:
    from esrgan_deploy.export import load_checkpoint

    rows = []
    for path in args.checkpoints:
        loaded = load_checkpoint(path)
        module = loaded.module().eval().requires_grad_(False)
        sets = _sets(module, loaded.spec.in_channels, args)
        for fault, plant in _faults().items():
            wrong = copy.deepcopy(module)
            plant(wrong)
            rows += [
                {
                    "net": path.stem,
                    "fault": fault,
                    "precision": precision,
                    **_judged(wrong, loaded.spec, precision, sets),
                }
                for precision in PRECISIONS
            ]
    return {"rows": rows}


def table(figures: Figures) -> str:
    heads = ("net", "precision", "fault", "on", "PSNR dB", "off by more", "shift", "refused")
    rows = [
        (row["net"], row["precision"], row["fault"], one["on"], f"{one['psnr']:.1f}", f"{one['off_by_more']:.3%}",
         f"{one['shift']:+.2f}", "yes" if one["breaches"] else "")
        for row in figures["rows"]
        for one in row["sets"]
    ]  # fmt: skip
    return as_table(heads, rows)


def within(figures: Figures) -> bool:
    return all(
        any(one["breaches"] for one in row["sets"]) == (row["fault"] != "none") for row in figures["rows"]
    )


def _sets(module: Any, channels: int, args: argparse.Namespace) -> dict[str, Any]:
    from esrgan_deploy.export.proof import golden_pictures, pictures_in, reference_of_module, reference_pairs

    shape = (1, 32, 32, channels)
    noise = {
        f"seed {seed}": np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for seed in range(SEEDS)
    }
    photographs = dict(list(pictures_in(args.pictures, channels, 1).items())[: args.limit])
    known = {
        **{f"noise {name}": {name: picture} for name, picture in noise.items()},
        "golden": golden_pictures(channels),
        "photographs": {name: picture[:, :48, :48] for name, picture in photographs.items()},
    }
    reference = reference_of_module(module)
    return {on: reference_pairs(reference, pictures) for on, pictures in known.items()}


def _faults() -> dict[str, Callable[[Any], None]]:
    return {
        "none": lambda module: None,
        "a weight of conv_hr": _weight,
        "the bias of conv_hr": lambda module: module.conv_hr.bias.zero_(),
        "two channels of conv_body": _channels,
        "conv_up2 moved by a pixel": lambda module: module.conv_up2.weight.copy_(
            module.conv_up2.weight.roll(1, 3)
        ),
    }


def _weight(module: Any) -> None:
    weight = module.conv_hr.weight
    weight.view(-1)[weight.abs().argmax()] *= -1


def _channels(module: Any) -> None:
    order = list(range(module.conv_body.weight.shape[0]))
    order[:2] = order[1], order[0]
    module.conv_body.weight.copy_(module.conv_body.weight[order].clone())
    module.conv_body.bias.copy_(module.conv_body.bias[order].clone())


def _judged(module: Any, spec: Any, precision: str, sets: dict[str, Any]) -> dict[str, Any]:
    from esrgan_deploy._parity import judged
    from esrgan_deploy.export.graphs import fold_scales, nest_concats, save, to_precision, trace
    from esrgan_deploy.export.proof import verify_graph

    graph = trace(module, spec)
    nest_concats(graph)
    fold_scales(graph)
    with tempfile.TemporaryDirectory(prefix="esrgan-bounds-") as folder:
        path = Path(folder) / "model.onnx"
        save(to_precision(graph, precision), path)
        figures, _ = judged(verify_graph(path, precision, sets), precision, "float")
    keep = ("on", "psnr", "off_by_more", "breaches")
    found = [{**{name: one[name] for name in keep}, "shift": max(one["bias"], key=abs)} for one in figures]
    return {"sets": found}
