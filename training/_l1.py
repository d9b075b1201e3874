"""A plain L1 training of a small RRDBNet, for a time that you give.

It made the stand-in model that ships until a fully trained one replaces it:

    python -m esrgan_deploy.training._l1 --minutes 70 -o model.safetensors PICTURES...
"""

import argparse
import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from esrgan_deploy._optional import require
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export._rrdbnet import RRDBNet
from esrgan_deploy.training._bicubic import bicubic_downscale

_SCALE = 4


def main() -> int:
    """Train, and write fp16 weights with BasicSR's names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="+", type=Path, help="folders of HR pictures, searched for .png")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=70.0, help="the cosine schedule spans this time")
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--growth", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--crop", type=int, default=24, help="side of an LR crop in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    dice = random.Random(args.seed)  # noqa: S311 - crops, not secrets
    pairs = _load_pairs(args.pictures)
    print(f"{len(pairs)} pictures", flush=True)
    net = RRDBNet(
        ModelSpec(
            architecture="rrdbnet",
            scale=_SCALE,
            in_channels=3,
            out_channels=3,
            features=args.features,
            blocks=args.blocks,
            growth=args.growth,
            source_sha256="",
        )
    )
    _initialise(net)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.Adam(net.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
    started, step, shown, running = time.monotonic(), 0, 0.0, 0.0
    while (elapsed := time.monotonic() - started) < args.minutes * 60:
        rate = args.learning_rate * min(1.0, (step + 1) / 100)
        rate *= 0.5 + 0.5 * math.cos(math.pi * elapsed / (args.minutes * 60))
        for group in optimiser.param_groups:
            group["lr"] = rate
        lr, hr = _batch(pairs, args.batch, args.crop, dice)
        loss = functional.l1_loss(net(lr), hr)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            for name, value in net.state_dict().items():
                average[name].lerp_(value, 1 - min(0.999, step / (step + 10)))
        running = 0.98 * running + 0.02 * loss.item()
        if elapsed - shown > 60:
            shown = elapsed
            print(f"{elapsed / 60:5.1f} min  step {step}  L1 {running / (1 - 0.98**step):.5f}", flush=True)
            _save(average, args.output)
    _save(average, args.output)
    print(f"{step} steps, {args.output}")
    return 0


def _load_pairs(folders: list[Path]) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    image = require("PIL.Image", extra="media")
    pairs = []
    for folder in folders:
        for path in sorted(folder.rglob("*.png")):
            hr = np.asarray(image.open(path).convert("RGB"))
            hr = hr[: hr.shape[0] // _SCALE * _SCALE, : hr.shape[1] // _SCALE * _SCALE]
            pairs.append((bicubic_downscale(hr, _SCALE), hr))
    if not pairs:
        sys.exit(f"no .png under {', '.join(map(str, folders))}")
    return pairs


def _batch(
    pairs: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]],
    size: int,
    crop: int,
    dice: random.Random,
) -> tuple[torch.Tensor, torch.Tensor]:
    lrs, hrs = [], []
    for _ in range(size):
        lr, hr = dice.choice(pairs)
        y, x = dice.randrange(lr.shape[0] - crop + 1), dice.randrange(lr.shape[1] - crop + 1)
        a = lr[y : y + crop, x : x + crop]
        b = hr[y * _SCALE : (y + crop) * _SCALE, x * _SCALE : (x + crop) * _SCALE]
        turns, mirror = dice.randrange(4), dice.random() < 0.5
        a, b = np.rot90(a, turns), np.rot90(b, turns)
        if mirror:
            a, b = a[:, ::-1], b[:, ::-1]
        lrs.append(torch.from_numpy(a.copy()))
        hrs.append(torch.from_numpy(b.copy()))
    return _as_batch(lrs), _as_batch(hrs)


def _as_batch(pictures: list[torch.Tensor]) -> torch.Tensor:
    # NHWC in memory seen as NCHW is channels_last, the faster layout for these convolutions.
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 255.0


def _initialise(net: RRDBNet) -> None:
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.2)
            module.weight.data *= 0.1 if name == "conv_last" else 0.5
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    save_file = require("safetensors.torch", extra="export").save_file
    save_file({name: value.half().contiguous() for name, value in weights.items()}, path)


if __name__ == "__main__":
    sys.exit(main())
