"""``esrgan-train``."""

import argparse
import dataclasses
import importlib.resources
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from esrgan_deploy._console import Parser, between, one_line_errors, say, show
from esrgan_deploy._errors import TrainingError

__all__ = ["main"]


@one_line_errors("esrgan-train")
def main(arguments: Sequence[str] | None = None) -> int:
    """Train a generator, interpolate two, or print a recipe; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["interpolate"]:
        return _interpolate(arguments[1:])
    if arguments[:1] == ["recipe"]:
        return _recipe(arguments[1:])
    given = vars(_parser().parse_args(arguments))
    config_file = given.pop("config")
    from esrgan_deploy.training._config import read_config

    config = read_config(config_file, given)
    from esrgan_deploy.training._trainer import train

    trained = train(config, say=say)
    say(
        f"{trained.weights}: step {trained.steps}, {trained.seconds / 60:.1f} min, "
        f"{trained.waited:.1%} of them waiting for data. Next: esrgan-export {trained.weights}"
    )
    return 0


def _interpolate(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="esrgan-train interpolate",
        description="Write (1 - alpha) of the PSNR model plus alpha of the GAN model, weight by weight.",
    )
    parser.add_argument("psnr", type=Path, help="checkpoint of the PSNR-oriented stage")
    parser.add_argument("gan", type=Path, help="checkpoint of the GAN stage that started from it")
    parser.add_argument(
        "--alpha", type=between(0, 1), required=True, help="share of the GAN model, 0..1; ESRGAN shows 0.8"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a .safetensors that is not there yet"
    )
    args = parser.parse_args(arguments)
    from esrgan_deploy.training._interpolate import interpolate

    interpolate(args.psnr, args.gan, args.output, alpha=args.alpha)
    say(f"{args.output}: {1 - args.alpha:g} {args.psnr} + {args.alpha:g} {args.gan}")
    return 0


def _recipe(arguments: Sequence[str]) -> int:
    folder = importlib.resources.files("esrgan_deploy.training") / "recipes"
    recipes = {
        entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")
    }
    parser = Parser(
        prog="esrgan-train recipe",
        description="Print a recipe to start from: esrgan-train recipe NAME > train.yaml",
    )
    parser.add_argument(
        "name", choices=sorted(recipes), help="default_*: the model that ships; esrgan_*: the paper's"
    )
    show(recipes[parser.parse_args(arguments).name].read_text(encoding="utf-8").removesuffix("\n"))
    return 0


def _parser() -> argparse.ArgumentParser:
    from esrgan_deploy.training._config import TrainConfig, check_value

    def checked(name: str) -> Callable[[str], str]:
        def value(text: str) -> str:
            try:
                return check_value(name, text)
            except TrainingError as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        return value

    parser = Parser(
        prog="esrgan-train",
        allow_abbrev=False,
        description="Train an ESRGAN generator for esrgan-export. Every option below is also a key of the YAML "
        "file; the command line wins. Also `esrgan-train recipe NAME`, which prints one to start from, and "
        "`esrgan-train interpolate PSNR GAN --alpha A -o OUT`.",
    )
    parser.add_argument("config", nargs="?", type=Path, help="YAML file with any of the keys below")
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        required = field.default is dataclasses.MISSING
        default = "required" if required else f"default {_shown(field.default)}"
        options: dict[str, typing.Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{field.metadata['help']} ({default})",
        }
        if hints[field.name] is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = checked(field.name)
            options["metavar"] = "|".join(field.metadata["choices"]) or field.name.upper()
            if typing.get_origin(hints[field.name]) is tuple:
                options["nargs"] = "+"
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)
    return parser


def _shown(default: object) -> str:
    if default is None or default == ():
        return "none"
    return str(default)


if __name__ == "__main__":
    sys.exit(main())
