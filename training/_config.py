"""What a training is told: one flat table of keys, in a YAML file, on the command line, or both."""

import argparse
import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

from esrgan_deploy._command_line import breaches, option
from esrgan_deploy._errors import TrainingError
from esrgan_deploy._optional import require

__all__ = ["TrainConfig", "read_config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every key of a training. The metadata of each field says what it does; `esrgan-train run --help` prints it.

    Raises:
        TrainingError: A value is not allowed; the message names the key, the value and what is.
    """

    output: Path = option(group="data", help="folder for the weights, the logs and the states to resume from")
    hr: tuple[Path, ...] = option(help="folders of HR pictures, searched with their subfolders")
    lr: tuple[Path, ...] = option(
        (), help="folders of LR pictures paired with --hr by path; left out, LR is made"
    )
    validate: Path | None = option(None, help="folder with HR and LR inside, measured as the papers do")
    cache: Path | None = option(None, help="folder for decoded pictures; OUTPUT/cache where left out")

    architecture: str = option(
        "rrdbnet", group="generator", help="the generator", choices=("rrdbnet", "srvggnetcompact")
    )
    scale: int = option(4, help="output pixels per input pixel and axis", least=1)
    features: int = option(64, help="width of the trunk (nf)", least=1)
    blocks: int = option(23, help="RRDBs, or body convolutions of srvggnetcompact (nb)", least=1)
    growth: int = option(32, help="channels that each dense convolution of rrdbnet adds (gc)", least=1)
    start: Path | None = option(
        None, help="checkpoint to start from; the GAN stage starts from the PSNR model"
    )
    teacher: Path | None = option(None, help="checkpoint whose pictures are learnt in place of the HR ones")

    teacher_weight: float = option(
        1.0, help="share of the teacher's picture in the L1; HR has the rest", least=0.0, most=1.0
    )

    stage: str = option(
        "psnr",
        group="steps and crops",
        help="psnr: L1 only; gan: L1, perceptual and relativistic GAN",
        choices=("psnr", "gan"),
    )
    steps: int = option(400_000, help="optimiser steps in all", least=1)
    batch: int = option(16, help="crops per step over all processes", least=1)
    accumulate: int = option(1, help="parts in which each process takes its share of a batch", least=1)
    crop: int = option(32, help="side of an LR crop in pixels", least=4)
    detail: int = option(
        1, help="crops drawn for each one used: the one with the most detail is taken", least=1
    )
    augment: bool = option(
        True, action=argparse.BooleanOptionalAction, help="flip and turn the crops (default: yes)"
    )
    degradation: str = option(
        "bicubic",
        help="how LR is made: antialiased bicubic, or Real-ESRGAN's two stages",
        choices=("bicubic", "realesrgan"),
    )

    learning_rate: float = option(
        2e-4,
        group="learning rate",
        help="of the generator and the discriminator, after the warm-up",
        above=0.0,
    )
    schedule: str = option("cosine", help="cosine to zero, or multistep", choices=("cosine", "multistep"))
    warmup: int = option(0, help="steps over which the learning rate rises from zero", least=0)
    milestones: tuple[int, ...] = option((), help="multistep: the rate is multiplied by gamma at these steps")
    gamma: float = option(0.5, help="multistep: the factor", above=0.0)
    clip: float = option(1.0, help="largest norm of the generator's gradient; 0 for no limit", least=0.0)
    ema: float = option(
        0.999, help="decay of the average of the weights that is shipped; 0 for none", least=0.0, below=1.0
    )

    pixel_weight: float = option(
        1.0, group="losses", help="weight of L1 (ESRGAN's GAN stage: 0.01)", least=0.0
    )
    perceptual_weight: float = option(
        1.0, help="weight of VGG19 conv5_4 in the GAN stage; 0 leaves it out", least=0.0
    )
    gan_weight: float = option(0.005, help="weight of the adversarial term in the GAN stage", least=0.0)
    vgg: Path | None = option(None, help="VGG19 weights; torchvision's cache is looked in where left out")
    discriminator: str = option(
        "vgg", help="vgg: ESRGAN's; unet: Real-ESRGAN's, with spectral norm", choices=("vgg", "unet")
    )
    discriminator_features: int = option(64, help="width of the discriminator", least=1)

    quantize: str = option(
        "no",
        group="numbers and machine",
        help="finetune --start under the rounding of a quantised export",
        choices=("no", "int8", "fp8"),
    )
    amp: str = option("no", help="mixed precision", choices=("no", "bf16", "fp16"))
    checkpointing: bool = option(
        False,
        action=argparse.BooleanOptionalAction,
        help="recompute each RRDB in the backward pass: less memory, same gradients",
    )
    workers: int | None = option(
        None, help="processes that cut crops; 0 on a CPU, up to 8 beside a GPU where left out", least=0
    )
    threads: int | None = option(None, help="threads of torch on the CPU", least=1)
    device: str | None = option(
        None,
        choices=("cpu",),
        help="cpu: train there even where there is a GPU (default: a GPU, if there is one)",
    )
    seed: int = option(0, help="of the weights and of every crop", least=0, most=2**63 - 1)

    log_every: int = option(100, group="logs and states", help="steps between two lines of progress", least=1)
    validate_every: int = option(5000, help="steps between two validations", least=1)
    save_every: int = option(5000, help="steps between two states", least=1)
    keep: int = option(2, help="states kept; older ones are removed", least=1)
    resume: bool = option(
        False, action=argparse.BooleanOptionalAction, help="go on from the newest state in OUTPUT"
    )

    def __post_init__(self) -> None:
        for breach in breaches(self):
            raise TrainingError(breach)
        if not self.hr:
            raise TrainingError("hr names no folder; give the HR pictures, such as --hr photographs")
        if self.batch % self.accumulate:
            raise TrainingError(
                f"batch is {self.batch} and accumulate {self.accumulate}; accumulate divides the batch"
            )
        if self.lr and self.degradation != "bicubic":
            raise TrainingError(
                f"lr gives the LR pictures and degradation {self.degradation} would make them; choose one"
            )
        if self.schedule == "multistep" and not self.milestones:
            raise TrainingError(
                "schedule is multistep and milestones is empty; give steps, such as --milestones 5000,8000"
            )
        if self.quantize != "no" and self.start is None:
            raise TrainingError(
                f"quantize is {self.quantize} and start names no model; give the fp32 one with --start"
            )
        if self.checkpointing and self.architecture != "rrdbnet":
            raise TrainingError(
                f"checkpointing recomputes RRDBs and architecture is {self.architecture}; leave it out"
            )


def read_config(path: Path | None, given: dict[str, Any]) -> TrainConfig:
    """Join a YAML file with values from the command line, which win.

    Args:
        path: A YAML file with one table; paths in it are relative to the working folder. None for none.
        given: Values by key; strings are read as the key's type.

    Raises:
        TrainingError: The file cannot be read, a key is unknown, a required one is missing or a value does
            not fit.
    """
    table = _table(path) if path is not None else {}
    known = {field.name: field for field in dataclasses.fields(TrainConfig)}
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise TrainingError(f"{path}: unknown key {name!r}; {hint}esrgan-train run --help lists the keys")
    table |= given
    missing = [
        name for name, field in known.items() if field.default is dataclasses.MISSING and name not in table
    ]
    if missing:
        raise TrainingError(
            f"{', '.join(missing)} not given; write it in the YAML file or on the command line, "
            "such as --hr photographs --output run"
        )
    hints = typing.get_type_hints(TrainConfig)
    return TrainConfig(**{name: _read_as(hints[name], name, value) for name, value in table.items()})


def _table(path: Path) -> dict[str, Any]:
    yaml = require("yaml", extra="training")
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    # A date that is none is a ValueError there, and a text of brackets alone a RecursionError.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TrainingError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(table, dict):
        raise TrainingError(f"{path} holds {type(table).__name__}; a training is one table of `key: value`")
    return table


def _read_as(kind: Any, name: str, value: Any) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _read_as(options[0], name, value)
    if origin is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_read_as(options[0], name, part) for part in values)
    try:
        return _converted(kind, value)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
        raise TrainingError(f"{name} is {value!r}; it is {wanted}") from error


def _converted(kind: Any, value: Any) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    # YAML 1.1 reads 2e-4 as a text; and a true is no number.
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise TypeError
    if kind in (str, Path) and (not isinstance(value, str | Path) or "\0" in str(value)):
        raise TypeError
    return kind(value)
