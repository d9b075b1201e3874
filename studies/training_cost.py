"""What does a training cost? Speed, time spent waiting for data, memory, and what the trainer adds to a bare loop.

Cited by docs/performance.md, "What a training costs", and docs/training.md, "What it costs":

    python -m studies training_cost --hr CID22/training --steps 25 --rounds 5 --variants fp32 "fp32, checkpointing"

The ratio to the bare loop (forward, L1, backward, Adam over one fixed batch) is taken in one process, the two
in turns. Each variant runs in a process of its own, so that the peak of its memory is its own: of the GPU where there
is one, else of the resident memory.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy.benchmarks.measure import host_peak
from studies._shared import Figures, apart
from studies._shared import table as as_table

if TYPE_CHECKING:
    from esrgan_deploy.training import TrainConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, checkpointing": {"checkpointing": True},
    "bf16": {"amp": "bf16"},
    "bf16, checkpointing": {"amp": "bf16", "checkpointing": True},
}
KEYS = {"features": 32, "blocks": 2, "growth": 32, "batch": 8, "crop": 24, "steps": 20}


def options(parser: Parser) -> None:
    parser.add_argument("--hr", type=Path, metavar="DIR", help="HR pictures (default: four of random blocks)")
    for key, default in KEYS.items():
        parser.add_argument(f"--{key}", type=at_least(1), default=default, help=f"default: {default}")
    parser.add_argument("--rounds", type=at_least(1), default=9, help="of the ratio (default: 9)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))


def run(args: argparse.Namespace) -> Figures:
    import torch

    asked = {key: getattr(args, key) for key in KEYS}
    with tempfile.TemporaryDirectory(prefix="esrgan-cost-") as name:
        hr = args.hr if args.hr is not None else _random_pictures(Path(name) / "hr")
        keys = asked | {"hr": [str(hr)], "cache": f"{name}/cache", "output": f"{name}/run"}
        keys |= {"save_every": args.steps, "log_every": args.steps}
        return {
            "threads": torch.get_num_threads(),
            "keys": asked,
            "ratio_to_bare_loop": _ratio_to_bare_loop(keys, args.rounds),
            "loader_images_per_second": _speed_of_loader(keys),
            "variants": {
                variant: apart(_cost, keys | VARIANTS[variant] | {"output": f"{name}/{number}"})
                for number, variant in enumerate(args.variants)
            },
        }


def table(figures: Figures) -> str:
    ratio, loader = figures["ratio_to_bare_loop"], figures["loader_images_per_second"]
    about = figures["environment"]
    on = ", ".join(gpu["name"] for gpu in about["gpus"]) or about["cpu"]
    rows = [
        (name, f"{cost['images_per_second']:.2f}", f"{cost['waited']:.1%}", f"{cost['peak_mib']:.0f}")
        for name, cost in figures["variants"].items()
    ]
    return (
        f"{on}, torch {about['packages']['torch']}, {figures['threads']} threads; "
        f"{', '.join(f'{key} {value}' for key, value in figures['keys'].items())}\n"
        f"trainer / bare loop: {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}, "
        f"{len(ratio['bare'])} rounds in turns)\n"
        f"the loader alone, one worker: {', '.join(f'{name} {speed:.0f}/s' for name, speed in loader.items())}\n\n"
        + as_table(("variant", "images/s", "waited", "peak MiB"), rows)
    )


def _ratio_to_bare_loop(keys: dict[str, Any], rounds: int) -> dict[str, Any]:
    from esrgan_deploy.training import read_config, train

    trainer, bare = [], []
    # The first goes uncounted.
    for number in range(rounds + 1):
        config = read_config(None, keys | {"output": f"{keys['output']}-{number}"})
        trainer.append(train(config, say=_quiet).images_per_second)
        bare.append(_bare_loop(config))
    ratios = [one / other for one, other in zip(trainer[1:], bare[1:], strict=True)]
    return {
        "median": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "trainer": trainer[1:],
        "bare": bare[1:],
    }


def _speed_of_loader(keys: dict[str, Any], seconds: float = 1.0) -> dict[str, float]:
    """Cut crops on one core and throw them away: what a GPU may take before it waits, for each worker."""
    from esrgan_deploy.training import crops_of, read_config

    speeds = {}
    for degradation in ("bicubic", "realesrgan"):
        crops = crops_of(read_config(None, keys | {"degradation": degradation}), _quiet)
        number, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            crops[number]
            number += 1
        speeds[degradation] = number / spent
    return speeds


def _cost(keys: dict[str, Any]) -> dict[str, float]:
    import torch

    from esrgan_deploy.training import read_config, train

    # The first steps prepare kernels and grow the heap.
    warm = {"output": f"{keys['output']}-warm", "steps": 3, "save_every": 3}
    train(read_config(None, keys | warm), say=_quiet)
    trained = train(read_config(None, keys), say=_quiet)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else host_peak() or 0
    return {
        "images_per_second": trained.images_per_second,
        "waited": trained.waited,
        "peak_mib": peak / 2**20,
    }


def _bare_loop(config: "TrainConfig") -> float:
    import torch
    from torch.nn import functional

    from esrgan_deploy.training.models import generator

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = generator(config).to(device)
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate, fused=True)
    lr = torch.rand(config.batch, 3, config.crop, config.crop, device=device)
    side = config.crop * config.scale
    hr = torch.rand(config.batch, 3, side, side, device=device)
    started = time.perf_counter()
    for _ in range(config.steps):
        loss = functional.l1_loss(net(lr), hr)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return config.steps * config.batch / (time.perf_counter() - started)


def _random_pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        small = random.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(small.repeat(8, 0).repeat(8, 1)).save(folder / f"{number}.png")
    return folder


def _quiet(_: str) -> None:
    pass
