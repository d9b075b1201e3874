"""The command ``python -m esrgan_deploy.engines.rebuild out/model.fp16.plan``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from esrgan_deploy._console import Parser, at_least, note, one_line_errors, say
from esrgan_deploy._flavour import FLAVOURS

__all__ = ["main"]

COMMAND = "rebuild"


@one_line_errors(COMMAND)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    # Here, so that --help does not wait for numpy.
    from esrgan_deploy.engines._rebuild import rebuild_plan

    made = rebuild_plan(
        options.plan,
        flavour=options.flavour or "",
        device=options.device,
        force=options.force,
        say=note,
    )
    if made is None:
        say(f"{options.plan} fits already; nothing was built (--force builds anyway)")
    else:
        say(f"{options.plan}: rebuilt with {made.flavour} {made.flavour_version} in {made.build_seconds} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"python -m esrgan_deploy.engines.{COMMAND}",
        description="Build a plan again, from the graph that its manifest names and as it was built before.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("plan", type=Path, help="a .plan of esrgan-export, with its manifest and its .onnx beside it")
    add(
        "--flavour",
        choices=("auto", *FLAVOURS),
        help="the TensorRT to build with (default: the one that built the plan)",
    )
    add(
        "--device",
        type=at_least(0),
        metavar="N",
        help="the GPU that it has to fit (default: the current one)",
    )
    add("--force", action="store_true", help="build although the plan that is there fits")
    return parser


if __name__ == "__main__":
    sys.exit(main())
