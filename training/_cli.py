"""``esrgan-train``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from esrgan_deploy._command_line import STYLE, Parser, Version, add_options, filled, option
from esrgan_deploy._console import one_line_errors, say, show
from esrgan_deploy.training._config import TrainConfig

__all__ = ["main"]

_RECIPES = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """Train a generator for esrgan-export. Every flag is also a key of the YAML file; the command line wins."""

    config: Path | None = option(None, positional=True, help="YAML file with any of the keys below")
    keys: TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recipe:
    """Print a recipe to start from."""

    name: str = option(
        positional=True,
        choices=tuple(_RECIPES),
        help="default_*: the model that ships; esrgan_*: the paper's",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Interpolation:
    """Write (1 - alpha) of the PSNR model plus alpha of the GAN model, weight by weight."""

    psnr: Path = option(positional=True, help="checkpoint of the PSNR-oriented stage")
    gan: Path = option(positional=True, help="checkpoint of the GAN stage that started from it")
    alpha: float = option(least=0, most=1, help="share of the GAN model, 0..1; ESRGAN shows 0.8")
    output: Path = option(flags="-o --output", help="a .safetensors that is not there yet")


_COMMANDS = {
    "run": (_Run, "train.yaml --hr DIV2K,Flickr2K --validate Set5/x4 --output psnr --amp bf16"),
    "recipe": (_Recipe, "esrgan_psnr > train.yaml"),
    "interpolate": (
        _Interpolation,
        "psnr/model.safetensors gan/model.safetensors --alpha 0.8 -o model.safetensors",
    ),
}


@one_line_errors("esrgan-train")
def main(arguments: Sequence[str] | None = None) -> int:
    """Train a generator, interpolate two, or print a recipe; return the exit status."""
    typed = [*(sys.argv[1:] if arguments is None else arguments)]
    if typed and typed[0] not in (*_COMMANDS, "-h", "--help", "--version"):
        # As it was written before there were other commands.
        typed.insert(0, "run")
    given = vars(_parser().parse_args(typed))
    command = given.pop("command")
    if command == "recipe":
        show(_RECIPES[given["name"]].read_text(encoding="utf-8").removesuffix("\n"))
    elif command == "interpolate":
        _interpolate(filled(_Interpolation, given))
    else:
        _train(given.pop("config"), given)
    return 0


def _train(config_file: Path | None, keys: dict[str, object]) -> None:
    from esrgan_deploy.training._config import read_config
    from esrgan_deploy.training._trainer import train

    trained = train(read_config(config_file, keys), say=say)
    say(
        f"{trained.weights}: step {trained.steps}, {trained.seconds / 60:.1f} min, "
        f"{trained.waited:.1%} of them waiting for data. Next: esrgan-export {trained.weights}"
    )


def _interpolate(command: _Interpolation) -> None:
    from esrgan_deploy.training.models import interpolate

    interpolate(command.psnr, command.gan, command.output, alpha=command.alpha)
    say(f"{command.output}: {1 - command.alpha:g} {command.psnr} + {command.alpha:g} {command.gan}")


def _parser() -> Parser:
    example = (
        "example:\n  esrgan-train recipe esrgan_psnr > train.yaml\n  esrgan-train run " + _COMMANDS["run"][1]
    )
    parser = Parser(
        prog="esrgan-train", description="Train generators of the ESRGAN family.", epilog=example, **STYLE
    )
    parser.add_argument("--version", action=Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (options, example) in _COMMANDS.items():
        does = options.__doc__
        add_options(
            commands.add_parser(
                name,
                help=does,
                description=does,
                epilog=f"example:\n  esrgan-train {name} {example}",
                **STYLE,
            ),
            options,
            required=name != "run",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
