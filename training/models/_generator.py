"""The generator of a training: made as its configuration says, and started well or from a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esrgan_deploy._errors import CheckpointError, TrainingError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._optional import require
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.checkpoints import folder_name, load_checkpoint
from esrgan_deploy.export.nets import RRDB, RRDBNet, SRVGGNetCompact
from esrgan_deploy.training._config import TrainConfig

__all__ = [
    "differing_keys",
    "generator",
    "generator_of",
    "interpolate",
    "recompute_blocks",
    "spec_of",
    "teacher",
]


def interpolate(psnr: Path, gan: Path, output: Path, *, alpha: float) -> None:
    """Write ``(1 - alpha) · psnr + alpha · gan``, weight by weight, in float32.

    The two come from one training: the GAN stage starts from the PSNR model, and so their weights correspond.

    Args:
        psnr: Checkpoint of the PSNR-oriented stage.
        gan: Checkpoint of the GAN stage.
        output: A .safetensors to write; it must not be there yet.
        alpha: 0..1; ESRGAN shows pictures at 0.8.

    Raises:
        CheckpointError: One cannot be read, or they are not one architecture.
        TrainingError: alpha is out of range, or the output exists or is no .safetensors.
    """
    if not 0.0 <= alpha <= 1.0:
        raise TrainingError(f"alpha is {alpha}; it is a number from 0 (psnr) to 1 (gan)")
    if output.suffix != ".safetensors":
        raise TrainingError(
            f"{output} would be written as safetensors; name it {output.with_name(folder_name(str(output)))}"
            ".safetensors"
        )
    if output.exists():
        raise TrainingError(f"{output} exists; give another name")
    mixed = load_checkpoint(gan, denoise_strength=alpha, denoise_with=psnr)
    save_file = require("safetensors.torch", extra="training").save_file
    with replaced_atomically(output) as temporary:
        save_file(mixed.tensors, temporary)


def generator(config: TrainConfig) -> nn.Module:
    """Return the net to train, float32 on the CPU, with the seed's weights or those of ``config.start``.

    Raises:
        CheckpointError: ``config.start`` cannot be read, or is another architecture.
        TrainingError: The scale is none that the architecture has.
    """
    torch.manual_seed(config.seed)
    net = _bare(config)
    if config.start is None:
        _initialise(net)
        return net
    found = load_checkpoint(config.start).tensors
    wanted = net.state_dict()
    if differing := differing_keys(wanted, found):
        raise CheckpointError(f"{config.start} is another architecture than the one to train: {differing}")
    net.load_state_dict(found)
    return net


def generator_of(config: TrainConfig, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the net with these weights, which it shares, where they lie; nothing is drawn for it."""
    # In the midst of a training, random numbers are the training's, or those of the program that it runs in.
    with torch.device("meta"):
        net = _bare(config)
    net.load_state_dict(weights, assign=True)
    return net


def teacher(config: TrainConfig) -> nn.Module | None:
    """Return the frozen net of ``config.teacher``, of ``config.start`` where it is to be quantised, or None.

    Raises:
        CheckpointError: It cannot be read.
        TrainingError: It enlarges by another factor.
    """
    # A quantised net learns from the net that it was.
    path = config.start if config.teacher is None and config.quantize != "no" else config.teacher
    if path is None:
        return None
    found = load_checkpoint(path)
    if found.spec.scale != config.scale:
        raise TrainingError(
            f"{path} enlarges by {found.spec.scale} and scale is {config.scale}; they are equal"
        )
    return found.module()


def differing_keys(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Say which names and shapes differ between two sets of weights; an empty text if none does."""
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in (("missing", missing), ("too many", extra), ("of another shape", shapes))
        if names
    ]
    return "; ".join(parts)


def recompute_blocks(net: nn.Module) -> None:
    """Make each RRDB keep only its input and compute itself again in the backward pass."""
    for module in net.modules():
        if isinstance(module, RRDB):
            module.forward = _Recomputed(module.forward)  # type: ignore[method-assign]


class _Recomputed:
    def __init__(self, forward: object) -> None:
        self._forward = forward

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self._forward, x, use_reentrant=False)
        return out


def _bare(config: TrainConfig) -> nn.Module:
    try:
        spec = spec_of(config)
        return RRDBNet(spec) if config.architecture == "rrdbnet" else SRVGGNetCompact(spec)
    except ValueError as error:
        raise TrainingError(f"scale is {config.scale}; {error}") from error


def spec_of(config: TrainConfig) -> ModelSpec:
    """Return what the configuration asks for; the digest of its weights is not known yet."""
    return ModelSpec(
        architecture=config.architecture,
        scale=config.scale,
        in_channels=3,
        out_channels=3,
        features=config.features,
        blocks=config.blocks,
        growth=config.growth if config.architecture == "rrdbnet" else 0,
        source_sha256="",
    )


def _initialise(net: nn.Module) -> None:
    """Draw kernels small, as ESRGAN does, and let the picture itself through at the start.

    ESRGAN starts from Kaiming's initialisation times 0.1 and so from a black picture. Here three of the trunk's
    channels carry R, G and B to the end, smoothed after each enlargement, so that step 0 is an interpolation
    and the net begins with what is missing from it.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.2)
            module.weight.data *= 0.5
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    if isinstance(net, RRDBNet) and net.conv_hr.out_channels >= 3:
        _let_through(net)
    elif isinstance(net, SRVGGNetCompact):
        # It adds the nearest-neighbour picture already.
        last = net.body[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.data *= 0.1


@torch.no_grad()
def _let_through(net: RRDBNet) -> None:
    smooth = torch.tensor([0.25, 0.5, 0.25])
    kernel = smooth[:, None] * smooth[None, :]
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1.0
    enlarging = [getattr(net, f"conv_up{i}") for i in range(1, len(net.steps) + 1)]
    for conv, taps in (
        (net.conv_first, centre),
        *((up, kernel) for up in enlarging),
        (net.conv_hr, centre),
        (net.conv_last, centre),
    ):
        conv.weight[:3] = 0.0
        for channel in range(3):
            conv.weight[channel, channel] = taps
    net.conv_body.weight[:3] *= 0.1
