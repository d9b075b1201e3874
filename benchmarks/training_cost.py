"""What a training costs: speed, time spent waiting for data, memory; and what the trainer adds to a bare loop.

    python -m esrgan_deploy.benchmarks.training_cost [--hr PICTURES] [--json FILE]

The ratio to the bare loop (forward, L1, backward, Adam over one fixed batch) is taken in one process, the two
in turns. Each variant runs in a process of its own, so that the peak of its memory is its own.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esrgan_deploy._console import Parser, at_least, one_line_errors, output_file, say
from esrgan_deploy._files import replaced_atomically

if TYPE_CHECKING:
    from esrgan_deploy.training import TrainConfig

__all__ = ["cost_of_variants", "main", "ratio_to_bare_loop", "speed_of_loader"]

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, checkpointing": {"checkpointing": True},
    "bf16": {"amp": "bf16"},
    "bf16, checkpointing": {"amp": "bf16", "checkpointing": True},
}

_PICTURES, _SIDE = 4, 512


@one_line_errors("training_cost")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.training_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hr", type=Path, help="folder of HR pictures (default: four of random blocks)")
    parser.add_argument("--features", type=at_least(1), default=32)
    parser.add_argument("--blocks", type=at_least(1), default=2)
    parser.add_argument("--growth", type=at_least(1), default=32)
    parser.add_argument("--batch", type=at_least(1), default=8)
    parser.add_argument("--crop", type=at_least(1), default=24, help="side of an LR crop (default: 24)")
    parser.add_argument("--steps", type=at_least(1), default=20, help="steps of each round (default: 20)")
    parser.add_argument("--rounds", type=at_least(1), default=9, help="rounds of the ratio (default: 9)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one is not None:
        print(json.dumps(_cost(json.loads(args.one))))
        return 0
    with tempfile.TemporaryDirectory(prefix="esrgan-cost-") as name:
        hr = args.hr if args.hr is not None else _random_pictures(Path(name) / "hr")
        keys = {
            "hr": [str(hr)],
            "cache": f"{name}/cache",
            "output": f"{name}/run",
            "steps": args.steps,
            **{key: getattr(args, key) for key in ("features", "blocks", "growth", "batch", "crop")},
            "save_every": args.steps,
            "log_every": args.steps,
        }
        figures: dict[str, Any] = {
            "machine": _machine(),
            "keys": {key: keys[key] for key in ("features", "blocks", "growth", "batch", "crop", "steps")},
            "ratio_to_bare_loop": ratio_to_bare_loop(keys, rounds=args.rounds),
            "loader_images_per_second": speed_of_loader(keys),
            "variants": cost_of_variants(keys, args.variants),
        }
    say(_table(figures))
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def ratio_to_bare_loop(keys: dict[str, Any], *, rounds: int) -> dict[str, Any]:
    """Run the trainer and a bare loop over the same module in turns.

    Args:
        keys: Of a training; ``output`` is a folder that may be written to.
        rounds: How often each runs; one more goes before, uncounted.

    Returns:
        ``{"median", "low", "high", "trainer": [images/s, ...], "bare": [images/s, ...]}``; a ratio is the
        trainer's speed over the bare loop's in the same round.
    """
    from esrgan_deploy.training import read_config, train

    trainer, bare = [], []
    for number in range(rounds + 1):
        config = read_config(None, keys | {"output": f"{keys['output']}-{number}"})
        trained, other = train(config, say=_quiet), _bare_loop(config)
        if number:
            trainer.append(trained.images_per_second)
            bare.append(other)
    ratios = [one / other for one, other in zip(trainer, bare, strict=True)]
    return {
        "median": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "trainer": trainer,
        "bare": bare,
    }


def cost_of_variants(keys: dict[str, Any], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Train some of `VARIANTS`, each in a process of its own.

    Returns:
        By name ``{"images_per_second", "waited", "peak_mib"}``: the share of time spent waiting for data, and
        the peak of device memory with a GPU, of the process' resident memory without.
    """
    costs = {}
    for number, name in enumerate(names):
        given = json.dumps(keys | VARIANTS[name] | {"output": f"{keys['output']}-variant-{number}"})
        command = [sys.executable, "-m", "esrgan_deploy.benchmarks.training_cost", "--one", given]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        costs[name] = json.loads(done.stdout)
    return costs


def speed_of_loader(keys: dict[str, Any], *, seconds: float = 3.0) -> dict[str, float]:
    """Cut crops on one core and throw them away: what a GPU may take before it waits, for each worker.

    Returns:
        HR crops per second by degradation.
    """
    from esrgan_deploy.training import read_config
    from esrgan_deploy.training._trainer import crops_of

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
    train(
        read_config(None, keys | {"output": f"{keys['output']}-warm", "steps": 3, "save_every": 3}),
        say=_quiet,
    )
    trained = train(read_config(None, keys), say=_quiet)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_of_process()
    return {
        "images_per_second": trained.images_per_second,
        "waited": trained.waited,
        "peak_mib": peak / 2**20,
    }


def _peak_of_process() -> int:
    # Linux first: there ru_maxrss begins with the size of the process that this one was forked from.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _bare_loop(config: "TrainConfig") -> float:
    import torch
    from torch.nn import functional

    from esrgan_deploy.training._generator import generator

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
    import numpy as np
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(_PICTURES):
        small = random.integers(0, 256, (_SIDE // 8, _SIDE // 8, 3), np.uint8)
        Image.fromarray(small.repeat(8, 0).repeat(8, 1)).save(folder / f"{number}.png")
    return folder


def _machine() -> dict[str, Any]:
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _table(figures: dict[str, Any]) -> str:
    ratio = figures["ratio_to_bare_loop"]
    keys, machine = figures["keys"], figures["machine"]
    lines = [
        f"{machine['gpu'] or machine['processor']}, torch {machine['torch']}, {machine['threads']} threads; "
        + ", ".join(f"{name} {value}" for name, value in keys.items()),
        f"trainer / bare loop: {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}, "
        f"{len(ratio['bare'])} rounds in turns)",
        "the loader alone, one worker: "
        + ", ".join(
            f"{name} {speed:.0f} images/s" for name, speed in figures["loader_images_per_second"].items()
        ),
        f"{'variant':22} {'images/s':>9} {'waited':>8} {'peak MiB':>9}",
    ]
    lines += [
        f"{name:22} {cost['images_per_second']:9.2f} {cost['waited']:8.1%} {cost['peak_mib']:9.0f}"
        for name, cost in figures["variants"].items()
    ]
    return "\n".join(lines)


def _quiet(_: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
