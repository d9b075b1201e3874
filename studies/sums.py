"""How far is a net in fp16 whose sums are rounded to fp16 too, as some kernels of TensorRT's do?

Cited by docs/export.md, "What is verified":

    python -m studies sums default.safetensors RealESRGAN_x4plus.safetensors

Of each net in PyTorch, on the pictures that an export is held against: PSNR to fp32 with every tensor rounded, and
with each convolution's sum rounded after each 16 products besides; how many times the error that is, and what it uses
of the bounds of a plan, 1 being the bound. The exit status is 1 where it uses more than half.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from esrgan_deploy._command_line import Parser
from studies._shared import Figures
from studies._shared import table as as_table

PRODUCTS = 16
"""How many are added before the sum is rounded: the depth of one instruction."""


def options(parser: Parser) -> None:
    parser.add_argument("checkpoints", nargs="+", type=Path, help="of RRDBNets and SRVGGNetCompacts")


def run(args: argparse.Namespace) -> Figures:
    return {"rows": [row for path in args.checkpoints for row in _of(path)]}


def table(figures: Figures) -> str:
    heads = ("net", "on", "rounded dB", "sums too dB", "times the error", "off by more", "use")
    rows = [
        (row["net"], row["on"], f"{row['rounded']:.1f}", f"{row['psnr']:.1f}", f"{row['times']:.2f}",
         f"{row['off_by_more']:.2%}", f"{row['use']:.2f}")
        for row in figures["rows"]
    ]  # fmt: skip
    return as_table(heads, rows)


def within(figures: Figures) -> bool:
    return all(row["use"] <= 0.5 for row in figures["rows"])


def _of(path: Path) -> Iterator[dict[str, Any]]:
    from esrgan_deploy._parity import Comparer, beyond_rounding, planar
    from esrgan_deploy.export import load_checkpoint
    from esrgan_deploy.export.proof import (
        golden_pictures,
        noise_pictures,
        reference_of_module,
        reference_pairs,
        rounded_reference,
        rounding_costs,
    )

    loaded = load_checkpoint(path)
    module, channels = loaded.module().eval().requires_grad_(False), loaded.spec.in_channels
    pictures = {"noise": noise_pictures(channels), "golden": golden_pictures(channels)}
    sets = {on: reference_pairs(reference_of_module(module), chosen) for on, chosen in pictures.items()}
    rounded, costs = rounded_reference(module, "fp16"), rounding_costs(module, "fp16", sets)
    for on, pairs in sets.items():
        comparer = Comparer(on, "PyTorch, tensors and sums rounded to fp16", structure=False)
        for name, (picture, expected) in pairs.items():
            with _SumsInHalf():  # type: ignore[no-untyped-call]
                comparer.add(name, expected, rounded(planar(picture)))
        found, bound = comparer.result(), beyond_rounding(costs[on], sums=True)
        shift = max(abs(a - b) for a, b in zip(found.bias, bound.shift or found.bias, strict=True))
        yield {
            "net": path.stem.partition(".")[0],
            "on": on,
            "rounded": costs[on].psnr,
            "psnr": found.psnr,
            "times": found.rms / costs[on].rms,
            "off_by_more": found.off_by_more,
            "bias": found.bias,
            "use": max(10 ** ((bound.min_psnr - found.psnr) / 10), shift / bound.max_bias),
        }


class _SumsInHalf(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every 3x3 convolution of stride 1 rounds its sum to fp16 after each 16 products.

    An instruction of a tensor core multiplies exactly and adds 16 channels of one tap to an accumulator. One in fp16
    is what TensorRT takes where it is faster (kernels named f16f16_f16f16_f16); no processor here has it.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.ops.aten.convolution.default or tuple(args[1].shape[2:]) != (3, 3):
            return func(*args, **(kwargs or {}))
        given, weight, bias = args[:3]
        height, width = given.shape[2:]
        padded = functional.pad(given, [1] * 4)
        total = torch.zeros(len(given), len(weight), height, width)
        for y in range(3):
            for x in range(3):
                seen = padded[:, :, y : y + height, x : x + width]
                for first in range(0, weight.shape[1], PRODUCTS):
                    part = slice(first, first + PRODUCTS)
                    products = torch.einsum("oc,nchw->nohw", weight[:, part, y, x], seen[:, part])
                    total = (total + products).half().float()
        return total if bias is None else (total + bias[:, None, None]).half().float()
