"""The command ``esrgan-bench``."""

import argparse
import sys
from pathlib import Path

from esrgan_deploy._console import one_line_errors

__all__ = ["main"]


@one_line_errors("esrgan-bench")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    from esrgan_deploy.benchmarks._bench import BenchOptions, bench, save_results
    from esrgan_deploy.benchmarks._table import table

    options = BenchOptions(
        shape=args.shape,
        seconds=args.seconds,
        threads=args.threads,
        providers=tuple(args.provider) if args.provider else None,
        quality=args.quality,
    )
    if args.json is not None and not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.absolute().parent}")
    rows = bench(args.models, options)
    print(table(rows))
    if args.json is not None:
        save_results(rows, args.json, command=" ".join(["esrgan-bench", *(argv or sys.argv[1:])]))
        print(f"wrote {args.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esrgan-bench",
        description="Measure artefacts of esrgan-export: speed and memory, with the parity of the same file.",
    )
    parser.add_argument(
        "models", nargs="+", type=Path, metavar="MODEL", help=".onnx or .plan; several are measured in turns"
    )
    parser.add_argument(
        "--shape",
        type=_shape,
        default=(1, 256, 256),
        metavar="NxHxW",
        help="batch in LR pixels (default: 1x256x256)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        help="how long to measure, warm-ups not counted (default: 10)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of ONNX Runtime on the CPU (default: its own choice)",
    )
    parser.add_argument(
        "--provider", action="append", metavar="NAME", help="ONNX Runtime execution provider: cpu, cuda, …"
    )
    parser.add_argument("--quality", type=Path, metavar="DIR", help="PSNR and SSIM on DIR/LR against DIR/HR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw value and the environment")
    return parser


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 2:
        numbers = [1, *numbers]
    if len(numbers) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NxHxW or HxW, such as 1x256x256")
    return numbers[0], numbers[1], numbers[2]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
