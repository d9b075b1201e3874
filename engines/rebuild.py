"""The command ``python -m esrgan_deploy.engines.rebuild out/model.fp16.plan``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from esrgan_deploy._command_line import option, read_options
from esrgan_deploy._console import note, one_line_errors, say
from esrgan_deploy._flavour import FLAVOURS

__all__ = ["main"]

COMMAND = "rebuild"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Command:
    """Build a plan again, from the graph that its manifest names and as it was built before."""

    plan: Path = option(
        positional=True, help="a .plan of esrgan-export, with its manifest and its .onnx beside it"
    )
    flavour: str | None = option(
        None,
        choices=("auto", *FLAVOURS),
        help="the TensorRT to build with (default: the one that built the plan)",
    )
    device: int | None = option(None, least=0, help="the GPU that it has to fit (default: the current one)")
    force: bool = option(False, help="build although the plan that is there fits")


@one_line_errors(COMMAND)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    prog = f"python -m esrgan_deploy.engines.{COMMAND}"
    command = read_options(
        _Command, arguments, prog=prog, epilog=f"example:\n  {prog} out/model.fp16.plan --device 1"
    )
    # Here, so that --help does not wait for numpy.
    from esrgan_deploy.engines._rebuild import rebuild_plan

    made = rebuild_plan(
        command.plan, flavour=command.flavour or "", device=command.device, force=command.force, say=note
    )
    if made is None:
        say(f"{command.plan} fits already; nothing was built (--force builds anyway)")
    else:
        say(f"{command.plan}: rebuilt with {made.flavour} {made.flavour_version} in {made.build_seconds} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
